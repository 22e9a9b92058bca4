/** Those who wait until something is true of a node. */
interface Waiter {
  readonly test: () => boolean;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class Waiters {
  #waiting: Waiter[] = [];
  #error: Error | undefined;

  /** Resolves when the test is true, at once if it is now; rejects when the node is closed. */
  until(test: () => boolean): Promise<void> {
    if (this.#error !== undefined) return Promise.reject(this.#error);
    if (test()) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#waiting.push({ test, resolve, reject });
    });
  }

  /** Something has changed. */
  look(): void {
    if (this.#waiting.length === 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const waiter of waiting) {
      if (waiter.test()) waiter.resolve();
      else this.#waiting.push(waiter);
    }
  }

  close(error: Error): void {
    this.#error = error;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { reject } of waiting) reject(error);
  }
}
