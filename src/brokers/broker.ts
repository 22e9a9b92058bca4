/** Where published events get their order, and how nodes hear of each other. Types only. */

/** What is published, validated and as text. */
export interface Publication {
  readonly channel: string;
  /** Event type; `undefined` is `message`. */
  readonly event: string | undefined;
  readonly data: string;
  /** Reconnection time in ms. */
  readonly retry: number | undefined;
}

/** A publication with its place in the log. */
export interface LogEntry extends Publication {
  /** Grows across the whole registry, from 1. */
  readonly offset: number;
  /** `<epoch>.<offset>`: the epoch names the log, so that a lost one is not mistaken for the next. */
  readonly id: string;
}

/**
 * A broker belongs to one registry, on this node.
 *
 * **Order.** Appends of one process are in the order of the calls. Every listening node receives the entries of a channel
 * in the order of their offsets, each once.
 *
 * **Atomicity.** An entry has its offset, is in the log and is on its way to the nodes, or none of it.
 *
 * **Closed.** After `close()` nothing is received any more, and `append` rejects.
 */
export interface Broker {
  /**
   * Called once, by the registry, before anything else.
   * @param receive called for each entry of a channel that is listened to; never throws
   */
  open(receive: (entry: LogEntry) => void): void;
  /** Appends and delivers. An embedded broker calls `receive` before it returns. */
  append(publication: Publication): Promise<LogEntry>;
  /** From here on entries of the channel are received: at once where nothing is returned, else when the promise resolves. */
  listen(channel: string): Promise<void> | undefined;
  /** Entries of the channel need not be received any more. */
  unlisten(channel: string): void;
  /** The offset that every later entry is above, as far as this node knows. */
  readonly head: number;
  close(): Promise<void>;
}
