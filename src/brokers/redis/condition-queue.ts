/** Promises that wait until this node has reached an offset of the log. */
import { deferred, type Deferred } from '../../common/async.ts';

// Number of waits that are resolved in one turn of the event loop. Each caller then reads a page.
const RESOLVED_PER_TURN = 250;

interface Waiter {
  /** Offset that the node must have reached. */
  offset: number;
  readonly deferred: Deferred<void>;
  readonly signal: AbortSignal | undefined;
  readonly onAbort: () => void;
  /** Index in the heap. */
  index: number;
}

/**
 * A binary heap of waits, the lowest offset first. Thousands of calls may wait while thousands of
 * headers arrive each second, so not every wait can be checked for every header.
 */
export class ConditionQueue {
  readonly #heap: Waiter[] = [];
  // Offset that the node has reached; -1 while the node may have missed something.
  #reached = -1;
  #closedError: Error | undefined;
  #nextTurn: NodeJS.Immediate | undefined;

  /** Number of pending waits. */
  get size(): number {
    return this.#heap.length;
  }

  /**
   * Waits until the node is open and has reached the offset. When the caller continues, the node
   * may no longer be open, so the caller has to check the state itself.
   * @param signal rejects the wait at once when aborted, and releases its memory
   * @returns a promise that also rejects when the queue is closed
   */
  until(offset: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#closedError !== undefined) return Promise.reject(this.#closedError);
    if (signal?.aborted === true) return Promise.reject(signal.reason as Error);
    const waiter: Waiter = {
      offset,
      deferred: deferred(),
      signal,
      onAbort: () => {
        this.#remove(waiter);
        waiter.deferred.reject(signal?.reason);
      },
      index: this.#heap.length,
    };
    signal?.addEventListener('abort', waiter.onAbort);
    this.#heap.push(waiter);
    this.#siftUp(waiter);
    if (offset <= this.#reached) this.#resolveSome();
    return waiter.deferred.promise;
  }

  /** The node is open and has reached this offset. */
  reach(offset: number): void {
    this.#reached = offset;
    this.#resolveSome();
  }

  /**
   * Another log has replaced the log, so the offsets of the waits have no meaning: every wait
   * resolves when the node is open.
   */
  forgetOffsets(): void {
    for (const waiter of this.#heap) waiter.offset = 0;
  }

  /** The node may have missed something: nothing resolves until {@link reach} is called again. */
  interrupt(): void {
    this.#reached = -1;
  }

  /** Rejects all waits, and later ones. */
  close(error: Error): void {
    this.#closedError = error;
    clearImmediate(this.#nextTurn);
    for (const waiter of this.#heap.splice(0)) {
      waiter.signal?.removeEventListener('abort', waiter.onAbort);
      waiter.deferred.reject(error);
    }
  }

  /** Resolves waits whose offset has been reached, a limited number in each turn. */
  #resolveSome(): void {
    // One slice is resolved in each turn, and the next slice is scheduled already.
    if (this.#nextTurn !== undefined) return;
    let resolved = 0;
    for (; resolved < RESOLVED_PER_TURN; resolved++) {
      const [first] = this.#heap;
      if (first === undefined || first.offset > this.#reached) break;
      this.#remove(first);
      first.deferred.resolve();
    }
    if (resolved === 0) return;
    this.#nextTurn = setImmediate(() => {
      this.#nextTurn = undefined;
      this.#resolveSome();
    });
  }

  /** Removes a wait from the heap: the last element takes its place and is moved to its level. */
  #remove(waiter: Waiter): void {
    waiter.signal?.removeEventListener('abort', waiter.onAbort);
    const heap = this.#heap;
    const last = heap.pop() as Waiter;
    if (last === waiter) return;
    last.index = waiter.index;
    heap[last.index] = last;
    this.#siftUp(last);
    this.#siftDown(last);
  }

  /** Moves a wait towards the root, as long as its parent has a higher offset. */
  #siftUp(waiter: Waiter): void {
    const heap = this.#heap;
    while (waiter.index > 0) {
      const parent = heap[(waiter.index - 1) >> 1] as Waiter;
      if (parent.offset <= waiter.offset) return;
      this.#swap(parent, waiter);
    }
  }

  /** Moves a wait towards the leaves, as long as a child has a lower offset. */
  #siftDown(waiter: Waiter): void {
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
