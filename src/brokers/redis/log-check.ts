/** Finds out why headers of another log arrive. */
import { deferred } from '../../common/async.ts';
import type { ChannelSubscriberHost } from './channel-subscriber.ts';
import type { LogClient } from './log-client.ts';
import type { SequenceTracker } from './sequence-tracker.ts';

/** The interface that a {@link LogCheck} needs of its owner. */
export type LogCheckHost = Pick<
  ChannelSubscriberHost,
  'onOtherLog' | 'openConnection' | 'pause' | 'report'
>;

// Maximum number of other logs whose names are kept.
const MAX_NAMES = 100;

/**
 * A header of another log has one of two causes: the log of this node was lost and a new log was
 * created, or another registry uses the same prefix on the same server. The epoch of the log in
 * Redis shows which cause it is.
 *
 *     header of log B ─▶ in doubt ─▶ query ─┬─ the log in Redis is another one ─▶ heal
 *                           ▲          ▲    └─ it is the log of this node: B is foreign
 *                           │          │                      │
 *     header of log C ──────┘          └── more headers ── pause (ends at once with a log C)
 */
export class LogCheck {
  readonly #client: LogClient;
  readonly #tracker: SequenceTracker;
  readonly #closed: AbortSignal;
  readonly #host: LogCheckHost;
  #isRunning = false;
  // The log of the newest header of another log since the last query.
  #pending: string | undefined;
  // Other logs whose headers have arrived, and which may have replaced the log of this node.
  readonly #unknown = new Set<string>();
  // Other logs that existed while Redis had the log of this node. Names are random, so these logs
  // do not replace the log of this node later.
  readonly #foreign = new Set<string>();
  // Resolved by a header of a log that is in neither set.
  #newcomer = deferred();

  /** @param closed aborted when the node is closed */
  constructor(
    client: LogClient,
    tracker: SequenceTracker,
    closed: AbortSignal,
    host: LogCheckHost,
  ) {
    this.#client = client;
    this.#tracker = tracker;
    this.#closed = closed;
    this.#host = host;
  }

  /** Whether another log may have replaced the log of this node, until a query is answered. */
  get isInDoubt(): boolean {
    return this.#unknown.size > 0;
  }

  /**
   * Called with each header of another log. Makes one query in each pause, and one for each other
   * log, for any number of headers. Never rejects.
   * @param otherEpoch the log of the header
   */
  async run(otherEpoch: string): Promise<void> {
    this.#pending = otherEpoch;
    if (!this.#foreign.has(otherEpoch) && !this.#unknown.has(otherEpoch)) {
      addNewest(this.#unknown, otherEpoch);
      this.#newcomer.resolve();
    }
    if (this.#isRunning) return;
    this.#isRunning = true;
    for (let times = 1; this.#pending !== undefined && !this.#closed.aborted; times++) {
      this.#newcomer = deferred();
      if (await this.#query(this.#pending)) continue;
      await Promise.race([this.#host.pause(times), this.#newcomer.promise]);
    }
    this.#isRunning = false;
  }

  /** The node is open: the query that a pause delays is made now. */
  onOpened(): void {
    this.#newcomer.resolve();
  }

  /**
   * Queries the log in Redis.
   * @param otherEpoch the log of the newest header
   * @returns whether the node heals, so that no header has to be explained any more
   */
  async #query(otherEpoch: string): Promise<boolean> {
    const asked = [...this.#unknown];
    this.#pending = undefined;
    try {
      const { epoch } = await this.#client.look([]);
      if (epoch === this.#tracker.epoch) {
        this.#onSameLog(asked, otherEpoch);
        return false;
      }
      if (this.#host.openConnection !== undefined) {
        this.#host.onOtherLog(epoch);
        this.#unknown.clear();
        this.#pending = undefined;
        return true;
      }
      // The attempt to heal may have read the log before it was replaced.
      this.#pending ??= otherEpoch;
    } catch (error) {
      this.#pending ??= otherEpoch;
      if (!this.#closed.aborted) this.#host.report(error);
    }
    return false;
  }

  /** Redis has the log of this node. */
  #onSameLog(asked: readonly string[], otherEpoch: string): void {
    for (const name of asked) {
      this.#unknown.delete(name);
      // The node may have healed, and then has this log.
      if (name !== this.#tracker.epoch) addNewest(this.#foreign, name);
    }
    if (otherEpoch === this.#tracker.epoch) return;
    const question = 'does another registry use this prefix?';
    this.#host.report(new Error(`ignored a message of another log, ${otherEpoch}: ${question}`));
  }
}

/** Adds a name, and removes the oldest one if there are too many. */
function addNewest(names: Set<string>, name: string): void {
  const [oldest] = names;
  if (oldest !== undefined && names.size >= MAX_NAMES) names.delete(oldest);
  names.add(name);
}
