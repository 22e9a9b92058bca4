/** Reads an event stream through a proxy, in the protocol of the proxy. */
import http2 from 'node:http2';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { EventCollector } from './event-collector.ts';
import type { Proxy } from './proxy.ts';
import { read } from './reader.ts';
import { until } from './wait.ts';

export interface ProxyReader extends Disposable {
  readonly headers: Readonly<Record<string, string | undefined>>;
  /** The events without checkpoints. */
  readonly events: readonly { id?: string | undefined; event?: string | undefined; data: string }[];
  readonly comments: readonly string[];
  /** Whether the stream has ended, for any reason. */
  readonly ended: boolean;
  /** Closes the connection. */
  close(): void;
}

/**
 * Reads a stream through a proxy: by HTTP/2 if the proxy uses TLS, otherwise by HTTP/1.1. Accepts
 * gzip. Resolves when the head has arrived.
 */
export async function readThrough(
  proxy: Proxy,
  path = '/',
  headers: Record<string, string> = {},
): Promise<ProxyReader> {
  const wanted = { 'accept-encoding': 'gzip', ...headers };
  if (proxy.ca !== undefined) return readHttp2(proxy, proxy.ca, path, wanted);
  const reader = await read(proxy.url + path, { headers: wanted });
  return {
    headers: Object.fromEntries(reader.response.headers),
    events: reader.events,
    comments: reader.comments,
    get ended() {
      return reader.ended;
    },
    close: () => reader.close(),
    [Symbol.dispose]: () => reader.close(),
  };
}

async function readHttp2(
  { url }: Proxy,
  ca: string,
  path: string,
  headers: Record<string, string>,
): Promise<ProxyReader> {
  const session = http2.connect(url, { ca });
  session.on('error', () => {});
  const request = session.request({ ':path': path, accept: 'text/event-stream', ...headers });
  const collector = new EventCollector();
  const { events, comments } = collector;
  let head: Record<string, unknown> | undefined;
  let ended = false;
  request.on('response', (given) => {
    head = given;
    const isGzip = given['content-encoding'] === 'gzip';
    const body: Readable = isGzip ? request.pipe(createGunzip()) : request;
    body.setEncoding('utf8');
    body.on('data', (part: string) => collector.feed(part));
    // The stream may be closed in the middle of its body.
    body.on('error', () => {});
  });
  request.on('error', () => {});
  request.on('close', () => {
    ended = true;
    session.destroy();
  });
  await until(`the head of ${url}${path}`, () => head !== undefined || ended);
  return {
    headers: head as Record<string, string>,
    events,
    comments,
    get ended() {
      return ended;
    },
    close: () => request.close(http2.constants.NGHTTP2_CANCEL),
    [Symbol.dispose]: () => session.destroy(),
  };
}
