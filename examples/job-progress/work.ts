/** What a job does: anything that takes its time and knows how far it is. */
import { setTimeout as delay } from 'node:timers/promises';

/** @returns the result; a throw makes the job one that has failed */
export type Work = (report: (percent: number) => Promise<unknown>) => Promise<unknown>;

/** Makes as if it made thumbnails, for ten seconds. */
export const thumbnails: Work = async (report) => {
  for (let percent = 0; percent < 100; percent += 5) {
    await report(percent);
    await delay(500);
  }
  return { files: 20 };
};
