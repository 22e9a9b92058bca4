/**
 * Types that `stream/` and `channels/` share. `channels/` imports `stream/`, so a stream knows its
 * follower only through the interface in this file.
 */
import type { GzipTotals } from '../protocol/gzip.ts';

/** A loss of events: published in followed channels, not yet received, and no longer kept. */
export interface Gap {
  /** The channels that lost events. */
  readonly channels: readonly string[];
  /**
   * The last event ID that the client received. At the start of a stream, and after the log was
   * replaced by another one, the id comes from the request and is untrusted input.
   */
  readonly lastEventId: string;
  /**
   * The id of the newest event in the log, read before the handler was called. Return this cursor
   * after sending a snapshot.
   */
  readonly cursor: string;
}

/** The situation in which a `snapshot` is called. */
export interface SnapshotRequest extends Gap {
  /**
   * `'start'` for a reader that sends no last event ID (`lastEventId` is `''`); `'gap'` if the
   * reader has lost events.
   */
  readonly reason: 'start' | 'gap';
}

/** The result of `stream.subscribe()`. */
export interface Subscription {
  /** The names of the channels, each once. */
  readonly channels: readonly string[];
  /** Whether no event was lost before the start of the subscription. */
  readonly recovered: boolean;
  /** Number of gaps so far, including a gap at the start. */
  readonly gaps: number;
  /**
   * The id up to which the stream has received every event of these channels, at the time of the
   * read; `''` before the start is known, and for channels without history.
   */
  readonly cursor: string;
  /**
   * Stops following these channels. The stream stays open. A live stream first gets the events
   * that were published before the call.
   */
  unsubscribe(): void;
}

/**
 * The totals of a group of streams that receive the same bytes (an `Audience` in `channels/`): kept
 * once for the group, so that a delivery does not change an object for each stream.
 */
export interface WriteProgress {
  /** Bytes written to each member of the group. */
  readonly bytes: number;
  /** Events written to each member of the group. */
  readonly events: number;
  /** Time of the last delivery to the group, in ms of the monotonic clock. */
  readonly writtenAt: number;
  /** The totals of the text, if the group is compressed. */
  readonly gzip: GzipTotals | undefined;
}

/** The object that follows channels for one stream. Implemented in `channels/follower.ts`. */
export interface Follower {
  /** The totals of the group to which the stream is attached, or `undefined` while detached. */
  readonly groupProgress: WriteProgress | undefined;
  /** Whether the library must not send events of its own on this stream. */
  readonly isWithoutControl: boolean;
  /** The channels of all subscriptions, each once. */
  readonly channelNames: readonly string[];
  /** The id up to which the stream has received everything; `''` before it is known. */
  readonly cursor: string;
  /** Number of events that this node has for the stream, and that the stream has not received. */
  readonly lag: number;
  /** Whether a subscription waits for its start, or the stream still reads older events. */
  readonly isStartingOrCatchingUp: boolean;
  /**
   * Detaches the stream from its group. The stream takes over the totals of the group, and the
   * group no longer writes to the socket of the stream. The next complete frame attaches it again.
   */
  detach(): void;
  /**
   * Writes events that were published and not yet written to the stream: the frame that is being
   * delivered, and one more frame of at most 64 KiB. If more events are pending, the stream reads
   * them from the log later.
   * @param isAll whether all pending events are written, of any size
   * @defaultValue `false`
   */
  flush(isAll?: boolean): void;
  /**
   * Sends the current cursor to the client, if the cursor is ahead of the last id that was sent.
   * @returns whether a checkpoint was written
   */
  checkpoint(): boolean;
  /** Whether an `onGap` or `snapshot` of the stream is running. */
  readonly isAskingAboutGap: boolean;
  /**
   * Resolves when all events were written that were published before the call, or when that cannot
   * happen any more.
   * @returns `undefined` if the stream has all of them already
   */
  settle(): Promise<void> | undefined;
  /** Releases everything: the stream has ended. */
  stop(): void;
}
