import { performance } from 'node:perf_hooks';

/** Whole ms, monotonic: a fraction would cost each stream an object of its own for each time it keeps. */
export function clock(): number {
  return Math.ceil(performance.now());
}
