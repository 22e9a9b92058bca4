/** How often schedules are tried, and from which seed. */
import fc, { type Arbitrary } from 'fast-check';
import { expect } from 'vitest';
import type { Schedule } from './schedule.ts';
import { World, type Tally, type WorldOptions } from './world.ts';

/**
 * Carries out so many schedules, and says what has happened in them, those of the shrinking included.
 * `MODEL_RUNS` multiplies the number, for a long night; `MODEL_SEED` repeats what a failure has printed; `MODEL_SHRINK=0` does not
 * look for the smallest failure. CI tries the same schedules each time, so that a change is judged by what it changed; everybody
 * else draws new ones.
 * @param options made anew for each schedule
 */
export async function expectKept(
  what: string,
  schedules: Arbitrary<Schedule>,
  times: number,
  options: () => Omit<WorldOptions, 'tally'>,
): Promise<void> {
  const {
    CI,
    MODEL_RUNS = '1',
    MODEL_SEED = CI === undefined ? undefined : '20261120',
    MODEL_SHRINK = '1',
  } = process.env;
  const numRuns = Math.ceil(times * Number(MODEL_RUNS));
  const tally: Tally = {
    schedules: 0,
    streams: 0,
    resumed: 0,
    gaps: 0,
    asked: 0,
    slow: 0,
    acts: 0,
  };
  const property = fc.asyncProperty(schedules, (schedule) =>
    new World(schedule, { ...options(), tally }).run(),
  );
  const began = Date.now();
  try {
    await fc.assert(property, {
      numRuns,
      endOnFailure: MODEL_SHRINK === '0',
      ...(MODEL_SEED === undefined ? {} : { seed: Number(MODEL_SEED) }),
    });
  } finally {
    const seen = Object.entries(tally).map(([name, count]) => `${count} ${name}`);
    console.log(`${what}: ${seen.join(', ')} in ${Date.now() - began} ms`);
  }
  expect(tally.schedules).toBe(numRuns);
  expect(Math.min(tally.gaps, tally.asked, tally.slow, tally.acts)).toBeGreaterThan(0);
}
