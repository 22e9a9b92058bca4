/**
 * One attempt of a node to heal: to subscribe, and to read everything that it may have missed.
 *
 *     connect ─ subscribe ─┬─ query (with a nonce) ─ query … query ─┬─ apply early messages ─ open
 *                          └───────── too many messages ◀───────────┘
 *
 * A probe shows to which place in the sequence of messages the answer to the first query belongs:
 * the header with the nonce is received at that place. The answer contains the changes of earlier
 * messages. Later messages are kept as {@link EarlyMessages}.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { withLimits } from '../../common/async.ts';
import { debug, diagnostics } from '../../common/diagnostics.ts';
import type { InterestEntry } from './channel-interest.ts';
import { CHANNELS_PER_QUERY, type ChannelSubscriber } from './channel-subscriber.ts';
import { EarlyMessages, type LogMessage } from './early-messages.ts';
import type { LocalLog } from './local-log.ts';
import type { LogClient } from './log-client.ts';
import type { ChannelQuery, ChannelSnapshot, LogSnapshot } from './log-snapshot.ts';
import type { Probes } from './probes.ts';
import type { SubscriberConnection } from './subscriber-connection.ts';

// Early messages that are applied in one turn of the event loop.
const EARLY_MESSAGES_PER_TURN = 500;

/** The parts of the node that a {@link HealingAttempt} uses. */
export interface HealingContext {
  readonly client: LogClient;
  readonly log: LocalLog;
  readonly subscriber: ChannelSubscriber;
  /** Time in ms after which the remaining events of a round are left in Redis. */
  readonly timeoutMs: number;
  readonly probes: Probes;
  /** Applies a message to the log. @returns a description of what is missing */
  applyMessage(message: LogMessage): string | undefined;
  /** Resolves when the next message has been kept. Rejects after the timeout. */
  nextMessage(): Promise<void>;
  /** Called after each step, so that the watchdog notices the progress. */
  onStep(): void;
  /** Called when the node has read everything. No message is processed before it returns. */
  onHealed(): void;
}

/** The beginning of a round of reading. */
interface Round {
  /** The queries for the first channels. */
  readonly queries: readonly ChannelQuery[];
  /** The state of the log, and the first channels. */
  readonly snapshot: LogSnapshot;
  /** The messages after the snapshot. */
  readonly early: EarlyMessages;
}

/** An attempt to heal. It either calls `onHealed` or rejects. */
export class HealingAttempt {
  readonly #context: HealingContext;
  readonly #controller = new AbortController();
  // Undefined before the probe of the first round has arrived.
  #early: EarlyMessages | undefined;

  constructor(context: HealingContext) {
    this.#context = context;
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Ends the attempt: its pending step rejects with the reason. */
  abort(reason: unknown): void {
    this.#controller.abort(reason);
  }

  /** Keeps a message that arrives during the attempt. */
  addMessage(message: LogMessage): void {
    this.#early?.add(message);
  }

  /** Waits for a step, at most until the end of the attempt. */
  async step<T>(promise: Promise<T>): Promise<T> {
    const result = await withLimits(promise, { signal: this.signal });
    this.#context.onStep();
    return result;
  }

  /**
   * Makes the attempt.
   * @param connect makes the subscriber connection, or returns the one that works
   * @returns a promise that resolves after `onHealed` was called, or rejects if the attempt has
   * failed
   */
  async run(connect: () => Promise<SubscriberConnection>): Promise<void> {
    const { log, subscriber } = this.#context;
    const startedAt = performance.now();
    try {
      const connection = await connect();
      const entries = log.interest.all();
      await subscriber.subscribe(connection, entries, (promise) => this.step(promise));
      const events = await this.#readAll(
        connection,
        entries.map(({ channel }) => channel),
      );
      // No await from here on: no message may arrive before the node is open.
      this.#markReady(entries);
      this.signal.throwIfAborted();
      this.#context.onHealed();
      this.#announce(entries.length, events, performance.now() - startedAt);
    } finally {
      this.#early = undefined;
      // Ends all pending steps.
      this.abort(new Error('the attempt to heal has ended'));
    }
  }

  /** Sets the channels ready: their events are complete up to the head of the log. */
  #markReady(entries: readonly InterestEntry[]): void {
    const { interest } = this.#context.log;
    for (const entry of entries) {
      const current = interest.get(entry.channel);
      // The channel may have expired meanwhile, or may have been added again.
      if (current === entry) interest.markReady(entry);
      else if (current === undefined) this.#context.log.removeChannel(entry.channel);
    }
  }

  /** Publishes the success on the diagnostics channel `res-sse:heal`. */
  #announce(channels: number, entries: number, ms: number): void {
    const { epoch } = this.#context.log.tracker;
    debug('heal %s: %d channels, %d events, %d ms', epoch, channels, entries, Math.round(ms));
    if (diagnostics.heal.hasSubscribers) diagnostics.heal.publish({ epoch, channels, entries, ms });
  }

  /**
   * Reads the events that the cache does not have, and then applies the messages that arrived
   * meanwhile. If there were too many messages to keep, the channels that they changed are read
   * again in another round, which is usually shorter.
   * @returns number of events that were read
   */
  async #readAll(connection: SubscriberConnection, all: readonly string[]): Promise<number> {
    let events = 0;
    let previous: EarlyMessages | undefined;
    for (;;) {
      const round = await this.#startRound(connection, previous === undefined ? all : []);
      this.#context.log.onReading(round.snapshot);
      // `previous` collects names until the probe of this round arrives, so they are complete only
      // now.
      const channels = previous === undefined ? all : changedChannels(previous, round);
      const read = await this.#readChannels(channels, round);
      events += read.events;
      const { snapshot, early } = round;
      // If all messages were kept, they continue from the place of this round. While they are
      // applied, more may arrive, and may become too many: so the same question is asked again.
      if (early.changedChannels === undefined) {
        this.#context.log.tracker.reset(snapshot.epoch, snapshot.head);
      }
      await this.#applyEarly(early, read.head);
      if (early.changedChannels === undefined) return events;
      debug('heal: reading at least %d channels again', early.changedChannels.size);
      previous = early;
    }
  }

  /**
   * Queries the state of the log and the first channels, and finds the place in the sequence of
   * messages to which the answer belongs.
   */
  async #startRound(connection: SubscriberConnection, channels: readonly string[]): Promise<Round> {
    const { client, log, probes } = this.#context;
    const nonce = probes.createNonce();
    const queries = this.#queriesFor(channels.slice(0, CHANNELS_PER_QUERY));
    log.tracker.reads++;
    const query = client.look(queries, nonce, Infinity, 0, this.signal);
    const arrival = probes.wait(nonce, connection, query, ({ epoch, head }) => {
      this.#early = new EarlyMessages(epoch, head, (channel) => log.isExpected(channel));
    });
    const [snapshot] = await this.step(Promise.all([query, arrival]));
    return { queries, snapshot, early: this.#early as EarlyMessages };
  }

  /**
   * Reads the channels up to the head of the round. Events that are not read within the timeout
   * stay in Redis; readers that need these events read them from there.
   * @returns number of events that were read, and the highest head of the log in an answer
   */
  async #readChannels(
    channels: readonly string[],
    round: Round,
  ): Promise<{ events: number; head: number }> {
    const { client, timeoutMs } = this.#context;
    const { epoch, head } = round.snapshot;
    let { events, unread } = this.#update(round.queries, round.snapshot, head);
    // Not `push(...)`: there may be more channels than a call may have arguments.
    unread = unread.concat(this.#queriesFor(channels.slice(round.queries.length)));
    // The number of channels in the next query. Each channel costs Redis some time, so a query has
    // about as many channels as fit into its answer.
    let count = CHANNELS_PER_QUERY;
    const deadline = performance.now() + timeoutMs;
    let highest = head;
    while (unread.length > 0) {
      const queries = unread.slice(0, count);
      const maxBytes = performance.now() < deadline ? Infinity : 0;
      const limited = queries.map((query) => ({ ...query, until: head }));
      const snapshot = await this.step(client.look(limited, '', maxBytes, 0, this.signal));
      if (snapshot.epoch !== epoch) throw lostLogError();
      highest = Math.max(highest, snapshot.head);
      const update = this.#update(queries, snapshot, head);
      events += update.events;
      const finished = queries.length - update.unread.length;
      count = Math.min(CHANNELS_PER_QUERY, Math.max(1, 2 * finished));
      unread = [...update.unread, ...unread.slice(queries.length)];
    }
    return { events, head: highest };
  }

  /**
   * Updates the local log with an answer.
   * @returns number of events in the answer, and the queries for the channels that have more
   */
  #update(
    queries: readonly ChannelQuery[],
    snapshot: LogSnapshot,
    head: number,
  ): { events: number; unread: ChannelQuery[] } {
    const { log } = this.#context;
    const channels = queries.map(({ channel }) => channel);
    // An answer without events is the last one, because a further answer would have none either:
    // there are no newer events, no bytes were granted, or the timeout of the round has passed.
    const hasEvents = snapshot.channels.some(({ last }) => last > 0);
    const events = log.update(channels, snapshot, head, !hasEvents);
    if (!hasEvents) return { events, unread: [] };
    const unread = queries.flatMap(({ channel, after }, index) => {
      const { hasMore, last, newest } = snapshot.channels[index] as ChannelSnapshot;
      // If the answer did not continue the cached events, the update has emptied the cache of the
      // channel, and the cache is at the end of the channel now. No older events may be added.
      const isAtEnd = (log.cache.newest(channel) ?? head) >= Math.min(newest, head);
      return hasMore && !isAtEnd ? [{ channel, after: Math.max(after ?? 0, last) }] : [];
    });
    return { events, unread };
  }

  /** Queries the events that the cache does not have. */
  #queriesFor(channels: readonly string[]): ChannelQuery[] {
    const { cache } = this.#context.log;
    return channels.map((channel) => ({ channel, after: cache.newest(channel) }));
  }

  /**
   * Applies the kept messages, until the node has reached `head` and no message is left, or until
   * there are too many messages.
   * @param head the highest head of the log in an answer. If an answer is newer than the messages
   * so far, it may say that events are deleted because newer events replaced them. So the newer
   * events must be applied first
   */
  async #applyEarly(early: EarlyMessages, head: number): Promise<void> {
    const { tracker } = this.#context.log;
    const isKept = (): boolean => early.changedChannels === undefined;
    for (;;) {
      for (let count = 0; count < EARLY_MESSAGES_PER_TURN && isKept(); count++) {
        const message = early.shift();
        if (message === undefined) {
          if (tracker.head >= head) return;
          await this.step(this.#context.nextMessage());
          continue;
        }
        const problem = this.#context.applyMessage(message);
        if (problem !== undefined) throw new Error(problem);
      }
      if (early.problem !== undefined) throw new Error(early.problem);
      if (!isKept()) return;
      await this.step(nextTurn());
    }
  }
}

/** The channels that the messages of the previous round have changed. */
function changedChannels(previous: EarlyMessages, { snapshot }: Round): readonly string[] {
  if (previous.problem !== undefined) throw new Error(previous.problem);
  // Another log has replaced the log that the previous rounds have read.
  if (previous.epoch !== snapshot.epoch) throw lostLogError();
  return [...(previous.changedChannels ?? [])];
}

/** Makes the error of an attempt during which the log of this node was replaced by another one. */
function lostLogError(): Error {
  return new Error('the log was lost while it was read');
}
