/** The work of a job: any function that takes a while and knows its progress. */
import { setTimeout as delay } from 'node:timers/promises';

/**
 * The work of a job. If the promise rejects, the job has failed.
 * @param report publishes the progress
 * @returns a promise of the result
 */
export type Work = (report: (percent: number) => Promise<unknown>) => Promise<unknown>;

/** Simulates the creation of thumbnails, for ten seconds. */
export const thumbnails: Work = async (report) => {
  for (let percent = 0; percent < 100; percent += 5) {
    await report(percent);
    await delay(500);
  }
  return { files: 20 };
};
