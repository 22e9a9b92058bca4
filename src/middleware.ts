/** `sse()`: gives every request that asks for an event stream a `res.sse`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import type { CloseReason } from './connection.ts';
import { SseError } from './errors.ts';
import { EventStream, assertCloseOptions, type CloseOptions, type StreamHost, type Subscribe } from './event-stream.ts';
import { Heartbeat } from './heartbeat.ts';
import {
  assertOptions,
  draw,
  milliseconds,
  oneOf,
  rangeOf,
  resolveStreamOptions,
  retryRange,
  streamRules,
  type OptionRule,
  type RetryRange,
  type StreamOptions,
  type StreamSettings,
} from './options.ts';
import { asksForEventStream, lastEventIdOf, refusesEventStream } from './request.ts';
import { Roster, type OpenStreams, type SseStats } from './roster.ts';
import { negotiatedBy, refuse, type NegotiatedResponse, type Next } from './route.ts';
import { FINAL_MARK, retryText } from './wire.ts';

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
export interface SseOptions extends StreamOptions {
  /** The registry that `res.sse.subscribe` uses. @defaultValue none: `subscribe` rejects with `ERR_SSE_NO_CHANNELS` */
  channels?: { subscribe(...args: Parameters<Subscribe>): ReturnType<Subscribe> } | undefined;
  /**
   * Whom a stream is attached for: `'event-stream'`, who names `text/event-stream` in `Accept`; `'any'`, everybody who does
   * not refuse it with q = 0 (LLM clients send `Accept: application/json` and read a stream).
   * @defaultValue `'event-stream'`
   */
  accept?: 'event-stream' | 'any' | undefined;
}

/** How the middleware is to be closed. */
export interface ShutdownOptions {
  /** Time in ms after which streams that have not ended are destroyed. @defaultValue `10_000` */
  within?: number | undefined;
  /** Reconnection time in ms that each client is told, drawn from the range. @defaultValue `{ min: 1_000, max: 5_000 }` */
  retry?: number | RetryRange | undefined;
}

/** What `sse()` returns: middleware for Express 4 and 5, Connect, and bare `http`, `https` and `http2` (compat API) servers. */
export interface SseMiddleware {
  (req: IncomingMessage | Http2ServerRequest, res: ServerResponse | Http2ServerResponse, next: Next): void;
  /** The open streams. */
  readonly streams: OpenStreams;
  /** Gauges, cheap enough to read each second. */
  stats(): SseStats;
  /**
   * Ends the open streams for which `test` is true (reason `'revoked'`): of tokens that expired, of users that were removed.
   * @returns how many
   */
  closeWhere(test: (stream: EventStream) => boolean, options?: CloseOptions): number;
  /**
   * Turns new streams away, ends the open ones, and destroys what has not ended in time. Idempotent. It does not close the channels.
   * @returns a promise that resolves when no timer and no stream is left
   */
  close(options?: ShutdownOptions): Promise<{ closed: number; destroyed: number }>;
}

const sseRules: Readonly<Record<keyof SseOptions, OptionRule>> = {
  channels: {
    expected: 'what createChannels() returns',
    test: (value) => typeof value === 'object' && value !== null && 'subscribe' in value && 'publish' in value,
  },
  ...streamRules,
  accept: oneOf('event-stream', 'any'),
};

const shutdownRules: Readonly<Record<keyof ShutdownOptions, OptionRule>> = { within: milliseconds(0), retry: retryRange };

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
 *   if (!res.sse) return res.sendStatus(406);
 *   const timer = setInterval(() => res.sse.send(new Date()), 1_000);
 *   res.sse.signal.addEventListener('abort', () => clearInterval(timer));
 * });
 */
export function sse(options: SseOptions = {}): SseMiddleware {
  assertOptions('sse()', options, sseRules);
  const roster = new Roster();
  const ownHost = new Host(options, [roster]);
  // One for each middleware in front of this one, usually none.
  const innerHosts = new WeakMap<Host, Host>();

  function hostBehind(outer: StreamHost | undefined): Host {
    if (!(outer instanceof Host)) return ownHost;
    let host = innerHosts.get(outer);
    if (host === undefined) {
      host = outer.rosters.includes(roster)
        ? outer
        : new Host({ ...outer.options, ...given(options) }, [...outer.rosters, roster]);
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
    const host = hostBehind(res[negotiatedBy]);
    res[negotiatedBy] = host;
    const asks = asksForEventStream(req);
    if (!asks && (host.accept === 'event-stream' || refusesEventStream(req))) {
      // An outer one may have asked less.
      if (res.sse?.readyState === 0) res.sse = undefined;
      next();
    } else if (asks && req.method === 'GET' && lastEventIdOf(req) === FINAL_MARK) {
      res.statusCode = 204;
      res.setHeader('Cache-Control', 'no-store');
      res.end();
    } else if (asks && roster.closing !== undefined) {
      roster.rejected++;
      turnAway(res, draw(roster.closing));
    } else {
      if (res.sse === undefined) res.sse = new EventStream(res, host);
      else if (res.sse.readyState === 0) res.sse.host = host;
      next();
    }
  }

  return Object.assign(middleware, {
    streams: roster,
    stats: () => roster.stats(),
    closeWhere(test: (stream: EventStream) => boolean, closeOptions: CloseOptions = {}): number {
      assertCloseOptions('closeWhere()', closeOptions);
      const streams = [...roster].filter((stream) => {
        const answer: unknown = test(stream);
        // A promise is always something: everybody would be sent away.
        if (typeof answer !== 'object' || answer === null) return Boolean(answer);
        throw new SseError('ERR_SSE_OPTION', 'expected the test of closeWhere() to return true or false; it cannot be async');
      });
      for (const stream of streams) stream.finish('revoked', closeOptions);
      return streams.length;
    },
    close(shutdownOptions: ShutdownOptions = {}): Promise<{ closed: number; destroyed: number }> {
      assertOptions('close()', shutdownOptions, shutdownRules);
      const { within = 10_000, retry = { min: 1_000, max: 5_000 } } = shutdownOptions;
      return roster.shutDown(within, rangeOf(retry));
    },
  });
}

/** What one middleware gives its streams; an inner middleware has one for each outer. */
class Host implements StreamHost {
  readonly options: SseOptions;
  readonly settings: StreamSettings;
  readonly heartbeat: Heartbeat;
  readonly accept: 'event-stream' | 'any';
  readonly subscribe: Subscribe | undefined;
  /** Its own, and those of the middleware in front. */
  readonly rosters: readonly Roster[];

  constructor(options: SseOptions, rosters: readonly Roster[]) {
    const { channels, accept = 'event-stream', ...streamOptions } = options;
    this.options = options;
    this.settings = resolveStreamOptions(streamOptions);
    this.heartbeat = new Heartbeat(this.settings);
    this.accept = accept;
    this.subscribe = channels && ((...args) => channels.subscribe(...args));
    this.rosters = rosters;
  }

  opened(stream: EventStream): void {
    for (const roster of this.rosters) roster.opened(stream);
  }

  closed(stream: EventStream, reason: CloseReason): void {
    for (const roster of this.rosters) roster.closed(stream, reason);
  }

  gone(stream: EventStream): void {
    for (const roster of this.rosters) roster.gone(stream);
  }
}

/** Sends a client away so that it comes back: an EventSource gives up for good on anything but a 200. */
function turnAway(res: ServerResponse, retry: number): void {
  if (res.req.method === 'GET') {
    res.statusCode = 200;
    res.setHeader('Content-Type', 'text/event-stream');
    res.setHeader('Cache-Control', 'no-cache, no-transform');
    res.end(retryText(retry));
  } else {
    // Whoever is not an EventSource would take an empty 200 for success.
    res.setHeader('Retry-After', Math.ceil(retry / 1_000));
    refuse(res, 503, 'ERR_SSE_UNAVAILABLE', 'No streams are taken now; come back later.');
  }
}

/** The options that were given a value. */
function given(options: SseOptions): SseOptions {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}
