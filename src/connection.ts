/** Bytes to one response: the head, the queue of a slow reader, and the one way in which a connection ends. */
import { OutgoingMessage, type ServerResponse } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
import { Socket } from 'node:net';
import { diagnostics } from './diagnostics.ts';
import { SseError } from './errors.ts';
import type { StreamSettings } from './options.ts';

/**
 * Why a stream ended:
 * - `'client'`: the reader left, or the network between
 * - `'server'`: the handler closed it, or ended the response
 * - `'final'`: closed with `final: true`, the client is told not to come back
 * - `'slow'`: more than `maxBuffered` was queued when an event was sent
 * - `'stalled'`: nothing of what was queued was taken for `stallTimeout`
 * - `'aged'`: older than `maxLifetime`
 * - `'revoked'`: ended by `closeWhere`
 * - `'shutdown'`: the middleware or the channels were closed
 * - `'error'`: something that serves this reader threw
 */
export type CloseReason = 'client' | 'server' | 'final' | 'slow' | 'stalled' | 'aged' | 'revoked' | 'shutdown' | 'error';

/** Bytes queued beyond which a reader counts as behind. */
export const WRITE_MARK = 65_536;

// Large writes are handed over in pieces of this size, so that progress inside one large event can be seen.
const PIECE = 16_384;

// What Node's own `write` is: where a response has another, bytes have to go through that.
// oxlint-disable-next-line typescript/unbound-method -- compared, never called
const NODE_WRITE = OutgoingMessage.prototype.write;

const CRLF = Buffer.from('\r\n');

/** Bytes that many connections share, and the HTTP chunk of them, framed once for all (RFC 9112, 7.1). */
export class SharedBytes {
  readonly bytes: Buffer;
  #chunk: Buffer | undefined;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get chunk(): Buffer {
    this.#chunk ??= chunkOf(this.bytes);
    return this.#chunk;
  }
}

// Not a WeakMap: one property costs less memory for each stream, and the listeners below can be shared functions.
const connectionOf = Symbol('res-sse.connection');

interface Carrier extends ServerResponse {
  [connectionOf]?: Connection;
}

// Connections behind another response on a pipelined socket.
const waiting = Symbol('res-sse.waiting');

interface CarrierSocket extends Socket {
  [connectionOf]?: Connection | undefined;
  [waiting]?: Set<Connection>;
}

/** Whom a connection tells what happens to it. */
export interface ConnectionOwner {
  /** The application ends the response itself: what is owed to the reader has to be written now. */
  flush(): void;
  /** The connection ends now: nothing more will be written. Called once. */
  ended(reason: CloseReason): void;
  /** The response is closed, nothing of it is left in this process. Called once, after `ended`. */
  gone(): void;
  /** No more than the write mark is queued. */
  caughtUp(): void;
  /** Another `heartbeat` has passed, silent or not. */
  due(): void;
  /** It has been silent for as long as `heartbeat` says. */
  silent(): void;
  /** It is as old as `maxLifetime` says. */
  aged(): void;
}

export class Connection {
  readonly res: ServerResponse;
  /** 0 idle, 1 open, 2 closed: the numbers of EventSource (WHATWG HTML, 9.2.2) without their connecting. */
  readyState: 0 | 1 | 2 = 0;
  reason: CloseReason | undefined;
  readonly owner: ConnectionOwner;

  // The heartbeat's notes about this connection; `wrote` is set by each write.
  wrote = false;
  slot = -1;
  silentSince = 0;
  dueAt = 0;
  stuckSince = -1;
  passed = 0;
  deadline = 0;

  /** Bytes handed to the response. */
  given = 0;

  // What the response was not yet given; `undefined` unless the reader is slow or an event large.
  #queue: Buffer[] | undefined;
  #queued = 0;
  #listening = false;
  // Set where bytes go to the socket, past `res.write`: with the chunk framed once for all that costs what a raw socket does.
  #socket: Socket | undefined;
  #mayGoDirect = true;
  #isPipelined = false;
  #isGuarded = false;
  // The response's own `write` and `end`, where middleware had put some before us.
  #wrapped: { write: ServerResponse['write'] | undefined; end: ServerResponse['end'] | undefined } | undefined;

  constructor(res: ServerResponse, owner: ConnectionOwner) {
    this.res = res;
    this.owner = owner;
    if (isDestroyed(res)) {
      // The reader left while middleware before us was at work: its 'close' has been and will not come again.
      this.readyState = 2;
      this.reason = 'client';
      return;
    }
    (res as Carrier)[connectionOf] = this;
    res.on('close', onClose);
    // Without a listener an error of a wrapped or destroyed response would end the process.
    res.on('error', onError);
    // A response behind another on a pipelined connection has no socket yet and would never hear of its end.
    if (res.socket !== null) return;
    this.#isPipelined = true;
    waitingOn(res.req.socket).add(this);
  }

  /** Whether bytes can still be written. Notices that the application has ended the response behind our back. */
  isWritable(): boolean {
    if (this.readyState === 1 && (this.res.writableEnded || this.res.destroyed)) {
      this.#forget();
      this.#ended('server');
    }
    return this.readyState === 1;
  }

  /** Whether it waits for the reader to take what is queued. */
  get isWaiting(): boolean {
    return this.#listening;
  }

  /** Bytes that are queued in this process and not yet with the kernel. */
  get bufferedAmount(): number {
    return this.#queued + (this.readyState === 0 ? 0 : this.res.writableLength);
  }

  /** Bytes that have gone to the kernel: grows while the reader makes progress. */
  get delivered(): number {
    return this.given - this.res.writableLength;
  }

  /**
   * Sends status 200, the headers and the first bytes in one packet. A HEAD request gets the head and ends.
   * @throws {SseError} `ERR_SSE_HEADERS_SENT` when the response has begun as something else
   */
  open(settings: StreamSettings, prelude: string): void {
    const { res } = this;
    if (res.headersSent) {
      throw new SseError('ERR_SSE_HEADERS_SENT', 'the response has begun already; an event stream is a response of its own');
    }
    res.statusCode = 200;
    res.setHeader('Content-Type', 'text/event-stream');
    res.setHeader('Cache-Control', 'no-cache, no-transform');
    res.setHeader('X-Accel-Buffering', 'no');
    res.removeHeader('Content-Length');
    for (const [name, value] of settings.headers) res.setHeader(name, value);
    this.readyState = 1;
    if (res.req.method === 'HEAD') this.end('server');
    else this.write(Buffer.from(prelude));
  }

  /** Hands bytes over, or queues them behind what the reader has not taken. Never throws. */
  write(bytes: Buffer): void {
    if (!this.isWritable()) return;
    this.wrote = true;
    if (this.#queue === undefined && bytes.length <= PIECE && this.#pressure <= PIECE) this.#give(bytes);
    else this.#enqueue([bytes]);
  }

  /**
   * Hands over bytes that many connections share, neither copied nor framed again.
   * @returns `false`, and nothing is written, where the reader is behind
   */
  share(shared: SharedBytes): boolean {
    if (this.readyState !== 1) return true;
    if (this.#socket === undefined && this.#mayGoDirect) this.#decide();
    const socket = this.#socket;
    if (socket === undefined || this.#queue !== undefined || shared.bytes.length > PIECE) {
      if (this.bufferedAmount > WRITE_MARK) return false;
      this.write(shared.bytes);
      return true;
    }
    const pressure = socket.writableLength;
    if (pressure > WRITE_MARK) return false;
    if (pressure > PIECE) {
      this.write(shared.bytes);
    } else if (socket.writable) {
      this.wrote = true;
      this.given += shared.bytes.length;
      socket.write(shared.chunk);
    }
    return true;
  }

  /** The same for many, joined to pieces as they are handed over. They are not copied before. */
  writeAll(many: readonly Buffer[]): void {
    if (many.length === 1) this.write(many[0] as Buffer);
    if (many.length <= 1 || !this.isWritable()) return;
    this.wrote = true;
    this.#enqueue(many);
  }

  /** Ends the connection after what is queued and, if given, `last`. */
  end(reason: CloseReason, last?: Buffer): void {
    if (this.readyState === 2) return;
    const opened = this.readyState === 1;
    if (last !== undefined) this.write(last);
    this.#ended(reason);
    if (opened && this.#queue === undefined) this.#finish();
  }

  /** Ends the connection now and drops what is queued. */
  cut(reason: CloseReason): void {
    this.#ended(reason);
    this.#forget();
    try {
      this.res.destroy();
    } catch (error) {
      this.#tell(error);
    }
  }

  /** Calls `owner.caughtUp()` as soon as no more than the write mark is queued. */
  awaitDrain(): void {
    this.#listen();
  }

  /** The response takes bytes again: gives it the queue, and tells the owner when the reader has caught up. */
  resume(): void {
    this.#pump();
    if (this.bufferedAmount > WRITE_MARK) return;
    if (this.#queue === undefined) this.#unlisten();
    this.owner.caughtUp();
  }

  /** Everything of the response is over, whoever ended it. */
  closed(): void {
    this.res.off('close', onClose);
    if (this.#isPipelined) waitingOn(this.res.req.socket).delete(this);
    this.#forget();
    this.#ended(this.res.writableEnded ? 'server' : 'client');
    this.owner.gone();
  }

  /** An error in what carries this one stream: it ends, and nobody else hears of it. */
  failed(error: unknown): void {
    this.#tell(error);
    this.cut('error');
  }

  /** The application writes to the response itself: from here on bytes take the same way, behind what was queued. */
  yieldTo(): void {
    this.#mayGoDirect = false;
    this.#leaveSocket();
    this.#giveAll();
  }

  /** The application ends the response itself. */
  endedByApplication(): void {
    if (this.readyState !== 1) return;
    this.owner.flush();
    this.#giveAll();
    this.#ended('server');
  }

  /** The response's method as it was before this connection put its own in front. */
  original<M extends 'write' | 'end'>(method: M): ServerResponse[M] {
    return (this.#wrapped?.[method] ?? (Object.getPrototypeOf(this.res) as ServerResponse)[method]) as ServerResponse[M];
  }

  #ended(reason: CloseReason): void {
    if (this.readyState === 2) return;
    this.readyState = 2;
    this.reason = reason;
    this.owner.ended(reason);
  }

  /** Middleware may have wrapped `end`, too, and throw. */
  #finish(): void {
    try {
      this.res.end();
    } catch (error) {
      this.failed(error);
    }
  }

  #tell(error: unknown): void {
    if (diagnostics.error.hasSubscribers) diagnostics.error.publish({ stream: this.owner, error });
  }

  /** Bytes that the response or the socket holds already. */
  get #pressure(): number {
    return this.#socket === undefined ? this.res.writableLength : this.#socket.writableLength;
  }

  /** The answer of `write` says only whether a `drain` will come; it never decides about the reader. */
  #give(bytes: Buffer): boolean {
    this.given += bytes.length;
    if (this.#socket !== undefined) return !this.#socket.writable || this.#socket.write(chunkOf(bytes));
    try {
      const answer: unknown = this.#isGuarded ? Reflect.apply(this.original('write'), this.res, [bytes]) : this.res.write(bytes);
      // Some wrappers answer nothing; only a false promises a `drain`.
      return answer !== false;
    } catch (error) {
      this.failed(error);
      return true;
    }
  }

  #enqueue(many: readonly Buffer[]): void {
    for (const bytes of many) this.#queued += bytes.length;
    if (this.#queue !== undefined) {
      // Several come from the log, which keeps them anyway.
      if (many.length === 1) append(this.#queue, many[0] as Buffer);
      else for (const bytes of many) this.#queue.push(bytes);
      return;
    }
    this.#guard();
    this.#queue = [...many];
    this.#pump();
  }

  #pump(): void {
    if (this.#queue === undefined) return;
    while (this.#queue !== undefined && this.#queue.length > 0) {
      if (this.#give(this.#take(this.#queue))) continue;
      this.#listen();
      break;
    }
    if (this.#queue === undefined || this.#queue.length > 0) return;
    this.#queue = undefined;
    if (this.readyState === 2) this.#finish();
  }

  /** Gives the response the whole queue, whatever it holds: what the application does next must come behind it. */
  #giveAll(): void {
    while (this.#queue !== undefined && this.#queue.length > 0) this.#give(this.#take(this.#queue));
    this.#queue = undefined;
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
    this.#mayGoDirect = false;
    // Of HTTP/2 `chunkedEncoding` is undefined, though its socket says that it is one.
    if (!res.chunkedEncoding || res.req.httpVersionMajor !== 1 || !(socket instanceof Socket)) return;
    if (res.write !== NODE_WRITE || res.hasHeader('content-encoding')) return;
    this.#guard();
    this.#socket = socket;
    if (this.#listening) {
      this.#unlisten();
      this.#listen();
    }
  }

  /** Puts a `write` and an `end` in front of the response's, so that the application's own calls are noticed before they act. */
  #guard(): void {
    if (this.#isGuarded) return;
    this.#isGuarded = true;
    const { res } = this;
    /* oxlint-disable typescript/unbound-method -- called by `original`'s users with the response as `this` */
    const write = Object.hasOwn(res, 'write') ? res.write : undefined;
    const end = Object.hasOwn(res, 'end') ? res.end : undefined;
    /* oxlint-enable typescript/unbound-method */
    if (write !== undefined || end !== undefined) this.#wrapped = { write, end };
    res.write = guardedWrite as ServerResponse['write'];
    res.end = guardedEnd as ServerResponse['end'];
  }

  #leaveSocket(): void {
    if (this.#socket === undefined) return;
    const wasListening = this.#listening;
    this.#unlisten();
    this.#socket = undefined;
    if (wasListening) this.#listen();
  }

  /** One piece from the head of the queue: many small events, or a part of a large one. */
  #take(queue: Buffer[]): Buffer {
    const first = queue[0] as Buffer;
    let count = 0;
    let length = 0;
    while (count < queue.length && length + (queue[count] as Buffer).length <= PIECE) length += (queue[count++] as Buffer).length;
    if (count === 0) {
      queue[0] = first.subarray(PIECE);
      this.#queued -= PIECE;
      return first.subarray(0, PIECE);
    }
    this.#queued -= length;
    const piece = queue.splice(0, count);
    return count === 1 ? first : Buffer.concat(piece, length);
  }

  #forget(): void {
    this.#queue = undefined;
    this.#queued = 0;
    this.#unlisten();
    this.#socket = undefined;
    this.#mayGoDirect = false;
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    if (this.#socket === undefined) {
      this.res.on('drain', onDrain);
    } else {
      (this.#socket as CarrierSocket)[connectionOf] = this;
      this.#socket.on('drain', onSocketDrain);
    }
  }

  #unlisten(): void {
    if (!this.#listening) return;
    this.#listening = false;
    this.res.off('drain', onDrain);
    if (this.#socket === undefined) return;
    this.#socket.off('drain', onSocketDrain);
    (this.#socket as CarrierSocket)[connectionOf] = undefined;
  }
}

// Shared by all responses, so that a stream costs no closure.
function onClose(this: Carrier): void {
  this[connectionOf]?.closed();
}

function onError(this: Carrier, error: unknown): void {
  this[connectionOf]?.failed(error);
}

function onDrain(this: Carrier): void {
  this[connectionOf]?.resume();
}

function onSocketDrain(this: CarrierSocket): void {
  this[connectionOf]?.resume();
}

function guardedWrite(this: Carrier, ...args: unknown[]): unknown {
  const connection = this[connectionOf] as Connection;
  connection.yieldTo();
  return Reflect.apply(connection.original('write'), this, args);
}

function guardedEnd(this: Carrier, ...args: unknown[]): unknown {
  const connection = this[connectionOf] as Connection;
  connection.endedByApplication();
  return Reflect.apply(connection.original('end'), this, args);
}

// Below it an object for each event would weigh more than its bytes.
const SMALL = 512;

/** Adds to the queue; small events are joined, outside of Node's pool, so that what is queued weighs what it counts. */
function append(queue: Buffer[], bytes: Buffer): void {
  const last = queue.at(-1);
  if (bytes.length >= SMALL) {
    queue.push(bytes);
  } else if (last === undefined || last.length >= SMALL) {
    queue.push(copied(bytes));
  } else {
    queue[queue.length - 1] = copied(last, bytes);
  }
}

function copied(...all: Buffer[]): Buffer {
  const copy = Buffer.allocUnsafeSlow(all.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const each of all) at += each.copy(copy, at);
  return copy;
}

/** One listener for all of them: a client decides how many there are. */
function waitingOn(socket: CarrierSocket): Set<Connection> {
  let connections = socket[waiting];
  if (connections === undefined) {
    connections = new Set();
    socket[waiting] = connections;
    socket.once('close', onSocketClose);
  }
  return connections;
}

function onSocketClose(this: CarrierSocket): void {
  for (const connection of this[waiting] ?? []) connection.closed();
}

function chunkOf(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`, 'latin1'), bytes, CRLF]);
}

function isDestroyed(res: ServerResponse | Http2ServerResponse): boolean {
  return 'stream' in res ? res.stream.destroyed : res.destroyed;
}
