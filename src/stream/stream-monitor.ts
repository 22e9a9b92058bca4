/**
 * One timer for all streams of a middleware: sends heartbeats to idle streams, destroys stalled
 * ones and ends old ones.
 */
import { runOutsideRequests } from '../common/async-context.ts';
import { clock } from '../common/clock.ts';
import { IndexedList, type IndexedListMember } from '../common/indexed-list.ts';
import type { StreamSettings } from './stream-options.ts';

// The interval of the timer is a sixteenth of the shortest period, and at most one second. A
// deadline is noticed up to two intervals late.
const SWEEPS_PER_PERIOD = 16;
const MAX_SWEEP_INTERVAL_MS = 1_000;

// Period of `onTick()` for streams without heartbeats.
const DEFAULT_TICK_MS = 15_000;

// Streams that are checked in one turn of the event loop, so that other work gets its turn.
const STREAMS_PER_TURN = 500;

/** The interface that the monitor needs of a stream. */
export interface MonitoredStream extends IndexedListMember {
  readonly res: { readonly writableLength: number };
  readonly readyState: 0 | 1 | 2;
  /** Bytes that are queued in this process. */
  readonly bufferedAmount: number;
  /** As `ResponseSink.bytesFlushed`. */
  readonly bytesFlushed: number;
  /** When the monitor first noticed that nothing more was written; a write sets 0. */
  idleSince: number;
  /**
   * Calls back when the bytes that are queued now have been flushed, for a stream whose
   * `bytesFlushed` may not show this. Returns whether the callback will be called.
   */
  requestFlush(onFlushed: () => void): boolean;
  /** Continues if the response accepts bytes again, but has emitted no `'drain'`. */
  checkDrain(): void;
  /** Ends the stream now. */
  destroyFor(reason: 'stalled'): void;
  /** One heartbeat period has passed, whether or not the stream was idle. */
  onTick(): void;
  /** The stream was idle for one heartbeat period. */
  onIdle(): void;
  /** The stream is older than `maxLifetime`. */
  onExpired(): void;
  /** Called if a check of the stream threw. */
  onError(error: unknown): void;
}

/** The reading of a client for which bytes are queued. */
interface ReadProgress {
  /**
   * When this `bytesFlushed` was first noticed, in ms of {@link StreamMonitor.#runMs}.
   */
  since: number;
  bytesFlushed: number;
  /** Bytes that the response held at the last check of the stream. */
  bytesInResponse: number;
  /** Whether `onFlushed` of a {@link MonitoredStream.requestFlush} is to come. */
  isFlushRequested: boolean;
  /** Whether bytes were flushed since the last check of the stream. */
  hasFlushed: boolean;
  /** Whether an `onTick()` was skipped, which is called as soon as the queue is empty. */
  hasMissedTick: boolean;
}

/**
 * Checks the streams of one middleware at regular intervals. Has no timer while there is no stream.
 */
export class StreamMonitor {
  readonly #heartbeatMs: number;
  readonly #tickMs: number;
  readonly #stallTimeoutMs: number;
  readonly #maxLifetimeMs: number;
  readonly #sweepIntervalMs: number;
  readonly #streams = new IndexedList<MonitoredStream>();
  // The streams with queued bytes.
  readonly #progress = new Map<MonitoredStream, ReadProgress>();
  // When each stream expires; empty without `maxLifetime`.
  readonly #deadlines = new Map<MonitoredStream, number>();
  #timer: NodeJS.Timeout | undefined;
  // Index of the next stream of the current sweep; -1 between sweeps.
  #nextIndex = -1;
  #nextTickAt = 0;
  #lastSweepAt = 0;
  // Time in ms in which the process ran. While the process was stopped, suspended or busy, it did
  // not notice what clients read, so this time does not count for `stallTimeout`.
  #runMs = 0;
  // Whether the current sweep calls `onTick()`. All streams have the same time for it, because a
  // time for each stream would cost memory.
  #isTickDue = false;

  constructor({ heartbeat, stallTimeout, maxLifetime }: StreamSettings) {
    this.#heartbeatMs = heartbeat === false ? Infinity : heartbeat;
    this.#stallTimeoutMs = stallTimeout === false ? Infinity : stallTimeout;
    this.#maxLifetimeMs = maxLifetime ?? Infinity;
    this.#tickMs = heartbeat === false ? DEFAULT_TICK_MS : heartbeat;
    const shortest = Math.min(this.#tickMs, this.#stallTimeoutMs, this.#maxLifetimeMs);
    this.#sweepIntervalMs = Math.min(
      MAX_SWEEP_INTERVAL_MS,
      Math.max(1, Math.floor(shortest / SWEEPS_PER_PERIOD)),
    );
  }

  /** The monitored streams: open, or ended with bytes still queued. */
  get streams(): readonly MonitoredStream[] {
    return this.#streams.members;
  }

  /** Monitors a stream that has opened. */
  add(stream: MonitoredStream): void {
    const now = clock();
    stream.idleSince = now;
    // ±10 %, so that streams that opened together do not end together.
    if (this.#maxLifetimeMs < Infinity) {
      this.#deadlines.set(stream, now + this.#maxLifetimeMs * (0.9 + Math.random() * 0.2));
    }
    this.#streams.add(stream);
    if (this.#timer !== undefined) return;
    this.#nextTickAt = now + this.#tickMs;
    this.#lastSweepAt = now;
    this.#timer = runOutsideRequests(() =>
      setInterval(() => this.#startSweep(), this.#sweepIntervalMs).unref(),
    );
  }

  /** @returns whether the stream was monitored */
  delete(stream: MonitoredStream): boolean {
    if (!this.#streams.delete(stream)) return false;
    this.#progress.delete(stream);
    this.#deadlines.delete(stream);
    if (this.#streams.members.length > 0) return true;
    clearInterval(this.#timer);
    this.#timer = undefined;
    return true;
  }

  /** Starts a sweep, unless the previous sweep is still running. */
  #startSweep(): void {
    const now = clock();
    // If the timer fires late, the process was busy. The excess does not count as run time.
    this.#runMs += Math.min(now - this.#lastSweepAt, 2 * this.#sweepIntervalMs);
    this.#lastSweepAt = now;
    if (this.#nextIndex >= 0) return;
    this.#nextIndex = this.#streams.members.length - 1;
    this.#isTickDue = now >= this.#nextTickAt;
    if (this.#isTickDue) this.#nextTickAt = now + this.#tickMs;
    // In the check phase of the event loop: the sockets have been polled before, so that bytes that
    // clients have read by now are counted.
    setImmediate(() => this.#sweep());
  }

  /**
   * Checks some streams, from the end of the list to its start. If a stream is deleted meanwhile,
   * the last stream of the list takes its place, which was checked already.
   */
  #sweep(): void {
    const now = clock();
    const until = Math.max(-1, this.#nextIndex - STREAMS_PER_TURN);
    while (this.#nextIndex > until) {
      const stream = this.#streams.members[this.#nextIndex--];
      if (stream === undefined) continue;
      try {
        this.#check(stream, now);
      } catch (error) {
        // The error belongs to this stream only, and the sweep continues.
        stream.onError(error);
      }
    }
    // Not `unref()`: the event loop would not run the immediate by itself.
    if (this.#nextIndex >= 0) setImmediate(() => this.#sweep());
  }

  #check(stream: MonitoredStream, now: number): void {
    const hasQueued = stream.bufferedAmount > 0;
    const hasMissedTick = this.#progress.get(stream)?.hasMissedTick === true;
    stream.checkDrain();
    // The call may have closed a wrapped response.
    if (!this.#streams.has(stream)) return;
    if (!hasQueued) {
      this.#progress.delete(stream);
    } else if (this.#checkProgress(stream)) {
      stream.destroyFor('stalled');
      return;
    }
    if (stream.readyState === 1) this.#checkTimes(stream, now, hasQueued, hasMissedTick);
  }

  /** Notes how much was flushed. @returns whether the client has read nothing for too long */
  #checkProgress(stream: MonitoredStream): boolean {
    const { bytesFlushed } = stream;
    // Not the queue of the stream: a wrapped `write()` may take its bytes and pass none of them on.
    const bytesInResponse = stream.res.writableLength || 0;
    let progress = this.#progress.get(stream);
    if (progress === undefined) {
      progress = {
        since: this.#runMs,
        bytesFlushed,
        bytesInResponse,
        isFlushRequested: false,
        hasFlushed: false,
        hasMissedTick: false,
      };
      this.#progress.set(stream, progress);
    }
    const hasProgress =
      progress.hasFlushed ||
      bytesFlushed > progress.bytesFlushed ||
      bytesInResponse < progress.bytesInResponse;
    progress.hasFlushed = false;
    progress.bytesInResponse = bytesInResponse;
    if (hasProgress) {
      progress.since = this.#runMs;
      progress.bytesFlushed = bytesFlushed;
      return false;
    }
    this.#requestFlush(stream, progress);
    return this.#runMs - progress.since >= this.#stallTimeoutMs;
  }

  /**
   * Over HTTP/2, an application that writes itself may have added as many bytes as were flushed
   * since the last check. Then the numbers do not show the progress, so the stream calls back.
   */
  #requestFlush(stream: MonitoredStream, progress: ReadProgress): void {
    if (progress.isFlushRequested) return;
    progress.isFlushRequested = stream.requestFlush(() => {
      progress.isFlushRequested = false;
      progress.hasFlushed = true;
    });
  }

  /** Calls `onExpired()`, or else `onTick()` and `onIdle()`, if their time has come. */
  #checkTimes(
    stream: MonitoredStream,
    now: number,
    hasQueued: boolean,
    hasMissedTick: boolean,
  ): void {
    if (now >= (this.#deadlines.get(stream) ?? Infinity)) {
      stream.onExpired();
      return;
    }
    if ((this.#isTickDue || hasMissedTick) && !hasQueued) stream.onTick();
    else if (this.#isTickDue) (this.#progress.get(stream) as ReadProgress).hasMissedTick = true;
    if (stream.idleSince === 0) stream.idleSince = now;
    else if (!hasQueued && now - stream.idleSince >= this.#heartbeatMs) stream.onIdle();
  }
}
