/**
 * Writing: which bytes of a stream are passed to its response now, and which have to wait.
 *
 * ```text
 * writeBytes()    no queue, little unsent: passToResponse() ─► res.write() or socket.write()
 *                 else: WriteQueue ─► pumpQueue() ─► passToResponse()
 *
 * writeShared()   direct socket, no queue, little unsent: socket.write(shared.chunk)
 *                 else: writeBytes(), or nothing if the stream is behind
 * ```
 *
 * Text of a compressed stream is encoded when it is written, so the queue holds what is sent. If
 * pieces of the queue were compressed, events that must not share a block would be joined.
 */
import type { Socket } from 'node:net';
import type { GzipWindow } from '../protocol/gzip-window.ts';
import type { SharedBytes } from '../protocol/shared-bytes.ts';
import { hasReplacedWrite } from './direct-socket.ts';
import { isWriteWrapped } from './interception.ts';
import { corkedBytesOf, passesDrain } from './response-head.ts';
import { needsDrain } from './response-listeners.ts';
import { ResponseSink } from './response-sink.ts';
import { countHeldBytes, hasPassedOn } from './wrapper-bytes.ts';
import { CHUNK_BYTES, HIGH_WATER_MARK, WriteQueue } from './write-queue.ts';

// Limits in ms of the pause after a wrapped `write()` has returned `false`, if no 'drain' follows.
const MIN_WRAPPER_PAUSE_MS = 2;
const MAX_WRAPPER_PAUSE_MS = 64;

// The next pause of each writer whose wrapper has returned `false`.
const wrapperPauses = new WeakMap<ResponseWriter, number>();

// Writers that are passing their whole queue. If middleware ends the response inside its `write()`,
// `passWholeQueue()` is called again, without effect.
const queuePassers = new Set<ResponseWriter>();

// Writers whose response the application has ended from inside a wrapped `write()`, each with the
// bytes of that end.
const pendingEnds = new Map<ResponseWriter, Buffer | undefined>();

/**
 * The classes of a stream, from the base up: `WriteTotals`, `ResponseSink` (the response),
 * `ResponseWriter` (the queue in front of it), `ResponseLifecycle` (head and end), `SendLimit`
 * (`maxBuffered`), `EventStream` (events). They are one object and not six, because there may be
 * tens of thousands of streams.
 *
 * Methods that are not for callers are `private` or `protected` and not `#`, here and in the other
 * classes with an object for each stream (`EventStream`, `StreamFollower`): V8 marks each object of
 * a class with `#` methods, which costs 8 B for each class and stream. `#` fields cost no more than
 * other fields. All other classes use `#` for both.
 */
export abstract class ResponseWriter extends ResponseSink {
  // Bytes that were not passed to the response yet; `undefined` unless bytes have to wait.
  #queue: WriteQueue | undefined;

  /** No more than {@link writeMark} bytes are queued any more. @internal */
  protected abstract onDrain(): void;
  /** Number of queued bytes above which senders must wait. @internal */
  abstract get writeMark(): number;

  /** Bytes that are queued in this process and that the kernel has not accepted yet. */
  get bufferedAmount(): number {
    return (this.#queue?.size ?? 0) + (this.readyState === 0 ? 0 : this.bytesInResponse);
  }

  /**
   * Number of queued bytes that wait only for this process: for the end of the tick in which the
   * stream opens, or for the next turn of the event loop. These bytes do not show that the client
   * is slow.
   * @internal
   */
  get bytesHeldBack(): number {
    return corkedBytesOf(this) + (this.#queue?.deferredBytes ?? 0);
  }

  /**
   * The socket, if a group may write shared bytes to it without calling this object, as long as the
   * socket has at most {@link CHUNK_BYTES} queued. @internal
   */
  get directSocket(): Socket | undefined {
    const { socket } = this;
    const isDirect =
      this.readyState === 1 && this.#queue === undefined && this.gzip?.isInside !== false;
    return isDirect && socket && !hasReplacedWrite(socket) ? socket : undefined;
  }

  /**
   * Whether senders must wait (see send-limit.ts): more bytes are queued than the mark, or the
   * response is pipelined. The mark is at most `maxBuffered`, so a sender that waits never exceeds
   * that limit. The head does not count: it is sent at the end of the tick.
   * @internal
   */
  protected get sendersMustWait(): boolean {
    return this.bufferedAmount - corkedBytesOf(this) > this.writeMark || this.isPipelined;
  }

  /**
   * Whether the stream is behind (see send-limit.ts), so that events of channels wait in the log:
   * more than 64 KiB are queued, or the response is pipelined. Independent of `maxBuffered`, which
   * is a limit for events that no log keeps.
   * @internal
   */
  get isBehind(): boolean {
    return this.bufferedAmount > HIGH_WATER_MARK || this.isPipelined;
  }

  /** Whether everything that is written has to be queued. The queue may be empty. @internal */
  protected get hasQueue(): boolean {
    return this.#queue !== undefined;
  }

  /**
   * Whether the queue is being passed on, inside a write that a wrapper has not returned from.
   * @internal
   */
  protected get isPassingQueue(): boolean {
    return queuePassers.has(this);
  }

  /** Writes the events that the channels have published for this stream so far. @internal */
  flush(): void {
    this.follower?.flush();
  }

  /**
   * Writes bytes, or queues them after bytes that the client has not read. Detaches the stream from
   * its group, like all methods that write except {@link writeShared}. Never throws.
   * @param events number of events in the bytes
   * @param shared the same bytes, if many streams get them
   * @param window of the group that gets these bytes
   * @internal
   */
  writeBytes(bytes: Buffer, events = 0, shared?: SharedBytes, window?: GzipWindow): void {
    if (!this.prepareToWrite()) return;
    this.addEvents(events);
    const encoded = this.encode(bytes, shared, window);
    if (this.#queue !== undefined) {
      this.#queue.add(encoded);
    } else if (
      encoded.length > CHUNK_BYTES ||
      this.bytesInResponse > CHUNK_BYTES ||
      this.isPassingBytes
    ) {
      this.startQueue([encoded]);
    } else if (!this.passToResponse(encoded) && this.mayHoldBytes) {
      this.awaitWrapper();
    } else {
      // A wrapped `write()` may have sent more meanwhile.
      this.pumpQueue();
    }
  }

  /**
   * Writes several events, joined to pieces of {@link CHUNK_BYTES}. The buffers are copied only
   * when the client can take them.
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
   * @param window of the group that gets these bytes, if the group is compressed
   * @returns `false` if the stream is behind, and nothing was written
   * @internal
   */
  writeShared(shared: SharedBytes, events: number, window?: GzipWindow): boolean {
    if (this.readyState !== 1) return true;
    if (this.socket === undefined) this.chooseSocket();
    const { socket } = this;
    const { length } = shared.bytes;
    if (
      !socket ||
      this.#queue !== undefined ||
      length > HIGH_WATER_MARK ||
      socket.writableLength > CHUNK_BYTES ||
      hasReplacedWrite(socket)
    ) {
      if (this.isBehind) return false;
      this.writeBytes(shared.bytes, events, shared, window);
    } else if (socket.writable) {
      this.addEvents(events);
      const sent = this.gzip?.encodeShared(shared, window) ?? shared;
      this.addBytes(sent.bytes.length);
      try {
        socket.write(sent.chunk);
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

  /**
   * Writes what was queued, and the end if the stream has ended meanwhile. Also called without
   * {@link cork}, to write the end. @internal
   */
  uncork(): void {
    if (this.#queue !== undefined) this.resume();
  }

  /**
   * The response accepts bytes again: passes queued bytes to it, and calls {@link onDrain} if no
   * sender has to wait any more. @internal
   */
  override resume(): void {
    this.pumpQueue();
    if (this.sendersMustWait) {
      if (this.isAwaitingDrain) this.requestDrain();
      return;
    }
    if (this.#queue === undefined) this.stopAwaitingDrain();
    this.onDrain();
  }

  /**
   * Continues if the response accepts bytes again. Called at intervals: a wrapped response may
   * swallow a `'drain'`, and with a large `highWaterMark` Node may emit none. In both cases the
   * stream would wait for ever. @internal
   */
  checkDrain(): void {
    if (!this.isAwaitingDrain) return;
    // Much is held, and it becomes less: wait. If it does not become less, the wrapper may have
    // removed bytes, so that the number of held bytes is wrong: continue.
    if (this.isMuchHeld && hasPassedOn(this, this.res)) return;
    // A compressor passes nothing on as long as the response holds bytes.
    const mark = this.passesDrain ? 0 : this.writeMark;
    if (this.bytesInResponse <= mark) this.resume();
  }

  /**
   * Called before every write that is not shared.
   * @returns whether bytes can be written
   * @internal
   */
  protected prepareToWrite(): boolean {
    if (!this.checkWritable()) return false;
    // While the stream is attached, the totals and the time of the last write are those of the
    // group, and the group would write to the socket without regard to the queue.
    this.follower?.detach();
    return true;
  }

  /** Replaces the queue; further bytes are added after these. @internal */
  protected setQueue(buffers: readonly Buffer[] | undefined): void {
    this.#queue = buffers && new WriteQueue(buffers);
  }

  /** Queues encoded bytes behind the bytes that a wrapped `write()` holds. @internal */
  protected queueBehindHeld(encoded: Buffer): void {
    this.#queue ??= new WriteQueue([]);
    this.#queue.add(encoded);
  }

  /** Ends the response, with the bytes of an end that had to wait. @internal */
  protected endResponse(): void {
    const last = pendingEnds.get(this);
    pendingEnds.delete(this);
    this.passEnd(last);
  }

  /** @internal */
  protected override onPassed(): void {
    // An end waits, and the wrapper has passed nothing on. The queue could begin with the rest of
    // an event, so its bytes are dropped. `pumpQueue()` makes the end when it finds the queue
    // empty. `compression()` passes bytes on later.
    if (pendingEnds.has(this) && this.isHeldByWrapper && !this.isEncodedByMiddleware) {
      this.#queue = new WriteQueue([]);
    }
  }

  /** Queues these bytes, and passes on as many of them as the response accepts. @internal */
  private startQueue(buffers: readonly Buffer[]): void {
    this.intercept();
    this.#queue = new WriteQueue(buffers);
    this.pumpQueue();
  }

  /**
   * Passes queued bytes to the response until the queue is empty or has to wait:
   *
   * ```text
   * a `write()` is running                  until it has returned: its caller continues
   * the share of this turn is used up       until the next turn of the event loop
   * `write()` has returned `false`, and     see awaitWrapper(); an empty queue waits, too, so that
   * a wrapper may hold bytes                further bytes are queued
   * `write()` has returned `false`, or      see awaitResponse()
   * the response holds more than 64 KiB
   * ```
   * @internal
   */
  protected pumpQueue(): void {
    if (this.isPassingBytes) {
      this.noteResumed();
      return;
    }
    // The queue is read again each time: a wrapped `write()` may send, or end the stream.
    for (let queue = this.#queue; queue !== undefined && !queue.isEmpty; queue = this.#queue) {
      if (queue.hasUsedUpTurn()) {
        this.pumpLater(queue);
        return;
      }
      const isAccepted = this.passToResponse(queue.shift());
      if (!isAccepted && this.mayHoldBytes) {
        this.awaitWrapper();
        return;
      }
      const isFull = this.bytesInResponse > HIGH_WATER_MARK;
      if (!isAccepted || isFull) {
        this.awaitResponse(queue, isFull);
        break;
      }
      wrapperPauses.delete(this);
    }
    if (this.#queue?.isEmpty === true) this.finishQueue();
  }

  /**
   * Waits for `'drain'`. If a wrapped `write()` has returned `false` although the response accepts
   * bytes, the wrapper may emit a `'drain'`, or nothing may follow. So the rest of the queue waits
   * at most until a pause is over.
   * @internal
   */
  private awaitResponse(queue: WriteQueue, isFull: boolean): void {
    this.awaitDrain();
    const mayStayAway = !isFull && needsDrain(this.res, this.socket) === false;
    if (mayStayAway && this.#queue === queue && !queue.isEmpty) this.pumpAfterPause(queue);
  }

  /**
   * Removes the empty queue. Then ends the response of a stream that has ended, or lets the senders
   * of an open stream continue.
   * @internal
   */
  private finishQueue(): void {
    this.#queue = undefined;
    if (this.readyState === 2) {
      this.endResponse();
    } else if (this.isAwaitingDrain && !this.sendersMustWait) {
      // Code in a wrapped `write()` may have called `drained()` although the response has accepted
      // all bytes. No 'drain' follows then.
      this.stopAwaitingDrain();
      this.onDrain();
    }
  }

  /**
   * Whether middleware, whose `write()` has returned `false`, may hold bytes, so that the stream
   * has to wait: a `'drain'` will follow, or much is held already. @internal
   */
  private get mayHoldBytes(): boolean {
    const { res, socket } = this;
    if (this.passesDrain) return true;
    const isWrapped = !socket && isWriteWrapped(res, this.overriddenMethods);
    return isWrapped && (needsDrain(res, socket) === true || this.isMuchHeld);
  }

  /** Whether a wrapper that returns `false` holds more than 64 KiB. @internal */
  private get isMuchHeld(): boolean {
    return !this.isEncodedByMiddleware && countHeldBytes(this, this.res) > HIGH_WATER_MARK;
  }

  /**
   * Whether middleware encodes the body, and passes on the `'drain'` of its compressor.
   * @internal
   */
  private get passesDrain(): boolean {
    return this.gzip === undefined && passesDrain(this.res);
  }

  /**
   * Queues everything until `'drain'`, or until little is held: what a compressor or another
   * wrapper holds is not in `writableLength`. @internal
   */
  private awaitWrapper(): void {
    if (this.readyState === 1) this.#queue ??= new WriteQueue([]);
    if (this.#queue === undefined) return;
    this.awaitDrain();
    if (this.isMuchHeld) this.pumpAfterPause(this.#queue);
  }

  /**
   * Continues with the queue after a pause, which grows until the wrapper accepts bytes. @internal
   */
  private pumpAfterPause(queue: WriteQueue): void {
    const pauseMs = wrapperPauses.get(this) ?? MIN_WRAPPER_PAUSE_MS;
    wrapperPauses.set(this, Math.min(2 * pauseMs, MAX_WRAPPER_PAUSE_MS));
    this.pumpLater(queue, pauseMs);
  }

  /** Continues with the queue in the next turn of the event loop, or after a pause. @internal */
  private pumpLater(queue: WriteQueue, pauseMs?: number): void {
    queue.defer(() => {
      if (this.#queue !== queue) return;
      if (this.readyState === 1 && this.isMuchHeld) this.pumpAfterPause(queue);
      else this.resume();
    }, pauseMs);
  }

  /**
   * Passes all queued bytes to the response at once, so that bytes of the application come after
   * them.
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
   * been passed on. If that `write()` does not pass the bytes of the stream on, the queue is
   * dropped: its first bytes could be the rest of an event.
   * @param last the bytes of the end
   * @internal
   */
  protected endAfterWrapper(last: Buffer | undefined): void {
    this.#queue ??= new WriteQueue([]);
    if (!pendingEnds.has(this)) pendingEnds.set(this, last);
  }

  /** Nothing more can be written: drops the queue and stops listening. @internal */
  protected override stopWriting(): void {
    pendingEnds.delete(this);
    this.#queue = undefined;
    super.stopWriting();
  }
}
