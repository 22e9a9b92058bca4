/** The monotonic clock of the library. */
import { performance } from 'node:perf_hooks';

/**
 * @returns the time in whole ms, monotonic. V8 keeps a fraction as an object of its own, which
 * would cost memory for each time that a stream stores.
 */
export function clock(): number {
  return Math.ceil(performance.now());
}
