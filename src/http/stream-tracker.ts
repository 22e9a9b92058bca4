/** A middleware's own account of its streams: who may have one, which are open, what became of the others, and their end all together. */
import type { ServerResponse } from 'node:http';
import { Admission, type AdmissionOptions, type Refusal } from './admission.ts';
import type { CloseOptions } from '../stream/close-options.ts';
import type { CloseReason } from '../stream/close-reason.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { StreamMonitor } from '../stream/stream-monitor.ts';
import { drawRetry, type RetryRange } from '../common/retry-range.ts';

/** What a middleware has done and is doing. */
export interface SseStats {
  /** Streams that are open now. */
  open: number;
  /** Streams opened since the start. */
  opened: number;
  /** Requests turned away since the start. */
  rejected: number;
  /** Streams ended since the start, by reason. */
  closed: Partial<Record<CloseReason, number>>;
  /** Events handed over. */
  sent: number;
  /** Events dropped because their reader was at `maxBuffered`. */
  dropped: number;
  /** Bytes handed over, comments and heartbeats included. */
  bytes: number;
  /** Bytes queued in this process now. */
  buffered: number;
}

/** The streams of a middleware that are open. */
export interface OpenStreams extends Iterable<EventStream> {
  readonly size: number;
}

/** What became of the streams that were open when their end began. */
export interface Shutdown {
  /** Those that ended, or left, in time. */
  closed: number;
  /** Those that were destroyed because they had not. */
  destroyed: number;
}

// So many streams end together at least: ten clients that come back at once are no stampede.
const WAVE = 10;

// Enough to look steady to whoever gets the clients next.
const MAX_WAVES = 100;

// The rest of the time is for the readers of the last wave to take what is queued for them.
const WAVES_END = 0.8;

// Streams that end before other work gets its turn, however many a wave has.
const STREAMS_PER_TURN = 250;

// Time in ms that a destroyed response has to report its end. One that is wrapped may never do so.
const END_GRACE_MS = 100;

export class StreamTracker implements OpenStreams {
  /** Requests turned away. */
  rejected = 0;
  /** Set when no more streams are taken: the reconnection time in ms that newcomers are told. */
  closing: RetryRange | undefined;
  readonly #admission: Admission;
  // They have lists of the streams already, and each is here while it has one.
  readonly #heartbeats = new Set<StreamMonitor>();
  #open = 0;
  // Ended, but the last bytes are still on their way.
  #ending = 0;
  readonly #closed: SseStats['closed'] = {};
  #opened = 0;
  #gone = 0;
  // Of the streams that are gone.
  #sent = 0;
  #dropped = 0;
  #bytes = 0;
  // Ended, but their last bytes are not yet written.
  #held: readonly EventStream[] = [];
  #isReleasing = false;
  #shutdown: Promise<Shutdown> | undefined;
  // Called when no stream is left.
  #onEmpty: (() => void) | undefined;

  constructor(limits: AdmissionOptions, onUndefinedKeys?: (requests: number) => void) {
    this.#admission = new Admission(limits, undefined, onUndefinedKeys);
  }

  get size(): number {
    return this.#open;
  }

  [Symbol.iterator](): IterableIterator<EventStream> {
    return this.#streams.filter(({ readyState }) => readyState === 1).values();
  }

  /** Takes a place for a stream on this response. @returns why there is none */
  take(res: ServerResponse): Refusal | undefined {
    return this.closing === undefined ? this.#admission.take(res) : 'shutdown';
  }

  opened(stream: EventStream): void {
    this.#admission.opened(stream.res);
    this.#opened++;
    this.#open++;
    this.#heartbeats.add(stream.host.monitor);
  }

  closed(reason: CloseReason): void {
    this.#open--;
    this.#ending++;
    this.#closed[reason] = (this.#closed[reason] ?? 0) + 1;
  }

  /** Nothing of the stream is left, whether or not it was ever open. */
  gone(stream: EventStream, wasOpen: boolean): void {
    this.#admission.free(stream.res);
    if (!wasOpen) return;
    const { monitor } = stream.host;
    if (monitor.streams.length === 0) this.#heartbeats.delete(monitor);
    this.#ending--;
    this.#gone++;
    this.#sent += stream.eventsWritten;
    this.#dropped += stream.dropped;
    this.#bytes += stream.bytesWritten;
    if (this.#open === 0 && this.#ending === 0) this.#onEmpty?.();
  }

  stats(): SseStats {
    const stats = {
      open: this.#open,
      opened: this.#opened,
      rejected: this.rejected,
      closed: { ...this.#closed },
      sent: this.#sent,
      dropped: this.#dropped,
      bytes: this.#bytes,
      buffered: 0,
    };
    for (const stream of this.#streams) {
      stats.sent += stream.eventsWritten;
      stats.dropped += stream.dropped;
      stats.bytes += stream.bytesWritten;
      stats.buffered += stream.bufferedAmount;
    }
    return stats;
  }

  /**
   * Ends these streams now: nothing that is published from here on reaches them. Writing what they are owed is the expensive
   * part, and is spread over turns of the event loop.
   */
  endAtOnce(streams: readonly EventStream[], reason: CloseReason, options: CloseOptions): void {
    // All of them before the first one ends: a listener for its end may publish.
    for (const stream of streams) {
      stream.cork();
      stream.flush();
    }
    for (const stream of streams) stream.closeWithoutFlush(reason, options);
    this.#held = this.#held.concat(streams);
    if (!this.#isReleasing) this.#release();
  }

  /** Writes the last bytes of some streams. The application's code may be called, and end others. */
  #release(): void {
    this.#isReleasing = true;
    const some = this.#held.slice(0, STREAMS_PER_TURN);
    this.#held = this.#held.slice(STREAMS_PER_TURN);
    for (const stream of some) stream.uncork();
    if (this.#held.length > 0) setImmediate(() => this.#release());
    else this.#isReleasing = false;
  }

  /** Ends all streams in waves, and destroys those that have not ended `within` ms. Idempotent. */
  shutDown(within: number, retry: RetryRange): Promise<Shutdown> {
    if (this.#shutdown === undefined) {
      this.closing = retry;
      // Set before the first stream ends: a listener for its end may call this again.
      let resolve!: (outcome: Shutdown) => void;
      this.#shutdown = new Promise((settle) => {
        resolve = settle;
      });
      this.#endAll(within, retry, resolve);
    }
    return this.#shutdown;
  }

  /** Those that are open or ending, as they are now. What a middleware's heartbeat looks after is event streams. */
  get #streams(): EventStream[] {
    return [...this.#heartbeats].flatMap(({ streams }) => streams as readonly EventStream[]);
  }

  #endAll(within: number, retry: RetryRange, resolve: (outcome: Shutdown) => void): void {
    if (this.#open === 0 && this.#ending === 0) {
      resolve({ closed: 0, destroyed: 0 });
      return;
    }
    const goneBefore = this.#gone;
    const streams = [...this];
    const waveSize = Math.max(WAVE, Math.ceil(streams.length / MAX_WAVES));
    const pause = (within * WAVES_END) / Math.ceil(streams.length / waveSize);
    let next = 0;
    let waveEnd = 0;
    let isEnding = false;
    let isDone = false;
    let destroyed = 0;
    let nextWave: NodeJS.Timeout | undefined;
    let timer: NodeJS.Timeout | undefined;

    const endSome = (): void => {
      const until = Math.min(next + STREAMS_PER_TURN, waveEnd);
      while (next < until) streams[next++]?.closeFor('shutdown', { retry: drawRetry(retry) });
      isEnding = next < waveEnd;
      if (isEnding) setImmediate(endSome);
    };
    const beginWave = (size: number): void => {
      waveEnd = Math.min(waveEnd + size, streams.length);
      if (!isEnding) endSome();
      if (waveEnd < streams.length) nextWave = setTimeout(beginWave, pause, size);
    };
    const destroySome = (rest: EventStream[]): void => {
      if (isDone) return;
      for (const stream of rest.splice(-STREAMS_PER_TURN)) {
        // It has ended by itself meanwhile.
        if (stream.listIndex === -1) continue;
        destroyed++;
        stream.destroyFor('shutdown');
      }
      if (rest.length > 0) setImmediate(destroySome, rest);
      else timer = setTimeout(done, END_GRACE_MS);
    };
    const destroyAll = (): void => {
      if (isDone) return;
      clearTimeout(nextWave);
      if (waveEnd < streams.length) beginWave(streams.length);
      if (isEnding) setImmediate(destroyAll);
      else destroySome(this.#streams);
    };
    const done = (): void => {
      clearTimeout(nextWave);
      clearTimeout(timer);
      isDone = true;
      this.#onEmpty = undefined;
      resolve({ closed: this.#gone - goneBefore - destroyed + this.#ending, destroyed });
    };
    this.#onEmpty = done;
    timer = setTimeout(destroyAll, within);
    beginWave(waveSize);
  }
}
