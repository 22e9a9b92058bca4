/** Bytes to one response: the head, the queue of a slow reader, and the one way in which a connection ends. */
import type { ServerResponse } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
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

// Not a WeakMap: one property costs less memory for each stream, and the listeners below can be shared functions.
const connectionOf = Symbol('res-sse.connection');

interface Carrier extends ServerResponse {
  [connectionOf]?: Connection;
}

/** Whom a connection tells what happens to it. */
export interface ConnectionOwner {
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
  deadline: number = Infinity;

  /** Bytes handed to the response. */
  given = 0;

  // What the response was not yet given; `undefined` unless the reader is slow or an event large.
  #queue: Buffer[] | undefined;
  #queued = 0;
  #listening = false;

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
    if (res.socket === null) res.req.socket.once('close', () => this.closed());
  }

  /** Whether bytes can still be written: open, and not ended behind our back by the application. */
  get writable(): boolean {
    return this.readyState === 1 && !this.res.writableEnded && !this.res.destroyed;
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
    if (!this.writable) return;
    this.wrote = true;
    if (this.#queue === undefined && bytes.length <= PIECE && this.res.writableLength <= PIECE) {
      this.#give(bytes);
      return;
    }
    this.#queued += bytes.length;
    if (this.#queue === undefined) {
      this.#queue = [bytes];
      this.#pump();
    } else {
      this.#queue.push(bytes);
    }
  }

  /** The same for many, joined to pieces as they are handed over. They are not copied before. */
  writeAll(many: readonly Buffer[]): void {
    if (many.length === 1) this.write(many[0] as Buffer);
    if (many.length <= 1 || !this.writable) return;
    this.wrote = true;
    for (const bytes of many) this.#queued += bytes.length;
    if (this.#queue === undefined) {
      this.#queue = [...many];
      this.#pump();
    } else {
      this.#queue.push(...many);
    }
  }

  /** Ends the connection after what is queued and, if given, `last`. */
  end(reason: CloseReason, last?: Buffer): void {
    if (this.readyState === 2) return;
    const opened = this.readyState === 1;
    if (last !== undefined) this.write(last);
    this.#ended(reason);
    if (opened && this.#queue === undefined) this.res.end();
  }

  /** Ends the connection now and drops what is queued. */
  cut(reason: CloseReason): void {
    this.#ended(reason);
    this.#forget();
    this.res.destroy();
  }

  /** Calls `owner.caughtUp()` as soon as no more than the write mark is queued. */
  awaitDrain(): void {
    if (!this.#listening) this.#listen();
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
    this.#forget();
    this.#ended(this.res.writableEnded ? 'server' : 'client');
    this.owner.gone();
  }

  /** An error in what carries this one stream: it ends, and nobody else hears of it. */
  failed(error: unknown): void {
    if (diagnostics.error.hasSubscribers) diagnostics.error.publish({ stream: this.owner, error });
    this.cut('error');
  }

  #ended(reason: CloseReason): void {
    if (this.readyState === 2) return;
    this.readyState = 2;
    this.reason = reason;
    this.owner.ended(reason);
  }

  /** The answer of `res.write` says only whether a `drain` will come; it never decides about the reader. */
  #give(bytes: Buffer): boolean {
    this.given += bytes.length;
    try {
      const answer: unknown = this.res.write(bytes);
      // Some wrappers answer nothing; only a false promises a `drain`.
      return answer !== false;
    } catch (error) {
      this.failed(error);
      return true;
    }
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
    if (this.readyState === 2) this.res.end();
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
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    this.res.on('drain', onDrain);
  }

  #unlisten(): void {
    if (!this.#listening) return;
    this.#listening = false;
    this.res.off('drain', onDrain);
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

function isDestroyed(res: ServerResponse | Http2ServerResponse): boolean {
  return 'stream' in res ? res.stream.destroyed : res.destroyed;
}
