/** The streams that have to read the log, and a limit for the work of one event loop turn. */
import { nextTurnOutsideRequests } from '../common/async-context.ts';

/** A stream that has to read the log. */
export interface CatchUpJob {
  /** Does the next step. Never throws. */
  step(): void;
}

// Limits of one turn: the number of steps, and the bytes of the pages that the steps read.
const MAX_STEPS_PER_TURN = 100;
const MAX_BYTES_PER_TURN = 4_194_304;

// Maximum number of pages of a remote broker that are being read, or that wait for the step of
// their stream.
const MAX_PENDING_READS = 64;

/**
 * A queue of catching-up streams, first in, first out. If thousands of clients reconnect at once,
 * then without the limits they would block the event loop for all other work.
 *
 * ```text
 * each turn:   waitForTurn()  ──►  jobs that have a page  ──►  other jobs
 *              └ 50 steps, ──┘     │                              │
 *              │ if there are jobs │                              │
 *              └─────────── at most 100 steps and 4 MiB ──────────┘
 * ```
 */
export class CatchUpQueue {
  readonly #jobs = new Set<CatchUpJob>();
  // Jobs whose page has arrived. They run first, because their pages take memory.
  readonly #jobsWithPage = new Set<CatchUpJob>();
  // The functions that resolve the waits, each with its number of steps.
  readonly #waitingForTurn = new Map<() => void, number>();
  #stepsLeft = MAX_STEPS_PER_TURN;
  #bytesLeft = MAX_BYTES_PER_TURN;
  #pendingReads = 0;
  /** Whether the broker has ever answered with a promise. A broker in this process never does. */
  isBrokerRemote = false;
  #isScheduled = false;

  /**
   * Queues the next step of a job.
   * @param mayRunNow whether the step may run inside this call, if the limits of this turn allow it
   * @param hasPage whether the page of the job has arrived. @defaultValue `false`
   */
  add(job: CatchUpJob, mayRunNow: boolean, hasPage = false): void {
    if (mayRunNow && this.#isWithinLimits && (hasPage || this.#canRead)) this.#runStep(job);
    else (hasPage ? this.#jobsWithPage : this.#jobs).add(job);
    this.#schedule();
  }

  /** Removes a job, because its stream has ended. */
  delete(job: CatchUpJob): void {
    this.#jobs.delete(job);
    this.#jobsWithPage.delete(job);
  }

  /**
   * Resolves in a turn whose limits are not reached.
   * @param steps number of steps of that turn for which the work after the wait counts
   */
  waitForTurn(steps = 1): Promise<void> {
    return new Promise((resolve) => {
      this.#waitingForTurn.set(resolve, steps);
      this.#schedule();
    });
  }

  /** Counts the bytes that a step has read for the limit of this turn. */
  countBytes(bytes: number): void {
    this.#bytesLeft -= bytes;
  }

  /** A read from a remote broker starts. Every call needs a {@link finishRead}. */
  startRead(): void {
    this.isBrokerRemote = true;
    this.#pendingReads++;
  }

  /** The page of a read was used, or is not needed any more. */
  finishRead(): void {
    this.#pendingReads--;
    this.#schedule();
  }

  get #isWithinLimits(): boolean {
    return this.#stepsLeft > 0 && this.#bytesLeft > 0;
  }

  get #canRead(): boolean {
    return this.#pendingReads < MAX_PENDING_READS;
  }

  #runStep(job: CatchUpJob): void {
    this.#stepsLeft--;
    job.step();
  }

  readonly #runTurn = (): void => {
    this.#isScheduled = false;
    this.#stepsLeft = MAX_STEPS_PER_TURN;
    this.#bytesLeft = MAX_BYTES_PER_TURN;
    this.#resolveWaiting();
    this.#runJobs(this.#jobsWithPage, () => true);
    this.#runJobs(this.#jobs, () => this.#canRead);
    // This turn has used a part of its limits. A turn is scheduled even if nothing is queued: it
    // resets the limits for calls of `add`.
    const couldRunJobs = this.#canRead || this.#jobsWithPage.size > 0;
    if (this.#stepsLeft < MAX_STEPS_PER_TURN && couldRunJobs) this.#schedule();
  };

  /** Keeps half of the turn for queued jobs, because consumers may wait in each turn. */
  #resolveWaiting(): void {
    const hasJobs = this.#jobs.size + this.#jobsWithPage.size > 0;
    const stepsForJobs = hasJobs ? MAX_STEPS_PER_TURN / 2 : 0;
    for (const [resolve, steps] of this.#waitingForTurn) {
      if (this.#stepsLeft <= stepsForJobs) break;
      this.#stepsLeft -= steps;
      this.#waitingForTurn.delete(resolve);
      resolve();
    }
  }

  /** Runs one step of each job. A job that is added again meanwhile runs in the next turn. */
  #runJobs(jobs: Set<CatchUpJob>, isPossible: () => boolean): void {
    let left = jobs.size;
    for (const job of jobs) {
      if (left-- === 0 || !this.#isWithinLimits || !isPossible()) return;
      jobs.delete(job);
      this.#runStep(job);
    }
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    nextTurnOutsideRequests(this.#runTurn);
  }
}
