/**
 * Writing: how the bytes of one stream reach its response, and what happens if they cannot.
 *
 * ```text
 * writeBytes()    no queue, little unsent: passToResponse() ─► res.write() or socket.write()
 *                 else: WriteQueue ─► pumpQueue() ─► passToResponse()
 *
 * writeShared()   direct socket, no queue, little unsent: socket.write(shared.chunk)
 *                 else: writeBytes(), or nothing if the stream is behind
 * ```
 */
import type { ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { toHttpChunk, type SharedBytes } from '../protocol/shared-bytes.ts';
import { explainEnd, type CloseReason } from './close-reason.ts';
import { findDirectSocket, hasReplacedWrite } from './direct-socket.ts';
import {
  applicationWriteOf,
  callOriginal,
  interceptMethods,
  withoutSession,
  type OverriddenMethods,
} from './interception.ts';
import { isResponsePipelined } from './pipelining.ts';
import { corkedBytesOf } from './response-head.ts';
import { ignoreDrain, listenForDrain, requestDrain, requestFlush } from './response-listeners.ts';
import { CHUNK_BYTES, HIGH_WATER_MARK, WriteQueue } from './write-queue.ts';
import { WriteTotals } from './write-totals.ts';

// Writers that are inside a call of the response's `write()`, each with the number of bytes that
// the response had been given before. A wrapped `write()` may call the library before it passes its
// bytes on. Bytes that were passed then would overtake those, so they must be queued.
const activeWriters = new Map<ResponseWriter, number>();

// Active writers whose response has asked for more bytes meanwhile.
const resumedWriters = new Set<ResponseWriter>();

// Writers that are passing their whole queue. Middleware that ends the response from its `write()`
// gets there again with each piece.
const queuePassers = new Set<ResponseWriter>();

// Writers whose response the application has ended from inside a wrapped `write()`, each with the
// bytes of that end.
const pendingEnds = new Map<ResponseWriter, Buffer | undefined>();

/**
 * The classes of a stream, from the base up: `WriteTotals`, `ResponseWriter` (writing),
 * `ResponseLifecycle` (head and end), `EventStream` (events). They are one object and not four,
 * because there may be tens of thousands of streams.
 *
 * Methods that are not for callers are `private` or `protected` and not `#`, here and in the other
 * classes with an object for each stream (`EventStream`, `StreamFollower`): V8 marks each object of
 * a class with `#` methods, which costs 8 B for each class and stream. `#` fields cost no more than
 * other fields. All other classes use `#` for both.
 */
export abstract class ResponseWriter extends WriteTotals {
  // The fields that each delivery reads come first, so that they share a line of the processor's
  // cache. The state is the close reason once the stream has ended.
  #state: 'idle' | 'open' | CloseReason = 'idle';
  // The socket, if bytes may bypass `res.write()`; `null` if they must not; `undefined` before
  // either is known.
  #socket: Socket | null | undefined;
  // Bytes that were not yet passed to the response; `undefined` unless the client is slow or an
  // event is large.
  #queue: WriteQueue | undefined;
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

  /** @internal */
  constructor(res: ServerResponse) {
    super();
    this.res = res;
  }

  /** The stream has ended: nothing more will be written. Called once. @internal */
  protected abstract onEnded(reason: CloseReason): void;
  /** No more than {@link writeMark} bytes are queued any more. @internal */
  protected abstract onDrain(): void;
  /** Queued bytes beyond which a sender that can wait should wait. @internal */
  abstract get writeMark(): number;
  /** Code that serves this stream threw. @internal */
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
   * A number that grows while the client reads. Over HTTP/1 the bytes that the socket has passed to
   * the kernel, those that the application has written itself included. @internal
   */
  get bytesFlushed(): number {
    const { res } = this;
    // A response that waits behind another one makes no progress.
    if (this.isPipelined) return -1;
    const { socket } = res;
    if (res.req.httpVersionMajor === 1 && socket instanceof Socket) {
      return socket.bytesWritten - socket.writableLength;
    }
    return Math.max(0, this.bytesWritten - this.bytesInResponse);
  }

  /** Bytes that are queued in this process and that the kernel has not accepted yet. */
  get bufferedAmount(): number {
    return (this.#queue?.size ?? 0) + (this.#state === 'idle' ? 0 : this.bytesInResponse);
  }

  /**
   * Queued bytes that wait only for this process: for the end of the tick in which the stream
   * opens, or for the next turn of the event loop. No client is too slow for these bytes. @internal
   */
  get bytesHeldBack(): number {
    return corkedBytesOf(this) + (this.#queue?.deferredBytes ?? 0);
  }

  /**
   * The socket, if a group may write shared bytes there without asking this object, as long as the
   * socket holds no more than {@link CHUNK_BYTES}. @internal
   */
  get directSocket(): Socket | undefined {
    const socket = this.#socket;
    const isDirect = this.#state === 'open' && this.#queue === undefined;
    return isDirect && socket && !hasReplacedWrite(socket) ? socket : undefined;
  }

  /** Whether the writer listens for `'drain'`. @internal */
  get isAwaitingDrain(): boolean {
    return this.#isAwaitingDrain;
  }

  /** Whether the response waits behind another response of a pipelined connection. @internal */
  get isPipelined(): boolean {
    return isResponsePipelined(this.res, this);
  }

  /**
   * Whether so much is queued that a sender should wait. The mark is at most `maxBuffered`, so a
   * sender that waits never exceeds that limit. The head does not count: it leaves with the end of
   * the tick. @internal
   */
  protected get isAboveMark(): boolean {
    return this.bufferedAmount - corkedBytesOf(this) > this.writeMark || this.isPipelined;
  }

  /**
   * Whether so much is queued that events of channels wait in the log. Independent of
   * `maxBuffered`, which is a limit for events that are sent directly. @internal
   */
  get isBehind(): boolean {
    return this.bufferedAmount > HIGH_WATER_MARK || this.isPipelined;
  }

  /** The methods of the response that the interception replaced. @internal */
  get overriddenMethods(): OverriddenMethods | undefined {
    return this.#overridden;
  }

  /** Whether bytes wait that were not yet passed to the response. @internal */
  protected get hasQueue(): boolean {
    return this.#queue !== undefined;
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
    return activeWriters.has(this) && activeWriters.get(this) === countGivenBytes(this.res);
  }

  /** Whether the queue is being passed on, inside a write that a wrapper has not returned from. @internal */
  protected get isPassingQueue(): boolean {
    return queuePassers.has(this);
  }

  /** Bytes that the response or the socket holds. @internal */
  protected get bytesInResponse(): number {
    // The responses of some adapters (for AWS Lambda, for example) have no `writableLength`.
    return (this.#socket ?? this.res).writableLength || 0;
  }

  /**
   * Whether bytes can still be written. If the application has ended or destroyed the response
   * itself, the stream ends here. @internal
   */
  isWritable(): boolean {
    if (this.#state === 'open' && (this.res.writableEnded || this.res.destroyed)) {
      this.stopWriting();
      this.onEndedElsewhere();
    }
    return this.#state === 'open';
  }

  /** Writes the events that the channels have published for this stream so far. @internal */
  flush(): void {
    this.follower?.flush();
  }

  /**
   * Writes bytes, or queues them behind bytes that the client has not read. Detaches the stream
   * from its group, like every other way to write except {@link writeShared}. Never throws.
   * @param events number of events in the bytes
   * @internal
   */
  writeBytes(bytes: Buffer, events = 0): void {
    if (!this.prepareToWrite()) return;
    this.addEvents(events);
    if (this.#queue !== undefined) {
      this.#queue.add(bytes);
    } else if (
      bytes.length > CHUNK_BYTES ||
      this.bytesInResponse > CHUNK_BYTES ||
      activeWriters.has(this)
    ) {
      this.startQueue([bytes]);
    } else {
      this.passToResponse(bytes);
      // A wrapped `write()` may have sent more meanwhile.
      this.pumpQueue();
    }
  }

  /**
   * Writes several events, joined to pieces of {@link CHUNK_BYTES}. The buffers are not copied
   * before the client can take them.
   * @internal
   */
  writeAll(buffers: readonly Buffer[]): void {
    if (buffers.length === 1) this.writeBytes(buffers[0] as Buffer, 1);
    if (buffers.length <= 1 || !this.prepareToWrite()) return;
    this.addEvents(buffers.length);
    if (this.#queue === undefined) this.startQueue(buffers);
    else this.#queue.addAll(buffers);
  }

  /**
   * Writes events that many streams share; the bytes are neither copied nor framed again. This is
   * the hot path of a stream that is not attached. The caller has detached the stream.
   * @returns `false` if the stream is behind, and nothing was written
   * @internal
   */
  writeShared(shared: SharedBytes, events: number): boolean {
    if (this.#state !== 'open') return true;
    if (this.#socket === undefined) this.chooseSocket();
    const socket = this.#socket;
    const { length } = shared.bytes;
    if (
      !socket ||
      this.#queue !== undefined ||
      length > HIGH_WATER_MARK ||
      socket.writableLength > CHUNK_BYTES ||
      hasReplacedWrite(socket)
    ) {
      if (this.isBehind) return false;
      this.writeBytes(shared.bytes, events);
    } else if (socket.writable) {
      this.addEvents(events);
      this.addBytes(length);
      try {
        socket.write(shared.chunk);
      } catch (error) {
        // An agent may have put its own `write()` on the socket.
        this.onError(error);
      }
    }
    return true;
  }

  /** Queues everything that is written until {@link uncork}. @internal */
  cork(): void {
    if (!this.prepareToWrite() || this.#queue !== undefined) return;
    this.intercept();
    this.setQueue([]);
  }

  /** Writes what was queued, and the end if the stream has ended meanwhile. @internal */
  uncork(): void {
    if (this.#queue !== undefined) this.resume();
  }

  /** Ends the stream now, destroys the response and drops the queued bytes. @internal */
  destroyFor(reason: CloseReason): void {
    this.markEnded(reason);
    this.stopWriting();
    try {
      // A pipelined response has no socket before its turn. If only the response were destroyed,
      // the responses behind it would hang, so the connection is destroyed.
      if (this.isPipelined) this.res.req.socket.destroy();
      else this.res.destroy();
    } catch (error) {
      this.report(error);
    }
  }

  /**
   * Calls {@link onDrain} as soon as no more than {@link writeMark} bytes are queued.
   * @internal
   */
  awaitDrain(): void {
    if (this.#isAwaitingDrain) return;
    this.#isAwaitingDrain = true;
    listenForDrain(this.res, this.#socket, this);
    this.requestDrain();
  }

  /**
   * The response accepts bytes again: passes queued bytes to it, and calls {@link onDrain} if no
   * sender has to wait any more. @internal
   */
  resume(): void {
    this.pumpQueue();
    if (this.isAboveMark) {
      if (this.#isAwaitingDrain) this.requestDrain();
      return;
    }
    if (this.#queue === undefined) this.stopAwaitingDrain();
    this.onDrain();
  }

  /**
   * Code that carries this stream threw: the stream ends, and no other stream is affected.
   * @internal
   */
  onError(error: unknown): void {
    this.report(error);
    // If the response was ended in order, its last bytes are still sent: the error is one of a late
    // write of the application.
    if (this.readyState !== 2 || !this.res.writableEnded) this.destroyFor('error');
  }

  /** Every write that is not shared begins here. @returns whether bytes can be written @internal */
  protected prepareToWrite(): boolean {
    if (!this.isWritable()) return false;
    // While attached, the totals and the time of the last write are those of the group, and the
    // group would write to the socket past the queue.
    this.follower?.detach();
    return true;
  }

  /** Sets the state without any other effect. @internal */
  protected setState(state: 'idle' | 'open' | CloseReason): void {
    this.#state = state;
  }

  /** Replaces the queue; the next bytes are added behind these. @internal */
  protected setQueue(buffers: readonly Buffer[] | undefined): void {
    this.#queue = buffers && new WriteQueue(buffers);
  }

  /** Ends the stream, but not yet the response. @internal */
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

  /** Ends the response. Middleware may have wrapped `end()`, too, and may throw. @internal */
  protected endResponse(): void {
    const last = pendingEnds.get(this);
    pendingEnds.delete(this);
    withoutSession(this.res, () => {
      try {
        this.res.end(last);
      } catch (error) {
        this.onError(error);
      }
    });
  }

  /**
   * Passes bytes to the response or the socket. The result never decides whether a client is slow.
   * @returns `false` if a `'drain'` will follow
   * @internal
   */
  private passToResponse(bytes: Buffer): boolean {
    this.addBytes(bytes.length);
    const outerGiven = activeWriters.get(this);
    // Without a wrapper, no code of the application runs inside `write()`.
    const given = this.#overridden?.write === undefined ? -1 : countGivenBytes(this.res);
    activeWriters.set(this, given);
    try {
      // A 'drain' that came before `write()` returned is not emitted again.
      return this.callWrite(bytes) || resumedWriters.has(this);
    } catch (error) {
      this.onError(error);
      return true;
    } finally {
      // `compression()` passes bytes on later, so that what it holds is no sign of an end.
      if (
        pendingEnds.has(this) &&
        this.isHeldByWrapper &&
        !this.res.hasHeader('content-encoding')
      ) {
        this.#queue = new WriteQueue([]);
      }
      if (outerGiven === undefined) {
        activeWriters.delete(this);
        resumedWriters.delete(this);
      } else activeWriters.set(this, outerGiven);
    }
  }

  /** @returns `false` if a `'drain'` will follow @internal */
  private callWrite(bytes: Buffer): boolean {
    if (this.#socket) return !this.#socket.writable || this.#socket.write(toHttpChunk(bytes));
    const result =
      this.#overridden === undefined
        ? this.res.write(bytes)
        : callOriginal(this.res, this.#overridden, 'write', [bytes]);
    // Some wrappers return nothing. Only `false` announces a `'drain'`.
    return result !== false;
  }

  /** Queues these bytes, and passes on as many of them as the response accepts. @internal */
  private startQueue(buffers: readonly Buffer[]): void {
    this.intercept();
    this.#queue = new WriteQueue(buffers);
    this.pumpQueue();
  }

  /**
   * Passes queued bytes to the response as long as it accepts more, at most a share for each turn
   * of the event loop. @internal
   */
  protected pumpQueue(): void {
    if (activeWriters.has(this)) {
      // The caller of `passToResponse()` continues with the queue when `write()` has returned.
      resumedWriters.add(this);
      return;
    }
    // The queue is read again each time: a wrapped `write()` may send, or end the stream.
    for (let queue = this.#queue; queue !== undefined && !queue.isEmpty; queue = this.#queue) {
      if (queue.hasUsedUpTurn()) {
        this.pumpNextTurn(queue);
        return;
      }
      if (this.passToResponse(queue.shift()) && this.bytesInResponse <= HIGH_WATER_MARK) continue;
      this.awaitDrain();
      break;
    }
    if (this.#queue === undefined || !this.#queue.isEmpty) return;
    this.#queue = undefined;
    if (this.readyState === 2) {
      this.endResponse();
    } else if (this.#isAwaitingDrain && !this.isAboveMark) {
      // A wrapped `write()` may have begun to wait although all bytes were accepted. No 'drain'
      // follows then.
      this.stopAwaitingDrain();
      this.onDrain();
    }
  }

  /** Continues with the queue in the next turn of the event loop. @internal */
  private pumpNextTurn(queue: WriteQueue): void {
    queue.defer(() => {
      if (this.#queue === queue) this.resume();
    });
  }

  /**
   * Passes all queued bytes to the response at once: what the application writes comes behind.
   * @internal
   */
  protected passWholeQueue(): void {
    if (queuePassers.has(this)) return;
    queuePassers.add(this);
    try {
      while (this.#queue !== undefined && !this.#queue.isEmpty && !this.res.writableEnded) {
        this.passToResponse(this.#queue.shift());
      }
    } finally {
      queuePassers.delete(this);
    }
    this.#queue = undefined;
  }

  /**
   * Ends the response when the wrapped `write()` that is running has returned, and the queue has
   * been passed on. If that `write()` keeps the bytes of the stream, the queue is dropped, because
   * the bytes behind would be a part of an event.
   * @param last the bytes of the end
   * @internal
   */
  protected endAfterWrite(last: Buffer | undefined): void {
    this.#queue ??= new WriteQueue([]);
    if (!pendingEnds.has(this)) pendingEnds.set(this, last);
  }

  /** Nothing more can be written: drops the queue and stops listening. @internal */
  protected stopWriting(): void {
    pendingEnds.delete(this);
    this.#queue = undefined;
    this.stopAwaitingDrain();
    this.#socket = null;
  }

  /** Decides whether bytes may bypass `res.write()`, if that is known already. @internal */
  private chooseSocket(): void {
    const socket = findDirectSocket(this.res, applicationWriteOf(this.res, this.#overridden));
    if (!socket) {
      this.#socket = socket;
      return;
    }
    // From here on a write of the application has to be noticed.
    this.intercept();
    this.moveTo(socket);
  }

  /** The bytes go through `res.write()` from here on. @internal */
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
  private requestDrain(): void {
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
   * Calls back when the bytes that are queued now have been flushed, if {@link bytesFlushed} may not
   * show it. @returns whether the callback will be called @internal
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
  private stopAwaitingDrain(): void {
    if (!this.#isAwaitingDrain) return;
    this.#isAwaitingDrain = false;
    ignoreDrain(this.res, this.#socket);
  }
}

/** @returns number of bytes that the response was given, those that it still holds included */
function countGivenBytes({ socket, writableLength }: ServerResponse): number {
  if (!socket) return writableLength;
  return socket.bytesWritten - socket.writableLength + writableLength;
}
