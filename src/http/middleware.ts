/** `sse()`: gives every request that asks for an event stream a `res.sse`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { admissionRules, type AdmissionOptions, type Refusal } from './admission.ts';
import type { CloseReason } from '../stream/response-writer.ts';
import { diagnostics } from '../common/diagnostics.ts';
import { SseError } from '../common/errors.ts';
import {
  EventStream,
  assertCloseOptions,
  type CloseOptions,
  type StreamHost,
  type Subscribe,
} from '../stream/event-stream.ts';
import { StreamMonitor } from '../stream/stream-monitor.ts';
import {
  booleanRule,
  functionRule,
  assertOptions,
  millisecondsRule,
  oneOfRule,
  type OptionRule,
} from '../common/options.ts';
import { drawRetry, toRetryRange, retryRangeRule, type RetryRange } from '../common/retry-range.ts';
import {
  resolveStreamOptions,
  streamRules,
  type StreamOptions,
  type StreamSettings,
} from '../stream/stream-options.ts';
import {
  asksForEventStream,
  lastEventIdOf,
  refusesEventStream,
} from '../protocol/request-headers.ts';
import { StreamTracker, type OpenStreams, type Shutdown, type SseStats } from './stream-tracker.ts';
import {
  assertUnoccupied,
  hostOf,
  negotiatedBy,
  refuse,
  streamOf,
  type NegotiatedResponse,
  type Next,
  type RouteRequest,
} from './route.ts';
import { PerRequestDetector, Warnings, checkTimes } from './warnings.ts';
import { FINAL_MARK, retryText } from '../protocol/event-stream-format.ts';

declare global {
  // eslint-disable-next-line typescript/no-namespace -- the way in which Express's types are extended
  namespace Express {
    interface Response {
      /** The event stream of this request, where it asked for one and `sse()` is in front. */
      sse?: EventStream | undefined;
    }
  }
}

/** The options of `sse()`. */
export interface SseOptions extends StreamOptions, AdmissionOptions {
  /** The registry that `res.sse.subscribe` uses. @defaultValue none: `subscribe` rejects with `ERR_SSE_NO_CHANNELS` */
  channels?: { subscribe(...args: Parameters<Subscribe>): ReturnType<Subscribe> } | undefined;
  /** Whether misuse that is noticed is told by `process.emitWarning`, once for each kind. @defaultValue `true` */
  warnings?: boolean | undefined;
  /**
   * Whom a stream is attached for: `'event-stream'`, who names `text/event-stream` in `Accept`; `'any'`, everybody who does
   * not refuse it with q = 0 (LLM clients send `Accept: application/json` and read a stream).
   * @defaultValue `'event-stream'`
   */
  accept?: 'event-stream' | 'any' | undefined;
  /**
   * Called for each error after a stream has opened: of a handler or generator of `stream()`, a filter, an `onGap`, a wrapped
   * `res.write`, an answer begun on an open stream. Its client is told nothing of it.
   * @defaultValue prints it by `console.error`, but not while something subscribes to `res-sse:error`, nor if `NODE_ENV` is `test`
   */
  onError?: ((error: unknown, stream: EventStream) => void) | undefined;
}

/** How the middleware is to be closed. */
export interface ShutdownOptions {
  /**
   * Time in ms over which the streams are ended, ten at a time or more, and after which those that have not ended are destroyed.
   * @defaultValue `10_000`
   */
  within?: number | undefined;
  /** Reconnection time in ms that each client is told, drawn from the range. @defaultValue `{ min: 1_000, max: 5_000 }` */
  retry?: number | RetryRange | undefined;
}

/** What `sse()` returns: middleware for Express 4 and 5, Connect, and bare `http`, `https` and `http2` (compat API) servers. */
export interface SseMiddleware {
  (
    req: IncomingMessage | Http2ServerRequest,
    res: ServerResponse | Http2ServerResponse,
    next: Next,
  ): void;
  /** The open streams. */
  readonly streams: OpenStreams;
  /** Gauges, cheap enough to read each second. */
  stats(): SseStats;
  /**
   * Ends the open streams for which `test` is true (reason `'revoked'`): of tokens that expired, of users that were removed.
   * @returns how many
   */
  closeWhere(
    test: (stream: EventStream & { readonly req: RouteRequest }) => boolean,
    options?: CloseOptions,
  ): number;
  /**
   * Turns new streams away so that they come back, ends the open ones in waves, and destroys what has not ended in time.
   * Idempotent. It does not close the channels.
   * @returns a promise that resolves when no timer and no stream is left; never rejects
   */
  close(options?: ShutdownOptions): Promise<Shutdown>;
}

const sseRules: Readonly<Record<keyof SseOptions, OptionRule>> = {
  channels: {
    expected: 'what createChannels() returns',
    test: (value) =>
      typeof value === 'object' && value !== null && 'subscribe' in value && 'publish' in value,
  },
  ...streamRules,
  ...admissionRules,
  warnings: booleanRule,
  accept: oneOfRule('event-stream', 'any'),
  onError: functionRule,
};

const shutdownRules: Readonly<Record<keyof ShutdownOptions, OptionRule>> = {
  within: millisecondsRule(0),
  retry: retryRangeRule,
};

/**
 * Middleware that attaches `res.sse` to every request that asks for an event stream. Nothing is written before the handler
 * opens the stream, and nothing about other requests changes.
 *
 * On a route, `sse(options)` behind an app-wide one takes its options over the app's; its streams are in the app's `.streams`,
 * `.stats()` and `.close()`, too.
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown option or a value out of its range
 * @example
 * app.use(sse({ channels }));
 * app.get('/clock', (req, res) => {
 *   const stream = res.sse;
 *   if (stream === undefined) {
 *     res.sendStatus(406);
 *     return;
 *   }
 *   const timer = setInterval(() => stream.send(new Date()), 1_000);
 *   void stream.closed.then(() => clearInterval(timer));
 * });
 */
export function sse(options: SseOptions = {}): SseMiddleware {
  if (typeof options === 'object' && options !== null && 'httpVersion' in options) {
    throw new SseError(
      'ERR_SSE_OPTION',
      'sse is mounted without a call and was given a request; write app.use(sse())',
    );
  }
  const own = assertOptions('sse()', options, sseRules);
  const warnings = new Warnings();
  const roster = new StreamTracker(
    own,
    own.warnings === false ? undefined : (requests) => warnings.keysUndefined(requests),
  );
  const making = own.warnings === false ? undefined : new PerRequestDetector(sse);
  const ownHost = new Host(own, [roster], warnings);
  if (own.warnings !== false) {
    const { heartbeat, stallTimeout, maxLifetime, retry } = resolveStreamOptions(own);
    checkTimes('sse()', { heartbeat, stallTimeout, maxLifetime, retry: retry?.max });
  }
  // One for each middleware in front of this one, usually none.
  const innerHosts = new WeakMap<Host, Host>();

  function hostBehind(outer: StreamHost | undefined): Host {
    if (!isHost(outer)) return ownHost;
    let host = innerHosts.get(outer);
    if (host === undefined) {
      const isSame = outer.rosters.includes(roster);
      host = isSame
        ? outer
        : new Host({ ...outer.options, ...own }, [...outer.rosters, roster], outer.warnings);
      if ((isSame || Object.keys(own).length === 0) && host.options.warnings !== false) {
        host.warnings.mountedTwice();
      }
      innerHosts.set(outer, host);
    }
    return host;
  }

  function middleware(
    anyReq: IncomingMessage | Http2ServerRequest,
    anyRes: ServerResponse | Http2ServerResponse,
    next: Next,
  ): void {
    // The compat API of http2 differs in types only.
    const req = anyReq as IncomingMessage;
    const res = anyRes as NegotiatedResponse;
    making?.used();
    const host = hostBehind(hostOf(res));
    const asks = asksForEventStream(req);
    if (!asks && (host.accept === 'event-stream' || refusesEventStream(req))) {
      // An outer one may have asked less.
      if (streamOf(res)?.readyState === 0) res.sse = undefined;
      res[negotiatedBy] = host;
      next();
    } else if (asks && req.method === 'GET' && lastEventIdOf(req) === FINAL_MARK) {
      res.statusCode = 204;
      res.setHeader('Cache-Control', 'no-store');
      res.end();
    } else {
      attach(res, host, asks, next);
    }
  }

  /** Who did not name an event stream may not get one: then it is decided when it opens, see {@link Host.admits}. */
  function attach(res: NegotiatedResponse, host: Host, asks: boolean, next: Next): void {
    const earlier = streamOf(res);
    let stream: EventStream;
    try {
      assertUnoccupied(res);
      stream = earlier ?? new EventStream(res, host);
      // One whose client has left would never give its place back.
      if (asks && stream.readyState === 0 && !host.takes(stream, [roster])) return;
    } catch (error) {
      next(error);
      return;
    }
    if (earlier === undefined) res.sse = stream;
    else if (stream.readyState === 0) stream.host = host;
    next();
  }

  return Object.assign(middleware, {
    streams: roster,
    stats: () => roster.stats(),
    closeWhere(
      test: (stream: EventStream & { readonly req: RouteRequest }) => boolean,
      closeOptions: CloseOptions = {},
    ): number {
      const checked = assertCloseOptions('closeWhere()', closeOptions);
      const streams = [...roster].filter((stream) => {
        // The request is the framework's own, as a route's handler gets it.
        const answer: unknown = test(stream as EventStream & { readonly req: RouteRequest });
        // A promise is always something: everybody would be sent away.
        if (typeof answer !== 'object' || answer === null) return Boolean(answer);
        throw new SseError(
          'ERR_SSE_OPTION',
          'expected the test of closeWhere() to return true or false; it cannot be async',
        );
      });
      roster.endAtOnce(streams, 'revoked', checked);
      return streams.length;
    },
    close(shutdownOptions: ShutdownOptions = {}): Promise<Shutdown> {
      const checked = assertOptions('close()', shutdownOptions, shutdownRules);
      const { within = 10_000, retry = { min: 1_000, max: 5_000 } } = checked;
      return roster.shutDown(within, toRetryRange(retry));
    },
  });
}

// A registered symbol, so that the middleware of two copies of the package in one process have streams together.
const hostBrand = Symbol.for('res-sse.Host');

function isHost(host: StreamHost | undefined): host is Host {
  return host !== undefined && hostBrand in host;
}

/** What one middleware gives its streams; an inner middleware has one for each outer. */
class Host implements StreamHost {
  static {
    Object.defineProperty(this.prototype, hostBrand, { value: true });
  }

  readonly options: SseOptions;
  readonly settings: StreamSettings;
  readonly heartbeat: StreamMonitor;
  readonly accept: 'event-stream' | 'any';
  readonly subscribe: Subscribe | undefined;
  readonly onError: SseOptions['onError'];
  /** Those of the middleware in front, and its own. */
  readonly rosters: readonly StreamTracker[];
  /** Of the first middleware in front, so that each kind is told once. */
  readonly warnings: Warnings;

  constructor(options: SseOptions, rosters: readonly StreamTracker[], warnings: Warnings) {
    const { channels, accept = 'event-stream' } = options;
    this.options = options;
    this.settings = resolveStreamOptions(options);
    this.heartbeat = new StreamMonitor(this.settings);
    this.accept = accept;
    this.onError = options.onError;
    this.subscribe = channels && ((...args) => channels.subscribe(...args));
    this.rosters = rosters;
    this.warnings = warnings;
  }

  /** Who named an event stream has been let in on the way here; of everybody else it shows only now that it is a stream. */
  admits(stream: EventStream): boolean {
    return (
      this.accept === 'event-stream' ||
      asksForEventStream(stream.req) ||
      this.takes(stream, this.rosters)
    );
  }

  /** Takes a place with each of these, or answers the request. @returns whether the stream may open */
  takes(stream: EventStream, rosters: readonly StreamTracker[]): boolean {
    for (const roster of rosters) {
      const refusal = roster.take(stream.res);
      if (refusal === undefined) continue;
      this.#turnAway(stream, refusal, roster.closing);
      return false;
    }
    return true;
  }

  opened(stream: EventStream): CloseOptions | undefined {
    for (const roster of this.rosters) roster.opened(stream);
    if (this.options.warnings !== false) this.warnings.opened(stream);
    // Its request came before the shutdown began.
    const closing = this.rosters.find((roster) => roster.closing !== undefined)?.closing;
    return closing && { retry: drawRetry(closing) };
  }

  closed(reason: CloseReason): void {
    for (const roster of this.rosters) roster.closed(reason);
  }

  gone(stream: EventStream, wasOpen: boolean): void {
    // A connection that is kept alive would hold up a `server.close()` that was called before, and bring its client back here.
    if (wasOpen && this.rosters.some(({ closing }) => closing !== undefined)) {
      stream.closeConnection();
    }
    for (const roster of this.rosters) roster.gone(stream, wasOpen);
    this.warnings.gone(stream);
  }

  #turnAway(stream: EventStream, refusal: Refusal, closing: RetryRange | undefined): void {
    const { req, res } = stream;
    for (const roster of this.rosters) roster.rejected++;
    if (diagnostics.reject.hasSubscribers) diagnostics.reject.publish({ req, reason: refusal });
    // To come back on the same connection would be to come back to this process.
    if (closing !== undefined && req.httpVersionMajor !== 1) stream.closeConnection();
    // A subscriber may have answered.
    if (res.headersSent) return;
    const retry = drawRetry(closing ?? FULL_RETRY);
    if (closing !== undefined && req.httpVersionMajor === 1) res.setHeader('Connection', 'close');
    const isPatient = closing !== undefined || this.options.whenFull !== 'reject';
    if (isPatient && req.method === 'GET' && asksForEventStream(req)) sendAway(res, retry);
    else refuseFor(res, retry);
  }
}

// Long enough for some of the others to have left.
const FULL_RETRY = { min: 5_000, max: 15_000 };

/** An EventSource gives up for good on anything but a 200. */
function sendAway(res: ServerResponse, retry: number): void {
  res.statusCode = 200;
  res.setHeader('Content-Type', 'text/event-stream');
  res.setHeader('Cache-Control', 'no-cache, no-transform');
  res.end(retryText(retry));
}

/** Whoever is not an EventSource would take an empty 200 for success. */
function refuseFor(res: ServerResponse, retry: number): void {
  res.setHeader('Retry-After', Math.ceil(retry / 1_000));
  refuse(res, 503, 'ERR_SSE_UNAVAILABLE', 'No streams are taken now; come back later.');
}
