/**
 * Async contexts, as `AsyncLocalStorage` has them. Functions of a subscriber run in the context of
 * its request. Work that serves many requests runs in the context of none of them: otherwise it
 * would show the store of one request to another, and would keep that store in memory.
 */
import { AsyncResource } from 'node:async_hooks';

// The context in which the package was loaded.
const outside = new AsyncResource('res-sse');

/** Calls the function outside the context of any request. */
export function runOutsideRequests<T>(action: () => T): T {
  return outside.runInAsyncScope(action);
}

/** Calls the function outside the context of any request, after this turn of the event loop. */
export function nextTurnOutsideRequests(action: () => void): void {
  setImmediate(runOutsideRequests, action);
}

/** @returns the function, bound to the context of this call */
export function bindToContext<F extends (...args: never[]) => unknown>(action: F): F {
  return AsyncResource.bind(action as unknown as (...args: unknown[]) => unknown) as unknown as F;
}
