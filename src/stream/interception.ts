/**
 * Interception of `res.write()` and `res.end()`. If the application or other middleware writes to
 * the response of a stream, the bytes must come after the bytes that the library has queued. So the
 * library replaces both methods of the response by its own methods, which call the original ones:
 *
 * ```text
 * res.write(x) ─► interceptedWrite ─┬─► writer.onApplicationWrite()    writes the queue
 *                                   └─► the method that was there before
 * ```
 *
 * A response is intercepted as soon as that is necessary: when its stream writes to the socket
 * directly, queues bytes or finds a wrapped `write()`, and when its request has a session.
 */
import type { ServerResponse } from 'node:http';
import { writerOf, type ResponseOwner } from './response-listeners.ts';

/** The methods that the response had as own properties, because middleware had wrapped them. */
export interface OverriddenMethods {
  readonly write: ServerResponse['write'] | undefined;
  readonly end: ServerResponse['end'] | undefined;
}

/** A writer, as the intercepted methods see the writer. */
export interface InterceptingWriter extends ResponseOwner {
  readonly overriddenMethods: OverriddenMethods | undefined;
  /**
   * The application called `res.write()` with this chunk. Called before the write has any effect.
   * @returns whether the write is to be made by {@link writeWhileHeld}, unless the stream is
   * compressed
   */
  onApplicationWrite(chunk: unknown): boolean;
  /** Writes for the application, from inside a wrapped `write()` that holds bytes of the stream. */
  writeWhileHeld(write: () => unknown): unknown;
  /**
   * The application called `res.end()`. Called before the end has any effect.
   * @param last the bytes that `res.end()` got
   * @returns `false` if the writer ends the response later, with these bytes
   */
  onApplicationEnd(last: Buffer | undefined): boolean;
  /** The body of the stream, if this library compresses it. */
  readonly gzip: object | undefined;
  /**
   * Encodes a chunk of the application.
   * @param write writes the encoded chunk to the response
   * @param onWritten the callback that the application has given
   */
  writeCompressed(
    chunk: Buffer,
    write: (encoded: Buffer) => unknown,
    onWritten: (() => void) | undefined,
  ): unknown;
  /** Encodes the last bytes of the response, if the stream is compressed. */
  encodeEnd(last: Buffer | undefined): Buffer | undefined;
}

// Shared by all responses without wrapped methods.
const NOT_OVERRIDDEN: OverriddenMethods = { write: undefined, end: undefined };

/**
 * Replaces the two methods of the response by the intercepting ones.
 * @returns the methods that were replaced
 */
export function interceptMethods(res: ServerResponse): OverriddenMethods {
  /* oxlint-disable typescript/unbound-method -- `callOriginal` passes the response as `this` */
  const write = Object.hasOwn(res, 'write') ? res.write : undefined;
  const end = Object.hasOwn(res, 'end') ? res.end : undefined;
  /* oxlint-enable typescript/unbound-method */
  res.write = interceptedWrite as ServerResponse['write'];
  res.end = interceptedEnd as ServerResponse['end'];
  return write === undefined && end === undefined ? NOT_OVERRIDDEN : { write, end };
}

/** Calls a method of the response as it was before the interception. */
export function callOriginal(
  res: ServerResponse,
  overridden: OverriddenMethods | undefined,
  method: 'write' | 'end',
  args: unknown[],
): unknown {
  return Reflect.apply(originalMethod(res, overridden, method), res, args);
}

/** Whether `res.write()` is the one of this library, so that nobody has replaced it since. */
export function isIntercepted(res: ServerResponse): boolean {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  return res.write === (interceptedWrite as unknown);
}

/** Whether middleware has replaced `res.write()`: its code then runs within each write. */
export function isWriteWrapped(
  res: ServerResponse,
  overridden: OverriddenMethods | undefined,
): boolean {
  const { write } = Object.getPrototypeOf(res) as { write: unknown };
  return applicationWriteOf(res, overridden) !== write;
}

/** @returns `res.write`; if that is the interception of this library, the method below it */
export function applicationWriteOf(
  res: ServerResponse,
  overridden: OverriddenMethods | undefined,
): unknown {
  // oxlint-disable-next-line typescript/unbound-method -- compared, never called
  return isIntercepted(res) ? originalMethod(res, overridden, 'write') : res.write;
}

function originalMethod(
  res: ServerResponse,
  overridden: OverriddenMethods | undefined,
  method: 'write' | 'end',
): ServerResponse['write'] | ServerResponse['end'] {
  return overridden?.[method] ?? (Object.getPrototypeOf(res) as ServerResponse)[method];
}

function interceptedWrite(this: ServerResponse, ...args: unknown[]): unknown {
  // The methods of a response are intercepted only by its own writer.
  const writer = writerOf(this) as InterceptingWriter;
  const { overriddenMethods } = writer;
  const write = (...chunk: unknown[]): unknown =>
    callOriginal(this, overriddenMethods, 'write', chunk);
  const isHeld = writer.onApplicationWrite(args[0]);
  if (writer.gzip !== undefined) {
    const { bytes, callback } = parseArguments(args);
    // If it is no chunk, Node throws its own error.
    if (bytes === undefined) return write(...args);
    return writer.writeCompressed(bytes, (encoded) => write(encoded, callback), callback);
  }
  return isHeld ? writer.writeWhileHeld(() => write(...args)) : write(...args);
}

function interceptedEnd(this: ServerResponse, ...args: unknown[]): unknown {
  const writer = writerOf(this) as InterceptingWriter;
  const hadEnded = this.writableEnded;
  const { bytes: last, callback } = parseArguments(args);
  if (!writer.onApplicationEnd(last)) {
    if (callback !== undefined) this.once('finish', callback);
    return this;
  }
  // Middleware may have ended the response when the queue was passed to its `write()`.
  if (this.writableEnded && !hadEnded) return this;
  const encoded = writer.gzip === undefined ? args : [writer.encodeEnd(last), callback];
  return withoutSession(this, () => callOriginal(this, writer.overriddenMethods, 'end', encoded));
}

/**
 * The arguments of `res.end(chunk, encoding, callback)` or `res.write()`, each of which may be
 * missing.
 */
function parseArguments(args: readonly unknown[]): {
  bytes: Buffer | undefined;
  callback: (() => void) | undefined;
} {
  const [chunk, encoding] = args;
  const callback = args.find((argument) => typeof argument === 'function');
  const bytes =
    typeof chunk === 'string'
      ? Buffer.from(chunk, typeof encoding === 'string' ? (encoding as BufferEncoding) : 'utf8')
      : chunk instanceof Uint8Array
        ? Buffer.from(chunk)
        : undefined;
  return { bytes, callback: callback as (() => void) | undefined };
}

/** A request with a session, by the convention of express-session. */
interface SessionRequest {
  session?: unknown;
}

/** Whether the request has a session that middleware saves when the response ends. */
export function hasSession(req: object): req is SessionRequest {
  const property = Object.getOwnPropertyDescriptor(req, 'session');
  const session: unknown = property?.writable === true ? property.value : undefined;
  return (
    typeof session === 'object' &&
    session !== null &&
    'save' in session &&
    typeof session.save === 'function'
  );
}

/**
 * Runs the function while the session of the request is hidden.
 *
 * express-session wraps `res.end()` and saves the session there. The session of a stream was loaded
 * when the request began, perhaps hours ago. If it were saved now, it would overwrite a newer one.
 */
export function withoutSession<T>({ req }: ServerResponse, action: () => T): T {
  if (!hasSession(req)) return action();
  const { session } = req;
  // `false` makes express-session treat the request as one without a session; `null` would make it
  // destroy the stored session.
  req.session = false;
  try {
    return action();
  } finally {
    req.session = session;
  }
}
