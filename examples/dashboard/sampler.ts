/** What is plotted. */
import { performance } from 'node:perf_hooks';

export interface Sample {
  /** When it was taken, ms since 1970. */
  at: number;
  /** How busy the event loop was since the last one, in percent. */
  busy: number;
}

/** Measures this process. */
export function sampler(): () => Sample {
  let last = performance.eventLoopUtilization();
  return () => {
    const now = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(now, last);
    last = now;
    return { at: Date.now(), busy: Math.round(utilization * 1_000) / 10 };
  };
}
