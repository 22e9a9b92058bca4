/** The head of an event stream: status 200 and headers, sent in one packet with the first bytes. */
import type { OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { StreamSettings } from './stream-options.ts';

// For each stream that opens in this tick, the number of corked bytes of its head.
const corkedBytes = new Map<object, number>();

/**
 * Sets status and headers of an event stream and sends them. If that throws (a listener for the
 * head may throw), status and headers are restored, so that the application can answer the request
 * with the error.
 */
export function sendHead(
  res: ServerResponse,
  { headers: extraHeaders, compress }: StreamSettings,
  isCompressed: boolean,
  writer: object,
): void {
  const { statusCode } = res;
  const headers = res.getHeaders();
  try {
    res.statusCode = 200;
    res.setHeader('Content-Type', 'text/event-stream');
    res.setHeader('Cache-Control', 'no-cache, no-transform');
    res.setHeader('X-Accel-Buffering', 'no');
    res.removeHeader('Content-Length');
    for (const [name, value] of extraHeaders) res.setHeader(name, value);
    if (compress) addVary(res);
    if (isCompressed) res.setHeader('Content-Encoding', 'gzip');
    corkHead(res, writer);
    // Node keeps a head that is flushed alone as one string. Joined to the first chunk, the head
    // would stay a tree of strings, 650 B larger.
    res.flushHeaders();
  } catch (error) {
    restoreHead(res, statusCode, headers);
    throw error;
  }
}

/** Tells caches that the body depends on `Accept-Encoding`. */
function addVary(res: ServerResponse): void {
  const names = [res.getHeader('vary') ?? []].flat().join(', ');
  if (/(?:^|,)\s*(?:\*|accept-encoding)\s*(?:,|$)/i.test(names)) return;
  res.setHeader('Vary', names === '' ? 'Accept-Encoding' : `${names}, Accept-Encoding`);
}

/** Whether the body is encoded. What a compressor of middleware holds is not in the response. */
export function isEncoded(res: ServerResponse): boolean {
  return (res.getHeader('content-encoding') ?? 'identity') !== 'identity';
}

/**
 * Whether the body is encoded by middleware that passes the `'drain'` of its compressor on, as
 * `compression()` does: it replaces `res.on()`. Otherwise no `'drain'` would follow a `false`.
 */
export function passesDrain(res: ServerResponse): boolean {
  return isEncoded(res) && Object.hasOwn(res, 'on');
}

function restoreHead(res: ServerResponse, statusCode: number, headers: OutgoingHttpHeaders): void {
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
 * Corks the connection until the current tick ends, so that the head and the first events are sent
 * in one packet. Node itself corks the connection only after the head.
 */
function corkHead(res: ServerResponse, writer: object): void {
  // On HTTP/1 the socket is corked, not the response: from Node 22 on, a response that was corked
  // writes its head and each part of a chunk separately.
  const corked = res.req.httpVersionMajor === 1 ? res.socket : res;
  // A pipelined response has no socket. Its bytes wait in the response and leave together anyway.
  // The mocks of some adapters have no socket either.
  if (!corked) return;
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
