/** The channel registry: what is published, who follows it. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Broker, BrokerState, Receiver } from './brokers/broker.ts';
import { closed } from './brokers/errors.ts';
import { memoryBroker } from './brokers/memory.ts';
import { formatCursor } from './cursor.ts';
import { diagnostics } from './diagnostics.ts';
import { SseError, shown } from './errors.ts';
import type { EventStream, SubscribeOptions, Subscription } from './event-stream.ts';
import { FanOut } from './fan-out.ts';
import { StreamFollower, type FollowerHost } from './follower.ts';
import { History, historyRules, type HistoryOptions } from './history.ts';
import type { LogEntry } from './log-entry.ts';
import { aBoolean, aFunction, assertOptions, draw, integer, type OptionRule } from './options.ts';
import { refuse, stream as streamRoute, type RouteHandler, type RouteRequest, type RouteResponse } from './route.ts';
import { ended } from './subscription.ts';
import { assertEvent, assertRetry, dataText, type Serialize } from './wire.ts';

/** Channel names, the event names of each, and the data of each event. */
export type AnySchema = Record<string, Record<string, unknown>>;

/** An interface will do as a schema, which no index signature would accept. */
export type SchemaOf<S> = { [N in keyof S]: object };

/** The names that may be published to. */
export type ChannelName<S> = keyof S & string;

/** The names of a channel's events. */
export type EventName<S, N extends ChannelName<S>> = keyof S[N] & string;

/** The data of a channel's event. */
export type EventData<S, N extends ChannelName<S>, E> = E extends keyof S[N] ? S[N][E] : never;

/** What is published besides the data. */
export interface PublishOptions<E extends string = string> {
  /** Event type; without one the event is a `message`. */
  event?: E | undefined;
  /** Reconnection time in ms that every reader is told. */
  retry?: number | undefined;
  /**
   * Makes a retry safe: within five minutes the same key publishes once in this channel, and later calls resolve with the first
   * id. A non-empty string of at most 256 UTF-8 bytes.
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
  publish<E extends EventName<S, N>>(
    data: EventData<S, N, E>,
    options: PublishOptions<E> & { event: E },
  ): Promise<{ id: string }>;
  publish(data: EventData<S, N, 'message'>, options?: PublishOptions<'message'>): Promise<{ id: string }>;
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
   * @param name a non-empty string of at most 256 UTF-8 bytes without control characters
   * @param data a string goes as it is, anything else through `serialize`
   * @returns a promise of the event's id; rejects with an `SseError` for what cannot be published, before anybody got any of it
   * @example
   * await channels.publish('haiku', { text, author }, { event: 'text' });
   */
  publish<N extends ChannelName<S>, E extends EventName<S, N>>(
    name: N,
    data: EventData<S, N, E>,
    options: PublishOptions<E> & { event: E },
  ): Promise<{ id: string }>;
  publish<N extends ChannelName<S>>(
    name: N,
    data: EventData<S, N, 'message'>,
    options?: PublishOptions<'message'>,
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
   * The id of the newest event now, for a page and its stream to meet: read it *before* the page's data, store data *before*
   * publishing it, and connect with `?lastEventId=` and the cursor that was rendered into the page.
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
    names: ListenNames<Req, ChannelName<S>>,
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
  broker: { expected: 'a broker', test: (value) => typeof value === 'object' && value !== null && 'append' in value },
  ...historyRules,
  maxHistory: integer('bytes', 0, Number.MAX_SAFE_INTEGER),
  maxChannels: integer('channels', 1, Number.MAX_SAFE_INTEGER),
  serialize: aFunction,
};

const publishRules: Readonly<Record<keyof PublishOptions, OptionRule>> = {
  event: { expected: 'a string', test: (value) => typeof value === 'string' },
  retry: { expected: 'a non-negative integer of ms', test: (value) => typeof value === 'number' },
  key: {
    expected: 'a non-empty string of at most 256 UTF-8 bytes',
    test: (value) => typeof value === 'string' && value !== '' && Buffer.byteLength(value) <= 256,
  },
};

const subscribeRules: Readonly<Record<keyof SubscribeOptions, OptionRule>> = {
  since: { expected: "'now', 'start' or a cursor", test: (value) => typeof value === 'string' },
  resume: aBoolean,
  filter: aFunction,
  onGap: aFunction,
  checkpoints: aBoolean,
};

const MAX_NAME_BYTES = 256;
const MAX_NAMES = 100;

// What the clients of a registry that closes are told to wait, so that they do not all return at once.
const CLOSE_RETRY = { min: 1_000, max: 5_000 };

/**
 * Makes a channel registry. Pass it to `sse({ channels })`, so that `res.sse.subscribe` follows its channels.
 * @throws {SseError} `ERR_SSE_OPTION`
 * @example
 * const channels = createChannels<{ haiku: { text: Haiku } }>();
 */
export function createChannels<S extends SchemaOf<S> = AnySchema>(options: ChannelsOptions = {}): Channels<S> {
  assertOptions('createChannels()', options, channelsRules);
  return new ChannelRegistry(options) as Channels as unknown as Channels<S>;
}

interface Followed {
  /** How many streams follow the channel. */
  streams: number;
  /** The offset of the newest entry that came here. */
  newest: number;
  /** What the first of them still waits for. */
  listening: Promise<void> | undefined;
}

class ChannelRegistry implements Channels, FollowerHost, Receiver {
  readonly fanOut: FanOut = new FanOut();
  readonly broker: Broker;
  readonly #serialize: Serialize;
  readonly #history: History;
  readonly #followed = new Map<string, Followed>();
  // Those that are not live: whoever is, is found with its audience.
  readonly #apart = new Set<StreamFollower>();
  interruptions = 0;
  #published = 0;
  #gaps = 0;
  #subscriptions = 0;
  #closing: Promise<void> | undefined;

  constructor({ broker = memoryBroker(), serialize = JSON.stringify, ...options }: ChannelsOptions) {
    const { maxHistory = 67_108_864, maxChannels = 10_000 } = options;
    this.broker = broker;
    this.#serialize = serialize;
    this.#history = new History(options);
    broker.open(this, { maxHistory, maxChannels });
  }

  async publish(name: string, data: unknown, options: PublishOptions = {}): Promise<{ id: string }> {
    assertName(name);
    assertOptions('publish()', options, publishRules);
    const { event, retry, key } = options;
    if (event !== undefined) assertEvent(event);
    if (retry !== undefined) assertRetry(retry);
    const text = dataText(data, this.#serialize);
    this.#assertOpen();
    const { id } = await this.broker.append({ channel: name, event, data: text, retry, key, history: this.#history.of(name) });
    this.#published++;
    if (diagnostics.publish.hasSubscribers) diagnostics.publish.publish({ channel: name, id });
    return { id };
  }

  async subscribe(stream: EventStream, names: string | readonly string[], options: SubscribeOptions = {}): Promise<Subscription> {
    return this.#follow(stream, distinctNames(names), options);
  }

  async #follow(stream: EventStream, channels: readonly string[], options: SubscribeOptions): Promise<Subscription> {
    assertOptions('subscribe()', options, subscribeRules);
    this.#assertOpen();
    if (stream.readyState === 2) return ended(channels);
    // Wrong use is told before the stream opens, and a HEAD request has its answer by then.
    const follower = this.#followerOf(stream);
    stream.follower = follower;
    if (stream.open().readyState === 2) return ended(channels);
    if (!follower.isLive) this.remember(follower);
    return follower.add(channels, options);
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
      await this.#follow(stream, fixed ?? distinctNames(wanted), typeof options === 'function' ? await options(req) : options);
    });
  }

  names(): string[] {
    return [...this.#followed.keys()];
  }

  stats(): ChannelsStats {
    let behind = 0;
    for (const follower of this.#apart) if (follower.isBehind) behind++;
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
    this.#closing ??= this.#close();
    return this.#closing;
  }

  // What the broker asks and tells.

  follows(channel: string): boolean {
    return this.#followed.has(channel);
  }

  receive(entry: LogEntry): void {
    if (entry.epoch !== undefined) {
      const followed = this.#followed.get(entry.channel);
      if (followed !== undefined) followed.newest = entry.offset;
    }
    this.fanOut.push(entry);
  }

  interrupted(): void {
    this.interruptions++;
    // It may be another log's from here on.
    for (const followed of this.#followed.values()) followed.newest = 0;
    for (const follower of this.#followers()) follower.interrupt();
  }

  // What a follower asks and tells.

  get head(): number {
    return this.broker.head;
  }

  hasHistory(channel: string): boolean {
    return this.#history.of(channel) !== false;
  }

  newestSeen(channels: readonly string[]): number {
    return Math.max(...channels.map((channel) => this.#followed.get(channel)?.newest ?? 0));
  }

  countGap(): void {
    this.#gaps++;
  }

  retain(channel: string): Promise<void> | undefined {
    this.#subscriptions++;
    const followed = this.#followed.get(channel);
    if (followed !== undefined) {
      followed.streams++;
      return followed.listening;
    }
    const fresh: Followed = { streams: 1, newest: 0, listening: undefined };
    this.#followed.set(channel, fresh);
    fresh.listening = this.broker.listen(channel);
    const listened = (): void => {
      fresh.listening = undefined;
    };
    fresh.listening?.then(listened, listened);
    return fresh.listening;
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
    // Again, because whoever hears of the end of one may make another follow something.
    for (let open = this.#openStreams(); open.length > 0; open = this.#openStreams()) {
      for (const stream of open) stream.finish('shutdown', { retry: draw(CLOSE_RETRY) });
    }
    await this.broker.close();
  }

  /** All that follow something, as they are now. */
  #followers(): StreamFollower[] {
    const live = this.fanOut.members.filter((member) => member instanceof StreamFollower);
    return [...live, ...this.#apart];
  }

  #openStreams(): EventStream[] {
    return this.#followers().flatMap(({ stream }) => (stream.readyState === 2 ? [] : [stream]));
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw closed();
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

function assertName(name: string): void {
  const isName =
    typeof name === 'string' && name !== '' && Buffer.byteLength(name) <= MAX_NAME_BYTES && !/[\p{Cc}\p{Cs}]/u.test(name);
  if (!isName) {
    throw new SseError(
      'ERR_SSE_CHANNEL_NAME',
      `expected a channel name to be a non-empty string of at most ${MAX_NAME_BYTES} UTF-8 bytes without control characters, got ${shown(name)}`,
    );
  }
}

function distinctNames(names: string | readonly string[]): string[] {
  const distinct = [...new Set(Array.isArray(names) ? (names as readonly string[]) : [names as string])];
  if (distinct.length === 0 || distinct.length > MAX_NAMES) {
    throw new SseError('ERR_SSE_CHANNEL_NAME', `expected 1 to ${MAX_NAMES} channel names, got ${distinct.length}`);
  }
  for (const name of distinct) assertName(name);
  return distinct;
}
