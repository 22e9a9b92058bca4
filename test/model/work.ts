/** Counts what the library writes, and holds it against the bounds of one call and of one turn of the event loop. */

/** Bytes of channel events that one write or one page may hold; a single larger event counts as one. */
export const WRITE_MARK = 65_536;

// The largest event that a schedule publishes or sends, with its id and its frame.
const LARGEST_EVENT = 71_000;

// The largest event that is sent directly.
const LARGEST_DIRECT = 21_000;

// Bytes of one channel that may be pending.
const MAX_PENDING = 16_777_216;

// A checkpoint, or a heartbeat, with a generous id.
const CONTROL_BYTES = 250;

/**
 * Bytes that one call of the application may write to one stream: what it flushes, and the event it sends. Unsubscribing and closing
 * give everything that is pending; beside channels without history, `maxBuffered` is the bound.
 */
export const CALL_BYTES = {
  send: WRITE_MARK + LARGEST_EVENT + LARGEST_DIRECT,
  sendBesideLiveOnly: 1_048_576 + WRITE_MARK + LARGEST_EVENT + LARGEST_DIRECT,
  unsubscribe: MAX_PENDING + WRITE_MARK + LARGEST_EVENT,
  close: MAX_PENDING + WRITE_MARK + LARGEST_EVENT,
  heartbeat: CONTROL_BYTES,
} as const;

// What a fan-out does in one turn: one write to each of so many streams. Channels without history have one of their own.
const FAN_OUT_STREAMS = 250;

// What streams that are behind are given in one turn, which a turn of the test may see twice.
const PAGES = 2 * 100;
const PAGE_BYTES = 2 * 4 * 1_048_576;

// Streams that are looked at or ended in one turn.
const SWEPT_STREAMS = 500;

/** The meter of one schedule. */
export class WorkMeter {
  /** What was too much. */
  readonly excesses: string[] = [];
  readonly #streams = new Set<object>();
  #bytes = 0;
  // What is under way, innermost last: the application's calls, each with the bytes that it has written, and calls of `subscribe`.
  readonly #calls: { bytes: number; most: number; isSubscribe: boolean }[] = [];
  /** How many fan-outs have many streams. */
  fanOuts = 1;
  #isReading = false;

  /** Bytes are written to a response. */
  wrote(response: object, bytes: number): void {
    if (this.#isReading) return;
    const call = this.#calls.at(-1);
    if (call?.isSubscribe === false) {
      call.bytes += bytes;
      return;
    }
    if (call === undefined) this.#streams.add(response);
    this.#bytes += bytes;
  }

  /** Carries out a `subscribe`. The pages that the stream begins with are part of what the library may write in this turn. */
  subscribe<T>(call: () => T): T {
    this.#calls.push({ bytes: 0, most: 0, isSubscribe: true });
    try {
      return call();
    } finally {
      this.#calls.pop();
      // From inside a wrapped `write`, what it has written comes with the call around it.
      const outer = this.#calls.at(-1);
      if (outer !== undefined) outer.most += MAX_PENDING;
    }
  }

  /** Carries out another call of the application. What it writes is its own, and bounded by itself. */
  call(what: string, most: number, call: () => void): void {
    const entry = { bytes: 0, most, isSubscribe: false };
    this.#calls.push(entry);
    try {
      call();
    } finally {
      this.#calls.pop();
      if (entry.bytes > entry.most) {
        this.excesses.push(
          `${what} has written ${entry.bytes} bytes in one call, expected at most ${entry.most}`,
        );
      }
      // What is sent from inside a wrapped `write` is written when that has returned, by the call around it.
      const outer = this.#calls.at(-1);
      if (outer !== undefined) outer.most += most;
    }
  }

  /** Lets readers read. What a response takes from its queue meanwhile is the work of that reader's socket. */
  reading(read: () => void): void {
    this.#isReading = true;
    read();
    this.#isReading = false;
  }

  /** A turn of the event loop is over. */
  turn(): void {
    const streams = this.#streams.size;
    const mostStreams = Math.max(this.fanOuts * FAN_OUT_STREAMS + PAGES, SWEPT_STREAMS);
    if (streams > mostStreams) {
      this.excesses.push(
        `in one turn ${streams} streams were written to, expected at most ${mostStreams}`,
      );
    }
    const mostBytes = this.fanOuts * FAN_OUT_STREAMS * LARGEST_EVENT + PAGE_BYTES;
    if (this.#bytes > mostBytes) {
      this.excesses.push(
        `in one turn ${this.#bytes} bytes were written, expected at most ${mostBytes}`,
      );
    }
    this.#streams.clear();
    this.#bytes = 0;
  }
}
