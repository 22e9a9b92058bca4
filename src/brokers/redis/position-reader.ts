/** Finds the position of this node in the log. */
import type { Cursor } from '../../protocol/cursor.ts';
import type { ConditionQueue } from './condition-queue.ts';
import type { LogClient } from './log-client.ts';
import type { LogSnapshot } from './log-snapshot.ts';
import type { LogSubscription } from './log-subscription.ts';
import type { SequenceTracker } from './sequence-tracker.ts';
import type { SharedQueries } from './shared-queries.ts';

/** The head of the log after the last append of this node. */
interface LastAppend extends Cursor {
  /** Value of `SequenceTracker.reads` when the append was answered. */
  readonly reads: number;
}

/** Implements `Broker.position()`. */
export class PositionReader {
  readonly #client: LogClient;
  readonly #tracker: SequenceTracker;
  readonly #subscription: LogSubscription;
  readonly #conditions: ConditionQueue;
  readonly #queries: SharedQueries;
  #appended: LastAppend = { epoch: '', offset: 0, reads: 0 };
  // The pending query for the head of the log, and the next query.
  #headQuery: Promise<LogSnapshot> | undefined;
  #nextHeadQuery: Promise<LogSnapshot> | undefined;

  constructor(
    client: LogClient,
    tracker: SequenceTracker,
    subscription: LogSubscription,
    conditions: ConditionQueue,
    queries: SharedQueries,
  ) {
    this.#client = client;
    this.#tracker = tracker;
    this.#subscription = subscription;
    this.#conditions = conditions;
    this.#queries = queries;
  }

  /** @returns the highest place in the log that this node knows of */
  seen(): Cursor {
    const { epoch, seen } = this.#tracker;
    return { epoch, offset: Math.max(seen, this.#offsetOf(this.#appended)) };
  }

  /** Called when this node has appended events, with the new head of the log. */
  onAppended(epoch: string, offset: number): void {
    const isSameLog = this.#appended.epoch === epoch;
    this.#appended = {
      epoch,
      offset: isSameLog ? Math.max(offset, this.#appended.offset) : offset,
      reads: this.#tracker.reads,
    };
    if (epoch !== this.#tracker.epoch) this.#subscription.onOtherLog(epoch);
  }

  /**
   * @returns the position of this node; `undefined` if it is before `atLeast`, or before an event
   * that this node has appended
   */
  current(atLeast: Cursor | undefined): Cursor | undefined {
    if (!this.#hasReached(this.#awaitedOffset(this.#appended))) return undefined;
    if (atLeast !== undefined && !this.#hasReached(this.#offsetOf(atLeast))) return undefined;
    return this.#tracker.position();
  }

  /**
   * Waits until the node has reached `atLeast`, and the events that it has appended itself.
   * @returns the position of the node; if the log itself has not reached `atLeast`, the head of the
   * log
   */
  async read(atLeast: Cursor | undefined, signal: AbortSignal): Promise<Cursor> {
    // Later appends must not delay the answer.
    const appended = this.#appended;
    for (;;) {
      await this.#conditions.until(this.#awaitedOffset(appended), signal);
      if (!this.#hasReached(this.#awaitedOffset(appended))) continue;
      if (atLeast === undefined || this.#hasReached(this.#offsetOf(atLeast))) {
        return this.#tracker.position();
      }
      const epochBefore = this.#tracker.epoch;
      const snapshot = await this.#queries.answerOrPause(this.#queryHead(), signal);
      if (snapshot !== undefined) this.#queries.checkEpoch(snapshot.epoch, epochBefore);
      if (snapshot?.epoch !== atLeast.epoch) continue;
      if (snapshot.head < atLeast.offset) return { epoch: snapshot.epoch, offset: snapshot.head };
      await this.#conditions.until(this.#offsetOf(atLeast), signal);
    }
  }

  /** Whether the node is open and has reached the offset. */
  #hasReached(offset: number): boolean {
    return this.#subscription.isOpen && offset <= this.#tracker.head;
  }

  /**
   * @returns the offset that this node has to reach after the append; 0 if the node has read the
   * log since: then it has the events, or the log has gone back and has lost them
   */
  #awaitedOffset(appended: LastAppend): number {
    return appended.reads < this.#tracker.reads ? 0 : this.#offsetOf(appended);
  }

  /** A cursor of another log counts as reached at once: then the caller checks the log again. */
  #offsetOf({ epoch, offset }: Cursor): number {
    return epoch === this.#tracker.epoch ? offset : 0;
  }

  /**
   * Queries the head of the log. The query must be sent after the call. So a call that comes while
   * another query is pending shares the next query with other such calls:
   *
   *     calls     a   b c          d
   *     queries   |── a ──|── b c ──|── d ──|
   */
  #queryHead(): Promise<LogSnapshot> {
    if (this.#headQuery === undefined) {
      this.#headQuery = this.#queries.reportFailureOf(this.#client.look([])).finally(() => {
        this.#headQuery = undefined;
      });
      return this.#headQuery;
    }
    const pending = this.#headQuery.catch(() => {});
    this.#nextHeadQuery ??= pending.then(() => {
      this.#nextHeadQuery = undefined;
      return this.#queryHead();
    });
    return this.#nextHeadQuery;
  }
}
