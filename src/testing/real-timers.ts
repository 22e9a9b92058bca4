/** Timers that keep working while a test has replaced the global timers by fake timers. */
import { clearTimeout as clearNodeTimeout, setTimeout as setNodeTimeout } from 'node:timers';

// All are read when the module is loaded: fake timers are installed later.
export const setTimer: typeof setNodeTimeout = setNodeTimeout;
export const clearTimer: typeof clearNodeTimeout = clearNodeTimeout;
const runInNextTurn = setImmediate;

/** @returns a promise that resolves in the next turn of the event loop */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    runInNextTurn(resolve);
  });
}

/**
 * Waits for a value for a limited time.
 * @param ms the time limit in ms
 * @param start starts to wait, and calls `resolve` with the value; may return a function that is
 * called after a timeout, to stop waiting
 * @returns a promise of the value, or of `undefined` after a timeout
 */
export function waitFor<T>(
  ms: number,
  start: (resolve: (value: T | undefined) => void) => (() => void) | void,
): Promise<T | undefined> {
  return new Promise((resolve) => {
    const stop = start((value) => {
      clearTimer(timer);
      resolve(value);
    });
    const timer = setTimer(() => {
      stop?.();
      resolve(undefined);
    }, ms);
  });
}
