/** Misuse that no single call shows: noticed where it does show, and told once, with the fix. */
import type { IncomingMessage } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
import type { EventStream } from '../stream/event-stream.ts';

/** The `code` of a warning of `sse()`. */
export type WarningCode =
  | 'RES_SSE_BODY_TRANSFORMED'
  | 'RES_SSE_CREATED_PER_REQUEST'
  | 'RES_SSE_HEARTBEAT_TOO_LONG'
  | 'RES_SSE_KEY_UNDEFINED'
  | 'RES_SSE_MOUNTED_TWICE'
  | 'RES_SSE_SERVER_TIMEOUT'
  | 'RES_SSE_SIX_STREAMS'
  | 'RES_SSE_TIME_IN_SECONDS';

// What proxies put on a request, and for how many ms of silence they keep a connection, unless told otherwise; the strictest first.
const PROXIES: readonly (readonly [header: string, name: string, idle: number])[] = [
  ['x-amz-cf-id', 'CloudFront', 30_000],
  ['x-amzn-trace-id', 'an AWS load balancer', 60_000],
  // nginx, and most others.
  ['x-forwarded-for', 'a proxy', 60_000],
  ['forwarded', 'a proxy', 60_000],
  ['via', 'a proxy', 60_000],
];

// Over HTTP/1.1 a browser opens so many connections to a host.
const CONNECTIONS_OF_A_BROWSER = 6;

// No browser has a longer `User-Agent`; each is kept while its streams are watched.
const MAX_AGENT_LENGTH = 512;

// So many streams of browsers are watched at a time, so that it costs the same however many there are.
const MAX_WATCHED = 1_000;

/** The warnings of one app-wide `sse()` and of those behind it. */
export class Warnings {
  readonly #told = new Set<WarningCode>();
  // Of browsers over HTTP/1.1: each stream's browser, and how many each browser has.
  readonly #browsers = new Map<EventStream, string>();
  readonly #counts = new Map<string, number>();

  /** Two `sse()` on one route, where the second has nothing to say. */
  mountedTwice(): void {
    this.#tell(
      'RES_SSE_MOUNTED_TWICE',
      'sse() is in front of a route twice',
      'The second changes nothing without options of its own: take it away, or give it those of the route.',
    );
  }

  /** `maxStreamsPer.key` limits nobody. */
  keysUndefined(requests: number): void {
    this.#tell(
      'RES_SSE_KEY_UNDEFINED',
      `the \`key\` of \`maxStreamsPer\` was undefined for each of the first ${requests} requests, so nothing is limited`,
      'Mount what sets it, the authentication for one, in front of sse(): the key is asked for before the handler of the route runs.',
    );
  }

  /** A stream has opened; its first bytes have been written. */
  opened(stream: EventStream): void {
    this.#checkBody(stream);
    this.#checkHeartbeat(stream);
    this.#checkTimeout(stream);
    this.#watch(stream);
  }

  /** Nothing of the stream is left. */
  gone(stream: EventStream): void {
    const browser = this.#browsers.get(stream);
    if (browser === undefined) return;
    this.#browsers.delete(stream);
    const left = (this.#counts.get(browser) ?? 0) - 1;
    if (left > 0) this.#counts.set(browser, left);
    else this.#counts.delete(browser);
  }

  #checkBody({ res, req }: EventStream): void {
    // What transforms a body has put a `write` of its own in front of Node's.
    if (this.#told.has('RES_SSE_BODY_TRANSFORMED') || !Object.hasOwn(res, 'write')) return;
    const encoding = res.getHeader('content-encoding');
    if (encoding === undefined || encoding === 'identity') return;
    this.#tell(
      'RES_SSE_BODY_TRANSFORMED',
      `middleware in front of sse() encodes the event stream of ${pathOf(req)} (${String(encoding)})`,
      'Events reach the client late or in bunches. Leave Cache-Control: no-transform in place, which compression() respects, or mount what transforms bodies on other routes.',
    );
  }

  #checkHeartbeat({ host, req }: EventStream): void {
    const { heartbeat } = host.settings;
    const silence = heartbeat === false ? Infinity : heartbeat;
    if (silence < 30_000 || this.#told.has('RES_SSE_HEARTBEAT_TOO_LONG')) return;
    const proxy = PROXIES.find(([header]) => req.headers[header] !== undefined);
    if (proxy === undefined) return;
    const [header, name, idle] = proxy;
    if (silence < idle) return;
    this.#tell(
      'RES_SSE_HEARTBEAT_TOO_LONG',
      `the heartbeat (${heartbeat === false ? 'none' : `${heartbeat} ms`}) comes too late for ${name} in front (header ${header}), which by default cuts connections silent for ${idle} ms`,
      'Set heartbeat to less than half of what the proxy allows; the default of 15 s suits all that are known.',
    );
  }

  /** Over HTTP/1.1 the timeout is lifted. */
  #checkTimeout({ host, res }: EventStream): void {
    if (this.#told.has('RES_SSE_SERVER_TIMEOUT') || !('stream' in res)) return;
    const { heartbeat } = host.settings;
    // A session has what `server.setTimeout` says in the same property as a socket.
    const { timeout = 0 } = ((res as unknown as Http2ServerResponse).stream.session ?? {}) as {
      timeout?: number;
    };
    if (timeout === 0 || (heartbeat !== false && timeout > heartbeat)) return;
    this.#tell(
      'RES_SSE_SERVER_TIMEOUT',
      `the timeout of the HTTP/2 session (${timeout} ms) is not above the heartbeat (${heartbeat === false ? 'none' : `${heartbeat} ms`}): quiet streams are cut, with everything else on their session`,
      'Set heartbeat to less than half of the timeout, or raise it with server.setTimeout().',
    );
  }

  #watch(stream: EventStream): void {
    if (this.#told.has('RES_SSE_SIX_STREAMS') || this.#browsers.size >= MAX_WATCHED) return;
    const browser = browserOf(stream.req);
    if (browser === undefined) return;
    const count = (this.#counts.get(browser) ?? 0) + 1;
    this.#browsers.set(stream, browser);
    this.#counts.set(browser, count);
    if (count < CONNECTIONS_OF_A_BROWSER) return;
    this.#browsers.clear();
    this.#counts.clear();
    this.#tell(
      'RES_SSE_SIX_STREAMS',
      'one browser has six event streams open over HTTP/1.1, all the connections that it makes to a host; whatever else its pages ask for waits',
      'Serve HTTP/2 by a proxy in front (Express does not run on node:http2), follow all channels of a page on one stream, or share a stream between tabs with a SharedWorker or BroadcastChannel.',
    );
  }

  #tell(code: WarningCode, message: string, fix: string): void {
    if (this.#told.has(code)) return;
    this.#told.add(code);
    tell(code, message, fix);
  }
}

// Middleware that is made for each request has no memory from one to the next, so this is the process's.
const places = new Set<string>();
let isTold = false;

/** Notices a middleware that is made where it is used, and not for the first time. */
export class PerRequestDetector {
  #isUnderway = true;
  readonly #place: string;

  /** @param maker what is called to make it: the caller's place in the code is kept */
  constructor(maker: (...args: never[]) => unknown) {
    this.#place = isTold ? '' : callerOf(maker);
    queueMicrotask(() => {
      this.#isUnderway = false;
    });
  }

  /** It is given a request. In the turn in which it was made that means: made for it. One that is made late and kept is no misuse. */
  used(): void {
    if (!this.#isUnderway || isTold) return;
    this.#isUnderway = false;
    if (!places.has(this.#place)) {
      places.add(this.#place);
      return;
    }
    isTold = true;
    places.clear();
    tell(
      'RES_SSE_CREATED_PER_REQUEST',
      `sse() is called for each request (${this.#place})`,
      'Call it once and mount what it returns: limits, statistics, heartbeats and close() are of that one.',
    );
  }
}

// Times of each name are told once in a process, however many middlewares there are.
const timesTold = new Set<string>();

/** Tells of times in ms that were most likely meant in seconds. Tests have short times. */
export function checkTimes(
  owner: string,
  times: Readonly<Record<string, number | false | undefined>>,
): void {
  if (process.env['NODE_ENV'] === 'test' || process.env['NODE_TEST_CONTEXT'] !== undefined) return;
  for (const [name, ms] of Object.entries(times)) {
    if (!ms || ms >= 1_000 || timesTold.has(name)) continue;
    timesTold.add(name);
    tell(
      'RES_SSE_TIME_IN_SECONDS',
      `\`${name}\` of ${owner} is ${ms} ms; is this in seconds?`,
      'All times are in ms: write 15_000 for fifteen seconds. If it is meant, sse({ warnings: false }) switches warnings off.',
    );
  }
}

function tell(code: WarningCode, message: string, detail: string): void {
  process.emitWarning(message, { code, detail });
}

function callerOf(maker: (...args: never[]) => unknown): string {
  const { stackTraceLimit } = Error;
  const holder: { stack?: string } = {};
  Error.stackTraceLimit = 1;
  Error.captureStackTrace(holder, maker);
  Error.stackTraceLimit = stackTraceLimit;
  return /^\s*at (.*)$/m.exec(holder.stack ?? '')?.[1] ?? '';
}

/** The browser that is at the other end itself, with no proxy between. */
function browserOf(req: IncomingMessage): string | undefined {
  const { 'user-agent': agent = '', 'x-forwarded-for': forwarded, via } = req.headers;
  const isDirect = req.httpVersionMajor === 1 && forwarded === undefined && via === undefined;
  return isDirect && agent.startsWith('Mozilla/') && agent.length <= MAX_AGENT_LENGTH
    ? `${req.socket.remoteAddress ?? ''} ${agent}`
    : undefined;
}

/** Without the query, which may hold what is not for a log. */
function pathOf(req: IncomingMessage): string {
  return (req.url ?? '').replace(/\?.*$/, '');
}
