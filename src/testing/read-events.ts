/** `readEvents()`: sends a request to an endpoint in a test, and reads its events. */
import { request as httpRequest, type ClientRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import {
  booleanRule,
  assertOptions,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';
import { EventReader } from './event-reader.ts';
import { waitFor } from './real-timers.ts';
import { serve, unref, type ReadTarget } from './target.ts';

/** The options of `readEvents()`. */
export interface ReadOptions {
  /** Path and query of the request to an app; relative to a URL. @defaultValue `/` */
  path?: string | undefined;
  /**
   * Request headers. `Accept: text/event-stream` is sent unless another `Accept` is given.
   * @defaultValue none
   */
  headers?: Readonly<Record<string, string>> | undefined;
  /** The `Last-Event-ID` of a client that reconnects. @defaultValue none */
  lastEventId?: string | undefined;
  /** The request method. @defaultValue `GET`, or `POST` with a body */
  method?: string | undefined;
  /** The request body: a string or bytes unchanged, another value as JSON. @defaultValue none */
  body?: unknown;
  /** Time in ms after which each wait fails. @defaultValue `2_000` */
  timeout?: number | undefined;
  /** Whether the library's own `sse:checkpoint` events are returned. @defaultValue `false` */
  checkpoints?: boolean | undefined;
}

const stringRule: OptionRule = { expected: 'a string', test: (value) => typeof value === 'string' };

const readRules: Readonly<Record<keyof ReadOptions, OptionRule>> = {
  path: stringRule,
  headers: {
    expected: 'an object of names and values',
    test: (value) => typeof value === 'object' && value !== null,
  },
  lastEventId: stringRule,
  method: stringRule,
  body: { expected: 'anything', test: () => true },
  timeout: millisecondsRule(1),
  checkpoints: booleanRule,
};

/**
 * Sends a request to an endpoint, and reads the events of the response in the background.
 *
 * An Express or Connect app, any other request listener, or a server that is not listening is
 * served on a free port of 127.0.0.1 until the reader is closed. A response that is no event stream
 * does not make `readEvents()` fail; see `status`, `headers` and `text` of the reader.
 * @param target a URL, an app, a request listener or a `node:http` server
 * @param options all optional; see {@link ReadOptions}
 * @returns a promise that resolves with the reader when the response headers have arrived. The
 * promise rejects if they do not arrive within `timeout`, and with an `SseError` if the target
 * cannot be read or an option is unknown or out of range.
 * @example
 * const reader = await readEvents(app, { path: '/listen' });
 * const { id } = await channels.publish('haiku', { text }, { event: 'text' });
 * assert.deepEqual(await reader.next(), { event: 'text', data: JSON.stringify({ text }), id });
 * await reader.close();
 */
export async function readEvents(
  target: ReadTarget,
  options: ReadOptions = {},
): Promise<EventReader> {
  assertOptions('readEvents()', options, readRules);
  const { timeout = 2_000, lastEventId = '', checkpoints = false } = options;
  const server = await serve(target, options.path);
  const { request, name } = sendRequest(server.url, options);
  const response = await waitFor<IncomingMessage | Error>(timeout, (resolve) => {
    request.on('response', resolve);
    request.on('error', resolve);
  });
  if (response !== undefined && !(response instanceof Error)) {
    return new EventReader({ name, server, request, response, timeout, lastEventId, checkpoints });
  }
  request.destroy();
  await server.release();
  if (response !== undefined) {
    throw new Error(`${name} got no response: ${response.message}`, { cause: response });
  }
  throw new Error(
    `timed out after ${timeout} ms waiting for the response headers of ${name}; the handler ` +
      'sends them with the first send(), comment(), open() or subscribe()',
  );
}

/** @returns the request, and its method and path as a name for error messages */
function sendRequest(
  url: URL,
  { headers, lastEventId, method, body }: ReadOptions,
): { request: ClientRequest; name: string } {
  const usedMethod = method ?? (body === undefined ? 'GET' : 'POST');
  const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, {
    method: usedMethod,
    agent: false,
  });
  request.on('socket', unref);
  request.setHeader('Accept', 'text/event-stream');
  // Like a browser, send the bytes of the id in UTF-8 (WHATWG HTML, 9.2.4).
  if (lastEventId) request.setHeader('Last-Event-ID', Buffer.from(lastEventId).toString('latin1'));
  const isSentUnchanged = typeof body === 'string' || body instanceof Uint8Array;
  if (body !== undefined && !isSentUnchanged) {
    request.setHeader('Content-Type', 'application/json');
  }
  for (const [name, value] of Object.entries(headers ?? {})) request.setHeader(name, value);
  if (body === undefined) request.end();
  else request.end(isSentUnchanged ? body : JSON.stringify(body));
  return { request, name: `${usedMethod} ${url.pathname}${url.search}` };
}
