/** Route handlers for event streams, and the answers to those who cannot have one. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { SseError } from '../common/errors.ts';
import { EventStream, type StreamHost } from '../stream/event-stream.ts';
import { assertOptions, booleanRule } from '../common/options.ts';
import type { PipeSource } from '../stream/pipe.ts';
import { preferredType } from '../protocol/request-headers.ts';

/** Express's and Connect's `next`. */
export type Next = (error?: unknown) => void;

/** @ts-ignore -- without Express's types it is `any` */
type ExpressRequest = import('express').Request<Record<string, string>>;

/** @ts-ignore -- without Express's types it is `any` */
type ExpressResponse = import('express').Response;

/** The request that a route handler gets: Express's where its types are installed, else Node's. */
export type RouteRequest = 0 extends 1 & ExpressRequest ? IncomingMessage : ExpressRequest;

/** The response that a route handler gets: Express's where its types are installed, else Node's. */
export type RouteResponse = 0 extends 1 & ExpressResponse ? ServerResponse : ExpressResponse;

/**
 * What `stream()` and `channels.listen()` return: a handler for a route.
 * `Req` and `Res` are what the framework hands over; a bare server may call it, too.
 */
export type RouteHandler<
  Req extends IncomingMessage = RouteRequest,
  Res extends ServerResponse = RouteResponse,
> = (
  req: Req | IncomingMessage | Http2ServerRequest,
  res: Res | ServerResponse | Http2ServerResponse,
  next: Next,
) => void;

/** How a route's streams end. */
export interface RouteOptions {
  /**
   * Whether the stream of a handler that returned an iterable ends with `final`, so that the client does not come back
   * to run it again.
   * @defaultValue `true`
   */
  final?: boolean | undefined;
}

/**
 * Where `sse()` leaves its host on a response that gets no stream; one that does has it on the stream.
 * A registered symbol, so that two copies of the package in one process understand each other.
 */
export const negotiatedBy: unique symbol = Symbol.for('res-sse.negotiatedBy');

/** A response that may have passed `sse()`. */
export interface NegotiatedResponse extends ServerResponse {
  [negotiatedBy]?: StreamHost;
  sse?: EventStream | undefined;
}

/** The stream of this response. Something else may have put something of its own there. */
export function streamOf({ sse }: { readonly sse?: unknown }): EventStream | undefined {
  return sse instanceof EventStream ? sse : undefined;
}

/** The host of the `sse()` that this response has passed. */
export function hostOf(res: NegotiatedResponse): StreamHost | undefined {
  return streamOf(res)?.host ?? res[negotiatedBy];
}

/** @throws {SseError} `ERR_SSE_CONFLICT` where `res.sse` is something else */
export function assertUnoccupied({ sse }: { readonly sse?: unknown }): void {
  if (sse === undefined || sse === null || sse instanceof EventStream) return;
  throw new SseError(
    'ERR_SSE_CONFLICT',
    'res.sse is not a stream of res-sse: other middleware on this route sets it, too; mount only one of them there',
  );
}

// A generator that has nothing to say yet lets its client wait this long in ms for the head.
const OPEN_AFTER = 1_000;

/**
 * A route handler for the common case: it hands over a stream that is always there, and answers 406 to whoever did not ask for one.
 *
 * The stream opens when the handler first writes to it, and at the latest when it has returned or its promise is resolved.
 * What it throws before that is an ordinary error for `next`, with nothing sent; after that the stream ends with the
 * reason `'error'`, `onError` of `sse()` is told the error, and the client is told nothing of it.
 * An (async) iterable that the handler returns is piped, and the stream ended.
 * The handler is not called for a client that has left meanwhile. Clean up with `stream.closed.then(...)`, which also runs where
 * the stream has ended before; a listener for `signal` does not.
 * @throws {SseError} `ERR_SSE_NO_MIDDLEWARE`, when a request comes, without `app.use(sse())` in front
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
      void run(stream, () => handler(stream, req as Req, res as Res), final, next);
    }
  };
}

/**
 * Answers a request that gets no stream with a sentence, as JSON to whoever takes JSON.
 * @internal
 */
export function refuse(res: ServerResponse, status: number, code: string, message: string): void {
  const json = preferredType(res.req, ['text/plain', 'application/json']) === 'application/json';
  res.statusCode = status;
  res.setHeader(
    'Content-Type',
    json ? 'application/json; charset=utf-8' : 'text/plain; charset=utf-8',
  );
  res.end(json ? JSON.stringify({ code, message }) : `${message}\n`);
}

/** The stream of a request that is to have one, or nothing where the request has its answer. */
function requireStream(res: NegotiatedResponse): EventStream | undefined {
  const host = hostOf(res);
  const own = streamOf(res);
  if (host === undefined) {
    assertUnoccupied(res);
    throw new SseError(
      'ERR_SSE_NO_MIDDLEWARE',
      'nobody has looked for an event stream here; put app.use(sse()) in front of this route',
    );
  }
  if (own === undefined) {
    refuse(
      res,
      406,
      'ERR_SSE_NOT_ACCEPTABLE',
      'This is an event stream; send the header Accept: text/event-stream',
    );
    return undefined;
  }
  // Its client has left while earlier middleware was at work. What a handler registers for it would stay for ever.
  if (own.readyState === 2) return undefined;
  // Before the handler is put to work for a stream that may be one too many.
  return own.readyState === 1 || host.admit?.(own) !== false ? own : undefined;
}

async function run(
  stream: EventStream,
  handler: () => unknown,
  final: boolean,
  next: Next,
): Promise<void> {
  try {
    const result = await handler();
    if (isPipeSource(result)) await pipeAndClose(stream, result, final);
    // A subscription opens the stream when its start is known.
    else if (
      stream.readyState === 0 &&
      !stream.res.headersSent &&
      stream.follower?.isWaiting !== true
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
  const opening = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      try {
        // Something else may have answered meanwhile, a timeout in front for one.
        if (!stream.res.headersSent) stream.open();
      } catch (error) {
        // oxlint-disable-next-line typescript/prefer-promise-reject-errors -- whatever was thrown is passed on
        reject(error);
      }
    }, OPEN_AFTER);
  });
  try {
    await Promise.race([stream.pipe(source), opening]);
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
