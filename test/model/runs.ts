/** Runs random schedules: their number and their seed. */
import fc, { type Arbitrary } from 'fast-check';
import { expect } from 'vitest';
import type { Schedule } from './schedule.ts';
import { World, type Tally, type WorldOptions } from './world.ts';

/**
 * Runs random schedules, and prints counts of what happened in them, including the schedules of the
 * shrinking phase.
 *
 * `MODEL_RUNS` multiplies the number of schedules, for a long run. `MODEL_SEED` repeats the seed
 * that a failure printed. `MODEL_SHRINK=0` disables the search for the smallest failing schedule.
 * CI always runs the same schedules, so that a failure is caused by the change under test; other
 * runs draw new schedules.
 * @param description the name of the run, for the printed counts
 * @param times the number of schedules
 * @param options called for each schedule
 * @param rare the counts that may be 0, because few schedules reach these situations
 */
export async function expectContractKept(
  description: string,
  schedules: Arbitrary<Schedule>,
  times: number,
  options: () => Omit<WorldOptions, 'tally'>,
  rare: readonly (keyof Tally)[] = [],
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
    snapshots: 0,
    newest: 0,
    slow: 0,
    acts: 0,
    ended: 0,
    noContent: 0,
    refused: 0,
    consumers: 0,
    consumed: 0,
    consumerGaps: 0,
    lagging: 0,
    left: 0,
    consumedToEnd: 0,
  };
  const property = fc.asyncProperty(schedules, (schedule) =>
    new World(schedule, { ...options(), tally }).run(),
  );
  const start = Date.now();
  try {
    await fc.assert(property, {
      numRuns,
      endOnFailure: MODEL_SHRINK === '0',
      ...(MODEL_SEED === undefined ? {} : { seed: Number(MODEL_SEED) }),
    });
  } finally {
    const counts = Object.entries(tally).map(([name, count]) => `${count} ${name}`);
    console.log(`${description}: ${counts.join(', ')} in ${Date.now() - start} ms`);
  }
  expect(tally.schedules).toBe(numRuns);
  const unreached = Object.entries(tally).filter(([, n]) => n === 0);
  expect(unreached.filter(([name]) => !rare.includes(name as keyof Tally))).toEqual([]);
}
