/**
 * Counts the bytes that the library writes, and checks the limits for one call and for one turn of
 * the event loop.
 */

/**
 * Maximum number of bytes of channel events in one write or one page. A single larger event is
 * allowed.
 */
export const HIGH_WATER_MARK = 65_536;

// Size of the largest event that a schedule publishes or sends, with its id and its frame.
const MAX_EVENT_BYTES = 71_000;

// Size of the largest event that is sent with `send()`.
const MAX_DIRECT_BYTES = 21_000;

// Maximum number of pending bytes of one channel.
const MAX_PENDING_BYTES = 16_777_216;

// Size of a checkpoint or a heartbeat, with a long id.
const MAX_CONTROL_BYTES = 250;

/**
 * Maximum number of bytes that one call of the application may write to one stream: the pending
 * events that the call flushes, and the event that the call sends. `unsubscribe()` and `close()`
 * write all pending events. If the stream follows a channel without history, every call does so,
 * because there is no log to read them from later: a client that takes all bytes at once is not slow.
 */
export const CALL_BYTES = {
  send: HIGH_WATER_MARK + MAX_EVENT_BYTES + MAX_DIRECT_BYTES,
  sendBesideEphemeral: MAX_PENDING_BYTES + HIGH_WATER_MARK + MAX_EVENT_BYTES + MAX_DIRECT_BYTES,
  unsubscribe: MAX_PENDING_BYTES + HIGH_WATER_MARK + MAX_EVENT_BYTES,
  close: MAX_PENDING_BYTES + HIGH_WATER_MARK + MAX_EVENT_BYTES,
  heartbeat: MAX_CONTROL_BYTES,
} as const;

// Maximum number of streams that one fan-out writes to in one turn. Channels without history have a
// fan-out of their own.
const MAX_FAN_OUT_STREAMS = 250;

// Maximum work of the catch-up queue in one turn, in pages and in bytes. One turn of the test may
// contain two turns of the queue.
const MAX_PAGES = 2 * 100;
const MAX_PAGE_BYTES = 2 * 4 * 1_048_576;

// Maximum number of streams that the monitor visits or that a close ends in one turn.
const MAX_SWEPT_STREAMS = 500;

/** Counts the writes of one schedule. */
export class WorkMeter {
  /** Descriptions of all exceeded limits. */
  readonly violations: string[] = [];
  readonly #streams = new Set<object>();
  #bytes = 0;
  // The current calls, innermost last: calls of the application, each with the bytes that it has
  // written, and calls of `subscribe`.
  readonly #calls: { bytes: number; maxBytes: number; isSubscribe: boolean }[] = [];
  /** Number of fan-outs with many streams. */
  fanOuts = 1;
  #isReading = false;

  /** Counts bytes that are written to a response. */
  onWrite(response: object, bytes: number): void {
    if (this.#isReading) return;
    const call = this.#calls.at(-1);
    if (call?.isSubscribe === false) {
      call.bytes += bytes;
      return;
    }
    if (call === undefined) this.#streams.add(response);
    this.#bytes += bytes;
  }

  /** Runs a call of `subscribe`. The first pages of the stream count as work of the turn. */
  subscribe<T>(call: () => T): T {
    this.#calls.push({ bytes: 0, maxBytes: 0, isSubscribe: true });
    try {
      return call();
    } finally {
      this.#calls.pop();
      // If the call is made inside a wrapped `write`, the outer call writes its bytes.
      const outer = this.#calls.at(-1);
      if (outer !== undefined) outer.maxBytes += MAX_PENDING_BYTES;
    }
  }

  /** Runs another call of the application. The bytes of the call have a limit of their own. */
  call(name: string, maxBytes: number, call: () => void): void {
    const entry = { bytes: 0, maxBytes, isSubscribe: false };
    this.#calls.push(entry);
    try {
      call();
    } finally {
      this.#calls.pop();
      if (entry.bytes > entry.maxBytes) {
        this.violations.push(
          `${name} wrote ${entry.bytes} bytes in one call, expected at most ${entry.maxBytes}`,
        );
      }
      // An event that is sent inside a wrapped `write` is written after that write returns, by the
      // outer call.
      const outer = this.#calls.at(-1);
      if (outer !== undefined) outer.maxBytes += maxBytes;
    }
  }

  /**
   * Lets readers read. Bytes that a queue writes meanwhile are work of the socket of the reader and
   * are not counted.
   */
  whileReading(read: () => void): void {
    this.#isReading = true;
    read();
    this.#isReading = false;
  }

  /** Checks the limits at the end of a turn of the event loop. */
  onTurnEnd(): void {
    const streams = this.#streams.size;
    const maxStreams = Math.max(this.fanOuts * MAX_FAN_OUT_STREAMS + MAX_PAGES, MAX_SWEPT_STREAMS);
    if (streams > maxStreams) {
      this.violations.push(`one turn wrote to ${streams} streams, expected at most ${maxStreams}`);
    }
    const maxTurnBytes = this.fanOuts * MAX_FAN_OUT_STREAMS * MAX_EVENT_BYTES + MAX_PAGE_BYTES;
    if (this.#bytes > maxTurnBytes) {
      this.violations.push(`one turn wrote ${this.#bytes} bytes, expected at most ${maxTurnBytes}`);
    }
    this.#streams.clear();
    this.#bytes = 0;
  }
}
