/**
 * Limits the number of bytes of events that are requested at a time, so that each answer arrives
 * within the timeout, even if the link to Redis is slow.
 *
 *     take()      a      b                  c              granted while the limit has room
 *     answers     |── a ──|── b ──|         |── c ──|      one connection, in this order
 *     limit    ──────────────────────▲──────────────▶      ▲ adjusted: an answer should take a
 *                                                          quarter of the timeout
 */
import { deferred, type Deferred } from '../../common/async.ts';

// Limit for the bytes of events in all pending answers: at the start, and at most.
const INITIAL_BYTES = 262_144;
const MAX_BYTES = 1_048_576;

/** Number of bytes that a query may always request if it must read events. */
export const MIN_BYTES = 16_384;

/** A part of the bytes that may be pending at a time. */
export interface TransferShare {
  /** Bytes of events that may be requested. */
  readonly bytes: number;
  /** Called when the answer has arrived, or when it can no longer arrive. */
  release(): void;
  /** Called when the caller no longer waits for the answer, which may still arrive. */
  stopWaiting(): void;
}

/** A query that waits for its share. */
interface WaitingQuery {
  readonly wanted: number;
  readonly least: number;
  readonly signal: AbortSignal;
  readonly onAbort: () => void;
  readonly share: Deferred<TransferShare>;
  /** Time in ms at which the wait began. */
  readonly startedAt: number;
  timer: NodeJS.Timeout;
}

/** A share that was granted and not released. */
interface Transfer {
  readonly order: number;
  readonly bytes: number;
  /** Whether no caller waits for the answer any more. */
  isUnwanted: boolean;
}

/**
 * All answers share one connection. If a node requested more than the link carries within the
 * timeout, the query would time out while its answer is still arriving. The next answer would have
 * to wait for the rest of this answer, and Redis would keep both in memory. So the bytes of pending
 * answers are limited, including answers that no caller waits for any more. Further queries wait,
 * in the order of their calls. The queries of healing come first; they may be granted no bytes. The
 * limit follows the speed of the link: an answer should take a quarter of the timeout.
 */
export class TransferLimit {
  readonly #timeoutMs: number;
  #limit = INITIAL_BYTES;
  readonly #transfers = new Set<Transfer>();
  // Bytes of all transfers.
  #pendingBytes = 0;
  // Number of commands so far.
  #order = 0;
  // The waiting queries, the oldest first.
  readonly #waiting = new Set<WaitingQuery>();
  // The waiting queries of healing, which may be granted no bytes. They come before all other
  // queries: until the node has healed, its readers receive nothing.
  readonly #urgentWaiting = new Set<WaitingQuery>();
  // Time in ms of the last release.
  #releasedAt = 0;

  /** @param timeoutMs time in ms that each answer has */
  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Number of bytes of events that one answer may have now; 0 if not even {@link MIN_BYTES} have
   * arrived in time.
   */
  get bytes(): number {
    return this.#limit;
  }

  /** Numbers the commands, in the order in which Redis answers them. */
  nextOrder(): number {
    return ++this.#order;
  }

  /**
   * Waits until bytes may be requested.
   * @param wanted maximum bytes of events
   * @param least bytes that are granted even if the link is very slow; with 0, the share may have
   * no bytes
   * @returns a promise that rejects if no other answer arrives within the timeout; with `least` 0,
   * the promise then resolves with a share of no bytes instead
   */
  async take(wanted: number, least: number, signal: AbortSignal): Promise<TransferShare> {
    signal.throwIfAborted();
    const queue = least === 0 ? this.#urgentWaiting : this.#waiting;
    const bytes = this.#bytesFor(wanted, least);
    const isFirst = this.#urgentWaiting.size === 0 && queue.size === 0;
    if (isFirst && this.#fits(bytes)) return this.#grant(bytes);
    const query: WaitingQuery = {
      wanted,
      least,
      signal,
      onAbort: () => this.#onAbort(query),
      share: deferred<TransferShare>(),
      startedAt: performance.now(),
      timer: setTimeout(() => this.#onTimer(query), this.#timeoutMs),
    };
    signal.addEventListener('abort', query.onAbort);
    queue.add(query);
    return query.share.promise;
  }

  #bytesFor(wanted: number, least: number): number {
    return Math.min(wanted, Math.max(this.#limit, least));
  }

  // The wait of a query ends with its share, when its signal is aborted, or by its timer. In each
  // case the query is removed first, so the other cases cannot follow.

  #remove(query: WaitingQuery): void {
    clearTimeout(query.timer);
    query.signal.removeEventListener('abort', query.onAbort);
    this.#urgentWaiting.delete(query);
    this.#waiting.delete(query);
  }

  #onAbort(query: WaitingQuery): void {
    this.#remove(query);
    query.share.reject(query.signal.reason);
    this.#grantWaiting();
  }

  /** Ends the wait, unless another answer has arrived within the timeout. */
  #onTimer(query: WaitingQuery): void {
    const silenceMs = performance.now() - Math.max(query.startedAt, this.#releasedAt);
    if (silenceMs < this.#timeoutMs) {
      query.timer = setTimeout(() => this.#onTimer(query), this.#timeoutMs - silenceMs);
      return;
    }
    this.#remove(query);
    if (query.least === 0) query.share.resolve(this.#grant(0));
    else query.share.reject(new Error(`no answer within ${this.#timeoutMs} ms`));
    this.#grantWaiting();
  }

  /**
   * Called when a command has been answered.
   * @param order the number of the command. Redis answers in this order, so an unwanted answer to
   * an earlier command has arrived by now, or can no longer arrive
   * @param bytes bytes of events in the answer
   * @param ms time in ms that the answer took
   */
  onAnswered(order: number, bytes: number, ms: number): void {
    for (const transfer of this.#transfers) {
      if (transfer.isUnwanted && transfer.order < order) this.#release(transfer);
    }
    if (this.#limit === 0) {
      if (ms < this.#timeoutMs / 8) this.#limit = MIN_BYTES;
    } else if (bytes >= MIN_BYTES / 4) {
      const carried = (bytes * this.#timeoutMs) / 4 / Math.max(ms, 1);
      this.#limit = Math.round(Math.min(MAX_BYTES, this.#limit * 2, Math.max(carried, MIN_BYTES)));
    }
    this.#grantWaiting();
  }

  /** Called when an answer has not arrived in time. */
  onTimeout(): void {
    this.#limit = this.#limit > MIN_BYTES ? Math.max(MIN_BYTES, this.#limit / 4) : 0;
  }

  #fits(bytes: number): boolean {
    return this.#pendingBytes === 0 || this.#pendingBytes + bytes <= this.#limit;
  }

  #grant(bytes: number): TransferShare {
    const transfer = { order: this.nextOrder(), bytes, isUnwanted: false };
    this.#transfers.add(transfer);
    this.#pendingBytes += bytes;
    return {
      bytes,
      release: () => this.#release(transfer),
      stopWaiting: () => {
        transfer.isUnwanted = true;
      },
    };
  }

  #release(transfer: Transfer): void {
    if (!this.#transfers.delete(transfer)) return;
    this.#pendingBytes -= transfer.bytes;
    this.#releasedAt = performance.now();
    this.#grantWaiting();
  }

  /** Grants shares to the waiting queries, in their order, while the limit has room. */
  #grantWaiting(): void {
    for (const query of [...this.#urgentWaiting, ...this.#waiting]) {
      const bytes = this.#bytesFor(query.wanted, query.least);
      if (!this.#fits(bytes)) return;
      this.#remove(query);
      query.share.resolve(this.#grant(bytes));
    }
  }
}
