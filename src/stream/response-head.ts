/** The head of an event stream: status 200 and headers, sent in one packet with the first bytes. */
import type { OutgoingHttpHeader, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** The status and headers of a response before the library changed them. */
export interface SavedHead {
  readonly statusCode: number;
  readonly headers: OutgoingHttpHeaders;
}

// For each stream that opens in this tick: the number of head bytes that are corked.
const corkedBytes = new Map<object, number>();

/** @returns a copy of status and headers, for {@link restoreHead} */
export function saveHead(res: ServerResponse): SavedHead {
  return { statusCode: res.statusCode, headers: res.getHeaders() };
}

/** Sets status and headers of an event stream. */
export function setHead(
  res: ServerResponse,
  extraHeaders: readonly (readonly [string, OutgoingHttpHeader])[],
): void {
  res.statusCode = 200;
  res.setHeader('Content-Type', 'text/event-stream');
  res.setHeader('Cache-Control', 'no-cache, no-transform');
  res.setHeader('X-Accel-Buffering', 'no');
  res.removeHeader('Content-Length');
  for (const [name, value] of extraHeaders) res.setHeader(name, value);
}

/**
 * Undoes {@link setHead} after the head could not be written, so that the application can answer
 * the request with the error. Without effect if the head was sent.
 */
export function restoreHead(res: ServerResponse, { statusCode, headers }: SavedHead): void {
  if (res.headersSent) return;
  res.statusCode = statusCode;
  for (const name of res.getHeaderNames()) {
    if (headers[name] === undefined) res.removeHeader(name);
  }
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) res.setHeader(name, value);
  }
}

/**
 * Corks the connection until the current tick ends, so that the head and the first events leave in
 * one packet. Node itself does so only after the head.
 */
export function corkHead(res: ServerResponse, writer: object): void {
  // On HTTP/1 the socket is corked, not the response: from Node 22 on, a response that was corked
  // writes its head and each part of a chunk separately.
  const corked = res.req.httpVersionMajor === 1 ? res.socket : res;
  // A pipelined response has no socket. Its bytes wait in the response and leave together anyway.
  if (corked === null) return;
  corked.cork();
  corkedBytes.set(writer, 0);
  process.nextTick(uncorkHead, corked, writer);
}

/** Notes how many bytes are corked; without effect if nothing is corked for the writer. */
export function setCorkedBytes(writer: object, bytes: number): void {
  if (corkedBytes.has(writer)) corkedBytes.set(writer, bytes);
}

/** @returns the number of head bytes that wait for the end of the tick */
export function corkedBytesOf(writer: object): number {
  return corkedBytes.get(writer) ?? 0;
}

function uncorkHead(corked: Socket | ServerResponse, writer: object): void {
  corkedBytes.delete(writer);
  corked.uncork();
}
