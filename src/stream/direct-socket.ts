/** The condition under which the bytes of a stream may bypass `res.write()`. */
import { OutgoingMessage, type ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { Writable } from 'node:stream';

// Node's own `write()`. If a response has any other `write()`, the bytes must be passed to it. A
// monitoring agent may have replaced Node's method before this module was loaded, so the text of
// the function is checked. If a version of Node has another text, all bytes are passed to
// `res.write()`, which is slower but correct.
/* oxlint-disable typescript/unbound-method -- compared, never called */
const NODE_WRITE: unknown = /\bwrite_\(this\b/.test(
  Function.prototype.toString.call(OutgoingMessage.prototype.write),
)
  ? OutgoingMessage.prototype.write
  : undefined;

// A socket inherits its `write()` from Writable.
const NODE_SOCKET_WRITE: unknown = Writable.prototype.write;
/* oxlint-enable typescript/unbound-method */

/**
 * Whether an agent has replaced the `write()` of the socket. Such a method may call the library
 * before it passes a chunk on. So the writer itself must make the write, and queue other bytes
 * meanwhile: otherwise the bytes would not keep their order.
 */
export function hasReplacedWrite(socket: Socket): boolean {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  return socket.write !== NODE_SOCKET_WRITE;
}

/**
 * Finds the socket to which a stream may write HTTP chunks directly. Then one chunk, framed once,
 * is written to all streams. The effect must be the same as that of `res.write()`, so all of these
 * conditions must be met: HTTP/1.1 with chunked encoding, `write()` not wrapped, content not
 * encoded by middleware, the response has the socket, and its head was written.
 * @param write the response's `write()` without the interception of this library
 * @param isCompressed whether the content is encoded by this library
 * @returns `null` if the stream must never bypass the response; `undefined` if the response is
 * still pipelined or holds bytes, so that the caller has to ask again later
 */
export function findDirectSocket(
  res: ServerResponse,
  write: unknown,
  isCompressed: boolean,
): Socket | null | undefined {
  const { socket } = res;
  if (socket === null || res.writableLength > 0) return undefined;
  // An HTTP/2 response has no `chunkedEncoding`, although its socket is an instance of `Socket`.
  if (!res.chunkedEncoding || res.req.httpVersionMajor !== 1 || !(socket instanceof Socket)) {
    return null;
  }
  const isEncoded = !isCompressed && res.hasHeader('content-encoding');
  return write === NODE_WRITE && !isEncoded ? socket : null;
}
