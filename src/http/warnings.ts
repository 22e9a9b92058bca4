/**
 * Warnings about misuse that cannot be recognised in a single call. Each code is reported once,
 * with the fix.
 */
import type { IncomingMessage } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
import { emitWarning, type WarningCode } from '../common/emit-warning.ts';
import type { EventStream } from '../stream/event-stream.ts';

/** A proxy that adds a header to requests, and its default idle timeout. */
interface KnownProxy {
  readonly header: string;
  readonly name: string;
  /** Default time in ms without data after which the proxy closes a connection. */
  readonly idleTimeout: number;
}

// A request may have several of these headers. The first match counts, so the proxy with the
// shortest timeout comes first.
const KNOWN_PROXIES: readonly KnownProxy[] = [
  { header: 'x-amz-cf-id', name: 'CloudFront', idleTimeout: 30_000 },
  { header: 'x-amzn-trace-id', name: 'an AWS load balancer', idleTimeout: 60_000 },
  // nginx, and most other proxies.
  { header: 'x-forwarded-for', name: 'a proxy', idleTimeout: 60_000 },
  { header: 'forwarded', name: 'a proxy', idleTimeout: 60_000 },
  { header: 'via', name: 'a proxy', idleTimeout: 60_000 },
];

const SHORTEST_IDLE_TIMEOUT_MS = 30_000;

// Number of connections that a browser opens to one host over HTTP/1.1.
const CONNECTIONS_PER_BROWSER = 6;

// No browser sends a longer `User-Agent`. The text is kept while the streams of the browser are
// watched, so its length has to be limited.
const MAX_USER_AGENT_LENGTH = 512;

// Maximum number of streams of browsers that are watched at a time, to limit the memory.
const MAX_WATCHED_STREAMS = 1_000;

/** The warnings of an outermost `sse()` and of all `sse()` that are nested in it. */
export class Warnings {
  readonly #reportedCodes = new Set<WarningCode>();
  // The watched streams, which are those of browsers over HTTP/1.1, and the browser of each.
  readonly #browsers = new Map<EventStream, string>();
  // Number of watched streams of each browser.
  readonly #streamCounts = new Map<string, number>();

  /** Warns about a second `sse()` without options, which has no effect. */
  warnMountedTwice(): void {
    this.#warnOnce(
      'RES_SSE_MOUNTED_TWICE',
      'a request passed sse() twice, the second time without effect',
      'Remove the second sse(), or pass the options of the route to it.',
    );
  }

  /** Warns about a `maxStreamsPer.key` that returns `undefined`, so that nothing is limited. */
  warnUndefinedKeys(requestCount: number): void {
    this.#warnOnce(
      'RES_SSE_KEY_UNDEFINED',
      'the `key` function of `maxStreamsPer` returned undefined for each of the first ' +
        `${requestCount} requests, so no stream is limited`,
      '`key` is called when a request reaches the sse() with the limit. Pass maxStreamsPer to a ' +
        'second sse() on the routes, behind the authentication that sets what `key` reads.',
    );
  }

  /** Checks a stream that has opened and whose first bytes have been written. */
  checkStream(stream: EventStream): void {
    this.#checkBody(stream);
    this.#checkHeartbeat(stream);
    this.#checkServerTimeout(stream);
    this.#watchBrowser(stream);
  }

  /** Stops watching a stream whose response is closed. */
  forgetStream(stream: EventStream): void {
    const browser = this.#browsers.get(stream);
    if (browser === undefined) return;
    this.#browsers.delete(stream);
    const remaining = (this.#streamCounts.get(browser) ?? 0) - 1;
    if (remaining > 0) this.#streamCounts.set(browser, remaining);
    else this.#streamCounts.delete(browser);
  }

  /** Detects middleware that compresses the stream, and so delays events. */
  #checkBody({ res, req, gzip }: EventStream): void {
    const isWrapped = Object.hasOwn(res, 'write');
    // Middleware that transforms bodies replaces the `write` method of the response.
    if (this.#reportedCodes.has('RES_SSE_BODY_TRANSFORMED') || !isWrapped) return;
    const encoding = res.getHeader('content-encoding');
    if (encoding === undefined || encoding === 'identity' || gzip !== undefined) return;
    this.#warnOnce(
      'RES_SSE_BODY_TRANSFORMED',
      `middleware in front of sse() encodes the event stream of ${pathOf(req)} ` +
        `(${String(encoding)})`,
      'Events reach the client late or several at a time. Keep Cache-Control: no-transform, ' +
        'which compression() respects, or mount the transforming middleware on other routes.',
    );
  }

  /** Detects a heartbeat that is too long for the proxy in front. */
  #checkHeartbeat({ host, req }: EventStream): void {
    const { heartbeat } = host.settings;
    const silence = heartbeat === false ? Infinity : heartbeat;
    if (
      silence < SHORTEST_IDLE_TIMEOUT_MS ||
      this.#reportedCodes.has('RES_SSE_HEARTBEAT_TOO_LONG')
    ) {
      return;
    }
    const proxy = KNOWN_PROXIES.find(({ header }) => req.headers[header] !== undefined);
    if (proxy === undefined || silence < proxy.idleTimeout) return;
    this.#warnOnce(
      'RES_SSE_HEARTBEAT_TOO_LONG',
      `the heartbeat (${describeHeartbeat(heartbeat)}) is too long for ${proxy.name} in front ` +
        `(header ${proxy.header}), which by default closes connections after ` +
        `${proxy.idleTimeout} ms without data`,
      'Set heartbeat to less than half of the idle timeout of the proxy. The default of 15 s is ' +
        'short enough for all known proxies.',
    );
  }

  /**
   * Detects a timeout of an HTTP/2 session that ends quiet streams. Over HTTP/1.1 the timeout of
   * the socket is switched off while a stream is open.
   */
  #checkServerTimeout({ host, res }: EventStream): void {
    if (this.#reportedCodes.has('RES_SSE_SERVER_TIMEOUT') || !('stream' in res)) return;
    const { heartbeat } = host.settings;
    // Like a socket, a session has the time that was set by `server.setTimeout()` in `timeout`.
    const { session } = (res as unknown as Http2ServerResponse).stream;
    const { timeout = 0 } = (session ?? {}) as { timeout?: number };
    if (timeout === 0 || (heartbeat !== false && timeout > heartbeat)) return;
    this.#warnOnce(
      'RES_SSE_SERVER_TIMEOUT',
      `the timeout of the HTTP/2 session (${timeout} ms) is not longer than the heartbeat ` +
        `(${describeHeartbeat(heartbeat)}), so a session with quiet streams is ended`,
      'Set heartbeat to less than half of the timeout, or raise it with server.setTimeout().',
    );
  }

  /** Counts the streams of a browser, and detects that they take all of its connections. */
  #watchBrowser(stream: EventStream): void {
    const isFull = this.#browsers.size >= MAX_WATCHED_STREAMS;
    if (isFull || this.#reportedCodes.has('RES_SSE_SIX_STREAMS')) return;
    const browser = identifyBrowser(stream.req);
    if (browser === undefined) return;
    const streamCount = (this.#streamCounts.get(browser) ?? 0) + 1;
    this.#browsers.set(stream, browser);
    this.#streamCounts.set(browser, streamCount);
    if (streamCount < CONNECTIONS_PER_BROWSER) return;
    this.#browsers.clear();
    this.#streamCounts.clear();
    this.#warnOnce(
      'RES_SSE_SIX_STREAMS',
      'one browser has six event streams open over HTTP/1.1, which is its maximum number of ' +
        'connections to a host; further requests of its pages have to wait',
      'Serve HTTP/2 by a proxy in front (Express does not run on node:http2), subscribe to all ' +
        'channels of a page on one stream, or share one stream between tabs with the option ' +
        '`share` of res-sse/client.',
    );
  }

  #warnOnce(code: WarningCode, message: string, fix: string): void {
    if (this.#reportedCodes.has(code)) return;
    this.#reportedCodes.add(code);
    emitWarning(code, message, fix);
  }
}

// The names of the options that were reported: once per process, for any number of middleware.
const reportedTimes = new Set<string>();

/**
 * Warns about times in ms that were most likely meant in seconds. Does nothing in tests, where
 * short times are usual.
 * @param owner the function whose options the times are
 * @param times the times in ms, by name of the option
 */
export function checkTimes(
  owner: string,
  times: Readonly<Record<string, number | false | undefined>>,
): void {
  if (process.env['NODE_ENV'] === 'test' || process.env['NODE_TEST_CONTEXT'] !== undefined) return;
  const off = owner === 'sse()' ? ', or use sse({ warnings: false })' : '';
  for (const [name, ms] of Object.entries(times)) {
    if (!ms || ms >= 1_000 || reportedTimes.has(name)) continue;
    reportedTimes.add(name);
    emitWarning(
      'RES_SSE_TIME_IN_SECONDS',
      `\`${name}\` of ${owner} is ${ms} ms; was it meant in seconds?`,
      `All times are in ms: write 15_000 for 15 s. If the value is intended, ignore this${off}.`,
    );
  }
}

function describeHeartbeat(heartbeat: number | false): string {
  return heartbeat === false ? 'none' : `${heartbeat} ms`;
}

/**
 * Identifies the browser that sent the request by address and user agent.
 * @returns `undefined` if the client is no browser, uses HTTP/2, or is behind a proxy: its
 * connections cannot be counted then
 */
function identifyBrowser(req: IncomingMessage): string | undefined {
  const { 'user-agent': agent = '', 'x-forwarded-for': forwarded, via } = req.headers;
  const isDirect = req.httpVersionMajor === 1 && forwarded === undefined && via === undefined;
  return isDirect && agent.startsWith('Mozilla/') && agent.length <= MAX_USER_AGENT_LENGTH
    ? `${req.socket.remoteAddress ?? ''} ${agent}`
    : undefined;
}

/** @returns the path without the query, which may contain secrets that must not be logged */
function pathOf(req: IncomingMessage): string {
  return (req.url ?? '').replace(/\?.*$/, '');
}
