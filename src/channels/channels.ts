/** The channel registry: what is published, who follows it. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { runOutsideRequests } from '../common/async-context.ts';
import type { Broker, BrokerState, Receiver } from '../brokers/broker.ts';
import { closedError } from '../brokers/errors.ts';
import { memoryBroker } from '../brokers/memory.ts';
import { CatchUpQueue } from './catch-up-queue.ts';
import { formatCursor } from '../protocol/cursor.ts';
import { Deliveries } from './deliveries.ts';
import { diagnostics } from '../common/diagnostics.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { EventStream, SubscribeOptions, Subscription } from '../stream/event-stream.ts';
import { FanOut } from './fan-out.ts';
import { StreamFollower, type FollowerHost } from './follower.ts';
import { History, historyRules, type HistoryOptions } from '../log/history.ts';
import type { LogEntry } from '../log/log-entry.ts';
import {
  booleanRule,
  functionRule,
  assertOptions,
  integerRule,
  type OptionRule,
} from '../common/options.ts';
import { drawRetry } from '../common/retry-range.ts';
import { refuse } from '../http/refusals.ts';
import {
  stream as streamRoute,
  type RouteHandler,
  type RouteRequest,
  type RouteResponse,
} from '../http/route.ts';
import type { AnySchema, ChannelName, EventData, EventName, SchemaOf } from '../common/schema.ts';
import { endedSubscription } from './subscription.ts';
import { checkTimes } from '../http/warnings.ts';
import {
  assertEvent,
  assertRetry,
  dataText,
  eventBytes,
  type Serialize,
} from '../protocol/event-stream-format.ts';

/** The event of a call that names none; any where that is an error, which {@link NamedEvent} then explains. */
type DefaultEvent<S, N extends ChannelName<S>> =
  'message' extends EventName<S, N> ? 'message' : EventName<S, N>;

/** Options of a call that names its event. Only a channel with an event `message` may leave the name out. */
type NamedEvent<S, N extends ChannelName<S>, E extends string> =
  'message' extends EventName<S, N> ? unknown : { event: E };

/**
 * The `this` of a `publish` without options, which publishes a `message`. On a channel that has no such event it is a sentence that
 * no registry is, so that the compiler's error contains the fix.
 */
type HasMessage<S, N extends ChannelName<S>> = [N] extends [never]
  ? unknown
  : N extends ChannelName<S>
    ? 'message' extends EventName<S, N>
      ? unknown
      : `channel ${N} has no event message; pass { event: '${EventName<S, N>}' }`
    : never;

/** What is published besides the data. */
export interface PublishOptions<E extends string = string> {
  /** Event type; without one the event is a `message`. */
  event?: E | undefined;
  /** Reconnection time in ms that every reader is told. */
  retry?: number | undefined;
  /**
   * Makes a retry safe: within five minutes the same key publishes once in this channel, and later calls resolve with the first
   * id. A non-empty string of at most 256 UTF-8 bytes. `memoryBroker()` remembers the newest 100,000 keys of that time.
   */
  key?: string | undefined;
}

/** The options of `createChannels()`. */
export interface ChannelsOptions {
  /** Where events get their order and are kept, and how nodes hear of each other. @defaultValue `memoryBroker()` */
  broker?: Broker | undefined;
  /**
   * How much of each channel is kept for clients that reconnect and readers that are slow; `false` keeps nothing: such channels
   * are live only, and their events have no id.
   * @defaultValue `{ events: 1000, bytes: 1_048_576 }`
   */
  history?: HistoryOptions | false | undefined;
  /** Another history for some channels; `undefined` leaves it at `history`. Must say the same for a name on every node, always. */
  historyFor?: ((name: string) => HistoryOptions | false | undefined) | undefined;
  /** Bytes kept in all channels together; the oldest events of those published to least recently go first. @defaultValue `67_108_864` */
  maxHistory?: number | undefined;
  /** Channels of which something is known; those without subscribers are forgotten first. @defaultValue `10_000` */
  maxChannels?: number | undefined;
  /**
   * Bytes that one event may have at most, as it goes over the wire; `publish` refuses a larger one with `ERR_SSE_DATA`.
   * @defaultValue `1_048_576`
   */
  maxEvent?: number | undefined;
  /** Makes text of data that is not a string. @defaultValue `JSON.stringify` */
  serialize?: Serialize | undefined;
}

/** Gauges of a registry, on this node. */
export interface ChannelsStats {
  /** Channels that are followed. */
  channels: number;
  /** Streams that follow a channel, one that follows three counted three times. */
  subscriptions: number;
  /** Streams that are catching up: slow, resuming, or waiting for an `onGap`. */
  behind: number;
  /** Calls of `publish` that were accepted here since the start, those that a key made idle included. */
  published: number;
  /** Gaps told here since the start. */
  gaps: number;
  /** What is kept here. */
  history: { events: number; bytes: number };
  broker: { state: BrokerState };
}

/** One channel of a registry. */
export interface Channel<S extends SchemaOf<S>, N extends ChannelName<S>> {
  readonly name: N;
  /** How many streams follow it on this node. */
  readonly size: number;
  /** @see Channels.publish */
  publish(this: HasMessage<S, N>, data: EventData<S, N, 'message'>): Promise<{ id: string }>;
  publish<E extends EventName<S, N> = DefaultEvent<S, N>>(
    data: EventData<S, N, E>,
    options: (PublishOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;
  /** @see Channels.subscribe */
  subscribe(stream: EventStream, options?: SubscribeOptions): Promise<Subscription>;
}

/** Names, or what finds them for a request: `null` answers 403. */
export type ListenNames<Req, Name extends string = string> =
  | Name
  | readonly Name[]
  | ((req: Req) => Name | readonly Name[] | null | Promise<Name | readonly Name[] | null>);

/** The channel registry: topics that handlers publish to and streams follow. */
export interface Channels<S extends SchemaOf<S> = AnySchema> {
  /**
   * Publishes an event to every stream that follows the channel. It is encoded once, whatever the number of readers.
   * Without options the event is a `message`.
   * @param name a non-empty string of at most 256 UTF-8 bytes without control characters
   * @param data a string goes as it is, anything else through `serialize`
   * @returns a promise of the event's id; rejects with an `SseError` for what cannot be published, before anybody got any of it
   * @example
   * await channels.publish('news', 'The pond is open');
   */
  publish<N extends ChannelName<S>>(
    this: HasMessage<S, N>,
    name: N,
    data: EventData<S, N, 'message'>,
  ): Promise<{ id: string }>;
  /**
   * Publishes an event to every stream that follows the channel, with a name, a reconnection time or a key.
   * @param name a non-empty string of at most 256 UTF-8 bytes without control characters
   * @param data a string goes as it is, anything else through `serialize`
   * @returns a promise of the event's id; rejects with an `SseError` for what cannot be published, before anybody got any of it
   * @example
   * await channels.publish('haiku', { text, author }, { event: 'text' });
   */
  publish<N extends ChannelName<S>, E extends EventName<S, N> = DefaultEvent<S, N>>(
    name: N,
    data: EventData<S, N, E>,
    options: (PublishOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;

  /**
   * Follows one channel or several on a stream, which opens it.
   * @param names 1 to 100; one that is named twice counts once
   * @returns a promise of the subscription, an ended one if the stream ends first; rejects with an `SseError` for wrong use
   */
  subscribe(
    stream: EventStream,
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: SubscribeOptions,
  ): Promise<Subscription>;

  /**
   * The id of the newest event that this node knows of, for a page and its stream to meet: read it *before* the page's data, store
   * data *before* publishing it, and connect with `?lastEventId=` and the cursor that was rendered into the page.
   */
  cursor(): Promise<string>;

  /** Forgets what a channel holds, on every node: of a deleted room, personal data. Told as a gap to whoever has not got it yet. */
  clear(name: ChannelName<S>): Promise<void>;

  /** A handle for one channel. */
  channel<N extends ChannelName<S>>(name: N): Channel<S, N>;

  /**
   * A route handler that follows channels: 406 to whoever did not ask for a stream, 403 where `names` returns `null`,
   * its errors to `next`.
   * @example
   * app.get('/events/:room', channels.listen((req) => canRead(req.user, req.params.room) ? req.params.room : null));
   */
  listen<Req extends IncomingMessage = RouteRequest, Res extends ServerResponse = RouteResponse>(
    names:
      | ChannelName<S>
      | readonly ChannelName<S>[]
      | ((
          req: Req,
        ) =>
          | ChannelName<S>
          | readonly ChannelName<S>[]
          | null
          | Promise<ChannelName<S> | readonly ChannelName<S>[] | null>),
    options?: SubscribeOptions | ((req: Req) => SubscribeOptions | Promise<SubscribeOptions>),
  ): RouteHandler<Req, Res>;

  /** The channels that are followed on this node. */
  names(): ChannelName<S>[];

  /** Gauges, cheap enough to read each second. */
  stats(): ChannelsStats;

  /** Ends the streams that follow channels (reason `'shutdown'`) and releases the broker. Idempotent. */
  close(): Promise<void>;
}

const channelsRules: Readonly<Record<keyof ChannelsOptions, OptionRule>> = {
  broker: {
    expected: 'a broker',
    test: (value) => typeof value === 'object' && value !== null && 'append' in value,
  },
  ...historyRules,
  maxHistory: integerRule('bytes', 0, Number.MAX_SAFE_INTEGER),
  maxChannels: integerRule('channels', 1, Number.MAX_SAFE_INTEGER),
  maxEvent: integerRule('bytes', 1, Number.MAX_SAFE_INTEGER),
  serialize: functionRule,
};

const publishRules: Readonly<Record<keyof PublishOptions, OptionRule>> = {
  event: { expected: 'a string', test: (value) => typeof value === 'string' },
  retry: {
    expected: 'a whole number of ms from 0 to 2147483647',
    test: (value) => typeof value === 'number',
  },
  key: {
    expected: 'a non-empty string of at most 256 UTF-8 bytes',
    test: (value) => typeof value === 'string' && value !== '' && Buffer.byteLength(value) <= 256,
  },
};

const subscribeRules: Readonly<Record<keyof SubscribeOptions, OptionRule>> = {
  since: { expected: "'now', 'start' or a cursor", test: (value) => typeof value === 'string' },
  resume: booleanRule,
  filter: functionRule,
  onGap: functionRule,
  checkpoints: booleanRule,
};

const MAX_NAME_BYTES = 256;
const MAX_NAMES = 100;

// What the clients of a registry that closes are told to wait, so that they do not all return at once.
const CLOSE_RETRY = { min: 1_000, max: 5_000 };

// So many streams begin or end before other work gets its turn.
const STREAMS_PER_TURN = 250;

/**
 * Makes a channel registry. Pass it to `sse({ channels })`, so that `res.sse.subscribe` follows its channels.
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

interface Followed {
  /** How many streams follow the channel. */
  streams: number;
  /** The offset of the newest entry that came here since the interruption of this number. */
  newest: number;
  newestSince: number;
  readonly hasHistory: boolean;
  /** Called when the broker listens to the channel, or cannot; `undefined` from then on. */
  waiting: Set<(error?: Error) => void> | undefined;
}

class ChannelRegistry implements Channels, FollowerHost, Receiver {
  readonly fanOut: FanOut = new FanOut();
  readonly liveOnly: FanOut = new FanOut(undefined, false);
  readonly catchUps: CatchUpQueue = new CatchUpQueue();
  readonly deliveries: Deliveries = new Deliveries();
  readonly broker: Broker;
  readonly #serialize: Serialize;
  readonly #history: History;
  readonly #maxEvent: number;
  readonly #followed = new Map<string, Followed>();
  // Those that are not live: whoever is, is found with its audience.
  readonly #apart = new Set<StreamFollower>();
  interruptions = 0;
  #published = 0;
  #gaps = 0;
  #subscriptions = 0;
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
    this.#serialize = serialize;
    this.#maxEvent = maxEvent;
    this.#history = new History(options);
    runOutsideRequests(() => broker.open(this, { maxHistory, maxChannels }));
  }

  async publish(
    name: string,
    data: unknown,
    options: PublishOptions = {},
  ): Promise<{ id: string }> {
    assertName(name);
    const { event, retry, key } = assertOptions('publish()', options, publishRules);
    if (event !== undefined) assertEvent(event);
    if (retry !== undefined) assertRetry(retry);
    const text = dataText(data, this.#serialize);
    this.#assertSize(text, event);
    this.#assertOpen();
    const { id } = await this.broker.append({
      channel: name,
      event,
      data: text,
      retry,
      key,
      history: this.#history.of(name),
    });
    this.#published++;
    if (diagnostics.publish.hasSubscribers) diagnostics.publish.publish({ channel: name, id });
    return { id };
  }

  async subscribe(
    stream: EventStream,
    names: string | readonly string[],
    options: SubscribeOptions = {},
  ): Promise<Subscription> {
    return this.#follow(stream, distinctNames(names), options);
  }

  async #follow(
    stream: EventStream,
    channels: readonly string[],
    options: SubscribeOptions,
  ): Promise<Subscription> {
    const checked = assertOptions('subscribe()', options, subscribeRules);
    this.#assertOpen();
    if (stream.isOver) return endedSubscription(channels);
    // Wrong use is told before the stream opens.
    const follower = this.#followerOf(stream);
    stream.follower = follower;
    return follower.add(channels, checked);
  }

  async cursor(): Promise<string> {
    this.#assertOpen();
    const { epoch, offset } = await this.broker.position();
    return formatCursor(epoch, offset);
  }

  async clear(name: string): Promise<void> {
    assertName(name);
    this.#assertOpen();
    await this.broker.clear(name);
  }

  channel<N extends string>(name: N): Channel<AnySchema, N> {
    assertName(name);
    const followed = this.#followed;
    return {
      name,
      get size() {
        return followed.get(name)?.streams ?? 0;
      },
      publish: (data: unknown, options?: PublishOptions) => this.publish(name, data, options),
      subscribe: (stream, options) => this.subscribe(stream, name, options),
    };
  }

  listen<Req extends IncomingMessage = RouteRequest, Res extends ServerResponse = RouteResponse>(
    names: ListenNames<Req>,
    options: SubscribeOptions | ((req: Req) => SubscribeOptions | Promise<SubscribeOptions>) = {},
  ): RouteHandler<Req, Res> {
    // Wrong use fails where the route is made, not at the first request.
    const fixed = typeof names === 'function' ? undefined : distinctNames(names);
    if (typeof options !== 'function') assertOptions('listen()', options, subscribeRules);
    return streamRoute<Req, Res>(async (stream, req, res) => {
      const wanted = typeof names === 'function' ? await names(req) : names;
      if (wanted === null) {
        refuse(res, 403, 'ERR_SSE_FORBIDDEN', 'You may not follow this.');
        return;
      }
      // One list of names for all streams of the route.
      await this.#follow(
        stream,
        fixed ?? distinctNames(wanted),
        typeof options === 'function' ? await options(req) : options,
      );
    });
  }

  names(): string[] {
    return [...this.#followed.keys()];
  }

  stats(): ChannelsStats {
    let behind = 0;
    for (const follower of this.#apart) if (follower.isWaiting) behind++;
    return {
      channels: this.#followed.size,
      subscriptions: this.#subscriptions,
      behind,
      published: this.#published,
      gaps: this.#gaps,
      history: this.broker.held,
      broker: { state: this.broker.state },
    };
  }

  close(): Promise<void> {
    if (this.#closing === undefined) {
      // Set before a stream ends: a callback may close the registry again.
      let settle!: (closed: Promise<void>) => void;
      this.#closing = new Promise((resolve) => {
        settle = resolve;
      });
      settle(this.#close());
    }
    return this.#closing;
  }

  // What the broker asks and tells.

  follows(channel: string): boolean {
    return this.#followed.has(channel);
  }

  receive(entry: LogEntry): void {
    if (entry.epoch === undefined) {
      this.liveOnly.push(entry);
      return;
    }
    const followed = this.#followed.get(entry.channel);
    if (followed !== undefined) {
      followed.newest = entry.offset;
      followed.newestSince = this.interruptions;
    }
    this.fanOut.push(entry);
  }

  interrupted(): void {
    this.interruptions++;
    this.fanOut.retireAll();
  }

  // What a follower asks and tells.

  get head(): number {
    return this.broker.head;
  }

  hasHistory(channel: string): boolean {
    return this.#followed.get(channel)?.hasHistory === true;
  }

  newestSeen(channels: readonly string[]): number {
    // What came before an interruption may be of another log.
    return Math.max(...channels.map((channel) => this.#newestOf(this.#followed.get(channel))));
  }

  #newestOf(followed: Followed | undefined): number {
    return followed?.newestSince === this.interruptions ? followed.newest : 0;
  }

  countGap(): void {
    this.#gaps++;
  }

  willHaveHistory(channel: string): boolean {
    return this.#followed.get(channel)?.hasHistory ?? this.#history.of(channel) !== false;
  }

  retain(channel: string, hasHistory: boolean): void {
    this.#subscriptions++;
    const known = this.#followed.get(channel);
    if (known === undefined) this.#listen(channel, hasHistory);
    else known.streams++;
  }

  #listen(channel: string, hasHistory: boolean): void {
    const followed: Followed = {
      streams: 1,
      newest: 0,
      newestSince: 0,
      hasHistory,
      waiting: undefined,
    };
    this.#followed.set(channel, followed);
    const listening = this.broker.listen(channel);
    if (listening === undefined) return;
    this.catchUps.hasWaited = true;
    const waiting = new Set<(error?: Error) => void>();
    followed.waiting = waiting;
    const onListening = (error?: Error): void => {
      followed.waiting = undefined;
      callInSlices(waiting, error);
    };
    listening.then(() => onListening(), onListening);
  }

  whenListening(
    channels: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined {
    const waits = channels.flatMap((channel) => this.#followed.get(channel)?.waiting ?? []);
    if (waits.length === 0) return undefined;
    return new Promise((resolve, reject) => {
      let left = waits.length;
      const onListening = (error?: Error): void => {
        if (error !== undefined) reject(error);
        else if (--left === 0) resolve();
      };
      for (const waiting of waits) waiting.add(onListening);
      // A stream that ends leaves nothing behind with a broker that cannot be reached.
      const onAbort = (): void => {
        for (const waiting of waits) waiting.delete(onListening);
        resolve();
      };
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  release(channel: string): void {
    this.#subscriptions--;
    const followed = this.#followed.get(channel);
    if (followed === undefined || --followed.streams > 0) return;
    this.#followed.delete(channel);
    this.broker.unlisten(channel);
  }

  remember(follower: StreamFollower): void {
    this.#apart.add(follower);
  }

  forget(follower: StreamFollower): void {
    this.#apart.delete(follower);
  }

  async #close(): Promise<void> {
    // Again, because a callback that hears of the end of one stream may make another follow something.
    for (let open = this.#openStreams(); open.length > 0; open = this.#openStreams()) {
      for (const [index, stream] of open.entries()) {
        if (index > 0 && index % STREAMS_PER_TURN === 0) await nextTurn();
        try {
          stream.finish('shutdown', { retry: drawRetry(CLOSE_RETRY) });
        } catch (error) {
          // A listener for the head of a stream that was still to open threw.
          stream.onError(error);
        }
      }
    }
    await this.broker.close();
  }

  /** The streams that follow something, as they are now. */
  #openStreams(): EventStream[] {
    const live = this.fanOut.members.filter((member) => member instanceof StreamFollower);
    return [...live, ...this.#apart].flatMap(({ stream }) =>
      stream.readyState === 2 ? [] : [stream],
    );
  }

  /** @throws {SseError} `ERR_SSE_DATA` for more than every node and every client can be expected to take */
  #assertSize(text: string, event: string | undefined): void {
    const bytes = eventBytes(text, event);
    if (bytes <= this.#maxEvent) return;
    throw new SseError(
      'ERR_SSE_DATA',
      `expected an event of at most ${this.#maxEvent} bytes, got ${bytes}; publish where the data can be fetched, or raise \`maxEvent\` of createChannels()`,
    );
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw closedError();
  }

  /** The stream's follower, a new one if this is its first subscription. */
  #followerOf(stream: EventStream): StreamFollower {
    const { follower } = stream;
    if (follower instanceof StreamFollower && follower.host === this) return follower;
    if (follower !== undefined) {
      throw new SseError(
        'ERR_SSE_OTHER_REGISTRY',
        'this stream follows channels of another registry; a stream has one cursor, so it can follow only one',
      );
    }
    stream.assertFollows();
    return new StreamFollower(this, stream);
  }
}

/** Calls them, a number in each turn of the event loop; those that are deleted meanwhile are not called. */
function callInSlices(waiting: Set<(error?: Error) => void>, error: Error | undefined): void {
  let left = STREAMS_PER_TURN;
  for (const call of waiting) {
    if (left-- === 0) {
      setImmediate(callInSlices, waiting, error);
      return;
    }
    waiting.delete(call);
    call(error);
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function assertName(name: string): void {
  const isName =
    typeof name === 'string' &&
    name !== '' &&
    Buffer.byteLength(name) <= MAX_NAME_BYTES &&
    !/[\p{Cc}\p{Cs}]/u.test(name);
  if (!isName) {
    throw new SseError(
      'ERR_SSE_CHANNEL_NAME',
      `expected a channel name to be a non-empty string of at most ${MAX_NAME_BYTES} UTF-8 bytes without control characters, got ${describeValue(name)}`,
    );
  }
}

function distinctNames(names: string | readonly string[]): string[] {
  const distinct = [
    ...new Set(Array.isArray(names) ? (names as readonly string[]) : [names as string]),
  ];
  if (distinct.length === 0 || distinct.length > MAX_NAMES) {
    throw new SseError(
      'ERR_SSE_CHANNEL_NAME',
      `expected 1 to ${MAX_NAMES} channel names, got ${distinct.length}`,
    );
  }
  for (const name of distinct) assertName(name);
  return distinct;
}
