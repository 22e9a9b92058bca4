/** The connection of a node on which messages are received. */
import { withLimits } from '../../common/async.ts';
import type { RedisListener, RedisSubscriber } from './node-redis.ts';
import type { RedisConnection } from './redis-connection.ts';
import { timeoutError } from './redis-errors.ts';
import type { Topics } from './topics.ts';

// Events of node-redis after which messages may have been missed.
const CHANGE_EVENTS = ['end', 'reconnecting', 'topology-change', 'sharded-channel-moved'];

/** A connection that subscribes. After it has broken, it is replaced by a new object. */
export class SubscriberConnection {
  readonly #connection: RedisConnection;
  readonly #topics: Topics;
  readonly #timeoutMs: number;
  readonly #listener: RedisListener;
  readonly #broken = new AbortController();
  #client: RedisSubscriber | undefined;

  /**
   * @param timeoutMs time in ms within which Redis must answer
   * @param onMessage called with each message until the connection breaks; `channel` is `undefined`
   * for a header
   */
  constructor(
    connection: RedisConnection,
    topics: Topics,
    timeoutMs: number,
    onMessage: (channel: string | undefined, text: string) => void,
  ) {
    this.#connection = connection;
    this.#topics = topics;
    this.#timeoutMs = timeoutMs;
    this.#listener = (text, topic) => {
      if (this.broken.aborted) return;
      onMessage(topic === topics.headers ? undefined : topics.channelOf(topic), text);
    };
  }

  /** Aborted when the connection breaks or is closed. The reason is the error. */
  get broken(): AbortSignal {
    return this.#broken.signal;
  }

  /** Makes a client and connects it. Rejects after the timeout, or when the connection breaks. */
  async connect(): Promise<void> {
    const client = await this.#answerOf(this.#connection.subscriber());
    this.#client = client;
    // This listener is never removed: an 'error' event without a listener would end the process.
    client.on('error', (error) => this.#break(error));
    const connecting = client.connect();
    // If this connection is closed meanwhile, the client must not stay connected.
    connecting.then(() => this.broken.aborted && this.#destroy()).catch(() => {});
    await this.#answerOf(connecting);
    for (const event of CHANGE_EVENTS) {
      client.on(event, () =>
        this.#break(new Error(`the connection to Redis has changed: ${event}`)),
      );
    }
  }

  /** Resolves when Redis has confirmed the subscription to headers. */
  async subscribeHeaders(): Promise<void> {
    await this.#subscribe([this.#topics.headers]);
  }

  /** Resolves when Redis has confirmed the subscriptions to these channels. */
  async subscribe(channels: readonly string[]): Promise<void> {
    await this.#subscribe(channels.map((channel) => this.#topics.topicOf(channel)));
  }

  async #subscribe(topics: string[]): Promise<void> {
    const client = this.#client as RedisSubscriber;
    await this.#answerOf(
      this.#connection.isSharded
        ? client.sSubscribe(topics, this.#listener)
        : client.subscribe(topics, this.#listener),
    );
  }

  /** Unsubscribes from channels. A failure breaks the connection. */
  unsubscribe(channels: readonly string[]): void {
    const client = this.#client;
    if (client === undefined || this.broken.aborted) return;
    const topics = channels.map((channel) => this.#topics.topicOf(channel));
    const done = this.#connection.isSharded
      ? client.sUnsubscribe(topics, this.#listener)
      : client.unsubscribe(topics, this.#listener);
    done.catch((error: unknown) => this.#break(error));
  }

  /** Closes the connection. Nothing is received after this call. */
  close(): void {
    this.#break(new Error('the subscriber connection is closed'));
    // Also after the connection has broken: its client still has timers.
    this.#destroy();
  }

  #break(error: unknown): void {
    this.#broken.abort(
      error instanceof Error
        ? error
        : new Error('the connection to Redis has failed', { cause: error }),
    );
  }

  #destroy(): void {
    const client = this.#client;
    if (client === undefined) return;
    // A client that is closed already throws or rejects.
    Promise.resolve()
      .then(() => client.destroy())
      .catch(() => {});
  }

  /** Waits for an answer of Redis, within the timeout and as long as the connection works. */
  #answerOf<T>(answer: Promise<T>): Promise<T> {
    return withLimits(answer, {
      signal: this.broken,
      timeoutMs: this.#timeoutMs,
      timeoutError,
    });
  }
}
