/**
 * Limits how many bytes of events are requested at a time, so that each answer arrives within the
 * timeout, however slow the link to Redis is.
 *
 *     take()      a      b                  c              granted while the limit has room
 *     answers     |── a ──|── b ──|         |── c ──|      one connection, in this order
 *     limit    ──────────────────────▲──────────────▶      an answer should take timeout / 4
 */

// Bytes of events in the pending answers: the limit at first, and the highest limit.
const INITIAL_BYTES = 262_144;
const MAX_BYTES = 1_048_576;

/** Bytes that can always be requested where something must be read. */
export const MIN_BYTES = 16_384;

/** A part of the bytes that may be pending at a time. */
export interface TransferShare {
  /** Bytes of events that may be requested. */
  readonly bytes: number;
  /** The answer has arrived, or never will. */
  release(): void;
  /** The caller does not wait for the answer any more, but the answer may still arrive. */
  stopWaiting(): void;
}

interface Waiter {
  readonly bytes: () => number;
  readonly resolve: (share: TransferShare) => void;
}

/** A share that was granted and not released. */
interface Transfer {
  readonly order: number;
  readonly bytes: number;
  isAbandoned: boolean;
}

/**
 * All answers share one connection. If a node requested more than the link carries within the
 * timeout, the query would time out while its answer is still arriving, the next answer would be
 * queued behind it, and Redis would keep both in memory. So the bytes of pending answers are
 * limited, abandoned answers included. Other queries wait, in the order of their calls; the queries
 * of healing, which can do without events, come first. The limit follows the speed of the link: an answer should take a quarter of the timeout.
 */
export class TransferLimit {
  readonly #timeoutMs: number;
  #limit = INITIAL_BYTES;
  readonly #transfers = new Set<Transfer>();
  // Bytes of all transfers.
  #pendingBytes = 0;
  // Number of commands so far.
  #order = 0;
  // The oldest first.
  readonly #waiters = new Set<Waiter>();
  // Queries that can do without events. They come before all others: until the node has healed, its
  // readers receive nothing.
  readonly #urgentWaiters = new Set<Waiter>();
  // Time in ms of the last release.
  #releasedAt = 0;

  /** @param timeoutMs time in ms that each answer has */
  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Bytes of events that one answer may have now; 0 if the link has not carried even
   * {@link MIN_BYTES} in time.
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
   * @param least bytes that are granted however slow the link is; with 0, none may be granted
   * @returns a promise that rejects if no answer arrives within the timeout; with `least` 0, the
   * promise resolves with a share of no bytes instead
   */
  async take(wanted: number, least: number, signal: AbortSignal): Promise<TransferShare> {
    signal.throwIfAborted();
    const bytes = (): number => Math.min(wanted, Math.max(this.#limit, least));
    const waiters = least === 0 ? this.#urgentWaiters : this.#waiters;
    const isFirst = this.#urgentWaiters.size === 0 && waiters.size === 0;
    if (isFirst && this.#fits(bytes())) return this.#grant(bytes());
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
        waiters.delete(waiter);
      };
      const onAbort = (): void => {
        end();
        reject(signal.reason as Error);
        this.#grantWaiting();
      };
      const waiter: Waiter = {
        bytes,
        resolve(share) {
          end();
          resolve(share);
        },
      };
      const startedAt = performance.now();
      const onTimer = (): void => {
        const silenceMs = performance.now() - Math.max(startedAt, this.#releasedAt);
        if (silenceMs < this.#timeoutMs) {
          timer = setTimeout(onTimer, this.#timeoutMs - silenceMs);
          return;
        }
        end();
        if (least === 0) resolve(this.#grant(0));
        else reject(new Error(`no answer within ${this.#timeoutMs} ms`));
        this.#grantWaiting();
      };
      let timer = setTimeout(onTimer, this.#timeoutMs);
      signal.addEventListener('abort', onAbort);
      waiters.add(waiter);
    });
  }

  /**
   * Called when a command has been answered.
   * @param order the number of the command. Redis answers in this order, so the abandoned answers
   * before it have arrived, or never will
   * @param bytes bytes of events in the answer
   * @param ms time in ms that the answer took
   */
  onAnswered(order: number, bytes: number, ms: number): void {
    for (const transfer of this.#transfers) {
      if (transfer.isAbandoned && transfer.order < order) this.#release(transfer);
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
    const transfer = { order: this.nextOrder(), bytes, isAbandoned: false };
    this.#transfers.add(transfer);
    this.#pendingBytes += bytes;
    return {
      bytes,
      release: () => this.#release(transfer),
      stopWaiting: () => {
        transfer.isAbandoned = true;
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
    for (const waiter of [...this.#urgentWaiters, ...this.#waiters]) {
      const bytes = waiter.bytes();
      if (!this.#fits(bytes)) return;
      waiter.resolve(this.#grant(bytes));
    }
  }
}
