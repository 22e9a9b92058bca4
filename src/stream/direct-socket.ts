/** The condition under which the bytes of a stream may bypass `res.write()`. */
import { OutgoingMessage, type ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { Writable } from 'node:stream';

// Node's own `write()`. Any other `write()` of a response has to see the bytes. An agent may have
// replaced the method before this module was loaded; the text of the function tells. If a version
// of Node has another text, the bytes go through `res.write()`, which is slower and correct.
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
 * before it passes a chunk on. The bytes keep their order only if the writer passes them itself.
 */
export function hasReplacedWrite(socket: Socket): boolean {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  return socket.write !== NODE_SOCKET_WRITE;
}

/**
 * Finds the socket to which a stream may write HTTP chunks itself. Then one chunk, framed once,
 * serves all streams. Nobody must be able to tell the difference, so all of these must hold:
 * HTTP/1.1 with chunked encoding, `write()` not wrapped, content not encoded, the response has the
 * socket, and its head was written.
 * @param write the response's `write()` without the interception of this library
 * @returns `null` if the stream must never bypass the response; `undefined` if the response is
 * still pipelined or holds bytes, so that the caller has to ask again later
 */
export function findDirectSocket(res: ServerResponse, write: unknown): Socket | null | undefined {
  const { socket } = res;
  if (socket === null || res.writableLength > 0) return undefined;
  // An HTTP/2 response has no `chunkedEncoding`, although its socket is an instance of `Socket`.
  if (!res.chunkedEncoding || res.req.httpVersionMajor !== 1 || !(socket instanceof Socket)) {
    return null;
  }
  return write === NODE_WRITE && !res.hasHeader('content-encoding') ? socket : null;
}
