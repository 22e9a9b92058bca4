/**
 * One node of a registry whose log is in Redis.
 *
 *     append()   ─▶ PublishQueue ─────────────────┐
 *     position() ─▶ PositionReader ───────────────┤
 *     read()     ─▶ PageReader ─▶ HistoryLoader ──┼─▶ LogClient ─▶ script in Redis
 *                       │              │          │                     │ PUBLISH
 *                       ▼              ▼          │                     ▼
 *                     LocalLog (cache) ◀── LogSubscription ◀── SubscriberConnection
 *                       │
 *                       ▼
 *                     Receiver (registry)
 */
import type { HistoryLimits } from '../../log/log.ts';
import type { Cursor } from '../../protocol/cursor.ts';
import type {
  Broker,
  BrokerState,
  ChannelState,
  Lease,
  LogBounds,
  Page,
  Publication,
  Receiver,
} from '../broker.ts';
import { closedError, otherRegistryError } from '../errors.ts';
import { ConditionQueue } from './condition-queue.ts';
import { FailureReporter } from './failure-reporter.ts';
import { HistoryLoader } from './history-loader.ts';
import { Leases } from './leases.ts';
import { LocalLog } from './local-log.ts';
import { LogClient } from './log-client.ts';
import { toChannelState } from './log-snapshot.ts';
import { LogSubscription } from './log-subscription.ts';
import { PageReader } from './page-reader.ts';
import { PositionReader } from './position-reader.ts';
import { PublishQueue } from './publish-queue.ts';
import type { RedisConnection } from './redis-connection.ts';
import { SharedQueries } from './shared-queries.ts';
import { DEFAULT_LEASE_MS, type Timing } from './timing.ts';

const DEFAULT_IN_USE_MS = 10_000;

/** The `Broker` that `redisBroker()` returns. */
export class RedisBroker implements Broker {
  readonly #connection: RedisConnection;
  readonly #timeoutMs: number;
  readonly #failures: FailureReporter;
  readonly #client: LogClient;
  readonly #log: LocalLog;
  readonly #subscription: LogSubscription;
  readonly #conditions = new ConditionQueue();
  readonly #queries: SharedQueries;
  readonly #positions: PositionReader;
  readonly #pages: PageReader;
  readonly #publishQueue: PublishQueue;
  readonly #leases: Leases;
  #running: Promise<void> = Promise.resolve();
  #closing: Promise<void> | undefined;

  /**
   * Makes a broker, which connects when it is opened.
   * @param connection access to Redis; closed together with the broker
   * @param prefix the beginning of all keys and topics
   */
  constructor(connection: RedisConnection, prefix: string, timing: Timing) {
    const { timeout, inUse = DEFAULT_IN_USE_MS, lease = DEFAULT_LEASE_MS } = timing;
    const isOpen = (): boolean => this.#subscription.isOpen;
    const failures = new FailureReporter(this, connection.address, isOpen);
    const client = new LogClient(
      connection,
      prefix,
      timeout,
      () => this.#positions.seen(),
      (problem) => failures.report(new Error(problem)),
    );
    const log = new LocalLog(inUse, isOpen, (error) => failures.report(error));
    const subscription = new LogSubscription(connection, client, log, timing, {
      failures,
      onOpened: () => this.#onOpened(),
      onHeader: () => this.#onHeader(),
      onInterrupted: () => this.#onInterrupted(),
    });
    connection.onReplaced?.(() =>
      subscription.reconnect(new Error('the connection for commands was replaced')),
    );
    const conditions = this.#conditions;
    const queries = new SharedQueries(subscription, log.tracker, failures);
    const loader = new HistoryLoader(client, log, conditions, queries, inUse);
    this.#connection = connection;
    this.#timeoutMs = timeout;
    this.#failures = failures;
    this.#client = client;
    this.#log = log;
    this.#subscription = subscription;
    this.#queries = queries;
    this.#positions = new PositionReader(client, log.tracker, subscription, conditions, queries);
    this.#pages = new PageReader(client, log, subscription, conditions, queries, loader);
    this.#leases = new Leases(client, lease, (error) => failures.report(error));
    this.#publishQueue = new PublishQueue(
      client,
      timeout,
      (epoch, head) => this.#positions.onAppended(epoch, head),
      (problem, delivery) => failures.unansweredError(problem, delivery),
    );
  }

  get state(): BrokerState {
    return this.#subscription.state;
  }

  get head(): number {
    return this.#log.tracker.head;
  }

  get held(): { events: number; bytes: number } {
    return this.#log.cache.held;
  }

  open(receiver: Receiver, bounds: LogBounds): void {
    if (this.#log.receiver !== undefined) throw otherRegistryError();
    this.#log.receiver = receiver;
    this.#log.cache.maxBytes = bounds.maxHistory;
    this.#client.bounds = bounds;
    this.#running = this.#subscription.run();
    this.#leases.start();
  }

  append(publication: Publication): Promise<{ id: string }> {
    if (this.#closing !== undefined) return Promise.reject(closedError());
    return this.#publishQueue.add(publication, this.#leases.ownerOf(publication.channel));
  }

  listen(channel: string): Promise<void> | undefined {
    return this.#subscription.listen(channel);
  }

  unlisten(channel: string): void {
    this.#log.interest.leave(channel, performance.now());
  }

  position(atLeast?: Cursor, signal?: AbortSignal): Cursor | Promise<Cursor> {
    if (this.#closing !== undefined) throw closedError();
    return (
      this.#positions.current(atLeast) ??
      this.#withTimeout(signal, (limit) => this.#positions.read(atLeast, limit))
    );
  }

  read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal?: AbortSignal,
  ): Page | Promise<Page> {
    if (this.#closing !== undefined) throw closedError();
    return (
      this.#pages.readCached(channels, after, maxBytes) ??
      this.#withTimeout(signal, (limit) => this.#pages.read(channels, after, maxBytes, limit))
    );
  }

  countHeld(channels: readonly string[], after: number): number {
    const { cache } = this.#log;
    return channels.reduce((sum, channel) => sum + cache.countAfter(channel, after), 0);
  }

  startsOfNewest(
    channels: readonly string[],
    count: number,
    signal?: AbortSignal,
  ): readonly number[] | Promise<readonly number[]> {
    if (this.#closing !== undefined) throw closedError();
    return (
      this.#pages.startsInCache(channels, count) ??
      this.#withTimeout(signal, (limit) => this.#pages.startsOfNewest(channels, count, limit))
    );
  }

  async channelState(channel: string): Promise<ChannelState> {
    if (this.#closing !== undefined) throw closedError();
    // Events that were published before this call count, too.
    await this.#publishQueue.settled();
    const { channels } = await this.#client.look([{ channel, after: undefined }]);
    return toChannelState(channels[0]);
  }

  hold(channel: string, history: HistoryLimits): Lease {
    return this.#leases.hold(channel, history);
  }

  async clear(channel: string): Promise<void> {
    if (this.#closing !== undefined) throw closedError();
    // Events that were published before this call are cleared, too.
    await this.#publishQueue.settled();
    const { epoch, offset, trimmed } = await this.#client.clear(channel);
    if (epoch === this.#log.cache.epoch) this.#log.cache.clear(channel, trimmed);
    this.#positions.onAppended(epoch, offset);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Ends pending waits at once. Pending publishes are accepted or rejected within the timeout. */
  async #close(): Promise<void> {
    this.#subscription.close();
    this.#queries.close();
    this.#conditions.close(closedError());
    // Events that were published before are accepted or rejected within the timeout.
    await this.#publishQueue.settled();
    await this.#leases.stop();
    this.#client.close();
    this.#connection.close();
    await this.#running;
    this.#log.cache.reset('');
  }

  /** Reports an error of the connection to the application. */
  report(error: unknown): void {
    this.#failures.report(error);
  }

  /** Called when the node has healed: resolves all waits. */
  #onOpened(): void {
    this.#failures.clear();
    this.#conditions.reopen(this.#log.tracker.head);
  }

  /** Called when the node has received a header: resolves the waits up to its offset. */
  #onHeader(): void {
    this.#failures.clear();
    this.#conditions.reach(this.#log.tracker.head);
  }

  /** Called when messages may be missing: no wait resolves until the node has healed. */
  #onInterrupted(): void {
    this.#conditions.interrupt();
    this.#log.receiver?.interrupted();
  }

  /**
   * Runs a call that may wait for Redis. A call with a signal waits as long as its caller wants; a
   * call without a signal rejects after the timeout.
   */
  async #withTimeout<T>(
    signal: AbortSignal | undefined,
    call: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    if (signal !== undefined) return call(signal);
    const controller = new AbortController();
    const timer = setTimeout(() => {
      const problem = `has not answered within ${this.#timeoutMs} ms; try again later`;
      controller.abort(this.#failures.unansweredError(problem));
    }, this.#timeoutMs);
    try {
      return await call(controller.signal);
    } finally {
      clearTimeout(timer);
    }
  }
}
