/** Helpers for promises: a promise that is resolved from outside, and waiting with limits. */

/** A promise and the function that resolves the promise. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
}

/** @returns a pending promise with its `resolve` function */
export function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((onResolve) => {
    resolve = onResolve;
  });
  return { promise, resolve };
}

/** When to stop waiting. */
export interface Limits {
  /** When the signal is aborted, the wait rejects at once with the reason of the signal. */
  readonly signal?: AbortSignal | undefined;
  /** Time in ms after which the wait rejects. */
  readonly timeoutMs?: number | undefined;
  /** Makes the error of a wait that took longer than `timeoutMs`. */
  readonly createTimeoutError?: ((timeoutMs: number) => Error) | undefined;
}

/**
 * Settles like the promise, or rejects earlier when a limit is reached.
 *
 * `Promise.race()` would leave a reaction on each of its promises until that promise settles. A
 * race with a promise that lives as long as a connection would be a memory leak. Here the listener
 * is removed from the signal and the timer is cleared. The reaction that stays on the promise keeps
 * neither the caller nor the value in memory, but the promise should settle some time.
 */
export function withLimits<T>(
  promise: Promise<T>,
  { signal, timeoutMs, createTimeoutError }: Limits,
): Promise<T> {
  if (signal === undefined && timeoutMs === undefined) return promise;
  const wait = new Wait<T>(signal);
  promise.then(
    (value) => wait.resolve?.(value),
    (error: unknown) => wait.reject?.(error),
  );
  if (timeoutMs !== undefined) {
    wait.timer = setTimeout(() => {
      const error = createTimeoutError?.(timeoutMs);
      wait.reject?.(error ?? new Error(`no answer within ${timeoutMs} ms`));
    }, timeoutMs);
  }
  return wait.settled;
}

/** One call of {@link withLimits} whose promise is pending. */
class Wait<T> {
  timer: NodeJS.Timeout | undefined;
  /** `undefined` after the wait has settled. */
  resolve: ((value: T) => void) | undefined;
  /** `undefined` after the wait has settled. */
  reject: ((error: unknown) => void) | undefined;
  readonly settled: Promise<T>;

  constructor(signal: AbortSignal | undefined) {
    this.settled = new Promise((resolve, reject) => {
      const onAbort = (): void => this.reject?.(signal?.reason);
      const release = (): void => {
        this.resolve = undefined;
        this.reject = undefined;
        clearTimeout(this.timer);
        signal?.removeEventListener('abort', onAbort);
      };
      this.resolve = (value) => {
        release();
        resolve(value);
      };
      this.reject = (error) => {
        release();
        // The reason of an abort may be any value.
        reject(
          error instanceof Error ? error : new Error('the wait was given up', { cause: error }),
        );
      };
      if (signal?.aborted === true) onAbort();
      else signal?.addEventListener('abort', onAbort);
    });
  }
}
