/** The marks that `sse()` leaves on a response: `res.sse`, or the host of a request without one. */
import type { ServerResponse } from 'node:http';
import { SseError } from '../common/errors.ts';
import { EventStream, type StreamHost } from '../stream/event-stream.ts';

/**
 * The property in which `sse()` leaves its host on a response that gets no stream. A response with
 * a stream has the host on the stream. The symbol is registered, so that two copies of the package
 * in one process understand each other.
 */
export const negotiatedBy: unique symbol = Symbol.for('res-sse.negotiatedBy');

/** A response that may have passed through `sse()`. */
export interface NegotiatedResponse extends ServerResponse {
  [negotiatedBy]?: StreamHost;
  sse?: EventStream | undefined;
}

/** @returns the stream of the response, or `undefined` if `res.sse` is something else or missing */
export function getStream({ sse }: { readonly sse?: unknown }): EventStream | undefined {
  return sse instanceof EventStream ? sse : undefined;
}

/** @returns the host of the last `sse()` that the response has passed through, if any */
export function getHost(res: NegotiatedResponse): StreamHost | undefined {
  return getStream(res)?.host ?? res[negotiatedBy];
}

/** @throws {SseError} `ERR_SSE_CONFLICT` if other middleware has set `res.sse` */
export function assertNoForeignStream({ sse }: { readonly sse?: unknown }): void {
  if (sse === undefined || sse === null || sse instanceof EventStream) return;
  throw new SseError(
    'ERR_SSE_CONFLICT',
    'res.sse is not a stream of res-sse; other middleware on this route sets res.sse, too: ' +
      'mount only one of them on this route',
  );
}
