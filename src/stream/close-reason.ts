/**
 * The reasons why a stream ends. If the library has not ended a stream itself, the functions of
 * this file find out the reason.
 */
import type { ServerResponse } from 'node:http';
import type { Http2ServerResponse } from 'node:http2';
import type { Socket } from 'node:net';

/**
 * Why a stream ended:
 * - `'client'`: the client disconnected, or the network between failed
 * - `'server'`: this process closed the stream, ended the response or destroyed the connection
 *   (a timeout of Node's HTTP server included)
 * - `'final'`: closed with `final: true`, or all channels of the stream have ended; the client was
 *   told not to reconnect
 * - `'slow'`: more than `maxBuffered` bytes were queued when an event was sent
 * - `'stalled'`: the client read none of the queued bytes for `stallTimeout`
 * - `'aged'`: the stream was older than `maxLifetime`
 * - `'revoked'`: ended by `closeWhere()` or `revoke()`, or refused by `authorize`; also if a
 *   revocation of the stream may have been missed and there is no `authorize`
 * - `'shutdown'`: the middleware or the channels were closed
 * - `'error'`: code that serves this stream threw, or the response was destroyed with an error
 */
export type CloseReason =
  | 'client'
  | 'server'
  | 'final'
  | 'slow'
  | 'stalled'
  | 'aged'
  | 'revoked'
  | 'shutdown'
  | 'error';

/** The reason of an end, and the application's error if there was one. */
export interface ResponseEnd {
  readonly reason: CloseReason;
  readonly error: Error | undefined;
}

type AnyResponse = ServerResponse | Http2ServerResponse;

/** The transport of a response: a socket, or a stream of an HTTP/2 session. */
type Transport = Partial<Pick<Socket, 'errored' | 'readableEnded'>> & {
  readonly rstCode?: number | undefined;
};

// Code of the error with which Node destroys the socket of a request that took too long.
const NODE_TIMEOUT_CODE = 'ERR_HTTP_REQUEST_TIMEOUT';

// Codes of errors that the peer causes: broken connections and violations of the protocol.
const PEER_ERROR_CODES = /^(HPE_|ECONNRESET$|EPIPE$|ERR_SSL_|ERR_TLS_|ERR_HTTP2_)/;

/** Whether the connection of the response was closed before a stream was made of the response. */
export function isConnectionClosed(res: AnyResponse): boolean {
  if ('stream' in res) return res.stream.destroyed;
  // A pipelined response has no socket before its turn, so the end of the connection does not
  // destroy the response.
  return res.destroyed || (res.socket === null && res.req.socket.destroyed);
}

/** Finds out why a response has ended, if the library has neither ended nor destroyed it. */
export function explainEnd(res: ServerResponse): ResponseEnd {
  if (res.writableEnded) return { reason: 'server', error: undefined };
  const error = findApplicationError(res);
  if (error !== undefined) return { reason: 'error', error };
  return { reason: isDestroyedByServer(res) ? 'server' : 'client', error: undefined };
}

/** @returns the error that the application passed to `destroy()`, if there was one */
function findApplicationError(res: AnyResponse): Error | undefined {
  const { errored } = transportOf(res);
  if (!errored) return undefined;
  const { code, syscall } = errored as NodeJS.ErrnoException;
  const isFromElsewhere =
    syscall !== undefined ||
    (code !== undefined && (code === NODE_TIMEOUT_CODE || PEER_ERROR_CODES.test(code)));
  return isFromElsewhere ? undefined : errored;
}

/** Whether this process destroyed the response: the peer sent neither an end nor an error. */
function isDestroyedByServer(res: AnyResponse): boolean {
  const { errored, readableEnded, rstCode = 0 } = transportOf(res);
  if (errored) return (errored as NodeJS.ErrnoException).code === NODE_TIMEOUT_CODE;
  // An HTTP/2 peer resets a stream with a code, or without a code after the end of its own data.
  return readableEnded === false && rstCode === 0;
}

function transportOf(res: AnyResponse): Transport {
  if ('stream' in res) return res.stream;
  // The mock responses of some adapters have no socket.
  const socket: Socket | null | undefined = res.socket ?? res.req.socket;
  return socket ?? {};
}
