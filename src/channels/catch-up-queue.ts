/**
 * The streams that have to read the log, in the order in which they came. Each turn of the event loop does a bounded amount of
 * this work, whatever the number of streams: thousands of clients that come back together must not stall the others.
 */

import { nextTurnOutsideRequests } from '../common/async-context.ts';

/** A stream that has to read the log. */
export interface CatchUpJob {
  /** Does the next step. Never throws. */
  step(): void;
}

// Done in one turn: steps, and bytes of what was read.
const MAX_STEPS = 100;
const MAX_BYTES = 4_194_304;

// Pages of a broker elsewhere that are being read, or wait in memory until their stream has its turn.
const MAX_READS = 64;

export class CatchUpQueue {
  readonly #jobs = new Set<CatchUpJob>();
  // Jobs whose page is here. They go first, because it takes memory.
  readonly #jobsWithPage = new Set<CatchUpJob>();
  readonly #turns = new Set<() => void>();
  #steps = MAX_STEPS;
  #bytes = MAX_BYTES;
  #reads = 0;
  /** Whether an answer had to be waited for: a broker in this process answers at once. */
  hasWaited = false;
  #isScheduled = false;

  /**
   * The job's next step is done in one of the next turns.
   * @param isNow or already in this one, if this has not done too much yet
   * @param hasPage whether the job has a page in hand
   */
  add(job: CatchUpJob, isNow: boolean, hasPage = false): void {
    if (isNow && this.#hasAllowance && (hasPage || this.#canRead)) this.#step(job);
    else (hasPage ? this.#jobsWithPage : this.#jobs).add(job);
    this.#schedule();
  }

  /** The stream has ended. */
  delete(job: CatchUpJob): void {
    this.#jobs.delete(job);
    this.#jobsWithPage.delete(job);
  }

  /** Resolves in a turn that has not done too much yet. */
  turn(): Promise<void> {
    return new Promise((resolve) => {
      this.#turns.add(resolve);
      this.#schedule();
    });
  }

  /** What a step has read counts for this turn. */
  spend(bytes: number): void {
    this.#bytes -= bytes;
  }

  /** A page of a broker elsewhere is being read. */
  beginRead(): void {
    this.hasWaited = true;
    this.#reads++;
  }

  /** The page was used, or is not needed any more. */
  endRead(): void {
    this.#reads--;
    this.#schedule();
  }

  get #hasAllowance(): boolean {
    return this.#steps > 0 && this.#bytes > 0;
  }

  get #canRead(): boolean {
    return this.#reads < MAX_READS;
  }

  #step(job: CatchUpJob): void {
    this.#steps--;
    job.step();
  }

  readonly #run = (): void => {
    this.#isScheduled = false;
    this.#steps = MAX_STEPS;
    this.#bytes = MAX_BYTES;
    for (const resolve of this.#turns) {
      if (this.#steps-- === 0) break;
      this.#turns.delete(resolve);
      resolve();
    }
    this.#runJobs(this.#jobsWithPage, () => true);
    this.#runJobs(this.#jobs, () => this.#canRead);
    // The next turn begins with a fresh allowance, whether or not there is something to do by now.
    if (this.#steps < MAX_STEPS && (this.#canRead || this.#jobsWithPage.size > 0)) this.#schedule();
  };

  /** Does one step of each: a job that is added again meanwhile has its next step in the next turn. */
  #runJobs(jobs: Set<CatchUpJob>, isPossible: () => boolean): void {
    let left = jobs.size;
    for (const job of jobs) {
      if (left-- === 0 || !this.#hasAllowance || !isPossible()) return;
      jobs.delete(job);
      this.#step(job);
    }
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    nextTurnOutsideRequests(this.#run);
  }
}
