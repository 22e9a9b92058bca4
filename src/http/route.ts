/** `stream()`: route handlers for event streams. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import {
  assertNoForeignStream,
  getHost,
  getStream,
  type NegotiatedResponse,
} from './negotiated-response.ts';
import { refuse } from './refusals.ts';
import { SseError } from '../common/errors.ts';
import { assertOptions, booleanRule } from '../common/options.ts';
import type { PipeSource } from '../common/source.ts';
import type { EventStream } from '../stream/event-stream.ts';

/** The `next` function of Express and Connect. */
export type Next = (error?: unknown) => void;

/** @ts-ignore -- `any` if the types of Express are not installed */
type ExpressRequest = import('express').Request<Record<string, string>>;

/** @ts-ignore -- `any` if the types of Express are not installed */
type ExpressResponse = import('express').Response;

/**
 * The request that a route handler gets: Express's type if the types of Express are installed, else
 * Node's.
 */
export type RouteRequest = 0 extends 1 & ExpressRequest ? IncomingMessage : ExpressRequest;

/**
 * The response that a route handler gets: Express's type if the types of Express are installed,
 * else Node's.
 */
export type RouteResponse = 0 extends 1 & ExpressResponse ? ServerResponse : ExpressResponse;

/**
 * The route handler that `stream()` and `channels.listen()` return. A bare server may call the
 * handler, too.
 * @typeParam Req the request type of the framework
 * @typeParam Res the response type of the framework
 */
export type RouteHandler<
  Req extends IncomingMessage = RouteRequest,
  Res extends ServerResponse = RouteResponse,
> = (
  req: Req | IncomingMessage | Http2ServerRequest,
  res: Res | ServerResponse | Http2ServerResponse,
  next: Next,
) => void;

/** The options of `stream()`. */
export interface RouteOptions {
  /**
   * Whether the stream is closed with `final` after an iterable that the handler returned. Without
   * `final`, the client would reconnect, and the handler would run again.
   * @defaultValue `true`
   */
  final?: boolean | undefined;
}

// Time in ms after which the stream opens, even if the iterable has not yielded an item yet.
const OPEN_AFTER_MS = 1_000;

/**
 * Returns a route handler for the common case. The handler gets a stream as its first argument;
 * requests that did not ask for an event stream are answered with 406.
 *
 * The stream opens at the first write of the handler, and at the latest when the handler has
 * returned or its promise is resolved. An error that the handler throws before that is passed to
 * `next`, with nothing sent. After an error that the handler throws later, the stream ends with the
 * reason `'error'` and `onError` of `sse()` is called; the client is not told about the error.
 *
 * If the handler returns an iterable or async iterable, the items are piped, and the stream ends.
 *
 * The handler is not called if the client has left already. To clean up, use
 * `stream.closed.then(...)`: unlike a listener for `signal`, the callback also runs if the stream
 * has ended before.
 * @param handler writes to the stream, or returns an iterable of items
 * @param options all optional; see {@link RouteOptions}
 * @throws {SseError} `ERR_SSE_OPTION` for a wrong option. For a request without `app.use(sse())` in
 * front, the returned handler throws `ERR_SSE_NO_MIDDLEWARE`.
 * @example
 * app.get('/progress/:job', stream(async function* (stream, req) {
 *   for await (const step of jobs.follow(req.params.job, { signal: stream.signal })) yield step;
 * }));
 */
export function stream<
  Req extends IncomingMessage = RouteRequest,
  Res extends ServerResponse = RouteResponse,
>(
  handler: (stream: EventStream, req: Req, res: Res) => unknown,
  options: RouteOptions = {},
): RouteHandler<Req, Res> {
  const { final = true } = assertOptions('stream()', options, { final: booleanRule });
  return (req, res, next) => {
    const stream = requireStream(res as NegotiatedResponse);
    if (stream !== undefined) {
      void runHandler(stream, () => handler(stream, req as Req, res as Res), final, next);
    }
  };
}

/**
 * Returns the stream on which the handler is to be called. If there is none, the request has been
 * answered or its client has left.
 * @throws {SseError} `ERR_SSE_NO_MIDDLEWARE`, `ERR_SSE_CONFLICT`
 */
function requireStream(res: NegotiatedResponse): EventStream | undefined {
  const host = getHost(res);
  const stream = getStream(res);
  if (host === undefined) {
    assertNoForeignStream(res);
    throw new SseError(
      'ERR_SSE_NO_MIDDLEWARE',
      'no sse() middleware ran for this request; add app.use(sse()) before this route',
    );
  }
  if (stream === undefined) {
    refuse(
      res,
      406,
      'ERR_SSE_NOT_ACCEPTABLE',
      'This is an event stream; send the header Accept: text/event-stream',
    );
    return undefined;
  }
  // The client has left while middleware in front was running. Listeners that a handler adds for
  // the end of the stream would never be called and never be removed.
  if (stream.readyState === 2) return undefined;
  // A stream that is not admitted must not cause the work of the handler.
  return stream.readyState === 1 || host.admit?.(stream) !== false ? stream : undefined;
}

/** Calls the handler, then pipes its iterable or opens the stream. Never rejects. */
async function runHandler(
  stream: EventStream,
  handler: () => unknown,
  final: boolean,
  next: Next,
): Promise<void> {
  try {
    const result = await handler();
    if (isPipeSource(result)) await pipeAndClose(stream, result, final);
    // A subscription whose start is not known yet opens the stream by itself.
    else if (
      stream.readyState === 0 &&
      !stream.res.headersSent &&
      stream.follower?.isStartingOrCatchingUp !== true
    ) {
      stream.open();
    }
  } catch (error) {
    if (stream.readyState === 0) next(error);
    else stream.fail(error);
  }
}

async function pipeAndClose(
  stream: EventStream,
  source: PipeSource<unknown>,
  final: boolean,
): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const openingFailed = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      try {
        // Other middleware may have answered meanwhile, for example one that limits the time.
        if (!stream.res.headersSent) stream.open();
      } catch (error) {
        // oxlint-disable-next-line typescript/prefer-promise-reject-errors -- passed on unchanged
        reject(error);
      }
    }, OPEN_AFTER_MS);
  });
  try {
    await Promise.race([stream.pipe(source), openingFailed]);
  } finally {
    clearTimeout(timer);
  }
  stream.close({ final });
}

function isPipeSource(value: unknown): value is PipeSource<unknown> {
  return (
    typeof value === 'object' &&
    value !== null &&
    (Symbol.asyncIterator in value || Symbol.iterator in value)
  );
}
