/** Waiting for a promise that may be given up. */

/** When to stop waiting. */
export interface Limits {
  /** Aborted: the wait rejects at once with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Time in ms after which the wait rejects. */
  readonly timeoutMs?: number | undefined;
  /** Makes the error of a wait that took too long. */
  readonly createTimeoutError?: ((ms: number) => Error) | undefined;
}

/**
 * Settles as the promise does, or rejects earlier at a limit.
 *
 * `Promise.race()` would leave a reaction on each of its promises until that promise settles, so a
 * race with something that lives as long as a connection is a leak. Here the signal is left without
 * a listener and the timer is cleared, and what stays on the promise holds neither the caller nor
 * the value. The promise itself should settle some time.
 */
export function withLimits<T>(
  promise: Promise<T>,
  { signal, timeoutMs: ms, createTimeoutError: late }: Limits,
): Promise<T> {
  if (signal === undefined && ms === undefined) return promise;
  const wait = new Wait<T>(signal);
  promise.then(
    (value) => wait.resolve?.(value),
    (error: unknown) => wait.reject?.(error),
  );
  if (ms !== undefined) {
    wait.timer = setTimeout(
      () => wait.reject?.(late?.(ms) ?? new Error(`no answer within ${ms} ms`)),
      ms,
    );
  }
  return wait.settled;
}

class Wait<T> {
  timer: NodeJS.Timeout | undefined;
  /** `undefined` once settled. */
  resolve: ((value: T) => void) | undefined;
  reject: ((error: unknown) => void) | undefined;
  readonly settled: Promise<T>;

  constructor(signal: AbortSignal | undefined) {
    this.settled = new Promise((resolve, reject) => {
      const abort = (): void => this.reject?.(signal?.reason);
      const end = (): void => {
        this.resolve = undefined;
        this.reject = undefined;
        clearTimeout(this.timer);
        signal?.removeEventListener('abort', abort);
      };
      this.resolve = (value) => {
        end();
        resolve(value);
      };
      this.reject = (error) => {
        end();
        // The reason of an abort may be anything.
        reject(
          error instanceof Error ? error : new Error('the wait was given up', { cause: error }),
        );
      };
      if (signal?.aborted === true) abort();
      else signal?.addEventListener('abort', abort);
    });
  }
}
