/** The answers to requests that get no event stream. */
import type { ServerResponse } from 'node:http';
import { preferredType } from '../protocol/request-headers.ts';
import { formatRetry } from '../protocol/event-stream-format.ts';

/**
 * Answers a request that gets no stream with one sentence: as JSON with a code if the client
 * prefers JSON, else as plain text.
 * @param status the status of the answer
 * @param code the error code in the JSON
 * @param message the sentence
 * @internal
 */
export function refuse(res: ServerResponse, status: number, code: string, message: string): void {
  const isJson = preferredType(res.req, ['text/plain', 'application/json']) === 'application/json';
  res.statusCode = status;
  res.setHeader(
    'Content-Type',
    isJson ? 'application/json; charset=utf-8' : 'text/plain; charset=utf-8',
  );
  res.end(isJson ? JSON.stringify({ code, message }) : `${message}\n`);
}

/**
 * Asks an EventSource to reconnect later, with an event stream that ends at once. The status is
 * 200, because an EventSource never reconnects after any other status.
 * @param retry reconnection time in ms
 */
export function sendReconnectionTime(res: ServerResponse, retry: number): void {
  res.statusCode = 200;
  res.setHeader('Content-Type', 'text/event-stream');
  res.setHeader('Cache-Control', 'no-cache, no-transform');
  res.end(formatRetry(retry));
}

/**
 * Answers 503 with `Retry-After`. Clients other than EventSource would take an empty stream with
 * the status 200 for success.
 * @param retry time in ms after which the client should try again
 */
export function sendUnavailable(res: ServerResponse, retry: number): void {
  res.setHeader('Retry-After', Math.ceil(retry / 1_000));
  refuse(res, 503, 'ERR_SSE_UNAVAILABLE', 'No streams are accepted now; try again later.');
}

/**
 * Answers a client that has received everything: its stream was closed with `final: true`, or all
 * of its channels have ended. An EventSource does not reconnect after the status 204.
 */
export function sendNoContent(res: ServerResponse): void {
  res.statusCode = 204;
  res.setHeader('Cache-Control', 'no-store');
  res.end();
}
