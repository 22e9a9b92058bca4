/**
 * Listeners on a response and its socket.
 *
 * The listeners are shared functions, because a closure for each of tens of thousands of streams
 * would cost memory. They find the writer by a property of the response or of the socket: a
 * `WeakMap` would need more memory for each stream than a property.
 */
import { EventEmitter } from 'node:events';
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Writable } from 'node:stream';

/** A writer that waits for `'drain'`. */
export interface DrainListener {
  /** Whether the writer waits for `'drain'` now. */
  readonly isAwaitingDrain: boolean;
  /** The response or the socket accepts bytes again. */
  resume(): void;
}

/** The methods of a writer that the events of its response call. */
export interface ResponseOwner extends DrainListener {
  /** The response or its connection is closed. */
  onResponseClosed(): void;
  /** The response emitted `'error'`. */
  onError(error: unknown): void;
}

const writerKey = Symbol('res-sse.writer');

interface TaggedResponse extends ServerResponse {
  [writerKey]?: ResponseOwner;
}

interface TaggedSocket extends Socket {
  [writerKey]?: DrainListener | undefined;
}

const NO_BYTES = Buffer.alloc(0);

// Responses with a replaced `on()` that already have a listener of this file for 'drain'.
const responsesWithOwnListener = new WeakSet<ServerResponse>();

/** Tags the response with its writer and listens for `'close'` and `'error'`. */
export function listenToResponse(res: ServerResponse, writer: ResponseOwner): void {
  (res as TaggedResponse)[writerKey] = writer;
  res.on('close', onClose);
  // Without a listener, an error of a wrapped or destroyed response would end the process.
  res.on('error', onError);
}

/** @returns the writer, if {@link listenToResponse} has tagged the response */
export function writerOf(res: ServerResponse): ResponseOwner | undefined {
  return (res as TaggedResponse)[writerKey];
}

/** Stops listening for `'close'`, so that a close is noticed once. */
export function ignoreClose(res: ServerResponse): void {
  res.off('close', onClose);
}

/**
 * Listens for `'drain'`.
 * @param socket the socket to which the stream writes directly, if it does
 */
export function listenForDrain(
  res: ServerResponse,
  socket: Socket | null | undefined,
  writer: DrainListener,
): void {
  if (socket === undefined || socket === null) {
    listenToResponseDrain(res, writer);
  } else {
    (socket as TaggedSocket)[writerKey] = writer;
    socket.on('drain', onSocketDrain);
  }
}

/**
 * Middleware that has replaced `res.on()` may add the listener to another emitter, from which
 * `res.off()` does not remove it: `compression` adds the listener to its Gzip stream. Such a
 * response gets one listener, which stays and does not depend on `this`.
 */
function listenToResponseDrain(res: ServerResponse, writer: DrainListener): void {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  if (res.on === EventEmitter.prototype.on) {
    res.on('drain', onDrain);
  } else if (!responsesWithOwnListener.has(res)) {
    responsesWithOwnListener.add(res);
    res.on('drain', () => {
      if (writer.isAwaitingDrain) writer.resume();
    });
  }
}

/** Removes the listeners that {@link listenForDrain} added. */
export function ignoreDrain(res: ServerResponse, socket: Socket | null | undefined): void {
  res.off('drain', onDrain);
  if (socket === undefined || socket === null) return;
  socket.off('drain', onSocketDrain);
  (socket as TaggedSocket)[writerKey] = undefined;
}

/**
 * Makes sure that a waiting stream notices when its bytes were flushed. If the `highWaterMark` of
 * the response is above the write mark of the stream, Node emits no `'drain'`. Then an empty write
 * is made: its callback is called when the bytes before it are flushed.
 */
export function requestDrain(
  res: ServerResponse,
  socket: Socket | null | undefined,
  onFlushed: () => void,
): void {
  const transport = findTransport(res);
  if (transport === undefined || !transport.writable) return;
  // An HTTP/2 response has no `writableNeedDrain`.
  if ((socket ?? ('stream' in res ? transport : res)).writableNeedDrain) return;
  // Node 26 keeps the writes of one tick in the response until the tick ends. Until then the
  // `writableLength` of the socket alone is 0, so the response is asked.
  if (res.writableLength > 0) transport.write(NO_BYTES, onFlushed);
}

/**
 * Whether Node will emit a `'drain'`, because it has answered `false` to a write. A wrapped
 * `write()` may answer `false` for other reasons. `undefined` for mocks without this property.
 */
export function needsDrain(
  res: ServerResponse,
  socket: Socket | null | undefined,
): boolean | undefined {
  return (socket ?? ('stream' in res ? findTransport(res) : res))?.writableNeedDrain;
}

/**
 * Calls back when everything that the response was given so far has been flushed. Only over HTTP/2:
 * its streams do not count flushed bytes, as the socket of an HTTP/1 response does.
 * @returns whether the callback will be called
 */
export function requestFlush(res: ServerResponse, onFlushed: () => void): boolean {
  const transport = 'stream' in res ? findTransport(res) : undefined;
  if (transport?.writable !== true) return false;
  transport.write(NO_BYTES, onFlushed);
  return true;
}

/** @returns the socket or HTTP/2 stream to which the response writes now, if there is one */
function findTransport(res: ServerResponse): Writable | undefined {
  const http2Stream = 'stream' in res ? res.stream : undefined;
  const transport: unknown = res.req.httpVersionMajor === 1 ? res.socket : http2Stream;
  // The mocks of some adapters have other objects there.
  return transport instanceof Writable ? transport : undefined;
}

function onClose(this: TaggedResponse): void {
  this[writerKey]?.onResponseClosed();
}

function onError(this: TaggedResponse, error: unknown): void {
  this[writerKey]?.onError(error);
}

function onDrain(this: TaggedResponse): void {
  this[writerKey]?.resume();
}

function onSocketDrain(this: TaggedSocket): void {
  this[writerKey]?.resume();
}
