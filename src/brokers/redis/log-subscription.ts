/**
 * Keeps the local part of the log complete. While the node is open, its messages arrive in order
 * and none is missing. After a missed message, a broken connection, a probe that does not arrive or
 * a change of the log, the node reads from Redis what it may have missed, once for all streams. The
 * node is open again when it has read everything and has received a probe.
 *
 * | state      | entered when                                  | left when
 * | ---------- | --------------------------------------------- | ----------------------------------
 * | connecting | the node is made                              | an attempt to heal succeeds: open
 * | open       | an attempt to heal succeeds                   | something may be missing: broken
 * | broken     | something may be missing (`#break`)           | an attempt to heal succeeds: open
 * | closed     | `close()`                                     | never
 *
 * `run()` makes one {@link HealingAttempt} after the other until one succeeds, waits until the node
 * is not open any more, and starts again. An attempt succeeds or rejects. Everything that ends an
 * attempt (a broken connection, an error of Redis, a timeout, the watchdog, `close()`) aborts its
 * signal, and so each wait inside the attempt.
 */
import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { deferred, withLimits, type Deferred } from '../../common/async.ts';
import type { BrokerState } from '../broker.ts';
import { ChannelSubscriber, type ChannelSubscriberHost } from './channel-subscriber.ts';
import type { LogMessage } from './early-messages.ts';
import type { FailureReporter } from './failure-reporter.ts';
import { HealingAttempt } from './healing.ts';
import type { LocalLog } from './local-log.ts';
import { LogCheck } from './log-check.ts';
import type { LogClient } from './log-client.ts';
import { parseEventMessage, parseHeader } from './message-format.ts';
import { Probes } from './probes.ts';
import type { RedisConnection } from './redis-connection.ts';
import { isErrorReply, undeliveredError } from './redis-errors.ts';
import { SubscriberConnection } from './subscriber-connection.ts';
import type { Timing } from './timing.ts';

/** The interface that a {@link LogSubscription} needs of its owner. */
export interface LogSubscriptionHost {
  readonly failures: Pick<FailureReporter, 'report' | 'warnUnreachable'>;
  /** The node has healed, and is open. */
  onOpened(): void;
  /** The node, which is open, has received a header. */
  onHeader(): void;
  /** Messages may be missing. */
  onInterrupted(): void;
}

/** The subscription of one node to the log of its registry. */
export class LogSubscription implements ChannelSubscriberHost {
  state: BrokerState = 'connecting';
  readonly logCheck: LogCheck;
  readonly #redis: RedisConnection;
  readonly #client: LogClient;
  readonly #log: LocalLog;
  readonly #timing: Timing;
  readonly #host: LogSubscriptionHost;
  readonly #subscriber: ChannelSubscriber;
  readonly #probes: Probes;
  // Aborted by `close()`.
  readonly #closed = new AbortController();
  // Undefined while the node is not connected, and between attempts to connect.
  #connection: SubscriberConnection | undefined;
  // The pending attempt to heal.
  #attempt: HealingAttempt | undefined;
  // Resolved when the node is not open any more.
  #brokenOrClosed: Deferred<void> | undefined;
  // Resolved when the next message has been processed, or the node has opened.
  #next: Deferred<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  // Times in ms of the last header of the log, and of the last change to a state other than 'open'.
  #lastHeaderAt = 0;
  #brokenAt = performance.now();
  // Ticks of the timer since the last step of an attempt.
  #idleTicks = 0;
  #isProbing = false;

  constructor(
    redis: RedisConnection,
    client: LogClient,
    log: LocalLog,
    timing: Timing,
    host: LogSubscriptionHost,
  ) {
    this.#redis = redis;
    this.#client = client;
    this.#log = log;
    this.#timing = timing;
    this.#host = host;
    this.#subscriber = new ChannelSubscriber(client, log, this);
    this.#probes = new Probes(client, timing.timeout);
    this.logCheck = new LogCheck(client, log.tracker, this.#closed.signal, this);
    // Each pause adds a listener, and each pending query may be in a pause: this is not a leak.
    setMaxListeners(0, this.#closed.signal);
  }

  get isOpen(): boolean {
    return this.state === 'open';
  }

  get openConnection(): SubscriberConnection | undefined {
    return this.isOpen ? this.#connection : undefined;
  }

  /**
   * Heals, waits until the node has broken, and starts again, until {@link close} is called.
   * @returns a promise that resolves after `close()`; never rejects
   */
  async run(): Promise<void> {
    this.#timer = setInterval(() => this.#tick(), this.#tickMs).unref();
    let failures = 0;
    while (!this.#isClosed) {
      try {
        await this.#heal();
        const openedAt = performance.now();
        await this.#untilBroken();
        const wasStable = performance.now() - openedAt > this.#timing.wait.max;
        failures = wasStable ? 0 : failures + 1;
      } catch (error) {
        failures++;
        if (this.#isClosed) break;
        // If Redis itself has refused a command, the connection still works.
        if (!isErrorReply(error)) this.#disconnect();
        this.report(error);
      }
      // The first retry is immediate.
      if (failures > 1) await this.pause(failures - 1);
      this.#idleTicks = 0;
    }
  }

  /** Ends the subscription for ever. Pending calls of {@link pause} resolve. */
  close(): void {
    this.state = 'closed';
    this.#closed.abort(new Error('the broker is closed'));
    this.#attempt?.abort(this.#closed.signal.reason);
    clearInterval(this.#timer);
    this.#disconnect();
    this.#log.interest.close();
    this.#brokenOrClosed?.resolve();
  }

  /**
   * Waits before another attempt.
   * @param failures number of attempts that have failed: each doubles the time, within the limits
   * @returns a promise that resolves after the time, or when the node is closed; never rejects
   */
  async pause(failures: number): Promise<void> {
    const { min, max } = this.#timing.wait;
    const ms = Math.min(max, min * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
    await delay(ms, undefined, { signal: this.#closed.signal, ref: false }).catch(() => {});
  }

  /** As `Broker.listen()`. */
  listen(channel: string): Promise<void> | undefined {
    const entry = this.#log.interest.want(channel);
    if (entry.isReady) return undefined;
    // In a microtask, so that channels that are added now are subscribed together.
    queueMicrotask(() => void this.#subscriber.subscribePending());
    return entry.ready.promise;
  }

  /** Heals, because an answer belongs to another log than the one that this node has. */
  onOtherLog(epoch: string): void {
    if (!this.isOpen) return;
    this.#break(new Error(`the log changed from ${this.#log.tracker.epoch} to ${epoch}`));
  }

  /**
   * Waits for a message.
   * @returns a promise that resolves when the next message has been processed or the node has
   * opened, and rejects after the timeout
   */
  nextMessage(): Promise<void> {
    this.#next ??= deferred();
    const { timeout: timeoutMs } = this.#timing;
    return withLimits(this.#next.promise, { timeoutMs, timeoutError: undeliveredError });
  }

  /** Connects again, and heals. */
  reconnect(reason: Error): void {
    if (this.#isClosed) return;
    this.#disconnect();
    if (this.isOpen) this.#break(reason);
    else this.#attempt?.abort(reason);
  }

  /** Ends the connection, and heals. */
  onConnectionFailed(error: unknown): void {
    this.#disconnect();
    this.#break(error);
  }

  /** Reports an error to the application. */
  report(error: unknown): void {
    this.#host.failures.report(error);
  }

  get #isClosed(): boolean {
    return this.#closed.signal.aborted;
  }

  get #tickMs(): number {
    return Math.min(this.#timing.probe, this.#timing.linger) / 4;
  }

  /** Resolves when the node is not open. */
  async #untilBroken(): Promise<void> {
    while (this.isOpen) {
      this.#brokenOrClosed = deferred();
      await this.#brokenOrClosed.promise;
    }
  }

  /** Makes one attempt to heal. */
  async #heal(): Promise<void> {
    const attempt = new HealingAttempt({
      client: this.#client,
      log: this.#log,
      subscriber: this.#subscriber,
      probes: this.#probes,
      timeoutMs: this.#timing.timeout,
      applyMessage: (message) => this.#applyMessage(message),
      onStep: () => {
        this.#idleTicks = 0;
      },
      nextMessage: () => this.nextMessage(),
      onHealed: () => this.#open(),
    });
    this.#attempt = attempt;
    try {
      await attempt.run(() => this.#connect(attempt));
    } finally {
      this.#attempt = undefined;
    }
  }

  /** Enters the state `'open'`. Called by an attempt when it has read everything. */
  #open(): void {
    this.state = 'open';
    this.#lastHeaderAt = performance.now();
    this.#host.onOpened();
    this.logCheck.onOpened();
    this.#resolveNext();
    void this.#subscriber.subscribePending();
  }

  /** Enters the state `'broken'`: messages may be missing. Does not close the connection. */
  #break(error: unknown): void {
    this.state = 'broken';
    this.#brokenAt = performance.now();
    this.#idleTicks = 0;
    this.report(error);
    this.#host.onInterrupted();
    this.#brokenOrClosed?.resolve();
  }

  /** Connects and subscribes to headers, if the node is not connected. */
  async #connect(attempt: HealingAttempt): Promise<SubscriberConnection> {
    if (this.#connection !== undefined) return this.#connection;
    const { timeout: timeoutMs } = this.#timing;
    const { signal } = attempt;
    const topics = await withLimits(this.#client.topics(signal, true), { signal, timeoutMs });
    const connection = new SubscriberConnection(this.#redis, topics, timeoutMs, (channel, text) =>
      this.#onMessage(channel, text),
    );
    this.#connection = connection;
    this.#log.interest.resetSubscriptions();
    connection.broken.addEventListener('abort', () => this.#onDisconnected(connection), {
      once: true,
    });
    try {
      await attempt.step(connection.connect());
      await attempt.step(connection.subscribeHeaders());
    } catch (error) {
      // The connection has not subscribed, so the next attempt must not use it.
      if (this.#connection === connection) this.#disconnect();
      throw error;
    }
    return connection;
  }

  /** Called once when a connection breaks or is closed. */
  #onDisconnected(connection: SubscriberConnection): void {
    if (this.#connection !== connection) return;
    this.#disconnect();
    const reason: unknown = connection.broken.reason;
    if (this.isOpen) this.#break(reason);
    else this.#attempt?.abort(reason);
  }

  /** Closes the connection, if there is one. The next attempt makes a new connection. */
  #disconnect(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.close();
  }

  /**
   * Called with each message of the connection. While the node is open, the message is applied at
   * once. During an attempt to heal, the attempt keeps the message.
   * @param channel `undefined` for a header
   */
  #onMessage(channel: string | undefined, text: string): void {
    const message =
      channel === undefined ? this.#parseHeader(text) : this.#parseEvent(channel, text);
    if (message === undefined) return;
    if (this.isOpen) {
      const problem = this.#applyMessage(message);
      if (problem !== undefined) this.#break(new Error(problem));
      else if ('header' in message) this.#host.onHeader();
    } else {
      this.#attempt?.addMessage(message);
    }
    this.#resolveNext();
  }

  /** Resolves the pending calls of {@link nextMessage}. */
  #resolveNext(): void {
    this.#next?.resolve();
    this.#next = undefined;
  }

  #parseHeader(text: string): LogMessage {
    const header = parseHeader(text);
    if (header === undefined) return { problem: 'a header cannot be read' };
    // An event without history has no header, so its arrival does not show that headers arrive.
    if (header.epoch === this.#log.tracker.epoch) this.#lastHeaderAt = performance.now();
    this.#probes.onHeader(header);
    return { header };
  }

  /** @returns `undefined` for an event without history, which is passed on at once */
  #parseEvent(channel: string, text: string): LogMessage | undefined {
    const event = parseEventMessage(text);
    if (event?.metadata !== undefined) return { channel, event };
    if (event === undefined) {
      this.report(new Error(`an event of channel ${channel} cannot be read`));
    } else {
      this.#log.receiveEphemeral(channel, event.body);
    }
    return undefined;
  }

  /** Applies a message to the log. @returns a description of what is missing */
  #applyMessage(message: LogMessage): string | undefined {
    const { tracker } = this.#log;
    if ('problem' in message) return message.problem;
    if ('event' in message) {
      const problem = tracker.addEvent(message.channel, message.event);
      if (problem !== undefined) this.report(new Error(problem));
      return undefined;
    }
    if (message.header.epoch === tracker.epoch) return tracker.applyHeader(message.header);
    void this.logCheck.run(message.header.epoch);
    return undefined;
  }

  /** Called at a regular interval: expires idle channels, and sends a probe after a silence. */
  #tick(): void {
    const now = performance.now();
    const expired = this.#log.interest.expire(now - this.#timing.linger);
    for (const { channel } of expired) this.#log.removeChannel(channel);
    const subscribed = expired.filter(({ isSubscribed }) => isSubscribed);
    if (subscribed.length > 0) {
      this.#connection?.unsubscribe(subscribed.map(({ channel }) => channel));
    }
    const isSilent = now - this.#lastHeaderAt >= this.#timing.probe;
    if (!this.isOpen) this.#watch();
    else if (isSilent && !this.#isProbing) void this.#probe();
  }

  /**
   * The watchdog. Each step of an attempt and each pause has a time limit. A step may wait until it
   * is sent, for the answer, and for the probe: at most three timeouts. So a node that is not open
   * and makes no progress for longer has a bug. The bug is reported, and the node connects again.
   * Ticks are counted instead of ms, because the process may have been suspended.
   */
  #watch(): void {
    const { timeout, wait, unreachable = 5_000 } = this.#timing;
    if (performance.now() - this.#brokenAt >= unreachable) {
      this.#host.failures.warnUnreachable(unreachable);
    }
    const maxIdleTicks = Math.ceil((4 * timeout + wait.max) / this.#tickMs) + 2;
    if (++this.#idleTicks <= maxIdleTicks) return;
    this.#idleTicks = 0;
    const error = new Error(
      `the broker was '${this.state}' and made no progress; it connects again`,
    );
    this.report(error);
    this.#disconnect();
    this.#attempt?.abort(error);
    this.#brokenOrClosed?.resolve();
  }

  /** Sends a probe, and heals if the probe does not arrive. */
  async #probe(): Promise<void> {
    const connection = this.#connection as SubscriberConnection;
    this.#isProbing = true;
    const error = await this.#probes.check(connection);
    this.#isProbing = false;
    if (this.openConnection !== connection || error === undefined) return;
    if (isErrorReply(error)) {
      // Redis has refused the query, which does not show that the connection has failed.
      this.report(error);
      this.#lastHeaderAt = performance.now();
      return;
    }
    this.onConnectionFailed(error);
  }
}
