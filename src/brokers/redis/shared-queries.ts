/** Queries that several calls wait for, and the retry after a failure. */
import { withLimits } from '../../common/async.ts';
import { closedError } from '../errors.ts';
import type { FailureReporter } from './failure-reporter.ts';
import type { LogSubscription } from './log-subscription.ts';
import type { SequenceTracker } from './sequence-tracker.ts';

/** Waits for queries, for calls that must not fail while Redis is unreachable. */
export class SharedQueries {
  readonly #subscription: LogSubscription;
  readonly #tracker: SequenceTracker;
  readonly #failures: FailureReporter;
  // The pause after a failure, which all calls share.
  #pause: Promise<void> | undefined;
  #isClosed = false;

  constructor(subscription: LogSubscription, tracker: SequenceTracker, failures: FailureReporter) {
    this.#subscription = subscription;
    this.#tracker = tracker;
    this.#failures = failures;
  }

  close(): void {
    this.#isClosed = true;
  }

  /** Reports the failure of a query once, even if many calls wait for the query. */
  reportFailureOf<T>(query: Promise<T>): Promise<T> {
    query.catch((error: unknown) => {
      if (!this.#isClosed) this.#failures.report(error);
    });
    return query;
  }

  /**
   * Waits for a query.
   * @returns the answer; or `undefined`, after a pause, if the query has failed and the caller
   * should try again. Rejects when the signal is aborted or the broker is closed
   */
  async answerOrPause<T>(query: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
    try {
      return await withLimits(query, { signal });
    } catch {
      signal.throwIfAborted();
      if (this.#isClosed) throw closedError();
      this.#pause ??= this.#subscription.pause(1).finally(() => {
        this.#pause = undefined;
      });
      await withLimits(this.#pause, { signal });
      if (this.#isClosed) throw closedError();
      return undefined;
    }
  }

  /**
   * Heals if an answer belongs to another log.
   * @param epoch the log of the answer
   * @param epochBefore the log that this node had when the query was sent. If the node has another
   * log now, it has healed since, and the answer is merely outdated
   */
  checkEpoch(epoch: string, epochBefore: string): void {
    if (epoch === epochBefore || epochBefore !== this.#tracker.epoch) return;
    this.#subscription.onOtherLog(epoch);
  }
}
