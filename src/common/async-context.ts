/**
 * Async contexts, as `AsyncLocalStorage` has them. Functions that a subscriber gives run in the context of its request; what serves
 * many requests runs in none of theirs, so that it neither shows one request's store to another nor keeps it in memory.
 */
import { AsyncResource } from 'node:async_hooks';

// The context in which the package was loaded.
const outside = new AsyncResource('res-sse');

/** Calls the function in no request's context. */
export function runOutsideRequests<T>(action: () => T): T {
  return outside.runInAsyncScope(action);
}

/** Calls the function in no request's context, when this turn of the event loop is over. */
export function nextTurnOutsideRequests(action: () => void): void {
  setImmediate(runOutsideRequests, action);
}

/** The function, so that it always runs in the context of this call. */
export function bindToContext<F extends (...args: never[]) => unknown>(action: F): F {
  return AsyncResource.bind(action as unknown as (...args: unknown[]) => unknown) as unknown as F;
}
