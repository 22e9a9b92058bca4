/** `res.sse`: one connection's public face. */
import { setMaxListeners } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { ResponseWriter, type WriteProgress, type CloseReason } from './response-writer.ts';
import { debug, diagnostics } from '../common/diagnostics.ts';
import { SseError } from '../common/errors.ts';
import type { StreamMonitor } from './stream-monitor.ts';
import type { ChannelEvent } from '../log/log-entry.ts';
import { booleanRule, functionRule, assertOptions, type OptionRule } from '../common/options.ts';
import { drawRetry, retryTimeRule } from '../common/retry-range.ts';
import type { StreamSettings } from './stream-options.ts';
import { pipe, type PipeOptions, type PipeSource } from './pipe.ts';
import { readLastEventId } from '../protocol/request-headers.ts';
import type { AnySchema, ChannelName, SchemaOf } from '../common/schema.ts';
import {
  END_EVENT,
  HEARTBEAT_COMMENT,
  PING_EVENT,
  assertFields,
  formatComment,
  serializeData,
  formatEvent,
  formatRetry,
  type EventFields,
  type EventId,
} from '../protocol/event-stream-format.ts';

/** How a stream is to end. */
export interface CloseOptions {
  /** Reconnection time in ms that the client is told before the end. */
  retry?: number | undefined;
  /** Tells the client not to come back. An EventSource reconnects once and is answered 204, which stops it. */
  final?: boolean | undefined;
}

/** What a stream needs from the middleware that made it. */
export interface StreamHost {
  readonly settings: StreamSettings;
  readonly monitor: StreamMonitor;
  readonly subscribe: Subscribe | undefined;
  /** Called for each error after a stream has opened. */
  readonly onError?: ((error: unknown, stream: EventStream) => void) | undefined;
  /** Whether the stream may open. Where not, the request has been answered. Asked before anything is written. */
  admit?(stream: EventStream): boolean;
  /** The stream is open. @returns how it is to be ended at once, if it is */
  onOpened(stream: EventStream): CloseOptions | void;
  /** A stream that was open has ended. */
  onEnded(reason: CloseReason): void;
  /** Nothing of it is left, whether or not it was ever open. */
  onClosed(stream: EventStream, wasOpen: boolean): void;
}

/** What a stream has lost: events that were published, followed, and are not kept any more. */
export interface Gap {
  /** The channels that lost something. */
  readonly channels: readonly string[];
  /** What the client says it has received last. Untrusted input where it is the start of the stream. */
  readonly lastEventId: string;
  /** The newest event's id, read before the handler was called: what to return after a snapshot. */
  readonly cursor: string;
}

/** How a stream follows channels. */
export interface SubscribeOptions {
  /**
   * Where a stream begins whose client brings no id: `'now'`, `'start'` (all that the history holds), or a cursor.
   * @defaultValue `'now'`
   */
  since?: 'now' | 'start' | (string & {}) | undefined;
  /** Whether a client that brings an id (`lastEventId`) resumes there. @defaultValue `true` */
  resume?: boolean | undefined;
  /**
   * Which events this reader gets; `true` lets one through. It fails closed: a throw or anything that is not a boolean,
   * a promise included, ends the stream with the reason `'error'`.
   */
  filter?: ((event: ChannelEvent) => boolean) | undefined;
  /**
   * Called, and awaited before any further event, when the stream has lost something; send a snapshot here.
   * Events go on from the cursor that it returns, `gap.cursor` after a snapshot, or with all that is still held.
   * Without a handler the client gets an `sse:gap` event. A throw ends the stream with the reason `'error'`.
   */
  onGap?:
    | ((
        stream: EventStream,
        gap: Gap,
      ) => string | undefined | void | Promise<string | undefined | void>)
    | undefined;
  /**
   * Whether the client gets `sse:checkpoint` events, from which it can resume before it has received any other: on subscribing,
   * and each heartbeat while the stream is ahead of the last id. After a gap there is one anyway.
   * @defaultValue `true`
   */
  checkpoints?: boolean | undefined;
}

/** A stream's hold on its channels. */
export interface Subscription {
  /** The channels' names, each once. */
  readonly channels: readonly string[];
  /** Whether nothing was lost before the start. */
  readonly recovered: boolean;
  /** Gaps told so far, the one at the start included. */
  readonly gaps: number;
  /** The id up to which the stream has everything of its channels, now; `''` before it is known and without history. */
  readonly cursor: string;
  /** Stops following these channels; the stream goes on. A live stream is given what was published before. */
  unsubscribe(): void;
}

/** Follows channels on a stream. Injected, because the channels are built on streams. */
export type Subscribe = (
  stream: EventStream,
  names: string | readonly string[],
  options?: SubscribeOptions,
) => Promise<Subscription>;

/** What follows channels for a stream. */
export interface Follower {
  /** What the stream has been given together with others, if it is in step with them. */
  readonly groupProgress: WriteProgress | undefined;
  /** The stream is to be given nothing together with others, for now. */
  detach(): void;
  /**
   * Writes what was published and the stream has not been given yet: at most 64 KiB, after which it reads the rest from the log.
   * @param isAll writes all of it, because there will be no later. @defaultValue `false`
   */
  flush(isAll?: boolean): void;
  /** Tells the client where it is, if that is ahead of what it knows. @returns whether it did */
  checkpoint(): boolean;
  /**
   * Resolves when the stream has been given what was published before, or never will be.
   * @returns `undefined` where it has been already
   */
  settle(): Promise<void> | undefined;
  /** Whether it waits for the start of a subscription, or reads what the stream is owed. */
  readonly isWaiting: boolean;
  /** The stream has ended. */
  stop(): void;
}

const valueOrFunction: OptionRule = {
  expected: 'a value for all items or a function of each',
  test: (value) => value !== null,
};

const closeRules = { retry: retryTimeRule, final: booleanRule };

/**
 * @returns the options as they were checked
 * @throws {SseError} `ERR_SSE_OPTION`
 */
export function assertCloseOptions(owner: string, options: CloseOptions): CloseOptions {
  return assertOptions(owner, options, closeRules);
}

const pipeRules = { event: valueOrFunction, id: valueOrFunction, map: functionRule };

// So long a client is asked to stay away when something threw for it: it would most likely throw again at once.
const ERROR_RETRY = { min: 10_000, max: 30_000 };

// A registered symbol, so that two copies of the package in one process recognise each other's streams.
const brand = Symbol.for('res-sse.EventStream');

/**
 * One connection to one event source. Nothing is written before the first `send`, `comment`, `open`, `pipe` or `subscribe`,
 * so a handler can still answer the request otherwise.
 *
 * A reader that leaves or is slow never makes anything throw; wrong use throws an `SseError` at the call.
 * @typeParam S the schema of the channels that `subscribe` follows; every stream may be given this type
 * @example
 * app.get('/listen', stream(async (stream: EventStream<Schema>) => {
 *   await stream.subscribe('haiku');
 * }));
 */
export class EventStream<S extends SchemaOf<S> = AnySchema> extends ResponseWriter {
  static {
    Object.defineProperty(this.prototype, brand, { value: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value;
  }

  // Made only when there is something of it: most streams have none.
  #particulars: RareState | undefined;

  /** The middleware it belongs to; an inner one takes an idle stream over from an outer one. @internal */
  host: StreamHost;
  /** What follows channels for this stream. @internal */
  follower: Follower | undefined;

  /** @internal */
  constructor(res: ServerResponse, host: StreamHost) {
    super(res);
    this.host = host;
  }

  /** The request. */
  get req(): IncomingMessage {
    return this.res.req;
  }

  /**
   * What the client says it has received last: the `Last-Event-ID` header, else the `lastEventId` query parameter
   * (of polyfills and of pages that carry a cursor), else `''`. Untrusted input.
   */
  get lastEventId(): string {
    return readLastEventId(this.req);
  }

  /**
   * Aborted when the stream ends, for whatever reason. Hand it to what you await for this reader. A listener that is added after
   * the end is not called: clean up with {@link closed}.
   */
  get signal(): AbortSignal {
    const { controller } = this.rareState;
    if (this.readyState === 2) controller.abort();
    return controller.signal;
  }

  /** Resolves with the reason when the stream ends; never rejects. */
  get closed(): Promise<CloseReason> {
    const { closed } = this.rareState;
    if (this.reason !== undefined) closed.resolve(this.reason);
    return closed.promise;
  }

  /**
   * Writes one event, and opens the stream if it is not.
   * @param data a string goes as it is, each of its lines on one of its own; anything else through `serialize`
   * @returns `false` when the event was dropped, the stream is closed, or more than 64 KiB is queued; `await drained()` then
   * @throws {SseError} for data and fields that cannot be sent; `ERR_SSE_ID_TAKEN` for an `id` on a stream that follows
   * channels; `ERR_SSE_HEADERS_SENT` when the response has begun as something else
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
    const text = serializeData(data, this.host.settings.serialize);
    if (fields.id !== undefined) claimIds(this);
    return this.writeDirect(formatEvent(text, fields.event, fields.id, fields.retry), true);
  }

  /**
   * Writes a comment, which clients skip, and opens the stream if it is not.
   * @returns as {@link send}
   * @throws {SseError} `ERR_SSE_COMMENT` for text that is not a string
   */
  comment(text = ''): boolean {
    return this.writeDirect(formatComment(text), false);
  }

  /**
   * Sends status 200, the headers and a first comment, so that proxies and browsers report the stream open. What else is written
   * before the caller returns leaves in the same packet.
   * Without effect on a stream that is open or closed.
   * @throws {SseError} `ERR_SSE_HEADERS_SENT` when the response has begun as something else
   */
  open(): this {
    if (this.readyState !== 0) return this;
    if (!this.res.headersSent && this.host.admit?.(this) === false) {
      this.endFor('server');
      return this;
    }
    const { settings, monitor: heartbeat } = this.host;
    const retry = settings.retry === undefined ? '' : formatRetry(drawRetry(settings.retry));
    this.writeHead(settings, `${retry}:\n`);
    // A HEAD request has been answered by now.
    if (!this.isWritable()) return this;
    heartbeat.add(this);
    const ending = this.host.onOpened(this);
    debug('open %s %s', this.req.method, this.req.url);
    if (diagnostics.open.hasSubscribers) diagnostics.open.publish({ stream: this });
    return ending ? this.closeFor('shutdown', ending) : this;
  }

  /**
   * Sends each item of a source as an event, no faster than the reader reads. Does not end the stream.
   *
   * When the reader leaves, a Node stream is destroyed, a web stream cancelled and an iterator's `return()` called at once,
   * also while the next item is awaited, and the promise resolves without waiting for the source. A generator that is
   * suspended in an `await` runs its `finally` only when that settles: give {@link signal} to what it awaits.
   * @returns a promise that rejects with the source's own error, or with the `SseError` of an item that cannot be sent
   * @example
   * await res.sse.pipe(completion, { map: (chunk) => chunk.choices[0].delta });
   */
  async pipe<T>(source: PipeSource<T>, options: PipeOptions<T> = {}): Promise<void> {
    return pipe(source, this, assertOptions('pipe()', options, pipeRules));
  }

  /** Resolves when no more than 64 KiB is queued, or the reader is gone. Never rejects. */
  drained(): Promise<void> {
    if (this.readyState !== 1 || !this.isBehind) return Promise.resolve();
    this.awaitDrain();
    const { waiting } = this.rareState;
    return new Promise((resolve) => {
      waiting.push(resolve);
    });
  }

  /**
   * Follows one channel or several on this stream, which opens it. Name all in one call; what a later call names and the stream
   * follows already goes on where it is, with another filter beside the first.
   * @param names 1 to 100; one that is named twice counts once
   * @returns a promise that rejects with an `SseError` for wrong use, `ERR_SSE_NO_CHANNELS` without `sse({ channels })`
   */
  async subscribe(
    names: ChannelName<S> | readonly ChannelName<S>[],
    options?: SubscribeOptions,
  ): Promise<Subscription> {
    if (this.host.subscribe === undefined) {
      throw new SseError(
        'ERR_SSE_NO_CHANNELS',
        'this stream has no channels to follow; pass sse({ channels })',
      );
    }
    return this.host.subscribe(this, names, options);
  }

  /**
   * Ends the stream after what is queued. Without effect on one that has ended. A stream that is still catching up with its
   * channels gets the rest when its client reconnects; with `final`, after which it does not, the end comes behind the rest.
   * @throws {SseError} `ERR_SSE_OPTION`
   */
  close(options: CloseOptions = {}): this {
    const checked = assertCloseOptions('close()', options);
    if (checked.final !== true) return this.closeFor('server', checked);
    const settling = this.readyState === 2 ? undefined : this.follower?.settle();
    if (settling === undefined) return this.closeFor('final', checked);
    this.rareState.isEnding = true;
    this.rareState.controller.abort();
    settling
      .then(() => void this.closeFor('final', checked))
      // A listener for the head of a stream that was still to open threw.
      .catch((error: unknown) => this.onError(error));
    return this;
  }

  /** Whether the stream has ended, or is being ended and gives nothing more. @internal */
  get isClosingOrClosed(): boolean {
    return this.readyState === 2 || this.#particulars?.isEnding === true;
  }

  /** Ends the stream for a reason of the library's. @internal */
  closeFor(reason: CloseReason, options: CloseOptions = {}): this {
    if (this.readyState === 2) return this;
    if (this.readyState === 0 && !this.res.headersSent) this.open();
    this.follower?.flush(reason === 'server' || reason === 'final');
    return this.closeWithoutFlush(reason, options);
  }

  /** Ends the stream without what its channels owe it. @internal */
  closeWithoutFlush(reason: CloseReason, { retry, final = false }: CloseOptions): this {
    const last = (retry === undefined ? '' : formatRetry(retry)) + (final ? END_EVENT : '');
    // A wrapped `write` that gets the last bytes may call back: nothing comes after them.
    if (last !== '') this.rareState.isEnding = true;
    this.endFor(reason, last === '' ? undefined : Buffer.from(last));
    return this;
  }

  /** Ends the stream because something threw for this reader; nobody else notices. @internal */
  fail(error: unknown): void {
    this.report(error);
    this.closeFor('error', { retry: drawRetry(ERROR_RETRY) });
  }

  /** Tells the application of an error after the stream has opened. Its client is told nothing of it. @internal */
  override report(error: unknown): void {
    // What a handler awaited for a reader that has left is aborted: that is no error.
    if (this.readyState === 2 && isAbort(error)) return;
    debug('error %s: %o', this.req.url, error);
    const isHeard = diagnostics.error.hasSubscribers;
    if (isHeard) diagnostics.error.publish({ stream: this, error });
    const { onError } = this.host;
    try {
      if (onError !== undefined) onError(error, this);
      else if (!isHeard) print(this, error);
    } catch (thrown) {
      print(this, thrown);
    }
  }

  /** @throws {SseError} `ERR_SSE_ID_TAKEN` after an id of the application's own @internal */
  assertNoOwnIds(): void {
    if (this.#particulars?.hasOwnIds === true) {
      throw new SseError(
        'ERR_SSE_ID_TAKEN',
        'this stream has sent ids of its own; on a stream that follows channels the ids are theirs',
      );
    }
  }

  /** Writes an event of the library's own. @internal */
  writeText(text: string): void {
    this.writeBytes(Buffer.from(text));
  }

  /** Whether so many events more, or a comment, may be queued for this reader; carries out `onSlow` if not. @internal */
  admitEvents(events: number): boolean {
    const { maxBuffered } = this.host.settings;
    // What this library holds back counts as taken: the head of the response, and what waits for a further turn.
    if (
      this.bufferedAmount - this.bytesHeldBack <= maxBuffered ||
      (events > 0 && this.eventsWritten === 0)
    ) {
      return true;
    }
    this.dropEvents(events);
    return false;
  }

  /** The reader is not given so many events: carries out `onSlow`. @internal */
  dropEvents(events: number): void {
    const { onSlow } = this.host.settings;
    const { bufferedAmount } = this;
    this.rareState.dropped += events;
    this.publishSlow(bufferedAmount, onSlow);
    if (onSlow === 'close') this.destroyFor('slow');
  }

  /** A subscriber that sends finds the reader as slow as before, and is not told again for that. @internal */
  publishSlow(bufferedAmount: number, action: 'close' | 'drop'): void {
    const { rareState: particulars } = this;
    if (!diagnostics.slow.hasSubscribers || particulars.isTellingSlow) return;
    particulars.isTellingSlow = true;
    diagnostics.slow.publish({ stream: this, bufferedAmount, action });
    particulars.isTellingSlow = false;
  }

  /** Events dropped because the reader was at `maxBuffered`, for `stats()`. @internal */
  get dropped(): number {
    return this.#particulars?.dropped ?? 0;
  }

  // What the lower half tells.

  /** @internal */
  protected override get groupProgress(): WriteProgress | undefined {
    return this.follower?.groupProgress;
  }

  /** @internal */
  protected override detach(): void {
    this.follower?.detach();
  }

  /** @internal */
  override flush(): void {
    this.follower?.flush();
  }

  /** @internal */
  protected override onEnded(reason: CloseReason): void {
    const wasOpen = this.listIndex !== -1;
    if (wasOpen) this.host.onEnded(reason);
    this.follower?.stop();
    this.#particulars?.ended(reason);
    if (!wasOpen) return;
    debug('close %s %s: %s', this.req.method, this.req.url, reason);
    if (diagnostics.close.hasSubscribers) diagnostics.close.publish({ stream: this, reason });
  }

  /** @internal */
  protected override onClosed(): void {
    const wasOpen = this.host.monitor.delete(this);
    this.host.onClosed(this, wasOpen);
  }

  /** @internal */
  protected override onDrain(): void {
    this.#particulars?.drained();
  }

  /** @internal */
  override onTick(): void {
    this.follower?.checkpoint();
  }

  /** @internal */
  override onIdle(): void {
    // Or it would seem silent until others are given something.
    this.detach();
    this.writeBytes(this.host.settings.visibleHeartbeat ? PING_EVENT : HEARTBEAT_COMMENT);
  }

  /** @internal */
  override onExpired(): void {
    this.closeFor('aged');
  }

  // Not `#own` and so on: a class with private methods marks each of its objects, 8 B for each stream.

  /** @internal */
  get rareState(): RareState {
    this.#particulars ??= new RareState();
    return this.#particulars;
  }

  /** @internal */
  writeDirect(text: string, isEvent: boolean): boolean {
    if (this.#particulars?.isEnding === true || !this.open().isWritable()) return false;
    // What the channels owe this reader was published before this call, so it goes first.
    this.follower?.flush();
    if (!this.admitEvents(isEvent ? 1 : 0)) return false;
    this.writeBytes(Buffer.from(text), isEvent ? 1 : 0);
    return this.readyState === 1 && !this.isBehind;
  }
}

function isAbort(error: unknown): boolean {
  return (
    typeof error === 'object' && error !== null && 'name' in error && error.name === 'AbortError'
  );
}

/** As Express prints an error that nobody handles. The query may hold what is not for a log. */
function print({ req }: EventStream, error: unknown): void {
  if (process.env['NODE_ENV'] === 'test') return;
  const { originalUrl = req.url } = req as IncomingMessage & { readonly originalUrl?: string };
  const path = (originalUrl ?? '').replace(/\?.*$/, '');
  // oxlint-disable-next-line no-console -- nobody else would hear of it
  console.error(
    `res-sse: an error ended or disturbed the event stream of ${req.method ?? ''} ${path}:`,
    error,
  );
}

/** @throws {SseError} `ERR_SSE_ID_TAKEN` on a stream that follows channels */
function claimIds(stream: EventStream): void {
  if (stream.follower !== undefined) {
    throw new SseError(
      'ERR_SSE_ID_TAKEN',
      'this stream follows channels, whose ids are the cursor it resumes from; send without an id',
    );
  }
  stream.rareState.hasOwnIds = true;
}

/** What only some streams have: who waits for their end or their reader, ids of their own, events that were dropped. */
class RareState {
  hasOwnIds = false;
  dropped = 0;
  isTellingSlow = false;
  waiting: (() => void)[] = [];
  /** The application has closed the stream, which waits for what it is owed. */
  isEnding = false;
  #controller: AbortController | undefined;
  #closed: { promise: Promise<CloseReason>; resolve: (reason: CloseReason) => void } | undefined;

  get controller(): AbortController {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      // Each pipe and each await for this reader adds a listener: from eleven on Node 20 would warn of a leak.
      setMaxListeners(0, this.#controller.signal);
    }
    return this.#controller;
  }

  get closed(): { promise: Promise<CloseReason>; resolve: (reason: CloseReason) => void } {
    if (this.#closed === undefined) {
      let resolve!: (reason: CloseReason) => void;
      const promise = new Promise<CloseReason>((settle) => {
        resolve = settle;
      });
      this.#closed = { promise, resolve };
    }
    return this.#closed;
  }

  ended(reason: CloseReason): void {
    this.#controller?.abort();
    this.#closed?.resolve(reason);
    this.drained();
  }

  drained(): void {
    const { waiting } = this;
    this.waiting = [];
    for (const resolve of waiting) resolve();
  }
}
