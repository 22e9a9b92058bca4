/** The samples of the plot. */
import { performance } from 'node:perf_hooks';

/** One measurement of the event loop. */
export interface Sample {
  /** Time of the measurement, in ms since 1970. */
  at: number;
  /** Utilization of the event loop since the previous sample, in percent. */
  busy: number;
}

/** @returns a function that measures the event loop of this process */
export function createSampler(): () => Sample {
  let last = performance.eventLoopUtilization();
  return () => {
    const now = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(now, last);
    last = now;
    return { at: Date.now(), busy: Math.round(utilization * 1_000) / 10 };
  };
}
