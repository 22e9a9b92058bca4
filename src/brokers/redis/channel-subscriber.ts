/**
 * Subscribes to channels, while the node heals and while it is open.
 *
 * A channel that is added while the node is open becomes ready in two steps. First Redis confirms
 * the subscription, so that no event is missed from then on. Then the state of the channel is
 * queried, so that the node knows which older events there are.
 *
 *     listen() ─▶ SUBSCRIBE ─▶ confirmed ─▶ query ─▶ state ─▶ head of the state reached ─▶ ready
 *                                 └── events of the channel are applied ──▶
 */
import { withLimits } from '../../common/async.ts';
import type { InterestEntry } from './channel-interest.ts';
import type { LocalLog } from './local-log.ts';
import type { LogClient } from './log-client.ts';
import type { ChannelSnapshot } from './log-snapshot.ts';
import { isErrorReply } from './redis-errors.ts';
import type { SubscriberConnection } from './subscriber-connection.ts';

/** Maximum number of channels in one query and in one SUBSCRIBE. */
export const CHANNELS_PER_QUERY = 1_000;

/** The interface that a {@link ChannelSubscriber} needs of its owner. */
export interface ChannelSubscriberHost {
  /** The connection while the node is open, otherwise `undefined`. */
  readonly openConnection: SubscriberConnection | undefined;
  /** Ends the connection, and heals. */
  onConnectionFailed(error: unknown): void;
  /** Called if an answer belongs to another log than the log that this node has. */
  onOtherLog(epoch: string): void;
  /** Resolves when the next message has been processed. Rejects after the timeout. */
  nextMessage(): Promise<void>;
  report(error: unknown): void;
  pause(failures: number): Promise<void>;
}

/** Waits for one step of a longer operation. Rejects when the operation has to end. */
export type Step = <T>(promise: Promise<T>) => Promise<T>;

/** Subscribes to the channels in the {@link LocalLog.interest} of a node. */
export class ChannelSubscriber {
  readonly #client: LogClient;
  readonly #log: LocalLog;
  readonly #host: ChannelSubscriberHost;
  #isRunning = false;

  constructor(client: LogClient, log: LocalLog, host: ChannelSubscriberHost) {
    this.#client = client;
    this.#log = log;
    this.#host = host;
  }

  /**
   * Subscribes to the channels that are not subscribed yet, with a limited number in each command.
   * @param step waits for each command
   */
  async subscribe(
    connection: SubscriberConnection,
    all: readonly InterestEntry[],
    step: Step,
  ): Promise<void> {
    const entries = all.filter(({ isSubscribed }) => !isSubscribed);
    for (let index = 0; index < entries.length; index += CHANNELS_PER_QUERY) {
      const batch = entries.slice(index, index + CHANNELS_PER_QUERY);
      await step(connection.subscribe(namesOf(batch)));
      for (const entry of batch) entry.isSubscribed = true;
      // Channels that have expired meanwhile would stay subscribed.
      const expired = batch.filter(({ channel }) => this.#log.interest.get(channel) === undefined);
      if (expired.length > 0) connection.unsubscribe(namesOf(expired));
    }
  }

  /**
   * Subscribes to the pending channels, until there are none or the node is not open. One call runs
   * at a time; others return at once. Never rejects.
   */
  async subscribePending(): Promise<void> {
    const connection = this.#host.openConnection;
    const { interest } = this.#log;
    if (this.#isRunning || connection === undefined || !interest.hasPending) return;
    this.#isRunning = true;
    let refusals = 0;
    try {
      while (this.#isCurrent(connection) && interest.hasPending) {
        try {
          await this.#subscribeBatch(connection);
          refusals = 0;
        } catch (error) {
          // If Redis itself has refused the command, the connection still works for other channels.
          if (!isErrorReply(error)) throw error;
          this.#host.report(error);
          await this.#host.pause(++refusals);
        }
      }
    } catch (error) {
      if (this.#isCurrent(connection)) this.#host.onConnectionFailed(error);
    } finally {
      this.#isRunning = false;
    }
    // More channels may have been added while this call waited on an old connection.
    void this.subscribePending();
  }

  /** Subscribes to some pending channels, queries their state, and sets them ready. */
  async #subscribeBatch(connection: SubscriberConnection): Promise<void> {
    const { interest, tracker } = this.#log;
    const limits = { signal: connection.broken };
    const batch = interest.pending(CHANNELS_PER_QUERY);
    await this.subscribe(connection, batch, (promise) => withLimits(promise, limits));
    const queries = batch.map(({ channel }) => ({ channel, after: undefined }));
    const snapshot = await withLimits(this.#client.look(queries), limits);
    if (!this.#isCurrent(connection)) return;
    if (snapshot.epoch !== tracker.epoch) {
      this.#host.onOtherLog(snapshot.epoch);
      return;
    }
    // The answer may be newer than the messages so far. Then it may say that events are deleted
    // because newer events replaced them, so wait until the newer events are applied.
    const isBehind = (): boolean =>
      snapshot.epoch === tracker.epoch && tracker.head < snapshot.head;
    while (this.#isCurrent(connection) && isBehind()) {
      await withLimits(this.#host.nextMessage(), limits);
    }
    if (!this.#isCurrent(connection) || snapshot.epoch !== tracker.epoch) return;
    for (const [index, entry] of batch.entries()) {
      // The node may have healed meanwhile, or the channel may have expired.
      if (entry.isReady || interest.get(entry.channel) !== entry) continue;
      this.#log.addChannel(entry.channel, snapshot.channels[index] as ChannelSnapshot);
      interest.markReady(entry);
    }
  }

  /** Whether the node is open on this connection. */
  #isCurrent(connection: SubscriberConnection): boolean {
    return this.#host.openConnection === connection;
  }
}

function namesOf(entries: readonly InterestEntry[]): string[] {
  return entries.map(({ channel }) => channel);
}
