/** The shutdown of a middleware: ends all streams in waves, and destroys those that remain. */
import { drawRetry, type RetryRange } from '../common/retry-range.ts';
import type { EventStream } from '../stream/event-stream.ts';

/**
 * The result of a shutdown: the number of streams that were open, or ended but not closed yet, when
 * the shutdown began.
 */
export interface Shutdown {
  /** Streams that ended in time, or whose client left. */
  closed: number;
  /** Streams that were destroyed because they had not ended in time. */
  destroyed: number;
}

/** The part of a `StreamTracker` that its shutdown reads. */
export interface ShutdownSource extends Iterable<EventStream> {
  /** Number of open streams. */
  readonly size: number;
  /** Number of streams that have ended and whose last bytes have not been taken yet. */
  readonly endingCount: number;
  /** Number of streams whose response is closed, since `sse()` was called. */
  readonly removedCount: number;
  /** @returns the streams that are open or ending */
  listStreams(): EventStream[];
}

// Minimum number of streams in a wave. Ten clients that reconnect at once are little load.
const MIN_WAVE_SIZE = 10;

// Maximum number of waves: enough that the clients reconnect to the next server at a steady rate.
const MAX_WAVES = 100;

// The part of the time over which the waves are spread. In the rest of the time, the clients of the
// last waves can take the bytes that are queued for them.
const WAVES_PART = 0.8;

/** Maximum number of streams that a shutdown ends in one turn of the event loop. */
export const STREAMS_PER_TURN = 250;

// Time in ms that a destroyed response has to emit 'close'. A wrapped response may never do so.
const CLOSE_GRACE_MS = 100;

/**
 * One shutdown of one middleware.
 *
 * ```text
 *   0 ms                             80 % of within          within         + 100 ms
 *   │ wave │ wave │ wave │  …  │ wave │   readers finish     │ destroy rest   │
 *   └──────┴──────┴──────┴─────┴──────┴──────────────────────┴────────────────┘
 *   onEmpty() ends the shutdown earlier, as soon as no stream is left
 * ```
 */
export class GradualShutdown {
  /** Resolves when the shutdown has ended. Never rejects. */
  readonly result: Promise<Shutdown>;
  readonly #source: ShutdownSource;
  readonly #within: number;
  readonly #retry: RetryRange;
  #resolve!: (result: Shutdown) => void;
  // The streams that were open at the start. `#nextIndex` is the index of the next stream to end,
  // `#waveEnd` the index of the first stream after the current wave.
  #streams: readonly EventStream[] = [];
  #nextIndex = 0;
  #waveEnd = 0;
  #isEndingWave = false;
  #isDone = false;
  #removedBefore = 0;
  #destroyedCount = 0;
  #waveTimer: NodeJS.Timeout | undefined;
  // The time limit, and after that the grace period of the destroyed responses.
  #limitTimer: NodeJS.Timeout | undefined;

  /**
   * @param source the tracker whose streams are ended
   * @param within time in ms after which streams are destroyed
   * @param retry range of the reconnection times, in ms
   */
  constructor(source: ShutdownSource, within: number, retry: RetryRange) {
    this.#source = source;
    this.#within = within;
    this.#retry = retry;
    this.result = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  /** Starts the first wave. */
  start(): void {
    if (this.#source.size === 0 && this.#source.endingCount === 0) {
      this.#isDone = true;
      this.#resolve({ closed: 0, destroyed: 0 });
      return;
    }
    this.#removedBefore = this.#source.removedCount;
    this.#streams = [...this.#source];
    const waveSize = Math.max(MIN_WAVE_SIZE, Math.ceil(this.#streams.length / MAX_WAVES));
    const waveCount = Math.ceil(this.#streams.length / waveSize);
    this.#limitTimer = setTimeout(() => this.#destroyRemaining(), this.#within);
    this.#startWave(waveSize, (this.#within * WAVES_PART) / waveCount);
  }

  /** Called when no open or ending stream is left. */
  onEmpty(): void {
    if (!this.#isDone) this.#finish();
  }

  #startWave(size: number, pause: number): void {
    this.#waveEnd = Math.min(this.#waveEnd + size, this.#streams.length);
    if (!this.#isEndingWave) this.#endSome();
    if (this.#waveEnd < this.#streams.length) {
      this.#waveTimer = setTimeout(() => this.#startWave(size, pause), pause);
    }
  }

  /** Ends the next streams of the wave; the rest of the wave follows in further turns. */
  #endSome(): void {
    const end = Math.min(this.#nextIndex + STREAMS_PER_TURN, this.#waveEnd);
    while (this.#nextIndex < end) {
      const stream = this.#streams[this.#nextIndex++];
      stream?.closeFor('shutdown', { retry: drawRetry(this.#retry) });
    }
    this.#isEndingWave = this.#nextIndex < this.#waveEnd;
    if (this.#isEndingWave) setImmediate(() => this.#endSome());
  }

  /** The time limit has passed: ends the streams of all remaining waves, and destroys the rest. */
  #destroyRemaining(): void {
    if (this.#isDone) return;
    clearTimeout(this.#waveTimer);
    if (this.#waveEnd < this.#streams.length) this.#startWave(this.#streams.length, 0);
    if (this.#isEndingWave) setImmediate(() => this.#destroyRemaining());
    else this.#destroySome(this.#source.listStreams());
  }

  #destroySome(remaining: EventStream[]): void {
    if (this.#isDone) return;
    for (const stream of remaining.splice(-STREAMS_PER_TURN)) {
      // The stream has left the list of its monitor: its response was closed in the meantime.
      if (stream.listIndex === -1) continue;
      this.#destroyedCount++;
      stream.destroyFor('shutdown');
    }
    if (remaining.length > 0) setImmediate(() => this.#destroySome(remaining));
    else this.#limitTimer = setTimeout(() => this.#finish(), CLOSE_GRACE_MS);
  }

  #finish(): void {
    clearTimeout(this.#waveTimer);
    clearTimeout(this.#limitTimer);
    this.#isDone = true;
    const { removedCount, endingCount } = this.#source;
    const removed = removedCount - this.#removedBefore;
    // Each destroyed stream is among the removed or the ending streams. The others count as closed.
    this.#resolve({
      closed: removed - this.#destroyedCount + endingCount,
      destroyed: this.#destroyedCount,
    });
  }
}
