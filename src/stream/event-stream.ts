/** `EventStream`: the public class of one event stream, `res.sse`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks';
import { clock } from '../common/clock.ts';
import { debug, diagnostics } from '../common/diagnostics.ts';
import { SseError } from '../common/errors.ts';
import { assertOptions, functionRule, type OptionRule } from '../common/options.ts';
import { drawRetry } from '../common/retry-range.ts';
import type { AnySchema, ChannelName, SchemaOf } from '../common/schema.ts';
import type { PipeSource } from '../common/source.ts';
import type { ChannelEvent } from '../log/log-entry.ts';
import {
  END_EVENT,
  HEARTBEAT_COMMENT,
  assertFields,
  formatComment,
  formatEvent,
  formatRetry,
  serializeData,
  type EventFields,
  type EventId,
} from '../protocol/event-stream-format.ts';
import { readLastEventId } from '../protocol/request-headers.ts';
import { assertCloseOptions, type CloseOptions } from './close-options.ts';
import type { CloseReason } from './close-reason.ts';
import { pipe, type PipeOptions } from './pipe.ts';
import { reportError } from './report-error.ts';
import type { StreamGuard } from './revocation-types.ts';
import { SendLimit } from './send-limit.ts';
import type { StreamMonitor } from './stream-monitor.ts';
import type { StreamSettings } from './stream-options.ts';
import type { Gap, SnapshotRequest, Subscription } from './subscription-types.ts';

/** The end of a stream that must not stay open. */
export interface ImmediateEnd {
  readonly reason: CloseReason;
  readonly options: CloseOptions;
}

/** The services that a stream needs from the middleware that made the stream. */
export interface StreamHost {
  readonly settings: StreamSettings;
  readonly monitor: StreamMonitor;
  /** `undefined` without `sse({ channels })`. */
  readonly subscribe: Subscribe | undefined;
  /** Called for each error after a stream has opened. */
  readonly onError?: ((error: unknown, stream: EventStream) => void) | undefined;
  /**
   * Called before anything is written.
   * @returns whether the stream may open; if not, the request was answered
   */
  admit?(stream: EventStream): boolean;
  /** The stream has opened. @returns the end of the stream, if the stream must not stay open */
  onOpened(stream: EventStream): ImmediateEnd | undefined | void;
  /** The request is a poll: its client makes one request for each delivery. */
  onPolled?(stream: EventStream): void;
  /** A stream that was open has ended. */
  onEnded(reason: CloseReason): void;
  /** The response of the stream is closed, whether or not the stream was ever open. */
  onClosed(stream: EventStream, wasOpen: boolean): void;
}

/** The options of `stream.subscribe()`. */
export interface SubscribeOptions {
  /**
   * Where a stream begins if its client sends no last event ID: `'now'`, `'start'` (all events that
   * the history keeps), `{ last: n }` (the newest `n` events of each channel that the history
   * keeps, with `n` from 1 to 1000), or a cursor.
   * @defaultValue `'now'`
   */
  since?: 'now' | 'start' | { readonly last: number } | (string & {}) | undefined;
  /**
   * Whether a stream begins at the last event ID of its client, if the client sends one.
   * @defaultValue `true`
   */
  resume?: boolean | undefined;
  /**
   * Called for each event; `true` lets the event through. If the filter throws or returns something
   * other than a boolean (a promise, for example), the stream ends with the reason `'error'`.
   * @defaultValue none: the stream gets every event
   */
  filter?: ((event: ChannelEvent) => boolean) | undefined;
  /**
   * Called when the stream has lost events, and awaited before any further event; send a snapshot
   * here. The stream continues after the cursor that the handler returns. After a snapshot, return
   * `gap.cursor`. If the handler returns nothing, the stream continues with all events that are
   * still kept. If the handler throws, the stream ends with the reason `'error'`.
   * @defaultValue none: the client gets an `sse:gap` event
   */
  onGap?:
    | ((
        stream: EventStream,
        gap: Gap,
      ) => string | undefined | void | Promise<string | undefined | void>)
    | undefined;
  /**
   * Called and awaited for a reader that sends no last event ID, and for a reader that has lost
   * events. Send the state with `stream.send` here. The stream continues after `request.cursor`:
   * events that are published during the call follow the state. Replaces `onGap`; both together are
   * an error. If the function throws, the stream ends with the reason `'error'`.
   * @defaultValue none
   */
  snapshot?: ((stream: EventStream, request: SnapshotRequest) => void | Promise<void>) | undefined;
  /**
   * Whether the client gets `sse:checkpoint` events, so that it can resume before it has received
   * any other event: one when it subscribes, and one in each heartbeat period in which the position
   * has moved beyond the last id of the client. After a gap a checkpoint is sent in any case.
   * @defaultValue `true`
   */
  checkpoints?: boolean | undefined;
  /**
   * Whether the library sends events of its own: `sse:checkpoint`, `sse:gap`, `sse:end` and
   * `sse:ping`. Pass `false` for clients that treat every event as an event of the application
   * (Vercel AI SDK, openai). Then:
   *
   * - when all channels have ended, the body ends
   * - a visible heartbeat is a comment
   * - a gap without `onGap` or `snapshot`, before the stream opens, is answered 410
   * (`ERR_SSE_GONE`)
   * - such a gap on an open stream ends the stream; its client reconnects and gets the 410
   * @defaultValue `true`
   */
  control?: boolean | undefined;
}

/**
 * Follows channels on a stream. A host passes the function in, because `channels/` imports
 * `stream/`.
 */
export type Subscribe = (
  stream: EventStream,
  names: string | readonly string[],
  options?: SubscribeOptions,
) => Promise<Subscription>;

const valueOrFunction: OptionRule = {
  expected: 'a value for all items or a function that returns one for each',
  test: (value) => value !== null,
};

const pipeRules = { event: valueOrFunction, id: valueOrFunction, map: functionRule };

// Reconnection time after an error in this process: the same request would most likely fail again,
// and a client that reconnects at once would repeat the error without end.
const ERROR_RETRY_MS = { min: 10_000, max: 30_000 };

// The time at which the monotonic clock was 0, in ms since 1970.
const { timeOrigin } = performance;

// A registered symbol, so that two copies of the package in one process recognise each other's
// streams.
const brand = Symbol.for('res-sse.EventStream');

/**
 * One event stream: one response to one client. Nothing is written before the first `send`,
 * `comment`, `open`, `pipe` or `subscribe`, so a handler can still send another response.
 *
 * A client that disconnects or is slow never makes a method throw. Wrong use throws an `SseError`
 * at the call.
 * @typeParam S the schema of the channels that `subscribe` follows; every stream can be given this
 * type
 * @example
 * app.get('/listen', stream(async (stream: EventStream<Schema>) => {
 *   await stream.subscribe('haiku');
 * }));
 */
export class EventStream<S extends SchemaOf<S> = AnySchema> extends SendLimit {
  static {
    Object.defineProperty(this.prototype, brand, { value: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value;
  }

  // When the stream opened, in ms of the monotonic clock; 0 before.
  #openedAt = 0;

  /**
   * The middleware of the stream. An inner middleware replaces the host of an idle stream.
   * @internal
   */
  host: StreamHost;

  /** @internal */
  constructor(res: ServerResponse, host: StreamHost) {
    super(res);
    this.host = host;
  }

  /** @internal */
  protected override get settings(): StreamSettings {
    return this.host.settings;
  }

  /** The request. */
  get req(): IncomingMessage {
    return this.res.req;
  }

  /**
   * The id of the last event that the client received: the `Last-Event-ID` header, else the
   * `lastEventId` query parameter (sent by polyfills, and by pages with a cursor), else `''`.
   * Untrusted input.
   */
  get lastEventId(): string {
    return readLastEventId(this.req);
  }

  /** A random id of this stream, for lists and logs. Made when it is first read. */
  get id(): string {
    return this.rareState().id;
  }

  /** When the stream opened; `undefined` before. */
  get openedAt(): Date | undefined {
    return this.#openedAt === 0 ? undefined : new Date(timeOrigin + this.#openedAt);
  }

  /** The names of the channels that the stream follows, each once. */
  get channels(): readonly string[] {
    return this.follower?.channelNames ?? [];
  }

  /**
   * The id up to which the stream has received every event of its channels; `''` before the id is
   * known, and without channels.
   */
  get cursor(): string {
    return this.follower?.cursor ?? '';
  }

  /**
   * Number of events of its channels that this node knows and the stream has not received: 0 for a
   * stream that is up to date. Events that only the broker has are not counted. While the stream is
   * live, ends of channels are counted, too.
   */
  get lag(): number {
    return this.follower?.lag ?? 0;
  }

  /**
   * Aborted when the stream ends, for any reason. Pass the signal to everything that you await for
   * this client. A listener that is added after the end is not called: use {@link closed} to clean
   * up.
   */
  get signal(): AbortSignal {
    const controller = this.rareState().abortController();
    if (this.readyState === 2) controller.abort();
    return controller.signal;
  }

  /** Resolves with the close reason when the stream ends. Never rejects. */
  get closed(): Promise<CloseReason> {
    const closed = this.rareState().closedPromise();
    if (this.reason !== undefined) closed.resolve(this.reason);
    return closed.promise;
  }

  /**
   * Writes one event, and opens the stream if it is not open yet.
   * @param data a string is sent unchanged, each of its lines as a line of the event; any other
   * value is passed through `serialize`
   * @returns `false` if the event was dropped, the stream is closed, or more than 64 KiB (or
   * `maxBuffered`, if that is less) are queued; then wait for `drained()`
   * @throws {SseError} for data and fields that cannot be sent; `ERR_SSE_ID_TAKEN` for an `id` on a
   * stream that follows channels; `ERR_SSE_HEADERS_SENT` if the response has begun as something
   * else
   * @example
   * res.sse.send({ price: 42 }, { event: 'tick', id: 7 });
   * res.sse.send('hello', 'greeting', 8);
   */
  send(data: unknown, fields?: EventFields): boolean;
  send(data: unknown, event?: string, id?: EventId, retry?: number): boolean;
  send(data: unknown, second?: EventFields | string, id?: EventId, retry?: number): boolean {
    const fields = assertFields(
      typeof second === 'object' && second !== null ? second : { event: second, id, retry },
    );
    const text = serializeData(data, this.settings.serialize);
    if (fields.id !== undefined) this.claimIds();
    return this.writeForApplication(formatEvent(text, fields.event, fields.id, fields.retry), true);
  }

  /**
   * Writes a comment, which clients ignore, and opens the stream if it is not open yet.
   * @param text each of its lines becomes a comment line
   * @returns the same as {@link send}
   * @throws {SseError} `ERR_SSE_COMMENT` if the text is not a string
   */
  comment(text = ''): boolean {
    return this.writeForApplication(formatComment(text), false);
  }

  /**
   * Sends status 200, the headers and a first comment, so that proxies and browsers report the
   * stream as open. Everything else that is written before the caller returns leaves in the same
   * packet. Without effect if the stream is open or closed.
   * @throws {SseError} `ERR_SSE_HEADERS_SENT` if the response has begun as something else
   */
  open(): this {
    if (this.readyState !== 0) return this;
    if (!this.res.headersSent && this.host.admit?.(this) === false) {
      this.endFor('server');
      return this;
    }
    const { settings } = this;
    const retry = settings.retry === undefined ? '' : formatRetry(drawRetry(settings.retry));
    this.writeHead(settings, `${retry}:\n`);
    // The answer to a HEAD request has ended by now.
    if (!this.checkWritable()) return this;
    this.#openedAt = clock();
    this.host.monitor.add(this);
    const end = this.host.onOpened(this);
    debug('open %s %s', this.req.method, this.req.url);
    if (diagnostics.open.hasSubscribers) diagnostics.open.publish({ stream: this });
    return end ? this.closeFor(end.reason, end.options) : this;
  }

  /**
   * Sends each item of a source as an event, no faster than the client reads. The stream stays
   * open.
   *
   * When the stream ends, a Node stream is destroyed, a web stream cancelled, and `return()` of an
   * iterator called at once, even while the next item is awaited; the promise resolves without
   * waiting for the source. If a generator is suspended in an `await`, its `finally` runs only
   * after that `await`: pass {@link signal} to the awaited operation.
   * @returns a promise that rejects with the error of the source, or with the `SseError` of an item
   * that cannot be sent
   * @example
   * await res.sse.pipe(completion, { map: (chunk) => chunk.choices[0].delta });
   */
  async pipe<T>(source: PipeSource<T>, options: PipeOptions<T> = {}): Promise<void> {
    return pipe(source, this, assertOptions('pipe()', options, pipeRules));
  }

  /**
   * Follows one channel or several, and opens the stream. Name all channels in one call. If a later
   * call names a channel that the stream already follows, the stream continues from its position,
   * and an event of that channel is sent if one of the filters accepts it.
   * @param names 1 to 100 channel names; a name that is given twice counts once
   * @returns a promise that resolves when the first events are written and a gap at the start is
   * reported; inside `onGap` and `snapshot` it resolves earlier. It rejects with an `SseError` for
   * wrong use, `ERR_SSE_NO_CHANNELS` without `sse({ channels })`
   */
  async subscribe(
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: SubscribeOptions,
  ): Promise<Subscription> {
    if (this.host.subscribe === undefined) {
      throw new SseError(
        'ERR_SSE_NO_CHANNELS',
        'no channels are configured for this stream; pass sse({ channels })',
      );
    }
    return this.host.subscribe(this, names, options);
  }

  /**
   * Ends the stream after the queued bytes. No effect if the stream has ended. If the stream is
   * still catching up with its channels, the client gets the remaining events when it reconnects.
   * With `final` it will not reconnect, so the stream ends only after these events.
   * @throws {SseError} `ERR_SSE_OPTION` for an unknown option or a value out of its range
   */
  close(options: CloseOptions = {}): this {
    const checked = assertCloseOptions('close()', options);
    if (checked.final !== true) return this.closeFor('server', checked);
    const settled = this.readyState === 2 ? undefined : this.follower?.settle();
    if (settled === undefined) return this.closeFor('final', checked);
    this.rareState().isClosing = true;
    this.rareState().abortController().abort();
    settled
      .then(() => void this.closeFor('final', checked))
      // The stream was not open yet, and a listener for its head threw.
      .catch((error: unknown) => this.onError(error));
    return this;
  }

  /** The identity and authorization of the stream, if its middleware has `identity`. @internal */
  get guard(): StreamGuard | undefined {
    return this.rare?.guard;
  }

  /** @internal */
  set guard(guard: StreamGuard | undefined) {
    this.rareState().guard = guard;
  }

  /** Whether the stream has ended, or was closed and only writes pending events. @internal */
  get isClosingOrClosed(): boolean {
    return this.readyState === 2 || this.rare?.isClosing === true;
  }

  /**
   * Ends the stream. If the application has closed the stream, all pending events of its channels
   * are written before; otherwise at most two frames, and the client gets the rest when it
   * reconnects. @internal
   */
  closeFor(reason: CloseReason, options: CloseOptions = {}): this {
    if (this.readyState === 2) return this;
    if (this.readyState === 0 && !this.res.headersSent) this.open();
    this.follower?.flush(reason === 'server' || reason === 'final');
    return this.closeWithoutFlush(reason, options);
  }

  /** Ends the stream without the pending events of its channels. @internal */
  closeWithoutFlush(reason: CloseReason, { retry, final = false }: CloseOptions): this {
    const endEvent = final && this.follower?.isWithoutControl !== true ? END_EVENT : '';
    const last = (retry === undefined ? '' : formatRetry(retry)) + endEvent;
    // A wrapped `write()` that gets these bytes may send an event, but nothing may follow them.
    if (last !== '') this.rareState().isClosing = true;
    this.endFor(reason, last === '' ? undefined : Buffer.from(last));
    return this;
  }

  /**
   * Ends the stream because code that serves it threw. Other streams are not affected. @internal
   */
  fail(error: unknown): void {
    this.report(error);
    this.closeFor('error', { retry: drawRetry(ERROR_RETRY_MS) });
  }

  /** Reports an error to the application, not to the client. @internal */
  override report(error: unknown): void {
    reportError<EventStream>(this, error, this.host.onError);
  }

  /** @throws {SseError} `ERR_SSE_ID_TAKEN` if the application has sent ids of its own @internal */
  assertNoOwnIds(): void {
    if (this.rare?.hasOwnIds === true) {
      throw new SseError(
        'ERR_SSE_ID_TAKEN',
        'the application has sent ids on this stream; on a stream that follows channels, the ' +
          'channels set the ids',
      );
    }
  }

  /** Writes a checkpoint or a gap notification. @internal */
  writeText(text: string): void {
    this.writeBytes(Buffer.from(text));
  }

  /** @internal */
  protected override onEnded(reason: CloseReason): void {
    // The stream is in the list of the monitor since it opened.
    const wasOpen = this.listIndex !== -1;
    if (wasOpen) this.host.onEnded(reason);
    this.follower?.stop();
    this.rare?.onEnded(reason);
    if (!wasOpen) return;
    debug('close %s %s: %s', this.req.method, this.req.url, reason);
    if (diagnostics.close.hasSubscribers) diagnostics.close.publish({ stream: this, reason });
  }

  /** @internal */
  protected override onClosed(): void {
    const wasOpen = this.host.monitor.delete(this);
    this.host.onClosed(this, wasOpen);
  }

  // The callbacks of `MonitoredStream`.

  /** @internal */
  onTick(): void {
    this.follower?.checkpoint();
  }

  /** @internal */
  onIdle(): void {
    const { pingEvent } = this.settings;
    const isVisible = pingEvent !== undefined && this.follower?.isWithoutControl !== true;
    this.writeBytes(isVisible ? pingEvent : HEARTBEAT_COMMENT);
  }

  /** @internal */
  onExpired(): void {
    this.closeFor('aged');
  }

  /**
   * Writes an event or a comment of the application, unless the client is slow.
   * @internal
   */
  private writeForApplication(text: string, isEvent: boolean): boolean {
    if (this.rare?.isClosing === true || !this.open().checkWritable()) return false;
    // Events that were published before this call come before it.
    this.follower?.flush();
    if (!this.admitEvents(isEvent ? 1 : 0)) return false;
    this.writeBytes(Buffer.from(text), isEvent ? 1 : 0);
    return this.readyState === 1 && !this.sendersMustWait;
  }

  /** @throws {SseError} `ERR_SSE_ID_TAKEN` on a stream that follows channels @internal */
  private claimIds(): void {
    if (this.follower !== undefined) {
      throw new SseError(
        'ERR_SSE_ID_TAKEN',
        'this stream follows channels, which set the ids from which it resumes; send without an id',
      );
    }
    this.rareState().hasOwnIds = true;
  }
}
