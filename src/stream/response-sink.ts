/**
 * Passing bytes to one response: to `res.write()` or past it to the socket, and from inside a
 * wrapped `write()`.
 *
 * ```text
 * passToResponse() ─┬─► socket.write()          bytes may bypass `res.write()`
 *                   └─► res.write() as it was before the interception
 * ```
 */
import type { ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import type { GzipWindow } from '../protocol/gzip-window.ts';
import { toHttpChunk, type SharedBytes } from '../protocol/shared-bytes.ts';
import { explainEnd, type CloseReason } from './close-reason.ts';
import { findDirectSocket } from './direct-socket.ts';
import {
  applicationWriteOf,
  callOriginal,
  interceptMethods,
  isIntercepted,
  isWriteWrapped,
  withoutSession,
  type OverriddenMethods,
} from './interception.ts';
import { isResponsePipelined } from './pipelining.ts';
import { isEncoded } from './response-head.ts';
import { ignoreDrain, listenForDrain, requestDrain, requestFlush } from './response-listeners.ts';
import { countGivenBytes, noteAnswer } from './wrapper-bytes.ts';
import { WriteTotals } from './write-totals.ts';

// Writers that are inside a call of the response's `write()`. If a wrapped `write()` calls the
// library before it passes its bytes on, then new bytes would overtake these bytes. So new bytes
// are queued until `write()` has returned. The value of a writer shows whether its bytes are still
// held:
//
//     number of bytes    the response had been given so many bytes before the call: the bytes of
//                        the call are held as long as this number has not changed
//     HELD               the application writes meanwhile: the bytes are held in any case
const activeWriters = new Map<ResponseSink, number>();

// The bytes that the innermost of these calls passes.
let passedBytes: Buffer | undefined;

// Active writers whose response has asked for more bytes meanwhile.
const resumedWriters = new Set<ResponseSink>();

const NO_BYTES = Buffer.alloc(0);

// In place of the number of bytes, while the application writes from inside a `write()` that holds
// the bytes of the stream.
const HELD = Infinity;

/** The base class of `ResponseWriter`: its state, its response, and how bytes get there. */
export abstract class ResponseSink extends WriteTotals {
  /** The response. Do not write parts of events to it: the library cannot complete them. */
  readonly res: ServerResponse;

  /**
   * Index of the stream in the list of its monitor; -1 before it opens and after it is closed.
   * @internal
   */
  listIndex = -1;

  #isAwaitingDrain = false;
  // Set while the response has the intercepted `write()` and `end()`.
  #overridden: OverriddenMethods | undefined;
  // The fields that each delivery reads come last here and first in `ResponseWriter`, so that they
  // are in one line of the processor's cache. After the stream has ended, the state is the close
  // reason.
  #state: 'idle' | 'open' | CloseReason = 'idle';
  // The socket, if bytes may bypass `res.write()`; `null` if they must not; `undefined` until this
  // is decided.
  #socket: Socket | null | undefined;

  /** @internal */
  constructor(res: ServerResponse) {
    super();
    this.res = res;
  }

  /** The stream has ended: nothing more will be written. Called once. @internal */
  protected abstract onEnded(reason: CloseReason): void;
  /** `write()` has returned. Called before the writer counts as idle. @internal */
  protected abstract onPassed(): void;
  /** The response accepts bytes again. @internal */
  abstract resume(): void;
  /** Reports that code that serves this stream threw. @internal */
  abstract report(error: unknown): void;

  /**
   * 0 before the stream opens, 1 while it is open, 2 after its end: the numbers of
   * `EventSource.readyState` (WHATWG HTML, 9.2.2), whose state 0 is "connecting".
   */
  get readyState(): 0 | 1 | 2 {
    if (this.#state === 'open') return 1;
    return this.#state === 'idle' ? 0 : 2;
  }

  /** The reason of the end, or `undefined` before the end. @internal */
  get reason(): CloseReason | undefined {
    return this.#state === 'open' || this.#state === 'idle' ? undefined : this.#state;
  }

  /**
   * A number that grows while the client reads. Over HTTP/1 the number of bytes that the socket has
   * passed to the kernel, including bytes that the application has written itself. @internal
   */
  get bytesFlushed(): number {
    const { res } = this;
    // A response that waits for another response makes no progress.
    if (this.isPipelined) return -1;
    const { socket } = res;
    if (res.req.httpVersionMajor === 1 && socket instanceof Socket) {
      return socket.bytesWritten - socket.writableLength;
    }
    return Math.max(0, this.bytesWritten - this.bytesInResponse);
  }

  /** Whether the writer listens for `'drain'`. @internal */
  get isAwaitingDrain(): boolean {
    return this.#isAwaitingDrain;
  }

  /** Whether the response waits behind another response of a pipelined connection. @internal */
  get isPipelined(): boolean {
    return isResponsePipelined(this.res, this);
  }

  /** The methods of the response that the interception replaced. @internal */
  get overriddenMethods(): OverriddenMethods | undefined {
    return this.#overridden;
  }

  /**
   * The socket, if bytes bypass `res.write()`; `null` if they must not; `undefined` until
   * this is decided.
   * @internal
   */
  protected get socket(): Socket | null | undefined {
    return this.#socket;
  }

  /** Whether a `write()` of the response is running that this stream has called. @internal */
  protected get isPassingBytes(): boolean {
    return activeWriters.has(this);
  }

  /**
   * Whether a wrapped `write()` is running that has not passed the bytes of the stream on. If the
   * response was given anything else now, it would come before these bytes. @internal
   */
  protected get isHeldByWrapper(): boolean {
    const given = activeWriters.get(this);
    return given !== undefined && (given === HELD || given === countGivenBytes(this.res));
  }

  /**
   * Writes for the application, which does not count as passing the held bytes of the stream on.
   * @internal
   */
  writeWhileHeld(write: () => unknown): unknown {
    activeWriters.set(this, HELD);
    try {
      return write();
    } finally {
      activeWriters.set(this, countGivenBytes(this.res));
    }
  }

  /** Whether the chunk is what the stream is passing to its response now. @internal */
  protected isPassing(chunk: unknown): boolean {
    return passedBytes !== undefined && activeWriters.has(this) && isSame(chunk, passedBytes);
  }

  /** Bytes that the response or the socket holds. @internal */
  protected get bytesInResponse(): number {
    // The responses of some adapters (for AWS Lambda, for example) have no `writableLength`.
    return (this.#socket ?? this.res).writableLength || 0;
  }

  /**
   * Checks whether bytes can still be written. If the application has ended or destroyed the
   * response itself, this call ends the stream.
   * @internal
   */
  checkWritable(): boolean {
    if (this.#state === 'open' && (this.res.writableEnded || this.res.destroyed)) {
      this.stopWriting();
      this.onEndedElsewhere();
    }
    return this.#state === 'open';
  }

  /** Ends the stream now, destroys the response and drops the queued bytes. @internal */
  destroyFor(reason: CloseReason): void {
    this.markEnded(reason);
    this.stopWriting();
    try {
      // A pipelined response has no socket before its turn. If only the response were destroyed,
      // the next responses of the connection would hang, so the connection is destroyed.
      if (this.isPipelined) this.res.req.socket.destroy();
      else this.res.destroy();
    } catch (error) {
      this.report(error);
    }
  }

  /** Calls {@link resume} each time that the response accepts bytes again. @internal */
  awaitDrain(): void {
    if (this.#isAwaitingDrain) return;
    this.#isAwaitingDrain = true;
    listenForDrain(this.res, this.#socket, this);
    this.requestDrain();
  }

  /**
   * Code that serves this stream threw: the stream ends, and no other stream is affected.
   * @internal
   */
  onError(error: unknown): void {
    this.report(error);
    // If the response was ended in order, its last bytes are still sent: the error belongs to a
    // late write of the application.
    if (this.readyState !== 2 || !this.res.writableEnded) this.destroyFor('error');
  }

  /** Sets the state without any other effect. @internal */
  protected setState(state: 'idle' | 'open' | CloseReason): void {
    this.#state = state;
  }

  /** Ends the stream, but not the response. @internal */
  protected markEnded(reason: CloseReason): void {
    if (this.readyState === 2) return;
    this.#state = reason;
    this.onEnded(reason);
  }

  /** The response ended or was destroyed without a call of this library. @internal */
  protected onEndedElsewhere(): void {
    if (this.readyState === 2) return;
    const { reason, error } = explainEnd(this.res);
    if (error !== undefined) this.report(error);
    this.markEnded(reason);
  }

  /**
   * Ends the response. Middleware may have wrapped `end()`, too, and may throw.
   * @param last bytes to write with the end
   * @internal
   */
  protected passEnd(last: Buffer | undefined): void {
    // Encoded here, because a wrapper that was taken off may have removed the interception.
    const encoded = this.encodeEnd(last);
    withoutSession(this.res, () => {
      try {
        this.res.end(encoded);
      } catch (error) {
        this.onError(error);
      }
    });
  }

  /**
   * Passes bytes to the response or the socket. The result alone does not show a slow client, see
   * `mayHoldBytes` of `ResponseWriter`.
   * @param write writes the bytes. @defaultValue to the socket, or by `res.write()`
   * @returns `false` if `write()` has returned `false`
   * @internal
   */
  protected passToResponse(bytes: Buffer, write?: () => unknown): boolean {
    this.addBytes(bytes.length);
    const outerGiven = activeWriters.get(this);
    const outerBytes = passedBytes;
    const givenBefore = this.countBeforeWrite();
    activeWriters.set(this, givenBefore);
    passedBytes = bytes;
    try {
      const answer = write === undefined ? this.callWrite(bytes) : write();
      // Some wrappers return nothing. Only `false` announces a 'drain'. A 'drain' that came before
      // `write()` returned is not emitted again.
      const isAccepted = answer !== false || resumedWriters.has(this);
      if (givenBefore !== -1) noteAnswer(this, isAccepted, bytes.length, givenBefore);
      return isAccepted;
    } catch (error) {
      this.onError(error);
      return true;
    } finally {
      this.onPassed();
      passedBytes = outerBytes;
      if (outerGiven === undefined) {
        activeWriters.delete(this);
        resumedWriters.delete(this);
      } else activeWriters.set(this, outerGiven);
    }
  }

  /**
   * Intercepts the response before a wrapped `write()` runs, so that its calls are noticed.
   * @returns number of bytes that the response was given; -1 if no code of the application runs
   * inside `write()`
   * @internal
   */
  private countBeforeWrite(): number {
    if (this.#socket || !isWriteWrapped(this.res, this.#overridden)) return -1;
    this.intercept();
    return countGivenBytes(this.res);
  }

  /** @returns the answer of `write()`: a wrapper may answer anything @internal */
  private callWrite(bytes: Buffer): unknown {
    if (this.#socket) return !this.#socket.writable || this.#socket.write(toHttpChunk(bytes));
    const { res } = this;
    return isIntercepted(res)
      ? callOriginal(res, this.#overridden, 'write', [bytes])
      : res.write(bytes);
  }

  /**
   * Encodes text for the body, if the stream is compressed. What is encoded first must be sent
   * first.
   * @param shared the same text, if many streams get it
   * @param window of the group that gets this text
   * @internal
   */
  protected encode(text: Buffer, shared?: SharedBytes, window?: GzipWindow): Buffer {
    if (this.gzip === undefined) return text;
    if (shared === undefined) return this.gzip.encode(text);
    return this.gzip.encodeShared(shared, window).bytes;
  }

  /** Encodes the last bytes of the response, and counts what is sent. @internal */
  encodeEnd(last: Buffer | undefined): Buffer | undefined {
    if (this.gzip === undefined || this.gzip.hasEnded) return last;
    const block = this.gzip.end(last ?? NO_BYTES);
    this.addBytes(block.length);
    return block;
  }

  /** Whether middleware, and not this library, encodes the body. @internal */
  protected get isEncodedByMiddleware(): boolean {
    return this.gzip === undefined && isEncoded(this.res);
  }

  /**
   * The response asks for more bytes before the `write()` that is running has returned.
   * @internal
   */
  protected noteResumed(): void {
    resumedWriters.add(this);
  }

  /** Nothing more can be written: stops listening. @internal */
  protected stopWriting(): void {
    this.stopAwaitingDrain();
    this.#socket = null;
  }

  /** Decides whether bytes may bypass `res.write()`, if that is possible already. @internal */
  protected chooseSocket(): void {
    const write = applicationWriteOf(this.res, this.#overridden);
    const socket = findDirectSocket(this.res, write, this.gzip !== undefined);
    if (!socket) {
      this.#socket = socket;
      return;
    }
    // From here on, writes of the application must be intercepted.
    this.intercept();
    this.moveTo(socket);
  }

  /** Passes all further bytes to `res.write()`. @internal */
  protected leaveSocket(): void {
    this.follower?.detach();
    this.moveTo(null);
  }

  /**
   * Writes to this socket, or to the response, from here on, and listens for `'drain'` there.
   * @internal
   */
  private moveTo(socket: Socket | null): void {
    const wasAwaitingDrain = this.#isAwaitingDrain && (this.#socket ?? null) !== socket;
    if (wasAwaitingDrain) this.stopAwaitingDrain();
    this.#socket = socket;
    if (wasAwaitingDrain) this.awaitDrain();
  }

  /** Intercepts `write()` and `end()` of the response, once. @internal */
  protected intercept(): void {
    this.#overridden ??= interceptMethods(this.res);
  }

  /** Makes sure that {@link resume} is called if Node will emit no `'drain'`. @internal */
  protected requestDrain(): void {
    try {
      requestDrain(this.res, this.#socket, () => {
        if (this.#isAwaitingDrain) this.resume();
      });
    } catch (error) {
      // An agent may have put its own `write()` on the socket.
      this.onError(error);
    }
  }

  /**
   * Calls back when the bytes that are queued now have been flushed, for a response whose
   * {@link bytesFlushed} may not show this.
   * @returns whether the callback will be called
   * @internal
   */
  requestFlush(onFlushed: () => void): boolean {
    try {
      return requestFlush(this.res, onFlushed);
    } catch (error) {
      // An agent may have put its own `write()` on the HTTP/2 stream.
      this.onError(error);
      return false;
    }
  }

  /** Removes the listener for `'drain'`. @internal */
  protected stopAwaitingDrain(): void {
    if (!this.#isAwaitingDrain) return;
    this.#isAwaitingDrain = false;
    ignoreDrain(this.res, this.#socket);
  }
}

/** Whether a chunk of the application has these bytes: a wrapped `write()` may pass on a copy. */
function isSame(chunk: unknown, bytes: Buffer): boolean {
  if (chunk === bytes) return true;
  if (typeof chunk === 'string') return bytes.equals(Buffer.from(chunk));
  return chunk instanceof Uint8Array && bytes.equals(chunk);
}
