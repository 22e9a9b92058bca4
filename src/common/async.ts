/** Promises with resolvers, and waits with limits. */

/** A promise together with the functions that settle it. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T | PromiseLike<T>) => void;
  readonly reject: (reason: unknown) => void;
}

/** Makes a pending promise, like `Promise.withResolvers()`, which Node 20 does not have. */
export function deferred<T = void>(): Deferred<T> {
  let resolve!: Deferred<T>['resolve'];
  let reject!: Deferred<T>['reject'];
  const promise = new Promise<T>((resolvePromise, rejectPromise) => {
    resolve = resolvePromise;
    reject = rejectPromise;
  });
  return { promise, resolve, reject };
}

/** Whether the value is a promise, of any class. */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === 'object' &&
    value !== null &&
    'then' in value &&
    typeof value.then === 'function'
  );
}

/**
 * Handles the rejection of a promise that was refused as a value, because an unhandled rejection
 * ends the process. No effect for any other value.
 */
export function ignoreRejection(value: unknown): void {
  if (isThenable(value)) value.then(undefined, () => {});
}

/** The limits of a wait. The first limit that is reached ends the wait. */
export interface Limits {
  /** Aborting the signal rejects the wait at once with the reason of the signal. */
  readonly signal?: AbortSignal | undefined;
  /** Time in ms after which the wait rejects. */
  readonly timeoutMs?: number | undefined;
  /** Makes the error of a wait that timed out. @defaultValue an `Error` that names the time */
  readonly timeoutError?: ((timeoutMs: number) => Error) | undefined;
}

/**
 * Waits for a promise, but not beyond the limits.
 *
 * `Promise.race()` adds a reaction to each of its promises and keeps the reaction until that
 * promise settles. A race with a promise that lives as long as a connection would therefore be a
 * leak. When this wait ends, it removes its listener from the signal and clears its timer. One
 * reaction remains on `promise` until `promise` settles. This reaction keeps neither the caller nor
 * a value in memory.
 *
 * @returns a promise that settles as `promise` does, or rejects at the first limit; `promise`
 * itself if there is no limit
 */
export function withLimits<T>(promise: Promise<T>, limits: Limits): Promise<T> {
  if (limits.signal === undefined && limits.timeoutMs === undefined) return promise;
  const wait = new LimitedWait<T>(limits);
  promise.then(
    (value) => wait.resolve(value),
    (error: unknown) => wait.reject(error),
  );
  return wait.promise;
}

class LimitedWait<T> {
  readonly promise: Promise<T>;
  // Undefined after the wait has ended, as are the signal and the timer.
  #pending: Deferred<T> | undefined;
  #signal: AbortSignal | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #onAbort = (): void => {
    const reason: unknown = this.#signal?.reason;
    // The reason of an abort may be any value.
    const isError = reason instanceof Error;
    this.reject(isError ? reason : new Error('the wait was aborted', { cause: reason }));
  };

  constructor({ signal, timeoutMs, timeoutError = defaultTimeoutError }: Limits) {
    this.#pending = deferred<T>();
    this.promise = this.#pending.promise;
    this.#signal = signal;
    if (signal?.aborted === true) {
      this.#onAbort();
      return;
    }
    signal?.addEventListener('abort', this.#onAbort);
    if (timeoutMs !== undefined) {
      this.#timer = setTimeout(() => this.reject(timeoutError(timeoutMs)), timeoutMs);
    }
  }

  resolve(value: T): void {
    this.#end()?.resolve(value);
  }

  reject(reason: unknown): void {
    this.#end()?.reject(reason);
  }

  /** Removes the limits. @returns the pending promise; `undefined` if the wait had ended before */
  #end(): Deferred<T> | undefined {
    const pending = this.#pending;
    this.#pending = undefined;
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#signal = undefined;
    return pending;
  }
}

function defaultTimeoutError(timeoutMs: number): Error {
  return new Error(`no answer within ${timeoutMs} ms`);
}
