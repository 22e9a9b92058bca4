/** `sse()`: middleware that gives every request for an event stream a `res.sse`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { HostSelector, type MiddlewareHost } from './host.ts';
import {
  assertNoForeignStream,
  getHost,
  getStream,
  negotiatedBy,
  type NegotiatedResponse,
} from './negotiated-response.ts';
import { PerRequestDetector } from './per-request-detector.ts';
import { sendNoContent } from './refusals.ts';
import { getGuard, guardRequest, type StreamWithRequest } from './identities.ts';
import type { Next, RouteRequest } from './route.ts';
import type { Shutdown } from './shutdown.ts';
import { shutdownRules, sseRules, type ShutdownOptions, type SseOptions } from './sse-options.ts';
import { StreamTracker, type OpenStreams, type SseStats } from './stream-tracker.ts';
import { Warnings, checkTimes } from './warnings.ts';
import { SseError, describeValue } from '../common/errors.ts';
import { assertOptions } from '../common/options.ts';
import { toRetryRange } from '../common/retry-range.ts';
import { FINAL_ID } from '../protocol/event-stream-format.ts';
import {
  asksForEventStream,
  readLastEventId,
  refusesEventStream,
} from '../protocol/request-headers.ts';
import { assertCloseOptions, type CloseOptions } from '../stream/close-options.ts';
import { EventStream } from '../stream/event-stream.ts';
import { resolveStreamOptions } from '../stream/stream-options.ts';

declare global {
  // eslint-disable-next-line typescript/no-namespace -- Express's types are extended this way
  namespace Express {
    interface Response {
      /**
       * The event stream of the request. `undefined` if the request did not ask for an event
       * stream, or if no `sse()` middleware is in front.
       */
      sse?: EventStream | undefined;
    }
  }
}

/**
 * The middleware that `sse()` returns, for Express 4 and 5, Connect, and bare servers of `http`,
 * `https` and `http2` (compatibility API).
 */
export interface SseMiddleware {
  (
    req: IncomingMessage | Http2ServerRequest,
    res: ServerResponse | Http2ServerResponse,
    next: Next,
  ): void;
  /** The open streams. */
  readonly streams: OpenStreams;
  /** Returns gauges and counters. Reading them each second costs little. */
  stats(): SseStats;
  /**
   * Ends the open streams for which `test` returns true, with the reason `'revoked'`: for example
   * streams of expired tokens or of removed users.
   * @param test called synchronously for each open stream
   * @param options how the streams end
   * @returns the number of streams that are ended
   * @throws {SseError} `ERR_SSE_OPTION` for a wrong option, and if `test` returns an object, such
   * as a promise. In both cases no stream is ended.
   */
  closeWhere(
    test: (stream: EventStream & { readonly req: RouteRequest }) => boolean,
    options?: CloseOptions,
  ): number;
  /**
   * Ends the streams of an identity on all nodes of the registry, with the reason `'revoked'`: for
   * example of a user that was removed. When the promise has resolved, no event that is published
   * afterwards, on any node, reaches these streams. A client that reconnects is authenticated
   * again, so remove its right in the application first. Without `sse({ channels })`, only streams
   * of this node end.
   * @param identity as the option `identity` returns it for the requests
   * @param options how the streams end
   * @throws {SseError} rejects with `ERR_SSE_OPTION` for a wrong argument or without the option
   * `identity`, and with `ERR_SSE_BROKER` if the broker has not accepted the revocation
   */
  revoke(identity: string, options?: CloseOptions): Promise<void>;
  /**
   * Refuses new streams, telling their clients to reconnect, ends the open streams in waves, and
   * destroys the streams that have not ended in time. A second call returns the same promise. The
   * channels are not closed.
   * @param options the time for the shutdown, in ms, and the reconnection time, in ms
   * @returns a promise that resolves when the responses of all streams are closed, or at most 100
   * ms after the last stream was destroyed. It never rejects
   * @throws {SseError} `ERR_SSE_OPTION` for a wrong option
   */
  close(options?: ShutdownOptions): Promise<Shutdown>;
}

/**
 * Returns middleware that attaches `res.sse` to every request that asks for an event stream.
 * Nothing is written before the handler opens the stream, and other requests are not changed.
 *
 * A route may have an `sse(options)` of its own after an app-wide `sse()`. The options of the
 * route override the options of the app, and the streams of the route also belong to `.streams`,
 * `.stats()` and `.close()` of the app-wide middleware.
 * @param options all optional; see {@link SseOptions} for defaults and units
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown option and for a value out of range
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
  assertNoRequest(options);
  const ownOptions = assertOptions('sse()', options, sseRules);
  const hasWarnings = ownOptions.warnings !== false;
  const warnings = new Warnings();
  const onUndefinedKeys = (requestCount: number): void => {
    warnings.warnUndefinedKeys(requestCount);
  };
  const tracker = new StreamTracker(ownOptions, hasWarnings ? onUndefinedKeys : undefined);
  const detector = hasWarnings ? new PerRequestDetector(sse) : undefined;
  const hosts = new HostSelector(ownOptions, tracker, warnings);
  if (hasWarnings) checkStreamTimes(ownOptions);

  function middleware(
    req: IncomingMessage | Http2ServerRequest,
    res: ServerResponse | Http2ServerResponse,
    next: Next,
  ): void {
    detector?.onRequest();
    // The objects of the compatibility API of http2 differ from those of http in their types only.
    const host = hosts.select(getHost(res as NegotiatedResponse));
    negotiate(req as IncomingMessage, res as NegotiatedResponse, next, host, tracker);
  }

  return Object.assign(middleware, {
    streams: tracker,
    stats: () => tracker.stats(),
    closeWhere: (test: (stream: StreamWithRequest) => boolean, closeOptions: CloseOptions = {}) =>
      closeWhere(tracker, test, closeOptions),
    revoke: async (identity: string, closeOptions: CloseOptions = {}) => {
      assertIdentity(identity);
      await hosts.revoke({ identity, options: assertCloseOptions('revoke()', closeOptions) });
    },
    close: (shutdownOptions: ShutdownOptions = {}) => closeAll(tracker, shutdownOptions),
  });
}

/**
 * Decides from the request headers what the request gets:
 *
 * ```text
 *   does not ask for a stream     ──▶ next(), without res.sse
 *   Last-Event-ID: the final id   ──▶ 204, after which an EventSource does not reconnect
 *   else                          ──▶ next(), with res.sse, or an answer if a limit is reached
 * ```
 */
function negotiate(
  req: IncomingMessage,
  res: NegotiatedResponse,
  next: Next,
  host: MiddlewareHost,
  tracker: StreamTracker,
): void {
  guardRequest(res, host);
  const isAsking = asksForEventStream(req);
  if (!isAsking && (host.accept === 'event-stream' || refusesEventStream(req))) {
    // The middleware in front may have `accept: 'any'`, and may have attached a stream.
    if (getStream(res)?.readyState === 0) res.sse = undefined;
    res[negotiatedBy] = host;
    next();
  } else if (isAsking && req.method === 'GET' && readLastEventId(req) === FINAL_ID) {
    sendNoContent(res);
  } else {
    attachStream(res, next, host, isAsking ? [tracker] : []);
  }
}

/**
 * Attaches a stream to the response, or lets `host` take over the stream of the middleware in front
 * that has not opened.
 * @param trackers the trackers that admit the stream now. There are none for a request that did not
 * name `text/event-stream`: the handler may answer such a request without a stream, so
 * `MiddlewareHost.admit()` decides when the stream opens.
 */
function attachStream(
  res: NegotiatedResponse,
  next: Next,
  host: MiddlewareHost,
  trackers: readonly StreamTracker[],
): void {
  const existing = getStream(res);
  let stream: EventStream;
  try {
    assertNoForeignStream(res);
    host.assertRevocable();
    stream = existing ?? new EventStream(res, host);
    if (stream.readyState === 0 && host.identities !== undefined) stream.guard = getGuard(res);
    // If the client has left already, the stream is closed, and would never release a place.
    if (stream.readyState === 0 && !host.admitTo(stream, trackers)) return;
  } catch (error) {
    next(error);
    return;
  }
  if (existing === undefined) res.sse = stream;
  else if (stream.readyState === 0) stream.host = host;
  next();
}

function closeWhere(
  tracker: StreamTracker,
  test: (stream: StreamWithRequest) => boolean,
  options: CloseOptions,
): number {
  const checkedOptions = assertCloseOptions('closeWhere()', options);
  const streams = [...tracker].filter((stream) => {
    const result: unknown = test(stream);
    // A promise is truthy, so an async test would end every stream.
    if (typeof result !== 'object' || result === null) return Boolean(result);
    throw new SseError(
      'ERR_SSE_OPTION',
      'expected the test of closeWhere() to return true or false; it cannot be async',
    );
  });
  tracker.endStreams(streams, 'revoked', checkedOptions);
  return streams.length;
}

function closeAll(tracker: StreamTracker, options: ShutdownOptions): Promise<Shutdown> {
  const checkedOptions = assertOptions('close()', options, shutdownRules);
  const { within = 10_000, retry = { min: 1_000, max: 5_000 } } = checkedOptions;
  return tracker.shutDown(within, toRetryRange(retry));
}

/** @throws {SseError} `ERR_SSE_OPTION` */
function assertIdentity(identity: string): void {
  if (typeof identity === 'string' && identity !== '') return;
  throw new SseError(
    'ERR_SSE_OPTION',
    `expected the identity to be a non-empty string, got ${describeValue(identity)}`,
  );
}

/** @throws {SseError} `ERR_SSE_OPTION` if `sse` itself was mounted and is called with a request */
function assertNoRequest(options: unknown): void {
  if (typeof options === 'object' && options !== null && 'httpVersion' in options) {
    throw new SseError(
      'ERR_SSE_OPTION',
      'sse was mounted without a call and got a request as its options; write app.use(sse())',
    );
  }
}

/** Warns about options in ms that were most likely meant in seconds. */
function checkStreamTimes(options: SseOptions): void {
  const { heartbeat, stallTimeout, maxLifetime, retry } = resolveStreamOptions(options);
  checkTimes('sse()', { heartbeat, stallTimeout, maxLifetime, retry: retry?.max });
}
