/** The public types of a channel registry. Types only; `registry.ts` has the implementation. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { BrokerState, ChannelState } from '../brokers/broker.ts';
import type { AnySchema, ChannelName, EventData, EventName, SchemaOf } from '../common/schema.ts';
import type { PipeSource } from '../common/source.ts';
import type { RouteHandler, RouteRequest, RouteResponse } from '../http/route.ts';
import type { ChannelEvent } from '../log/log-entry.ts';
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Gap, Subscription } from '../stream/subscription-types.ts';
import type { HistoryPage, ReadOptions } from './read.ts';

/**
 * The event type of a call that names no event type. If the channel has no event `message`, such a
 * call is an error, and {@link NamedEvent} shows the fix.
 */
type DefaultEvent<S, N extends ChannelName<S>> =
  'message' extends EventName<S, N> ? 'message' : EventName<S, N>;

/** The options of a call must name the event type, unless the channel has an event `message`. */
type NamedEvent<S, N extends ChannelName<S>, E extends string> =
  'message' extends EventName<S, N> ? unknown : { event: E };

/**
 * The type of `this` for a `publish` without options, which publishes a `message`. If the channel
 * has no such event, the type is a sentence. No registry matches it, so the error of the compiler
 * shows the fix.
 */
type HasMessage<S, N extends ChannelName<S>> = [N] extends [never]
  ? unknown
  : N extends ChannelName<S>
    ? 'message' extends EventName<S, N>
      ? unknown
      : `channel ${N} has no event message; pass { event: '${EventName<S, N>}' }`
    : never;

/** The options of `publish()`. */
export interface PublishOptions<E extends string = string> {
  /** The event type. @defaultValue `'message'` */
  event?: E | undefined;
  /** A reconnection time in ms for every reader: a whole number from 0 to 2147483647. */
  retry?: number | undefined;
  /**
   * Makes a retry safe: within five minutes, calls with the same key publish once in this channel,
   * and later calls resolve with the first id. A non-empty string of at most 256 UTF-8 bytes.
   * `memoryBroker()` remembers the newest 100,000 keys of that time.
   */
  key?: string | undefined;
  /**
   * A JSON value for filters, `follow` and `read` (`event.meta`), which clients never receive: the
   * sender to leave out, a role, a tenant. At most 4 KiB as JSON; counts for the history.
   */
  meta?: unknown;
}

/** The options of `end()`. */
export interface EndOptions<E extends string = string> {
  /** The event type of the last event. @defaultValue `'message'` */
  event?: E | undefined;
  /** As in {@link PublishOptions}: `publish` and `end` share the keys of a channel. */
  key?: string | undefined;
}

/** The last event of a channel, returned by the function `end` of {@link PipeToChannelOptions}. */
export interface LastEvent {
  /** The data. A string is sent unchanged, anything else is converted by `serialize`. */
  data: unknown;
  /** The event type. @defaultValue `'message'` */
  event?: string | undefined;
}

/**
 * The options of `channels.pipe()`.
 * @typeParam T the type of the items
 * @typeParam M the type of the items after `map`
 */
export interface PipeToChannelOptions<T, M = T> {
  /**
   * The event type: one for all events, or a function that is called for each event with its item
   * (with `every`, the last of its items) and its index, starting at 0.
   * @defaultValue `'message'`
   */
  event?: string | ((item: T, index: number) => string | undefined) | undefined;
  /** Called for each item. Returns the data to publish. @defaultValue the item itself */
  map?: ((item: T, index: number) => M) | undefined;
  /**
   * Time in ms: all items that come within this time become one event. Fewer events cost less. Up
   * to about 50 ms, a reader sees no difference.
   * @defaultValue none: each item is one event
   */
  every?: number | undefined;
  /**
   * Joins the items of one event to its data. Only with `every`.
   * @defaultValue strings are concatenated, other items are published as one array
   */
  join?: ((items: readonly M[]) => unknown) | undefined;
  /**
   * Whether the channel ends with the source, or a function that returns the last event of the
   * channel. The argument of the function is the error of the source or the reason of `signal`;
   * `undefined` if the source has ended without an error.
   * @defaultValue `true`: the channel ends without a last event, also after an error
   */
  end?: boolean | ((error: unknown) => LastEvent | undefined) | undefined;
  /** Stops the source. The channel ends, and `pipe` rejects with the reason of the signal. */
  signal?: AbortSignal | undefined;
}

/** The options of `channels.follow()`. */
export interface FollowOptions {
  /**
   * Where the consumer begins: `'now'`, `'start'` (all events that the history keeps),
   * `{ last: n }` (the newest `n` events of each channel), or a cursor.
   * @defaultValue `'now'`
   */
  since?: SubscribeOptions['since'];
  /** Ends the iteration. */
  signal?: AbortSignal | undefined;
  /**
   * Called for each event; `true` lets the event through. The iteration throws what the filter
   * throws, and `ERR_SSE_FILTER` if it does not return a boolean.
   */
  filter?: ((event: ChannelEvent) => boolean) | undefined;
  /**
   * Called when the consumer has lost events, and awaited before any further event. The consumer
   * continues after the cursor that the function returns. If the function has read the state again,
   * it returns `gap.cursor`. If it returns nothing, the consumer continues with all events that are
   * still kept.
   * @defaultValue none: the iteration throws `ERR_SSE_GAP`
   */
  onGap?:
    | ((gap: Gap) => string | undefined | void | Promise<string | undefined | void>)
    | undefined;
}

/** Gauges and counters of a registry, on this node. */
export interface ChannelsStats {
  /** Number of followed channels. */
  channels: number;
  /**
   * Number of followers of all channels: a stream that follows three channels counts three times.
   */
  subscriptions: number;
  /**
   * Number of streams that are catching up: with more than 64 KiB queued, resuming, or waiting for
   * an `onGap` or for the broker.
   */
  behind: number;
  /**
   * Number of events that were published on this node by `publish`, `end` (with data) and `pipe`,
   * including calls that published nothing because of their `key`.
   */
  published: number;
  /** Number of gaps reported on this node. */
  gaps: number;
  /** The size of the history on this node. */
  history: { events: number; bytes: number };
  broker: { state: BrokerState };
}

/** One channel of a registry. */
export interface Channel<S extends SchemaOf<S>, N extends ChannelName<S>> {
  readonly name: N;
  /** Number of streams that follow the channel on this node. */
  readonly size: number;
  /** @see Channels.publish */
  publish(this: HasMessage<S, N>, data: EventData<S, N, 'message'>): Promise<{ id: string }>;
  publish<E extends EventName<S, N> = DefaultEvent<S, N>>(
    data: EventData<S, N, E>,
    options: (PublishOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;
  /** @see Channels.end */
  end(): Promise<{ id: string }>;
  end(this: HasMessage<S, N>, data: EventData<S, N, 'message'>): Promise<{ id: string }>;
  end<E extends EventName<S, N> = DefaultEvent<S, N>>(
    data: EventData<S, N, E>,
    options: (EndOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;
  end(data: undefined, options: Pick<EndOptions, 'key'> | undefined): Promise<{ id: string }>;
  /** @see Channels.subscribe */
  subscribe(stream: EventStream, options?: SubscribeOptions): Promise<Subscription>;
}

/** The result of a function of {@link ListenNames}: channel names, or which answer is sent. */
type RequestedNames<Name extends string> = Name | readonly Name[] | null | undefined;

/**
 * Channel names, or a function that returns them for a request: `null` answers 403, and `undefined`
 * answers 404.
 */
export type ListenNames<Req, Name extends string = string> =
  | Name
  | readonly Name[]
  | ((req: Req) => RequestedNames<Name> | Promise<RequestedNames<Name>>);

/** A channel registry: handlers publish to channels, and streams follow channels. */
export interface Channels<S extends SchemaOf<S> = AnySchema> {
  /**
   * Publishes an event of the type `message` to every stream that follows the channel. The event is
   * encoded once, for any number of readers.
   * @param name a non-empty string of at most 256 UTF-8 bytes without control characters
   * @param data a string is sent unchanged, anything else is converted by `serialize`
   * @returns a promise of the event's id; the id is `''` if the channel has no history
   * @throws {SseError} rejects, before the event was delivered to any stream, if the event cannot
   * be published
   * @example
   * await channels.publish('news', 'The pond is open');
   */
  publish<N extends ChannelName<S>>(
    this: HasMessage<S, N>,
    name: N,
    data: EventData<S, N, 'message'>,
  ): Promise<{ id: string }>;
  /**
   * Publishes an event to every stream that follows the channel, with an event type, a reconnection
   * time or a key.
   * @param name a non-empty string of at most 256 UTF-8 bytes without control characters
   * @param data a string is sent unchanged, anything else is converted by `serialize`
   * @returns a promise of the event's id; the id is `''` if the channel has no history
   * @throws {SseError} rejects, before the event was delivered to any stream, if the event cannot
   * be published
   * @example
   * await channels.publish('haiku', { text, author }, { event: 'text' });
   */
  publish<N extends ChannelName<S>, E extends EventName<S, N> = DefaultEvent<S, N>>(
    name: N,
    data: EventData<S, N, E>,
    options: (PublishOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;

  /**
   * Ends a channel, for example the answer of a language model or a job. When a stream has received
   * everything of its channels, and all of them have ended, the stream is closed with `final`, so
   * that its client does not reconnect. Later clients receive the events that the history keeps,
   * and the end. Nothing can be published to the channel until its end is older than the `age` of
   * the history, is forgotten, or is removed by {@link clear}.
   *
   * In the limits of the history, the end counts as an event of about 400 bytes. A second call
   * without data has no effect and resolves with the first id.
   * @param name a channel with history
   * @returns a promise of the id of the end
   * @throws {SseError} rejects with `ERR_SSE_ENDED` if the channel has ended and data is given,
   * with `ERR_SSE_OPTION` for a channel without history, and as {@link publish}
   * @example
   * await channels.end(`job:${id}`);
   */
  end(name: ChannelName<S>): Promise<{ id: string }>;
  /**
   * Publishes the last event of a channel, and ends the channel, as one step.
   * @param name a channel with history
   * @param data as for {@link publish}
   * @returns a promise of the id of the end
   * @throws {SseError} as the call without data
   * @example
   * await channels.end(`job:${id}`, { rows: 314 }, { event: 'done' });
   */
  end<N extends ChannelName<S>>(
    this: HasMessage<S, N>,
    name: N,
    data: EventData<S, N, 'message'>,
  ): Promise<{ id: string }>;
  end<N extends ChannelName<S>, E extends EventName<S, N> = DefaultEvent<S, N>>(
    name: N,
    data: EventData<S, N, E>,
    options: (EndOptions<E> & NamedEvent<S, N, E>) | undefined,
  ): Promise<{ id: string }>;
  end(
    name: ChannelName<S>,
    data: undefined,
    options: Pick<EndOptions, 'key'> | undefined,
  ): Promise<{ id: string }>;

  /**
   * Publishes each item of a source to a channel, and ends the channel: the answer of a language
   * model, or the progress of a job, that every reader can resume on every node.
   *
   * At most 64 publishes wait for the broker at the same time. If the broker is slow, the source is
   * read more slowly. If this process dies, another node ends the channel after 25 to 35 s, so that
   * readers do not wait for ever (with `redisBroker()`; the channels of `memoryBroker()` end with
   * the process). `channels.close()` stops the pipe as the `signal` does.
   *
   * After an error of the source or of a function of the options, the channel ends, and `pipe`
   * rejects with the error. If the broker does not accept an event, or the channel was ended
   * elsewhere, the source is released, and `pipe` rejects with the error of the broker.
   * @param name a channel with history, unless `end: false`
   * @param source an iterable, an async iterable, a web stream or a Node stream
   * @returns a promise of the id of the last event (`''` if there was no event), and of the number
   * of events
   * @throws {SseError} rejects with `ERR_SSE_SOURCE` if the source is none of these
   * @example
   * void channels.pipe(`run:${id}`, completion, {
   *   map: (chunk) => chunk.choices[0].delta.content ?? '',
   *   every: 50,
   *   end: (error) => (error ? { event: 'failed', data: {} } : { event: 'done', data: {} }),
   * });
   */
  pipe<T, M = T>(
    name: ChannelName<S>,
    source: PipeSource<T>,
    options?: PipeToChannelOptions<T, M>,
  ): Promise<{ id: string; events: number }>;

  /**
   * Returns the state of a channel, the same on every node: `'ended'` after {@link end}; `'open'`
   * if the history keeps an event and no end; otherwise `'unknown'`, because nothing was published,
   * or no event of the channel is kept.
   * @throws {SseError} rejects with `ERR_SSE_BROKER` if the broker is unreachable
   */
  state(name: ChannelName<S>): Promise<ChannelState>;

  /**
   * Follows one or several channels on a stream. Opens the stream.
   * @param names 1 to 100 names; duplicates are ignored
   * @returns a promise of the subscription; if the stream ends before the subscription starts, the
   * promise resolves with an ended subscription
   * @throws {SseError} rejects if an argument is invalid
   */
  subscribe(
    stream: EventStream,
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: SubscribeOptions,
  ): Promise<Subscription>;

  /**
   * Reads channels in this process: with the same cursor, order and gaps as a stream, at the pace
   * of the consumer. The broker is asked for the start when `follow` is called; if it is
   * unreachable, the start is the end of the log when it answers. The iteration ends when the
   * signal is aborted, when all channels have ended, or when the registry is closed. Leave a loop
   * with `break`, or abort the signal, so that the channels are released.
   * @param names 1 to 100 names of channels with history
   * @throws {SseError} for invalid arguments. The iteration throws `ERR_SSE_GAP` after a gap
   * without `onGap`, `ERR_SSE_FILTER` and the errors of the functions
   * @example
   * const stop = `run:${id}:stop`;
   * for await (const event of channels.follow(stop, { since: 'start', signal })) abort.abort();
   */
  follow(
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: FollowOptions,
  ): AsyncIterableIterator<ChannelEvent, undefined>;

  /**
   * Reads a page of the history, for a REST endpoint, a consumer that catches up, or a test.
   * @param names 1 to 100 names of channels with history
   * @returns a promise of the events, the oldest first, and of the cursor of the next page
   * @throws {SseError} rejects for invalid arguments, and with `ERR_SSE_BROKER` if the broker is
   * unreachable
   * @example
   * const { events, cursor } = await channels.read('chat', { last: 50 });
   */
  read(
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: ReadOptions,
  ): Promise<HistoryPage>;

  /**
   * Returns the id of the newest event that this node knows. With this id a stream can continue the
   * data of a web page: read the cursor *before* the data of the web page, store data *before* you
   * publish it, render the cursor into the web page, and connect with `?lastEventId=` and the
   * cursor.
   * @throws {SseError} rejects with `ERR_SSE_BROKER` if the broker is unreachable
   */
  cursor(): Promise<string>;

  /**
   * Removes the history of a channel on every node, for example of a deleted room. Clients that
   * have not received the removed events get a gap notification.
   */
  clear(name: ChannelName<S>): Promise<void>;

  /** Returns a handle for one channel. */
  channel<N extends ChannelName<S>>(name: N): Channel<S, N>;

  /**
   * Makes a route handler that follows channels. It answers 406 to requests that do not accept an
   * event stream, 403 if `names` returns `null`, 404 if `names` returns `undefined`, and passes
   * errors to `next`. If all channels have ended, and there is no event after the last event ID of
   * a request, the answer is 204, after which an EventSource does not reconnect.
   * @throws {SseError} if names or options that are not functions are invalid
   * @example
   * app.get('/events/:room', channels.listen(({ user, params }) =>
   *   canRead(user, params.room) ? params.room : null,
   * ));
   */
  listen<Req extends IncomingMessage = RouteRequest, Res extends ServerResponse = RouteResponse>(
    names: ListenNames<Req, ChannelName<S>>,
    options?: SubscribeOptions | ((req: Req) => SubscribeOptions | Promise<SubscribeOptions>),
  ): RouteHandler<Req, Res>;

  /** Returns the names of the channels that are followed on this node. */
  names(): ChannelName<S>[];

  /** Returns gauges and counters. Cheap enough to be called every second. */
  stats(): ChannelsStats;

  /**
   * Stops the running pipes (`pipe` rejects with `ERR_SSE_CLOSED`), and waits up to 3 s until they
   * have ended their channels. Ends the streams that follow channels, with the reason `'shutdown'`,
   * and closes the broker. A further call returns the same promise.
   */
  close(): Promise<void>;
}
