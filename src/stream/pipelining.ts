/**
 * Responses that share a socket one after the other: pipelined responses, which wait for the
 * socket, and the inactivity timeout of the socket.
 *
 * ```text
 * client sends:   GET /a   GET /b   GET /c     on one connection
 * Node answers:   res a has the socket; res.socket of b and c is null until a has ended
 * ```
 *
 * If `a` is a stream, `b` and `c` may wait for hours. All of this concerns HTTP/1 only: an HTTP/2
 * session has no pipelining and one timeout for all of its streams, and the properties of its
 * socket must not be read.
 */
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** A writer whose response waits for the socket. */
export interface PipelinedWriter {
  onResponseClosed(): void;
}

const pipelinedWriters = Symbol('res-sse.pipelinedWriters');

// The inactivity timeout in ms that the socket had before a stream lifted it.
const liftedTimeoutMs = Symbol('res-sse.liftedTimeoutMs');

interface TaggedSocket extends Socket {
  [pipelinedWriters]?: Set<PipelinedWriter>;
  [liftedTimeoutMs]?: number | undefined;
}

/**
 * Remembers the writer if its response waits for the socket. When the connection ends, a waiting
 * response emits no `'close'`, so the socket notifies the writer instead.
 */
export function registerPipelined(res: ServerResponse, writer: PipelinedWriter): void {
  if (res.socket !== null) return;
  const socket = res.req.socket as TaggedSocket;
  let writers = socket[pipelinedWriters];
  if (writers === undefined) {
    writers = new Set();
    socket[pipelinedWriters] = writers;
    // One listener for all writers, because a client may send any number of requests.
    socket.once('close', onSocketClose);
  }
  writers.add(writer);
}

/** Forgets the writer: its response is closed. */
export function unregisterPipelined(res: ServerResponse, writer: PipelinedWriter): void {
  findPipelined(res)?.delete(writer);
}

/**
 * Whether the response still waits for the socket. Until its turn no byte of the response is sent.
 */
export function isResponsePipelined(res: ServerResponse, writer: object): boolean {
  const writers: ReadonlySet<object> | undefined = findPipelined(res);
  return res.socket === null && !res.writableFinished && writers?.has(writer) === true;
}

/**
 * Removes the inactivity timeout of the socket, because a stream may be silent for longer than Node
 * allows a connection to be.
 */
export function liftTimeout({ req }: ServerResponse): void {
  if (req.httpVersionMajor !== 1) return;
  const socket = req.socket as TaggedSocket;
  if (!socket.timeout) return;
  socket[liftedTimeoutMs] = socket.timeout;
  socket.setTimeout(0);
}

/**
 * Restores the timeout when no stream needs the socket any more. Node itself restores it for the
 * next request only if the server has a `keepAliveTimeout`.
 */
export function restoreTimeout(res: ServerResponse): void {
  if (res.req.httpVersionMajor !== 1) return;
  const socket = res.req.socket as TaggedSocket;
  const timeoutMs = socket[liftedTimeoutMs];
  if (timeoutMs === undefined || (findPipelined(res)?.size ?? 0) > 0) return;
  socket[liftedTimeoutMs] = undefined;
  if (socket.timeout === 0 && !socket.destroyed) socket.setTimeout(timeoutMs);
}

function findPipelined({ req }: ServerResponse): Set<PipelinedWriter> | undefined {
  return req.httpVersionMajor === 1 ? (req.socket as TaggedSocket)[pipelinedWriters] : undefined;
}

function onSocketClose(this: TaggedSocket): void {
  for (const writer of this[pipelinedWriters] ?? []) writer.onResponseClosed();
}
