/**
 * The totals of one stream: bytes, events, and the time since which it is idle.
 *
 * While a stream is attached to a group, a delivery changes the totals of the group only. The
 * totals of the stream are then the sum of both:
 *
 * ```text
 *                   stream   group     sum
 * attached          900      100       1000     onAttached() subtracts what the group had before
 * 50 B are written  900      150       1050
 * detached          1050     –         1050     onDetached() adds what the group has now
 * ```
 */
import type { GzipBody } from '../protocol/gzip-body.ts';
import type { Follower, WriteProgress } from './subscription-types.ts';

/**
 * The base class of `ResponseSink`. A class of its own, but no object of its own for each stream.
 */
export abstract class WriteTotals {
  #bytes = 0;
  #events = 0;
  #idleSince = 0;

  /** The object that follows channels for this stream. @internal */
  follower: Follower | undefined;

  /** The body of the stream, if this library compresses it. @internal */
  abstract readonly gzip: GzipBody | undefined;

  /** Bytes passed to the response, comments and heartbeats included. @internal */
  get bytesWritten(): number {
    return this.#bytes + (this.follower?.groupProgress?.bytes ?? 0);
  }

  /** Events written or queued. @internal */
  get eventsWritten(): number {
    return this.#events + (this.follower?.groupProgress?.events ?? 0);
  }

  /**
   * Time at which the monitor first noticed that nothing more was written, in ms of the monotonic
   * clock; 0 from a write until the next check of the monitor. While the stream is attached, the
   * time of the last delivery to the group. @internal
   */
  get idleSince(): number {
    return this.follower?.groupProgress?.writtenAt ?? this.#idleSince;
  }

  /** @internal */
  set idleSince(time: number) {
    this.#idleSince = time;
  }

  /**
   * The stream is attached to a group: from here on the totals of the group count for it.
   * @internal
   */
  onAttached({ bytes, events, gzip }: WriteProgress): void {
    this.#bytes -= bytes;
    this.#events -= events;
    if (gzip !== undefined) this.gzip?.onAttached(gzip);
  }

  /** The stream is detached from its group: it takes over the totals of the group. @internal */
  onDetached({ bytes, events, writtenAt, gzip }: WriteProgress): void {
    this.#bytes += bytes;
    this.#events += events;
    this.#idleSince = writtenAt;
    if (gzip !== undefined) this.gzip?.onDetached(gzip);
  }

  /** Events are passed to the response or queued. @internal */
  protected addEvents(events: number): void {
    this.#events += events;
  }

  /** Bytes are passed to the response: the stream is not idle. @internal */
  protected addBytes(bytes: number): void {
    this.#bytes += bytes;
    this.#idleSince = 0;
  }
}
