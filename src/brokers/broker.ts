/**
 * The contract of brokers. A broker gives published events an order, keeps them in a log, and sends
 * them to the nodes of a registry. Types only.
 */
import type { Cursor } from '../protocol/cursor.ts';
import type { HistoryLimits, LogRead } from '../log/log.ts';
import type { LogEntry } from '../log/log-entry.ts';

/**
 * An event to publish, the end of a channel, or both as one step. The fields are validated, and the
 * data is text.
 */
export interface Publication {
  readonly channel: string;
  /** Event type; `undefined` means `message`. */
  readonly event: string | undefined;
  /** `undefined` only if `isEnd`: the channel ends without a last event. */
  readonly data: string | undefined;
  /** Reconnection time in ms. */
  readonly retry: number | undefined;
  /**
   * An idempotency key. Within five minutes, publications with the same key are published once in
   * the channel. Later calls return the first id.
   */
  readonly key: string | undefined;
  /** The `meta` of the event as JSON, which clients do not receive. @defaultValue none */
  readonly meta?: string | undefined;
  /** Whether the channel ends after the event. @defaultValue `false` */
  readonly isEnd?: boolean | undefined;
  /** How much of the channel is kept. With `false` nothing is kept, and the event has no id. */
  readonly history: HistoryLimits | false;
}

/** Events of some channels, and the state of the log when they were read. */
export interface Page extends LogRead {
  /** The position of the log when it was read. */
  readonly position: Cursor;
  /**
   * The offset at which the log has continued after it last went back, for example because a
   * database has restarted from an older copy. Entries before this offset may be lost, even if
   * their `append` has resolved and `trimmed` does not show their loss.
   * @defaultValue the log has never gone back
   */
  readonly resumedAt?: number | undefined;
}

/** The callbacks by which a broker notifies its registry on this node. They never throw. */
export interface Receiver {
  /** Called with each entry of a channel that the node listens to. */
  receive(entry: LogEntry): void;
  /** Returns whether this node needs the entries of the channel. */
  follows(channel: string): boolean;
  /**
   * Called when the node may have missed entries. Entries that are received afterwards do not show
   * that no entry is missing before them; only a `read` that is requested afterwards does. Only
   * remote brokers call this, after a broken connection, a missed message or the loss of the log.
   * During the call, {@link Broker.head} is still the offset up to which no entry was missed.
   */
  interrupted(): void;
}

/** Limits over all channels of a log. */
export interface LogBounds {
  /** Maximum bytes of all events. */
  readonly maxHistory: number;
  /** Maximum number of channels. */
  readonly maxChannels: number;
}

/**
 * The state of a channel, the same on all nodes:
 *
 * - `'unknown'` if no entry of the channel is kept: nothing was published, or all entries were
 *   cleared, have exceeded their age or were forgotten
 * - `'ended'` if the newest entry that is kept is the end of the channel
 * - `'open'` if the newest entry that is kept is an event
 */
export type ChannelState = 'unknown' | 'open' | 'ended';

/** A hold on a channel, see {@link Broker.hold}. */
export interface Lease {
  /** Called after the channel was ended: the lease is not needed any more. */
  release(): void;
  /**
   * This process publishes nothing more and could not end the channel. The lease is renewed no
   * longer; when it runs out, the channel is ended, unless it is held again.
   */
  abandon(): void;
}

/**
 * The state of a broker:
 *
 * - `'connecting'` until it works for the first time
 * - `'open'` while it works
 * - `'broken'` while it cannot be reached, or while this node has missed something
 * - `'closed'` after `close()`
 */
export type BrokerState = 'connecting' | 'open' | 'broken' | 'closed';

/**
 * A broker belongs to one registry on one node. The guarantees hold for all nodes that share a log.
 *
 * **Order.** The offset of an entry is greater than the offset of every earlier entry in any
 * channel. Appends of one process are in the order of the calls. A node receives the entries of all
 * channels that it listens to in the order of their offsets, each entry once.
 *
 * **Atomicity.** An append assigns the offset, keeps the entry and sends the entry to the nodes, or
 * does none of it. If it fails in between, it rejects with the delivery `'unknown'`, and the nodes
 * find the entry in the log later. A read always finds an entry that has been received. If a read
 * finds an entry, then it also finds all earlier entries.
 *
 * **Loss.** `trimmed` of a channel is the offset of its newest event that is no longer kept, even
 * if no event of the channel is kept. A reader has lost an event of the channel exactly if its
 * cursor is below `trimmed`. For an unknown channel, which may be a forgotten one, `trimmed` is the
 * floor: the newest offset of any forgotten channel. After the loss of a log, the new log has
 * another epoch. After the loss of its newest entries, the log continues at `resumedAt`, which is
 * greater than any offset that was used before.
 *
 * **Ends.** The end of a channel is an entry with an offset, which counts for the limits of the
 * history. While it is kept, nothing can be appended to the channel. An append of an event and the
 * end of its channel gives each an offset, in this order. A newest-only channel keeps its newest
 * event beside its end. `clear` removes the end with the events.
 *
 * **Closed.** After `close()` nothing is received, and `append`, `read`, `position`, `channelState`
 * and `clear` reject or throw with the code `ERR_SSE_CLOSED`.
 */
export interface Broker {
  readonly state: BrokerState;
  /** Offset up to which this node has received all entries of the channels that it listens to. */
  readonly head: number;
  /** Number and bytes of the events in the memory of this node. */
  readonly held: { readonly events: number; readonly bytes: number };
  /**
   * Called once by the registry, before any other method.
   * @throws {SseError} `ERR_SSE_OTHER_REGISTRY` if the broker has been opened before
   */
  open(receiver: Receiver, bounds: LogBounds): void;
  /**
   * Publishes an event, the end of the channel, or both. A broker in this process calls `receive`
   * before it returns.
   * @returns the id of the event, or of the end if there is one; `''` on a channel without history.
   * An end without an event, of a channel that has ended, resolves with the id of the first end.
   * Rejects with `ERR_SSE_ENDED` if the channel has ended, with `ERR_SSE_BROKER` if the event was
   * not accepted, or with `ERR_SSE_CLOSED`
   */
  append(publication: Publication): Promise<{ id: string }>;
  /**
   * Starts to receive the entries of a channel.
   * @returns `undefined` if entries are received from now on; otherwise a promise that resolves
   * when they are
   */
  listen(channel: string): Promise<void> | undefined;
  /** Ends `listen`: this node does not need the entries of the channel any more. */
  unlisten(channel: string): void;
  /**
   * The position of this node in the log: the place up to which it has received entries. This place
   * is never before an entry that the node has appended itself.
   * @param atLeast the cursor of a client. The answer comes when this node has reached the cursor.
   * If the head of the log is before the cursor, the answer is the head of the log
   * @param signal ends the wait: the promise rejects at once with the reason of the signal, and its
   * memory is released. Without a signal, the promise rejects with `ERR_SSE_BROKER` if the log is
   * unreachable for some seconds. A broker that answers at once ignores the signal
   */
  position(atLeast?: Cursor, signal?: AbortSignal): Cursor | Promise<Cursor>;
  /**
   * Reads the entries after an offset, of all the channels merged. A page that is returned at
   * once, not in a promise, stays valid for the rest of the turn of the event loop. A broker in
   * this process always returns the page at once.
   * @param maxBytes maximum bytes of all frames. If the log has entries after the offset, the page
   * has at least one of them
   * @param signal ends the wait, as for `position`
   */
  read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal?: AbortSignal,
  ): Page | Promise<Page>;
  /** Counts the events after an offset that are in the memory of this node, ends not counted. */
  countHeld(channels: readonly string[], after: number): number;
  /**
   * Finds where the newest events of channels begin.
   * @param count number of events of each channel
   * @returns for each channel, the offset after which its newest `count` events come, ends not
   * counted; 0 if the log keeps fewer. Rejects as {@link position} does
   */
  startsOfNewest(
    channels: readonly string[],
    count: number,
    signal?: AbortSignal,
  ): readonly number[] | Promise<readonly number[]>;
  /**
   * The state of a channel in the log, whether or not this node listens to it. Rejects as
   * {@link position} does without a signal.
   */
  channelState(channel: string): Promise<ChannelState>;
  /**
   * Holds a channel while this process publishes to it. If the process dies, another node ends the
   * channel after some time. `undefined` for a broker whose log ends with the process.
   * @param history as in a {@link Publication} to the channel
   */
  hold?(channel: string, history: HistoryLimits): Lease;
  /** Deletes the events of a channel. Readers that have not received these events get a gap. */
  clear(channel: string): Promise<void>;
  /** Releases all resources. Calling it again has no effect. */
  close(): Promise<void>;
}
