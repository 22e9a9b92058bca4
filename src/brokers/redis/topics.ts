/**
 * The names of the Pub/Sub channels of Redis that a registry uses. They are called topics here,
 * because "channel" means a channel of the registry.
 *
 *     <base>:spine          headers of all publishes; the word is the old name of the headers
 *     <base>:c:<channel>    events of one channel
 */
export class Topics {
  /** Number of the database in Redis. */
  readonly database: number;
  /** The beginning of all topics. */
  readonly base: string;
  /** The topic of headers. */
  readonly headers: string;

  /**
   * Pub/Sub is shared by all databases of a Redis server, so the number of the database is part of
   * the names. In database 0 the number is left out, as in the first versions of the library.
   * @param base the beginning of all keys, `{prefix}`
   */
  constructor(base: string, database: number) {
    this.database = database;
    this.base = database === 0 ? base : `${base}:${database}`;
    this.headers = `${this.base}:spine`;
  }

  /** @returns the topic of a channel */
  topicOf(channel: string): string {
    return `${this.base}:c:${channel}`;
  }

  /** @returns the channel of a topic that {@link topicOf} has made */
  channelOf(topic: string): string {
    return topic.slice(this.base.length + 3);
  }
}
