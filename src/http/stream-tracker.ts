/** The streams of one middleware: their admission, their list, their counters and their end. */
import type { ServerResponse } from 'node:http';
import { Admission, type AdmissionOptions, type Refusal } from './admission.ts';
import {
  GradualShutdown,
  STREAMS_PER_TURN,
  type Shutdown,
  type ShutdownSource,
} from './shutdown.ts';
import type { StreamWithRequest } from './identities.ts';
import type { RouteRequest } from './route.ts';
import type { RetryRange } from '../common/retry-range.ts';
import type { CloseOptions } from '../stream/close-options.ts';
import type { CloseReason } from '../stream/close-reason.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { StreamMonitor } from '../stream/stream-monitor.ts';

/** Gauges and counters of a middleware. Counters start at 0 when `sse()` is called. */
export interface SseStats {
  /** Streams that are open now. */
  open: number;
  /** Streams that were opened. */
  opened: number;
  /** Requests for a stream that were refused. */
  rejected: number;
  /** Streams that were ended, by reason. */
  closed: Partial<Record<CloseReason, number>>;
  /** Events that were written to responses. */
  sent: number;
  /**
   * Events that were dropped: more than `maxBuffered` bytes were queued for their reader, or events
   * without history could not be delivered in time.
   */
  dropped: number;
  /** Bytes that were written to responses, including comments and heartbeats. */
  bytes: number;
  /** Bytes that are queued in this process now. */
  buffered: number;
}

/** The open streams of a middleware. */
export interface OpenStreams extends Iterable<EventStream & { readonly req: RouteRequest }> {
  /** Number of open streams. */
  readonly size: number;
}

/**
 * Keeps account of the streams of one middleware. A stream passes through these states:
 *
 * ```text
 *   admit()        addStream()      countEnd()        removeStream()
 *   ──────▶ admitted ────────▶ open ─────────▶ ending ─────────────▶ gone
 *               └─────────────── releasePlace() ────────────────────▶
 * ```
 *
 * There is no list of streams here: the monitors have such lists, and a tracker only keeps the
 * monitors.
 */
export class StreamTracker implements OpenStreams, ShutdownSource {
  /**
   * The range of the reconnection times that are sent to clients during and after a shutdown, in
   * ms. `undefined` before a shutdown.
   */
  shutdownRetry: RetryRange | undefined;
  readonly #admission: Admission;
  // The monitors that have at least one stream of this middleware.
  readonly #monitors = new Set<StreamMonitor>();
  readonly #endCounts: SseStats['closed'] = {};
  #openCount = 0;
  #endingCount = 0;
  #openedCount = 0;
  #removedCount = 0;
  #refusedCount = 0;
  // Totals of the removed streams.
  #eventsWritten = 0;
  #eventsDropped = 0;
  #bytesWritten = 0;
  // Streams that `endStreams()` has ended and whose last bytes are not written yet.
  #corkedStreams: readonly EventStream[] = [];
  #isUncorking = false;
  #shutdown: GradualShutdown | undefined;

  /**
   * @param limits the limits on the number of streams
   * @param onUndefinedKeys called once if the `key` of `maxStreamsPer` was `undefined` for each of
   * the first requests
   */
  constructor(limits: AdmissionOptions, onUndefinedKeys?: (requestCount: number) => void) {
    this.#admission = new Admission(limits, undefined, onUndefinedKeys);
  }

  get size(): number {
    return this.#openCount;
  }

  get endingCount(): number {
    return this.#endingCount;
  }

  get removedCount(): number {
    return this.#removedCount;
  }

  [Symbol.iterator](): IterableIterator<StreamWithRequest> {
    const open = this.listStreams().filter(({ readyState }) => readyState === 1);
    return (open as StreamWithRequest[]).values();
  }

  listStreams(): EventStream[] {
    // The monitors of a middleware's hosts contain nothing but event streams.
    return [...this.#monitors].flatMap(({ streams }) => streams as readonly EventStream[]);
  }

  /**
   * Reserves a place for a stream on this response. A response that has a place is admitted again
   * without being counted.
   * @returns the reason for a refusal, or `undefined` if the stream is admitted
   */
  admit(res: ServerResponse): Refusal | undefined {
    return this.shutdownRetry === undefined ? this.#admission.reservePlace(res) : 'shutdown';
  }

  /** Counts a request that was refused. */
  countRefusal(): void {
    this.#refusedCount++;
  }

  /** Adds a stream that has opened. */
  addStream(stream: EventStream): void {
    this.#admission.markOpen(stream.res);
    this.#openedCount++;
    this.#openCount++;
    this.#monitors.add(stream.host.monitor);
  }

  /** Counts the end of an open stream. Its last bytes may still be queued. */
  countEnd(reason: CloseReason): void {
    this.#openCount--;
    this.#endingCount++;
    this.#endCounts[reason] = (this.#endCounts[reason] ?? 0) + 1;
  }

  /** The response is a poll: `perMinute` does not count its start. */
  uncountStart(res: ServerResponse): void {
    this.#admission.uncountStart(res);
  }

  /** Releases the place of a response that is closed, whether or not its stream was ever open. */
  releasePlace(res: ServerResponse): void {
    this.#admission.releasePlace(res);
  }

  /** Removes a stream that was open and whose response is closed. */
  removeStream(stream: EventStream): void {
    const { monitor } = stream.host;
    if (monitor.streams.length === 0) this.#monitors.delete(monitor);
    this.#endingCount--;
    this.#removedCount++;
    this.#eventsWritten += stream.eventsWritten;
    this.#eventsDropped += stream.dropped;
    this.#bytesWritten += stream.bytesWritten;
    if (this.#openCount === 0 && this.#endingCount === 0) this.#shutdown?.onEmpty();
  }

  /** Adds the totals of the present streams to the totals of the removed streams. */
  stats(): SseStats {
    const stats = {
      open: this.#openCount,
      opened: this.#openedCount,
      rejected: this.#refusedCount,
      closed: { ...this.#endCounts },
      sent: this.#eventsWritten,
      dropped: this.#eventsDropped,
      bytes: this.#bytesWritten,
      buffered: 0,
    };
    for (const stream of this.listStreams()) {
      stats.sent += stream.eventsWritten;
      stats.dropped += stream.dropped;
      stats.bytes += stream.bytesWritten;
      stats.buffered += stream.bufferedAmount;
    }
    return stats;
  }

  /**
   * Ends the given streams now, so that no event that is published after this call reaches them.
   * Writing their last bytes is the expensive part, and is spread over turns of the event loop.
   */
  endStreams(streams: readonly EventStream[], reason: CloseReason, options: CloseOptions): void {
    // All streams are flushed before the first one ends: a listener for its end may publish.
    for (const stream of streams) {
      stream.cork();
      stream.flush();
    }
    for (const stream of streams) stream.closeWithoutFlush(reason, options);
    this.#corkedStreams = this.#corkedStreams.concat(streams);
    if (!this.#isUncorking) this.#uncorkSome();
  }

  /** Writes the last bytes of some streams. Code of the application may run and end others. */
  #uncorkSome(): void {
    this.#isUncorking = true;
    const streams = this.#corkedStreams.slice(0, STREAMS_PER_TURN);
    this.#corkedStreams = this.#corkedStreams.slice(STREAMS_PER_TURN);
    for (const stream of streams) stream.uncork();
    if (this.#corkedStreams.length > 0) setImmediate(() => this.#uncorkSome());
    else this.#isUncorking = false;
  }

  /**
   * Ends all streams in waves and destroys those that have not ended in time. A second call returns
   * the same promise.
   * @param within time in ms after which streams are destroyed
   * @param retry range of the reconnection times, in ms
   */
  shutDown(within: number, retry: RetryRange): Promise<Shutdown> {
    if (this.#shutdown === undefined) {
      this.shutdownRetry = retry;
      // Set before the first stream ends, because a listener for its end may call this method.
      this.#shutdown = new GradualShutdown(this, within, retry);
      this.#shutdown.start();
    }
    return this.#shutdown.result;
  }
}
