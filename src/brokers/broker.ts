/** Where published events get their order and are kept, and how nodes hear of each other. Types only. */
import type { Cursor } from '../protocol/cursor.ts';
import type { HistoryLimits, LogRead } from '../log/log.ts';
import type { LogEntry } from '../log/log-entry.ts';

/** What is published, validated and as text. */
export interface Publication {
  readonly channel: string;
  /** Event type; `undefined` is `message`. */
  readonly event: string | undefined;
  readonly data: string;
  /** Reconnection time in ms. */
  readonly retry: number | undefined;
  /** Within five minutes the same key publishes once in this channel; later calls get the first id. */
  readonly key: string | undefined;
  /** How much of the channel is kept; `false` keeps nothing, and the event has no id. */
  readonly history: HistoryLimits | false;
}

/** What the channels held, and where the log stood when they were read. */
export interface Page extends LogRead {
  readonly position: Cursor;
}

/** What a broker tells its registry, on this node. */
export interface Receiver {
  /** An entry of a channel that is listened to. Never throws. */
  receive(entry: LogEntry): void;
  /** Whether a channel is listened to. */
  follows(channel: string): boolean;
  /**
   * The node may have missed something: until a `read` has answered, nothing that is received proves anything about what came
   * before it. Of a broker elsewhere only, after a broken connection, a hole or the loss of the log. Never throws.
   */
  interrupted(): void;
}

/** Bounds over all channels. */
export interface LogBounds {
  readonly maxHistory: number;
  readonly maxChannels: number;
}

/**
 * How a broker is doing: `'connecting'` until it works for the first time, `'broken'` while it cannot be reached or this node has
 * missed something, and `'closed'` for good.
 */
export type BrokerState = 'connecting' | 'open' | 'broken' | 'closed';

/**
 * A broker belongs to one registry, on this node. What follows holds for all of its nodes together.
 *
 * **Order.** An entry's offset is greater than that of every entry before it, in whatever channel. Appends of one process are
 * in the order of the calls. A node receives the entries of all the channels it listens to in the order of their offsets, each once.
 *
 * **Atomicity.** Appending gives the offset, keeps the entry and sends it on its way to the nodes, or none of it. There is no
 * moment at which a read does not find an entry that has been received, nor one at which a later entry is found and an
 * earlier one is still to come.
 *
 * **Loss.** `trimmed` of a channel is the offset of its newest event that is no longer kept, also when nothing of it is kept:
 * a reader at a cursor has lost something of it exactly if its cursor is below that. Of a channel that was forgotten, and so of
 * every unknown one, it is the floor, the newest offset of any forgotten channel. A log that was lost is a new epoch.
 *
 * **Closed.** After `close()` nothing is received, and `append`, `read` and `position` reject or throw.
 */
export interface Broker {
  readonly state: BrokerState;
  /** The offset up to which this node has received all there is of the channels it listens to. */
  readonly head: number;
  /** What it keeps, on this node. */
  readonly held: { readonly events: number; readonly bytes: number };
  /** Called once, by the registry, before anything else. */
  open(receiver: Receiver, bounds: LogBounds): void;
  /**
   * An embedded broker calls `receive` before it returns.
   * @returns the id; `''` on a channel without history
   */
  append(publication: Publication): Promise<{ id: string }>;
  /** From here on entries of the channel are received: at once where nothing is returned, else when the promise resolves. */
  listen(channel: string): Promise<void> | undefined;
  /** Entries of the channel need not be received any more. */
  unlisten(channel: string): void;
  /**
   * Where the log stands: as far as this node has received it, and never before what it has appended itself.
   * @param atLeast a client's cursor: the answer waits until this node has come so far, unless the log has not; then the log's
   * own head is the answer, below it
   * @param signal ends the wait: the promise rejects at once with the signal's reason, and nothing of it stays in memory.
   * Without one it rejects with `ERR_SSE_BROKER` where the log cannot be reached for some seconds. A broker that answers at
   * once has no use for it
   */
  position(atLeast?: Cursor, signal?: AbortSignal): Cursor | Promise<Cursor>;
  /**
   * Entries beyond the offset, of all these channels merged. What was returned at once, not in a promise, still holds for the
   * rest of the turn; an embedded broker always does.
   * @param maxBytes at most so many bytes of frames, but at least one entry
   * @param signal ends the wait, as in `position`
   */
  read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal?: AbortSignal,
  ): Page | Promise<Page>;
  /** Forgets what the channel holds, on every node; told as a gap to whoever has not got it yet. */
  clear(channel: string): Promise<void>;
  close(): Promise<void>;
}
