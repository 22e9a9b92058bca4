/** Finds out why headers of another log arrive. */
import type { ChannelSubscriberHost } from './channel-subscriber.ts';
import type { LogClient } from './log-client.ts';
import type { SequenceTracker } from './sequence-tracker.ts';

/** The interface that a {@link LogCheck} needs of its owner. */
export type LogCheckHost = Pick<ChannelSubscriberHost, 'onOtherLog' | 'pause' | 'report'>;

/**
 * A header of another log has one of two causes: the log of this node was lost and a new log was
 * created, or another registry uses the same prefix on the same server. The epoch of the log in
 * Redis shows which cause it is.
 */
export class LogCheck {
  readonly #client: LogClient;
  readonly #tracker: SequenceTracker;
  readonly #closed: AbortSignal;
  readonly #host: LogCheckHost;
  #isRunning = false;
  // Whether a header of another log has arrived since the last query.
  #isPending = false;

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

  /**
   * Called with each header of another log. However many such headers arrive, there is one query in
   * each pause. Never rejects.
   * @param otherEpoch the log of the header
   */
  async run(otherEpoch: string): Promise<void> {
    this.#isPending = true;
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      for (let times = 1; this.#isPending && !this.#closed.aborted; times++) {
        this.#isPending = false;
        const { epoch } = await this.#client.look([]);
        if (epoch !== this.#tracker.epoch) {
          this.#host.onOtherLog(epoch);
          return;
        }
        const question = 'does another registry use this prefix?';
        this.#host.report(
          new Error(`ignored a message of another log, ${otherEpoch}: ${question}`),
        );
        await this.#host.pause(times);
      }
    } catch (error) {
      // The next probe shows whether the log is another one.
      if (!this.#closed.aborted) this.#host.report(error);
    } finally {
      this.#isRunning = false;
    }
  }
}
