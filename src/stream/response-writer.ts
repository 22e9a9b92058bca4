/** Bytes to one response: the head, the queue of a slow reader, and the one way in which a connection ends. */
import { EventEmitter } from 'node:events';
import { OutgoingMessage, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import type { Http2ServerResponse, Http2Session } from 'node:http2';
import { Socket } from 'node:net';
import { Writable } from 'node:stream';
import { WriteQueue, CHUNK_BYTES } from './write-queue.ts';
import { SseError } from '../common/errors.ts';
import type { StreamSettings } from './stream-options.ts';
import { toHttpChunk, type SharedBytes } from '../protocol/shared-bytes.ts';

/**
 * Why a stream ended:
 * - `'client'`: the reader left, or the network between broke
 * - `'server'`: this process closed it, ended the response or destroyed the connection (also by a timeout of Node's)
 * - `'final'`: closed with `final: true`, the client is told not to come back
 * - `'slow'`: more than `maxBuffered` was queued when an event was sent
 * - `'stalled'`: nothing of what was queued was taken for `stallTimeout`
 * - `'aged'`: older than `maxLifetime`
 * - `'revoked'`: ended by `closeWhere`
 * - `'shutdown'`: the middleware or the channels were closed
 * - `'error'`: something that serves this reader threw, or the response was destroyed with an error
 */
export type CloseReason =
  | 'client'
  | 'server'
  | 'final'
  | 'slow'
  | 'stalled'
  | 'aged'
  | 'revoked'
  | 'shutdown'
  | 'error';

/** Bytes queued beyond which a reader counts as behind. */
export const HIGH_WATER_MARK = 65_536;

// Node's own `write`: where a response has another, bytes have to go through that. An agent may have put its own there before this
// module was loaded. Its text tells them apart; if Node's changes, bytes take the longer way.
/* oxlint-disable typescript/unbound-method -- compared, never called */
const NODE_WRITE: unknown = /\bwrite_\(this\b/.test(
  Function.prototype.toString.call(OutgoingMessage.prototype.write),
)
  ? OutgoingMessage.prototype.write
  : undefined;

// Sockets inherit their `write` from Writable.
const NODE_SOCKET_WRITE: unknown = Writable.prototype.write;
/* oxlint-enable typescript/unbound-method */

// Not a WeakMap: one property costs less memory for each stream, and the listeners below can be shared functions.
const connectionOf = Symbol('res-sse.connection');

// The session of a response over HTTP/2. Once the response is closed, its stream names none any more.
const sessionOf = Symbol('res-sse.session');

interface TaggedResponse extends ServerResponse {
  [connectionOf]?: ResponseWriter;
  [sessionOf]?: Http2Session | undefined;
}

// Connections behind another response on a pipelined socket.
const waiting = Symbol('res-sse.waiting');

// The inactivity timeout of a socket in ms, while streams keep it lifted.
const lifted = Symbol('res-sse.lifted');

const NOTHING = Buffer.alloc(0);

interface TaggedSocket extends Socket {
  [connectionOf]?: ResponseWriter | undefined;
  [lifted]?: number | undefined;
  [waiting]?: Set<ResponseWriter>;
}

// Of those that open in this turn: how many bytes of head wait with what else is written in it.
const heads = new Map<ResponseWriter, number>();

// The connections whose response is being given bytes right now, each with whether its response has
// asked for more meanwhile. A wrapped `write` may call the library before it passes its bytes on.
// Bytes that were given then would come in front of those, so they wait in the queue.
const giving = new Map<ResponseWriter, boolean>();

// The connections whose response is being given all that waits. Middleware that ends the response from
// its `write` gets there again with each piece.
const givingAll = new Set<ResponseWriter>();

// Responses with an `on` of their own that have a listener for 'drain'.
const listened = new WeakSet<ServerResponse>();

interface OverriddenMethods {
  readonly write: ServerResponse['write'] | undefined;
  readonly end: ServerResponse['end'] | undefined;
}

/** What many connections have been given together: one account for all of them, so that a delivery need not touch each. */
export interface WriteProgress {
  readonly bytes: number;
  readonly events: number;
  /** When they were given something last, in ms. */
  readonly writtenAt: number;
}

// Most responses have none of their own.
const UNWRAPPED: OverriddenMethods = { write: undefined, end: undefined };

/**
 * The lower half of an event stream: it knows of bytes, `EventStream` of events. Not an object of its own, because there are tens
 * of thousands of them.
 */
export abstract class ResponseWriter {
  // What each delivery looks at stands together, so that it is in the processor's cache together.
  // Once it has ended, why.
  #state: 'idle' | 'open' | CloseReason = 'idle';
  // Set where bytes go to the socket, past `res.write`: with the chunk framed once for all that costs what a raw socket does.
  // `null` where that must not be; before it is decided, `undefined`.
  #socket: Socket | null | undefined;
  // What the response was not yet given; `undefined` unless the reader is slow or an event large.
  #backlog: WriteQueue | undefined;
  // Both without what is on an account with others.
  #given = 0;
  #sent = 0;
  #silentSince = 0;
  /** The response. What is written to it directly is not this library's: finish events that you begin. */
  readonly res: ServerResponse;

  /** Its place with the heartbeat. @internal */
  listIndex = -1;

  #listening = false;
  // Set where our `write` and `end` stand in front of the response's own, which are in it if middleware had put some before us.
  #guarded: OverriddenMethods | undefined;

  /** @internal */
  constructor(res: ServerResponse) {
    this.res = res;
    if (isGone(res)) {
      // The reader left while earlier middleware was at work. The response does not emit 'close' (again).
      this.#state = 'client';
      return;
    }
    (res as TaggedResponse)[connectionOf] = this;
    res.on('close', onClose);
    // Without a listener an error of a wrapped or destroyed response would end the process.
    res.on('error', onError);
    // A response behind another on a pipelined connection has no socket yet and would never hear of its end.
    if (res.socket === null) waitingOn(res.req.socket).add(this);
  }

  // What the upper half does.

  /** What it has been given together with others, if it is in step with them. @internal */
  protected abstract get groupProgress(): WriteProgress | undefined;
  /** It is not to be given anything past this object. @internal */
  protected abstract detach(): void;

  /** The application ends the response itself: what is owed to the reader has to be written now. @internal */
  abstract flush(): void;
  /** The connection ends now: nothing more will be written. Called once. @internal */
  protected abstract onEnded(reason: CloseReason): void;
  /** The response is closed, nothing of it is left in this process. Called once, after `ended`. @internal */
  protected abstract onClosed(): void;
  /** No more than the write mark is queued. @internal */
  protected abstract onDrain(): void;
  /** What is due once in each `heartbeat`, silent or not, is due. @internal */
  abstract onTick(): void;
  /** It has been silent for as long as `heartbeat` says. @internal */
  abstract onIdle(): void;
  /** It is as old as `maxLifetime` says. @internal */
  abstract onExpired(): void;
  /** Something threw for this reader. @internal */
  abstract report(error: unknown): void;

  /** 0 idle, 1 open, 2 closed: the numbers of `EventSource.readyState` (WHATWG HTML, 9.2.2), without their connecting. */
  get readyState(): 0 | 1 | 2 {
    if (this.#state === 'open') return 1;
    return this.#state === 'idle' ? 0 : 2;
  }

  /** Why it has ended, if it has. @internal */
  get reason(): CloseReason | undefined {
    return this.#state === 'open' || this.#state === 'idle' ? undefined : this.#state;
  }

  /** Whether bytes can still be written. Notices that the application has ended the response behind our back. @internal */
  isWritable(): boolean {
    if (this.#state === 'open' && (this.res.writableEnded || this.res.destroyed)) {
      this.#forget();
      this.#endedElsewhere();
    }
    return this.#state === 'open';
  }

  /** Bytes handed to the response. @internal */
  get bytesWritten(): number {
    return this.#given + (this.groupProgress?.bytes ?? 0);
  }

  /** Events handed over. @internal */
  get eventsWritten(): number {
    return this.#sent + (this.groupProgress?.events ?? 0);
  }

  /** When the heartbeat noticed that nothing more was given, in ms; 0 = it has not looked since something was. @internal */
  get idleSince(): number {
    return this.groupProgress?.writtenAt ?? this.#silentSince;
  }

  /** @internal */
  set idleSince(time: number) {
    this.#silentSince = time;
  }

  /** The socket, if shared bytes may go there without asking this object, as long as it holds no more than a piece. @internal */
  get direct(): Socket | undefined {
    const socket = this.#socket;
    const isDirect = this.#state === 'open' && this.#backlog === undefined;
    return isDirect && socket && !callsBack(socket) ? socket : undefined;
  }

  /** What it is given from here on is on the account. @internal */
  onAttached({ bytes, events }: WriteProgress): void {
    this.#given -= bytes;
    this.#sent -= events;
  }

  /** What was on the account is its own again. @internal */
  onDetached({ bytes, events, writtenAt }: WriteProgress): void {
    this.#given += bytes;
    this.#sent += events;
    this.#silentSince = writtenAt;
  }

  /** Whether it waits for the reader to take what is queued. @internal */
  get isAwaitingDrain(): boolean {
    return this.#listening;
  }

  /** Whether the response stands in line behind another on a pipelined connection: until its turn nobody takes anything of it. @internal */
  get isPipelined(): boolean {
    const { res } = this;
    return res.socket === null && !res.writableFinished && waitingFor(res)?.has(this) === true;
  }

  /** Whether the reader is so far behind that it is better given nothing more now. @internal */
  get isBehind(): boolean {
    return this.bufferedAmount > HIGH_WATER_MARK || this.isPipelined;
  }

  /** Bytes that are queued in this process and not yet with the kernel. */
  get bufferedAmount(): number {
    return (this.#backlog?.size ?? 0) + (this.#state === 'idle' ? 0 : this.#pressure);
  }

  /** Bytes that wait for a turn of the event loop: for the end of that in which the stream opens, or for further ones. No reader has been slow to take them. @internal */
  get bytesHeldBack(): number {
    return (heads.get(this) ?? 0) + (this.#backlog?.excused ?? 0);
  }

  /** Bytes that have gone to the kernel: grows while the reader makes progress. @internal */
  get bytesFlushed(): number {
    return this.bytesWritten - this.#pressure;
  }

  /**
   * Sends status 200, the headers and the first bytes, in one packet with what else is written in this turn. A HEAD request gets
   * the head and ends.
   * @throws {SseError} `ERR_SSE_HEADERS_SENT` when the response has begun as something else
   * @internal
   */
  protected begin(settings: StreamSettings, prelude: string): void {
    const { res } = this;
    if (res.headersSent) {
      throw new SseError(
        'ERR_SSE_HEADERS_SENT',
        'the response has begun already; an event stream is a response of its own',
      );
    }
    const { statusCode } = res;
    const before = res.getHeaders();
    // Whatever a listener for the head sends waits behind the prelude.
    this.#backlog = new WriteQueue([Buffer.from(prelude)]);
    this.#state = 'open';
    try {
      res.statusCode = 200;
      res.setHeader('Content-Type', 'text/event-stream');
      res.setHeader('Cache-Control', 'no-cache, no-transform');
      res.setHeader('X-Accel-Buffering', 'no');
      res.removeHeader('Content-Length');
      for (const [name, value] of settings.headers) res.setHeader(name, value);
      this.#cork();
      // Flushed by itself, Node keeps the head as the one string it sent; joined to the first chunk it stays a tree of 650 B more.
      res.flushHeaders();
    } catch (error) {
      this.#unbegin(statusCode, before);
      throw error;
    }
    if (res.req.method === 'HEAD') {
      this.#backlog = undefined;
      this.#ended('server');
      this.#finish();
      return;
    }
    liftTimeout(res);
    if ('stream' in res) (res as TaggedResponse)[sessionOf] = currentSession(res);
    // So that its own end is noticed, too.
    if (hasSession(res.req)) this.#guard();
    this.#pump();
    if (heads.has(this)) heads.set(this, this.#pressure);
  }

  /** The head could not be written: the response is again what it was, so that the application can answer with the error. */
  #unbegin(statusCode: number, before: OutgoingHttpHeaders): void {
    const { res } = this;
    this.#backlog = undefined;
    if (this.#state === 'open') this.#state = 'idle';
    if (res.headersSent) return;
    res.statusCode = statusCode;
    for (const name of res.getHeaderNames()) if (before[name] === undefined) res.removeHeader(name);
    for (const [name, value] of Object.entries(before)) {
      if (value !== undefined) res.setHeader(name, value);
    }
  }

  /** Hands bytes over, in which are so many events, or queues them behind what the reader has not taken. Never throws. @internal */
  writeBytes(bytes: Buffer, events = 0): void {
    if (!this.isWritable()) return;
    this.#sent += events;
    if (this.#backlog !== undefined) this.#backlog.add(bytes);
    else if (bytes.length > CHUNK_BYTES || this.#pressure > CHUNK_BYTES || giving.has(this)) {
      this.#queue([bytes]);
    } else {
      this.#give(bytes);
      // What a wrapped `write` has sent meanwhile.
      this.#pump();
    }
  }

  /**
   * Hands over events that many connections share, neither copied nor framed again.
   * @returns `false`, and nothing is written, where the reader is behind
   * @internal
   */
  writeShared(shared: SharedBytes, events: number): boolean {
    if (this.#state !== 'open') return true;
    if (this.#socket === undefined) this.#decide();
    const socket = this.#socket;
    const { length } = shared.bytes;
    if (
      !socket ||
      this.#backlog !== undefined ||
      length > HIGH_WATER_MARK ||
      socket.writableLength > CHUNK_BYTES ||
      callsBack(socket)
    ) {
      if (this.isBehind) return false;
      this.writeBytes(shared.bytes, events);
    } else if (socket.writable) {
      this.#sent += events;
      this.#given += length;
      this.#silentSince = 0;
      try {
        socket.write(shared.chunk);
      } catch (error) {
        // An agent may have put a `write` of its own on the socket.
        this.onError(error);
      }
    }
    return true;
  }

  /** Hands many events over, joined to pieces as the reader takes them. They are not copied before. @internal */
  writeAll(many: readonly Buffer[]): void {
    if (many.length === 1) this.writeBytes(many[0] as Buffer, 1);
    if (many.length <= 1 || !this.isWritable()) return;
    this.#sent += many.length;
    if (this.#backlog === undefined) this.#queue(many);
    else this.#backlog.addAll(many);
  }

  /** Queues what is written from here on, until {@link uncork}. @internal */
  cork(): void {
    if (!this.isWritable() || this.#backlog !== undefined) return;
    this.detach();
    this.#guard();
    this.#backlog = new WriteQueue([]);
  }

  /** Writes what has been queued, and the end if the stream has ended meanwhile. @internal */
  uncork(): void {
    if (this.#backlog !== undefined) this.resume();
  }

  /** Ends the connection after what is queued and, if given, `last`. @internal */
  endFor(reason: CloseReason, last?: Buffer): void {
    if (this.#state !== 'idle' && !this.isWritable()) return;
    const opened = this.#state === 'open';
    if (last !== undefined) this.writeBytes(last);
    this.#ended(reason);
    if (!opened || this.#backlog !== undefined) return;
    // Closed from a wrapped `write`: the end comes behind what that passes on.
    if (giving.has(this)) this.#backlog = new WriteQueue([]);
    else this.#finish();
  }

  /** Ends the connection now and drops what is queued. @internal */
  cut(reason: CloseReason): void {
    this.#ended(reason);
    this.#forget();
    try {
      // In line it has no socket yet, what it holds would stay, and those behind it would wait for ever.
      if (this.isPipelined) this.res.req.socket.destroy();
      else this.res.destroy();
    } catch (error) {
      this.report(error);
    }
  }

  /** Calls `caughtUp()` as soon as no more than the write mark is queued. @internal */
  awaitDrain(): void {
    this.#listen();
  }

  /** The response takes bytes again: gives it the queue, and tells when the reader has caught up. @internal */
  resume(): void {
    this.#pump();
    if (this.isBehind) {
      if (this.#listening) this.#expectDrain();
      return;
    }
    if (this.#backlog === undefined) this.#unlisten();
    this.onDrain();
  }

  /** Everything of the response is over, whoever ended it. @internal */
  onResponseClosed(): void {
    this.res.off('close', onClose);
    waitingFor(this.res)?.delete(this);
    restoreTimeout(this.res);
    this.#forget();
    this.#endedElsewhere();
    this.onClosed();
  }

  /**
   * Ends the connection that its response has left behind. A session of HTTP/2 may carry other
   * streams: it takes no more, and ends with the last of them.
   * @internal
   */
  closeConnection(): void {
    const { res } = this;
    if ('stream' in res) ((res as TaggedResponse)[sessionOf] ?? currentSession(res))?.close();
    else if (res.req.httpVersionMajor === 1 && res.writableFinished) res.req.socket.destroySoon();
  }

  /** An error in what carries this one stream: it ends, and nobody else hears of it. @internal */
  onError(error: unknown): void {
    this.report(error);
    // A response that has ended in order sends its last bytes and closes: the application has written to it too late.
    if (this.readyState !== 2 || !this.res.writableEnded) this.cut('error');
  }

  /** The application writes to the response itself: from here on bytes take the same way, behind what was queued. @internal */
  onApplicationWrite(): void {
    this.#leaveSocket();
    const hasQueue = this.#backlog !== undefined;
    this.#giveAll();
    // The stream was closed before and its end waited for the queue.
    if (hasQueue && this.readyState === 2) this.#finish();
  }

  /** The application ends the response itself. @internal */
  onApplicationEnd(): void {
    if (this.#state === 'open') this.flush();
    // Also of a stream that was closed before, whose end waited for the queue.
    this.#giveAll();
    this.#ended('server');
  }

  /** The response's method as it was before this connection put its own in front. @internal */
  originalMethod<M extends 'write' | 'end'>(method: M): ServerResponse[M] {
    return (this.#guarded?.[method] ??
      (Object.getPrototypeOf(this.res) as ServerResponse)[method]) as ServerResponse[M];
  }

  #ended(reason: CloseReason): void {
    if (this.readyState === 2) return;
    this.#state = reason;
    this.onEnded(reason);
  }

  /** The response has ended, or was destroyed, past this object. */
  #endedElsewhere(): void {
    if (this.readyState === 2) return;
    const { res } = this;
    const error = res.writableEnded ? undefined : errorOf(res);
    if (error !== undefined) this.report(error);
    this.#ended(
      error !== undefined ? 'error' : res.writableEnded || isEndedHere(res) ? 'server' : 'client',
    );
  }

  /** Middleware may have wrapped `end`, too, and throw. */
  #finish(): void {
    const { res } = this;
    const session = hideSession(res);
    try {
      res.end();
    } catch (error) {
      this.onError(error);
    } finally {
      showSession(res, session);
    }
  }

  /** Holds back what is written until the callers have returned, as Node does by itself once the head is out. */
  #cork(): void {
    const { res } = this;
    // The socket, not the response: from Node 22 on a response that was corked lets go of its head and each part of a chunk by itself.
    const corked = res.req.httpVersionMajor === 1 ? res.socket : res;
    // In line behind another everything waits, and leaves together.
    if (corked === null) return;
    corked.cork();
    heads.set(this, 0);
    process.nextTick(uncork, corked, this);
  }

  /** Bytes that the response or the socket holds already. */
  get #pressure(): number {
    // The responses of some adapters, for Lambda for one, have no number there.
    return (this.#socket ?? this.res).writableLength || 0;
  }

  /** The answer of `write` says only whether a `drain` will come; it never decides about the reader. */
  #give(bytes: Buffer): boolean {
    this.#given += bytes.length;
    this.#silentSince = 0;
    const isOutermost = !giving.has(this);
    if (isOutermost) giving.set(this, false);
    try {
      // A 'drain' that came before `write` returned is not emitted again.
      return this.#pass(bytes) || giving.get(this) === true;
    } catch (error) {
      this.onError(error);
      return true;
    } finally {
      if (isOutermost) giving.delete(this);
    }
  }

  #pass(bytes: Buffer): boolean {
    if (this.#socket) return !this.#socket.writable || this.#socket.write(toHttpChunk(bytes));
    const isOurs = this.#guarded !== undefined;
    const answer: unknown = isOurs
      ? Reflect.apply(this.originalMethod('write'), this.res, [bytes])
      : this.res.write(bytes);
    // Some wrappers answer nothing; only a false promises a `drain`.
    return answer !== false;
  }

  #queue(many: readonly Buffer[]): void {
    this.detach();
    this.#guard();
    this.#backlog = new WriteQueue(many);
    this.#pump();
  }

  /** Gives the response what waits as long as it takes more, in shares of a turn of the event loop. */
  #pump(): void {
    if (giving.has(this)) {
      // The call that gives goes on with the queue as soon as `write` has returned.
      giving.set(this, true);
      return;
    }
    // Looked at anew each time: a wrapped `write` may send, or end the stream.
    for (let waits = this.#backlog; waits !== undefined && !waits.isEmpty; waits = this.#backlog) {
      if (waits.isSpent) {
        this.#defer(waits);
        return;
      }
      if (this.#give(waits.take()) && this.#pressure <= HIGH_WATER_MARK) continue;
      this.#listen();
      break;
    }
    if (this.#backlog === undefined || !this.#backlog.isEmpty) return;
    this.#backlog = undefined;
    if (this.readyState === 2) {
      this.#finish();
    } else if (this.#listening && !this.isBehind) {
      // A wrapped `write` may have begun to wait while all of it was taken: no `drain` will come.
      this.#unlisten();
      this.onDrain();
    }
  }

  #defer(waits: WriteQueue): void {
    waits.defer(() => {
      if (this.#backlog === waits) this.resume();
    });
  }

  /** Gives the response all that waits, whatever it holds: what the application does next must come behind it. */
  #giveAll(): void {
    if (givingAll.has(this)) return;
    givingAll.add(this);
    try {
      while (this.#backlog !== undefined && !this.#backlog.isEmpty && !this.res.writableEnded) {
        this.#give(this.#backlog.take());
      }
    } finally {
      givingAll.delete(this);
    }
    this.#backlog = undefined;
  }

  /**
   * Takes the way past `res.write`, if it is certain that nobody can tell the difference: Node frames with chunks itself, nobody
   * has wrapped `write`, nothing encodes the content, the response owns the socket, and its head is out.
   */
  #decide(): void {
    const { res } = this;
    const { socket } = res;
    // Behind another response on its connection, or something still to be sent: ask again next time.
    if (socket === null || res.writableLength > 0) return;
    this.#socket = null;
    // Of HTTP/2 `chunkedEncoding` is undefined, though its socket says that it is one.
    if (!res.chunkedEncoding || res.req.httpVersionMajor !== 1 || !(socket instanceof Socket)) {
      return;
    }
    // The `write` of this library in front of Node's is there after a large event, and hides no wrapper.
    /* oxlint-disable typescript/unbound-method -- compared, never called */
    const write: unknown =
      res.write === (guardedWrite as unknown) ? this.originalMethod('write') : res.write;
    /* oxlint-enable typescript/unbound-method */
    if (write !== NODE_WRITE || res.hasHeader('content-encoding')) return;
    this.#guard();
    this.#socket = socket;
    if (this.#listening) {
      this.#unlisten();
      this.#listen();
    }
  }

  /** Puts a `write` and an `end` in front of the response's, so that the application's own calls are noticed before they act. */
  #guard(): void {
    if (this.#guarded !== undefined) return;
    const { res } = this;
    /* oxlint-disable typescript/unbound-method -- called by `original`'s users with the response as `this` */
    const write = Object.hasOwn(res, 'write') ? res.write : undefined;
    const end = Object.hasOwn(res, 'end') ? res.end : undefined;
    /* oxlint-enable typescript/unbound-method */
    this.#guarded = write === undefined && end === undefined ? UNWRAPPED : { write, end };
    res.write = guardedWrite as ServerResponse['write'];
    res.end = guardedEnd as ServerResponse['end'];
  }

  #leaveSocket(): void {
    this.detach();
    const wasListening = this.#listening && this.#socket !== undefined && this.#socket !== null;
    if (wasListening) this.#unlisten();
    this.#socket = null;
    if (wasListening) this.#listen();
  }

  #forget(): void {
    this.#backlog = undefined;
    this.#unlisten();
    this.#socket = null;
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    if (this.#socket === undefined || this.#socket === null) {
      this.#listenToResponse();
    } else {
      (this.#socket as TaggedSocket)[connectionOf] = this;
      this.#socket.on('drain', onSocketDrain);
    }
    this.#expectDrain();
  }

  /**
   * Middleware that has replaced `on` may add the listener to another emitter, which `off` does not reach.
   * `compression` adds it to its Gzip stream. Such a response gets one listener, which stays.
   */
  #listenToResponse(): void {
    const { res } = this;
    // oxlint-disable-next-line typescript/unbound-method -- compared, never called
    if (res.on === EventEmitter.prototype.on) {
      res.on('drain', onDrain);
    } else if (!listened.has(res)) {
      listened.add(res);
      res.on('drain', () => {
        if (this.#listening) this.resume();
      });
    }
  }

  /** With a `highWaterMark` above the write mark no `drain` may come: then the callback of an empty write tells. */
  #expectDrain(): void {
    const { socket, req } = this.res;
    if (req.httpVersionMajor !== 1 || !socket || (this.#socket ?? this.res).writableNeedDrain) {
      return;
    }
    // Node 26 keeps what one tick writes in the response until the tick ends: the socket alone still reads 0 then.
    if (!(socket instanceof Socket) || !socket.writable || this.res.writableLength === 0) return;
    socket.write(NOTHING, () => {
      if (this.#listening) this.resume();
    });
  }

  #unlisten(): void {
    if (!this.#listening) return;
    this.#listening = false;
    this.res.off('drain', onDrain);
    if (this.#socket === undefined || this.#socket === null) return;
    this.#socket.off('drain', onSocketDrain);
    (this.#socket as TaggedSocket)[connectionOf] = undefined;
  }
}

/**
 * Whether an agent has replaced the socket's `write`, which may then call the library before it passes a
 * chunk on. Only bytes that are given by this object itself keep their order then.
 */
function callsBack(socket: Socket): boolean {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  return socket.write !== NODE_SOCKET_WRITE;
}

// Shared by all responses, so that a stream costs no closure.
function onClose(this: TaggedResponse): void {
  this[connectionOf]?.onResponseClosed();
}

function onError(this: TaggedResponse, error: unknown): void {
  this[connectionOf]?.onError(error);
}

function onDrain(this: TaggedResponse): void {
  this[connectionOf]?.resume();
}

function onSocketDrain(this: TaggedSocket): void {
  this[connectionOf]?.resume();
}

function uncork(corked: Socket | ServerResponse, connection: ResponseWriter): void {
  heads.delete(connection);
  corked.uncork();
}

function guardedWrite(this: TaggedResponse, ...args: unknown[]): unknown {
  const connection = this[connectionOf] as ResponseWriter;
  connection.onApplicationWrite();
  return Reflect.apply(connection.originalMethod('write'), this, args);
}

function guardedEnd(this: TaggedResponse, ...args: unknown[]): unknown {
  const connection = this[connectionOf] as ResponseWriter;
  const hadEnded = this.writableEnded;
  connection.onApplicationEnd();
  // Middleware in front may have ended the response when it was given the rest.
  if (this.writableEnded && !hadEnded) return this;
  const session = hideSession(this);
  try {
    return Reflect.apply(connection.originalMethod('end'), this, args);
  } finally {
    showSession(this, session);
  }
}

// The convention of express-session, whose `end` in front of the response's own writes this into its store.
interface Sessioned {
  session?: unknown;
}

function hasSession(req: object): req is Sessioned {
  const property = Object.getOwnPropertyDescriptor(req, 'session');
  const session: unknown = property?.writable === true ? property.value : undefined;
  return (
    typeof session === 'object' &&
    session !== null &&
    'save' in session &&
    typeof session.save === 'function'
  );
}

/**
 * The session of a request that began hours ago must not be written over a newer one. While it is hidden, express-session takes
 * the request for one without; `null` would be a wish to destroy it.
 */
function hideSession({ req }: { readonly req: object }): unknown {
  if (!hasSession(req)) return undefined;
  const { session } = req;
  req.session = false;
  return session;
}

function showSession({ req }: { readonly req: object }, session: unknown): void {
  if (session !== undefined) (req as Sessioned).session = session;
}

/** The connections that share the response's socket and have not had it yet. HTTP/2 has none: its socket may not even be asked. */
function waitingFor({ req }: ServerResponse): Set<ResponseWriter> | undefined {
  return req.httpVersionMajor === 1 ? (req.socket as TaggedSocket)[waiting] : undefined;
}

/** A stream may be silent for longer than Node lets a connection be. HTTP/2 has one timeout for all that its session carries. */
function liftTimeout({ req }: ServerResponse): void {
  if (req.httpVersionMajor !== 1) return;
  const socket = req.socket as TaggedSocket;
  if (!socket.timeout) return;
  socket[lifted] = socket.timeout;
  socket.setTimeout(0);
}

/** Without a `keepAliveTimeout`, Node does not give the next request on the connection its timeout back. */
function restoreTimeout(res: ServerResponse): void {
  if (res.req.httpVersionMajor !== 1) return;
  const socket = res.req.socket as TaggedSocket;
  const timeout = socket[lifted];
  if (timeout === undefined || (waitingFor(res)?.size ?? 0) > 0) return;
  socket[lifted] = undefined;
  if (socket.timeout === 0 && !socket.destroyed) socket.setTimeout(timeout);
}

/** One listener for all of them: a client decides how many there are. */
function waitingOn(socket: TaggedSocket): Set<ResponseWriter> {
  let connections = socket[waiting];
  if (connections === undefined) {
    connections = new Set();
    socket[waiting] = connections;
    socket.once('close', onSocketClose);
  }
  return connections;
}

function onSocketClose(this: TaggedSocket): void {
  for (const connection of this[waiting] ?? []) connection.onResponseClosed();
}

/** The session that carries the response now. The mocks of some adapters have none. */
function currentSession(res: object): Http2Session | undefined {
  return (res as Partial<Http2ServerResponse>).stream?.session;
}

/** Whether the connection of the response has ended. */
function isGone(res: ServerResponse | Http2ServerResponse): boolean {
  if ('stream' in res) return res.stream.destroyed;
  // A pipelined response has no socket before its turn, so the end of its connection does not destroy it.
  return res.destroyed || (res.socket === null && res.req.socket.destroyed);
}

/** What carries a response. The mocks that some adapters make have little of it. */
type Carrying = Partial<Pick<Socket, 'errored' | 'readableEnded'>> & {
  readonly rstCode?: number | undefined;
};

function carrierOf(res: ServerResponse | Http2ServerResponse): Carrying {
  if ('stream' in res) return res.stream;
  const socket: Socket | null | undefined = res.socket ?? res.req.socket;
  return socket ?? {};
}

// Of Node: a request that took too long, which is no error of the application's, and what the peer does to the protocol.
const NODE_TIMEOUT = 'ERR_HTTP_REQUEST_TIMEOUT';
const ERRORS_OF_PEER = /^(HPE_|ECONNRESET$|EPIPE$|ERR_SSL_|ERR_TLS_|ERR_HTTP2_)/;

/** The application's error with which the response was destroyed, if there was one. */
function errorOf(res: ServerResponse | Http2ServerResponse): Error | undefined {
  const { errored } = carrierOf(res);
  if (!errored) return undefined;
  const { code, syscall } = errored as NodeJS.ErrnoException;
  const isOther =
    syscall !== undefined ||
    (code !== undefined && (code === NODE_TIMEOUT || ERRORS_OF_PEER.test(code)));
  return isOther ? undefined : errored;
}

/** Whether this process has destroyed the response: neither an end nor an error has come from the peer. */
function isEndedHere(res: ServerResponse | Http2ServerResponse): boolean {
  const { errored, readableEnded, rstCode = 0 } = carrierOf(res);
  if (errored) return (errored as NodeJS.ErrnoException).code === NODE_TIMEOUT;
  // A peer resets a stream of HTTP/2 with a code, or with none after the end of what it sends.
  return readableEnded === false && rstCode === 0;
}
