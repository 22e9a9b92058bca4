/** The channel registry: publishes to a broker, and lets streams follow channels. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Broker, ChannelState, Receiver } from '../brokers/broker.ts';
import { closedError } from '../brokers/errors.ts';
import { memoryBroker } from '../brokers/memory.ts';
import { withLimits } from '../common/async.ts';
import { runOutsideRequests } from '../common/async-context.ts';
import { SseError } from '../common/errors.ts';
import { assertOptions } from '../common/options.ts';
import type { AnySchema, SchemaOf } from '../common/schema.ts';
import type { PipeSource } from '../common/source.ts';
import type { RouteHandler, RouteRequest, RouteResponse } from '../http/route.ts';
import { checkTimes } from '../http/warnings.ts';
import { LimitsByChannel } from '../log/history.ts';
import type { ChannelEvent, LogEntry } from '../log/log-entry.ts';
import { formatCursor } from '../protocol/cursor.ts';
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import { revocationSource, type RevocationSource } from '../stream/revocation-types.ts';
import type { Subscription } from '../stream/subscription-types.ts';
import { CatchUpQueue } from './catch-up-queue.ts';
import {
  assertChannelName,
  assertSubscribeOptions,
  channelsRules,
  followRules,
  readRules,
  toChannelSet,
} from './channel-options.ts';
import type {
  Channel,
  Channels,
  ChannelsStats,
  EndOptions,
  FollowOptions,
  ListenNames,
  PipeToChannelOptions,
  PublishOptions,
} from './channels.ts';
import { Consumer, type ConsumerHost } from './consumer.ts';
import { Deliveries } from './deliveries.ts';
import { FanOut } from './fan-out.ts';
import { FollowedChannels } from './followed-channels.ts';
import { StreamFollower } from './follower.ts';
import { listenRoute } from './listen.ts';
import { Publisher, assertHasHistory } from './publisher.ts';
import { assertReadOptions, readHistory, type HistoryPage, type ReadOptions } from './read.ts';
import type { ChannelsOptions } from './registry-options.ts';
import { REVOCATIONS, Revocations } from './revocations.ts';
import { endStreams } from './shutdown.ts';
import { subscribe } from './subscribing.ts';
import { endedSubscription } from './subscription-handle.ts';

// Time in ms that close() waits until the running pipes have ended their channels.
const PIPES_END_MS = 3_000;

/**
 * Makes a channel registry. Pass it to `sse({ channels })`, so that `res.sse.subscribe` follows its
 * channels.
 * @typeParam S the schema: the events of each channel, and the data of each event
 * @throws {SseError} `ERR_SSE_OPTION`
 * @example
 * const channels = createChannels<{ haiku: { text: Haiku } }>();
 */
export function createChannels<S extends SchemaOf<S> = AnySchema>(
  options: ChannelsOptions = {},
): Channels<S> {
  return new ChannelRegistry(
    assertOptions('createChannels()', options, channelsRules),
  ) as Channels as unknown as Channels<S>;
}

/**
 * One object for four callers, each of which sees only its interface:
 *
 * ```text
 * application ──Channels──────► ┌─────────────────┐ ──Broker──► memoryBroker(), redisBroker()
 *                               │ ChannelRegistry │
 * broker ───────Receiver──────► │                 │ ──push()──► fanOut (with history)
 *                               │                 │             ephemeralFanOut (without history)
 * followers ────FollowerHost──► │                 │
 * consumers ────ConsumerHost──► └─────────────────┘
 * ```
 *
 * The followers have the state of their streams.
 */
class ChannelRegistry implements Channels, ConsumerHost, Receiver {
  readonly fanOut: FanOut = new FanOut();
  readonly ephemeralFanOut: FanOut = new FanOut(undefined, false);
  readonly catchUpQueue: CatchUpQueue = new CatchUpQueue();
  readonly deliveries: Deliveries = new Deliveries();
  readonly followedChannels: FollowedChannels;
  readonly broker: Broker;
  readonly #publisher: Publisher;
  // The streams with subscriptions that are not live. Live streams are found by their audiences.
  readonly #trackedStreams = new Set<EventStream>();
  readonly #consumers = new Set<Consumer>();
  // Made by the first middleware with `identity`.
  #revocations: Revocations | undefined;
  // Number of reported gaps, for stats().
  #gaps = 0;
  // The result of close(); defined from the first call on.
  #closing: Promise<void> | undefined;

  constructor({
    broker = memoryBroker(),
    serialize = JSON.stringify,
    maxEvent = 1_048_576,
    ...options
  }: ChannelsOptions) {
    const { maxHistory = 67_108_864, maxChannels = 10_000, history } = options;
    if (typeof history === 'object') {
      checkTimes('the history of createChannels()', { age: history.age });
    }
    this.broker = broker;
    const limits = new LimitsByChannel(options);
    this.followedChannels = new FollowedChannels(broker, limits, this.catchUpQueue);
    this.#publisher = new Publisher(broker, limits, {
      serialize,
      maxEventBytes: maxEvent,
      assertOpen: () => this.#assertOpen(),
    });
    // A broker may start timers and connections. They must not keep the async context of a request
    // in which the registry was made.
    runOutsideRequests(() => broker.open(this, { maxHistory, maxChannels }));
  }

  // Methods of Channels.

  publish(name: string, data: unknown, options: PublishOptions = {}): Promise<{ id: string }> {
    return this.#publisher.publish(name, data, options);
  }

  end(name: string, data?: unknown, options: EndOptions = {}): Promise<{ id: string }> {
    return this.#publisher.end(name, data, options);
  }

  pipe<T, M>(
    name: string,
    source: PipeSource<T>,
    options: PipeToChannelOptions<T, M> = {},
  ): Promise<{ id: string; events: number }> {
    return this.#publisher.pipe(name, source, options);
  }

  follow(
    names: string | readonly string[],
    options: FollowOptions = {},
  ): AsyncIterableIterator<ChannelEvent, undefined> {
    const checked = assertOptions('follow()', options, followRules);
    const channels = this.#channelsWithHistory('follow()', names);
    this.#assertOpen();
    return new Consumer(this, channels, checked);
  }

  async read(names: string | readonly string[], options: ReadOptions = {}): Promise<HistoryPage> {
    const checked = assertOptions('read()', options, readRules);
    assertReadOptions(checked);
    const channels = this.#channelsWithHistory('read()', names);
    this.#assertOpen();
    return readHistory(this.broker, channels, checked, () => this.catchUpQueue.waitForTurn());
  }

  /** @throws {SseError} `ERR_SSE_CHANNEL_NAME`, `ERR_SSE_OPTION` */
  #channelsWithHistory(method: string, names: string | readonly string[]): string[] {
    const channels = toChannelSet(names);
    for (const channel of channels) {
      assertHasHistory(method, channel, this.followedChannels.willHaveHistory(channel));
    }
    return channels;
  }

  async state(name: string): Promise<ChannelState> {
    assertChannelName(name);
    this.#assertOpen();
    return this.broker.channelState(name);
  }

  async subscribe(
    stream: EventStream,
    names: string | readonly string[],
    options: SubscribeOptions = {},
  ): Promise<Subscription> {
    return this.#follow(stream, toChannelSet(names), options);
  }

  /** Every check comes before the first change: an invalid call does not open the stream. */
  async #follow(
    stream: EventStream,
    channels: readonly string[],
    options: SubscribeOptions,
  ): Promise<Subscription> {
    const checked = assertSubscribeOptions('subscribe()', options);
    this.#assertOpen();
    if (stream.isClosingOrClosed) return endedSubscription(channels);
    const follower = this.#followerOf(stream);
    stream.follower = follower;
    return subscribe(follower, channels, checked);
  }

  /**
   * The follower of a stream, which is made with the first subscription.
   * @throws {SseError} `ERR_SSE_OTHER_REGISTRY`, `ERR_SSE_ID_TAKEN`
   */
  #followerOf(stream: EventStream): StreamFollower {
    const { follower } = stream;
    if (follower instanceof StreamFollower && follower.host === this) return follower;
    if (follower !== undefined) {
      throw new SseError(
        'ERR_SSE_OTHER_REGISTRY',
        'this stream follows channels of another registry; a stream has one cursor, so it can ' +
          'follow only one registry',
      );
    }
    stream.assertNoOwnIds();
    return new StreamFollower(this, stream);
  }

  async cursor(): Promise<string> {
    this.#assertOpen();
    const { epoch, offset } = await this.broker.position();
    return formatCursor(epoch, offset);
  }

  async clear(name: string): Promise<void> {
    assertChannelName(name);
    this.#assertOpen();
    await this.broker.clear(name);
  }

  channel<N extends string>(name: N): Channel<AnySchema, N> {
    assertChannelName(name);
    const { followedChannels } = this;
    return {
      name,
      get size() {
        return followedChannels.followersOf(name);
      },
      publish: (data: unknown, options?: PublishOptions) => this.publish(name, data, options),
      end: (data?: unknown, options?: EndOptions) => this.end(name, data, options),
      subscribe: (stream, options) => this.subscribe(stream, name, options),
    };
  }

  listen<Req extends IncomingMessage = RouteRequest, Res extends ServerResponse = RouteResponse>(
    names: ListenNames<Req>,
    options: SubscribeOptions | ((req: Req) => SubscribeOptions | Promise<SubscribeOptions>) = {},
  ): RouteHandler<Req, Res> {
    return listenRoute<Req, Res>(names, options, (...args) => this.#follow(...args));
  }

  names(): string[] {
    return this.followedChannels.names().filter((name) => name !== REVOCATIONS);
  }

  stats(): ChannelsStats {
    // A live stream that waits for the start of a further subscription is not counted.
    let behind = 0;
    for (const { follower } of this.#trackedStreams) {
      if (follower?.isStartingOrCatchingUp === true) behind++;
    }
    return {
      channels: this.names().length,
      subscriptions: this.followedChannels.followers,
      behind,
      published: this.#publisher.published,
      gaps: this.#gaps,
      history: this.broker.held,
      broker: { state: this.broker.state },
    };
  }

  close(): Promise<void> {
    if (this.#closing === undefined) {
      // Set before the first stream ends, because a callback may call close() again.
      // `#close()` starts to run inside this call.
      let settle!: (closed: Promise<void>) => void;
      this.#closing = new Promise((resolve) => {
        settle = resolve;
      });
      settle(this.#close());
    }
    return this.#closing;
  }

  /**
   * Ends the channels of pipes first, so that their readers receive the last events. Then ends all
   * streams, a limited number per turn, and closes the broker.
   */
  async #close(): Promise<void> {
    const ended = this.#publisher.stopPipes(closedError());
    if (ended !== undefined) {
      // If a pipe needs longer, close() does not wait for it: the broker ends its channel, without
      // a last event.
      await withLimits(ended, { timeoutMs: PIPES_END_MS }).catch(() => {});
    }
    await endStreams(() => this.#openStreams());
    for (const consumer of this.#consumers) consumer.stop();
    this.#revocations?.close();
    await this.broker.close();
  }

  /** A list of the streams that have a subscription and have not ended. */
  #openStreams(): EventStream[] {
    const live = this.fanOut.members.flatMap((member) =>
      member instanceof StreamFollower ? [member.stream] : [],
    );
    return [...live, ...this.#trackedStreams].filter(({ readyState }) => readyState !== 2);
  }

  /** @throws {SseError} `ERR_SSE_CLOSED` after close() */
  #assertOpen(): void {
    if (this.#closing !== undefined) throw closedError();
  }

  // Methods of Receiver, called by the broker.

  follows(channel: string): boolean {
    return this.followedChannels.has(channel);
  }

  /** An entry without an epoch is not in the log, because its channel has no history. */
  receive(entry: LogEntry): void {
    if (entry.epoch === undefined) {
      this.ephemeralFanOut.push(entry);
      return;
    }
    this.followedChannels.noteReceived(entry);
    if (entry.channel === REVOCATIONS) this.#revocations?.onReceived(entry);
    else this.fanOut.push(entry);
  }

  /**
   * This node may have missed entries, so all streams read the log. A page that was requested
   * before does not show that a stream has received everything.
   */
  interrupted(): void {
    this.followedChannels.interruptions++;
    this.fanOut.retireAll();
    this.#revocations?.onInterrupted();
  }

  /** The revocations of all nodes, for the middleware. */
  get [revocationSource](): RevocationSource {
    this.#revocations ??= new Revocations(this.broker, this.followedChannels);
    return this.#revocations;
  }

  mayReceive({ guard }: EventStream): boolean {
    if (guard === undefined) return true;
    return guard.authorization === undefined && this.#revocations?.isCurrent !== false;
  }

  whenMayReceive(
    { guard }: EventStream,
    offset: number,
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined {
    if (guard === undefined) return undefined;
    if (guard.authorization !== undefined) return withLimits(guard.authorization, { signal });
    if (this.#revocations === undefined || this.#revocations.covers(offset)) return undefined;
    return this.#revocations.whenCovering(offset, signal);
  }

  // Methods of ConsumerHost, called by consumers.

  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  trackConsumer(consumer: Consumer): void {
    this.#consumers.add(consumer);
  }

  untrackConsumer(consumer: Consumer): void {
    this.#consumers.delete(consumer);
  }

  // Methods of FollowerHost, called by followers.

  trackStream(stream: EventStream): void {
    this.#trackedStreams.add(stream);
  }

  untrackStream(stream: EventStream): void {
    this.#trackedStreams.delete(stream);
  }

  countGap(): void {
    this.#gaps++;
  }
}
