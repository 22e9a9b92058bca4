/** Calls that wait until this node has come to some offset of the log. */

// Resolved in one turn of the event loop: each of them goes on to read a page.
const RESOLVED_PER_TURN = 250;

interface Waiter {
  /** Offset that the node must have reached. */
  offset: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  /** Place in the heap. */
  index: number;
}

/**
 * Thousands of calls may wait while thousands of headers come in a second, so progress must not
 * look at each of them: they are kept in a binary heap, the lowest offset first.
 */
export class ConditionQueue {
  readonly #heap: Waiter[] = [];
  // How far the node has come; -1 while nothing it knows can be relied on.
  #reached = -1;
  #error: Error | undefined;
  #turn: NodeJS.Immediate | undefined;

  /** Calls that wait. */
  get size(): number {
    return this.#heap.length;
  }

  /**
   * Resolves when the node is open and has reached the offset. Since then it may have broken
   * again: the caller looks for itself.
   * Rejects when the node is closed, and at once when the signal is aborted; nothing of the wait stays then.
   */
  until(offset: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#error !== undefined) return Promise.reject(this.#error);
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const abort = (): void => {
        this.#remove(waiter);
        waiter.reject(signal?.reason as Error);
      };
      const waiter: Waiter = {
        offset,
        index: this.#heap.length,
        resolve: () => {
          signal?.removeEventListener('abort', abort);
          resolve();
        },
        reject: (error) => {
          signal?.removeEventListener('abort', abort);
          reject(error);
        },
      };
      signal?.addEventListener('abort', abort);
      this.#heap.push(waiter);
      this.#rise(waiter);
      if (offset <= this.#reached) this.#resolveSome();
    });
  }

  /** The node is open and has come to this offset. */
  reach(offset: number): void {
    this.#reached = offset;
    this.#resolveSome();
  }

  /** The log is another, so no offset means anything: each call looks anew when the node is open. */
  forgetOffsets(): void {
    for (const waiter of this.#heap) waiter.offset = 0;
  }

  /** The node is not open any more: nobody is resolved until it has reached something again. */
  interrupt(): void {
    this.#reached = -1;
  }

  close(error: Error): void {
    this.#error = error;
    clearImmediate(this.#turn);
    for (const { reject } of this.#heap.splice(0)) reject(error);
  }

  #resolveSome(): void {
    // One slice a turn: the next has been asked for.
    if (this.#turn !== undefined) return;
    let resolved = 0;
    for (; resolved < RESOLVED_PER_TURN; resolved++) {
      const [first] = this.#heap;
      if (first === undefined || first.offset > this.#reached) break;
      this.#remove(first);
      first.resolve();
    }
    if (resolved === 0) return;
    this.#turn = setImmediate(() => {
      this.#turn = undefined;
      this.#resolveSome();
    });
  }

  #remove(waiter: Waiter): void {
    const heap = this.#heap;
    const last = heap.pop() as Waiter;
    if (last === waiter) return;
    last.index = waiter.index;
    heap[last.index] = last;
    this.#rise(last);
    this.#sink(last);
  }

  #rise(waiter: Waiter): void {
    const heap = this.#heap;
    while (waiter.index > 0) {
      const parent = heap[(waiter.index - 1) >> 1] as Waiter;
      if (parent.offset <= waiter.offset) return;
      this.#swap(parent, waiter);
    }
  }

  #sink(waiter: Waiter): void {
    const heap = this.#heap;
    for (;;) {
      const left = heap[2 * waiter.index + 1];
      const right = heap[2 * waiter.index + 2];
      if (left === undefined) return;
      const child = right !== undefined && right.offset < left.offset ? right : left;
      if (child.offset >= waiter.offset) return;
      this.#swap(waiter, child);
    }
  }

  #swap(one: Waiter, other: Waiter): void {
    const { index } = one;
    one.index = other.index;
    other.index = index;
    this.#heap[one.index] = one;
    this.#heap[other.index] = other;
  }
}
