/** The head and the end of a response: starts an event stream, and ends it in all possible ways. */
import type { ServerResponse } from 'node:http';
import { SseError } from '../common/errors.ts';
import { acceptsGzip } from '../protocol/request-headers.ts';
import { isConnectionClosed, type CloseReason } from './close-reason.ts';
import { hasSession, type InterceptingWriter } from './interception.ts';
import {
  liftTimeout,
  registerPipelined,
  restoreTimeout,
  unregisterPipelined,
} from './pipelining.ts';
import { sendHead, setCorkedBytes } from './response-head.ts';
import { closeSession, rememberSession } from './http2-session.ts';
import { ignoreClose, listenToResponse } from './response-listeners.ts';
import { ResponseWriter } from './response-writer.ts';
import type { StreamSettings } from './stream-options.ts';

/** The base class of `SendLimit`: one response from its head to its end. */
export abstract class ResponseLifecycle extends ResponseWriter {
  /** @internal */
  constructor(res: ServerResponse) {
    super(res);
    if (isConnectionClosed(res)) {
      // The client left while earlier middleware ran, and the response emits no 'close' (any more).
      this.setState('client');
      return;
    }
    // Not `implements`: the published types have no `@internal` members, so the clause would be an
    // error there.
    listenToResponse(res, this satisfies InterceptingWriter);
    registerPipelined(res, this);
  }

  /** The response is closed. Called once, after {@link onEnded}. @internal */
  protected abstract onClosed(): void;
  /** Makes or removes the {@link gzip} body. @internal */
  protected abstract setCompressed(isCompressed: boolean): void;

  /**
   * Sends status 200, the headers and the first bytes, in one packet with everything else that is
   * written in this tick. The answer to a HEAD request ends after the head.
   * @param prelude text that comes before everything else
   * @throws {SseError} `ERR_SSE_HEADERS_SENT` if the response has begun as something else
   * @internal
   */
  protected writeHead(settings: StreamSettings, prelude: string): void {
    const { res } = this;
    if (res.headersSent) {
      throw new SseError(
        'ERR_SSE_HEADERS_SENT',
        'the response has already begun as something else; open the stream before writing to it',
      );
    }
    const isCompressed =
      settings.compress && acceptsGzip(res.req) && !res.hasHeader('content-encoding');
    this.setCompressed(isCompressed && res.req.method !== 'HEAD');
    // If a listener for the head sends an event, the event is queued after the prelude.
    const first = Buffer.from(prelude);
    this.setQueue([this.gzip === undefined ? first : this.gzip.begin(first)]);
    this.setState('open');
    try {
      sendHead(res, settings, isCompressed, this);
    } catch (error) {
      this.setQueue(undefined);
      this.setCompressed(false);
      if (this.readyState === 1) this.setState('idle');
      throw error;
    }
    if (res.req.method === 'HEAD') {
      this.setQueue(undefined);
      this.markEnded('server');
      this.endResponse();
      return;
    }
    liftTimeout(res);
    rememberSession(res);
    // Otherwise the end of the response would save the session, and what the application writes to
    // a compressed response would not be encoded.
    if (hasSession(res.req) || this.gzip !== undefined) this.intercept();
    this.pumpQueue();
    setCorkedBytes(this, this.bytesInResponse);
  }

  /**
   * Ends the stream after the queued bytes.
   * @param last bytes to write before the end
   * @internal
   */
  endFor(reason: CloseReason, last?: Buffer): void {
    if (this.readyState !== 0 && !this.checkWritable()) return;
    const wasOpen = this.readyState === 1;
    if (last !== undefined) this.writeBytes(last);
    this.markEnded(reason);
    // If bytes are queued, the response ends after the last of them.
    if (!wasOpen || this.hasQueue) return;
    if (this.isPassingBytes) this.endAfterOwnWrite();
    else this.endResponse();
  }

  /**
   * Closes the connection of a response that has ended, so that the client does not reuse the
   * connection. An HTTP/2 session may carry other streams: the session accepts no new streams, and
   * ends with the last one.
   * @internal
   */
  closeConnection(): void {
    const { res } = this;
    if ('stream' in res) closeSession(res);
    else if (res.req.httpVersionMajor === 1 && res.writableFinished) res.req.socket.destroySoon();
  }

  /** The response or its connection is closed, for any reason. @internal */
  onResponseClosed(): void {
    ignoreClose(this.res);
    unregisterPipelined(this.res, this);
    restoreTimeout(this.res);
    this.stopWriting();
    this.onEndedElsewhere();
    this.onClosed();
  }

  /**
   * The application writes to the response itself. The queue is passed to the response before, and
   * from here on all bytes go through `res.write()`.
   * @returns whether a wrapped `write()` holds bytes of the stream
   * @internal
   */
  onApplicationWrite(chunk: unknown): boolean {
    // A wrapper that was added later passes on the bytes of the stream itself.
    if (this.isPassing(chunk)) return false;
    this.leaveSocket();
    // Called from inside a wrapped `write()` that has bytes of the stream. The queue would overtake
    // these bytes, and is passed on when that `write()` has returned.
    if (this.isHeldByWrapper) return true;
    const { hasQueue } = this;
    this.passWholeQueue();
    // If the stream was closed before, its end waited for the queue, and now waits for this write.
    if (hasQueue && !this.hasQueue && this.readyState === 2) this.endAfterOwnWrite();
    return false;
  }

  /**
   * Writes a chunk of the application to a compressed response, behind everything that was encoded
   * before: what was encoded first must be sent first. See `InterceptingWriter`. @internal
   */
  writeCompressed(
    chunk: Buffer,
    write: (encoded: Buffer) => unknown,
    onWritten: (() => void) | undefined,
  ): unknown {
    // A wrapper passes on bytes of the stream, or `end()` writes the last bytes: both are encoded.
    if (this.isPassing(chunk) || this.gzip?.isEnd(chunk) === true) return write(chunk);
    const encoded = this.encode(chunk);
    if (this.isHeldByWrapper) {
      this.queueBehindHeld(encoded);
      if (onWritten !== undefined) process.nextTick(onWritten);
      return true;
    }
    const hasRoom = this.passToResponse(encoded, () => write(encoded));
    this.pumpQueue();
    return hasRoom;
  }

  /**
   * The application ends the response itself. Pending events are written before the end: at most
   * two frames.
   * @param last bytes that the application writes with the end
   * @returns `false` if the response must not end now, because a wrapped `write()` that has bytes
   * of the stream has called this method, or the queue is being passed on: the response ends when
   * that has returned
   * @internal
   */
  onApplicationEnd(last: Buffer | undefined): boolean {
    if (this.readyState === 1) this.flush();
    if (this.isHeldByWrapper || this.isPassingQueue) {
      this.endAfterWrapper(last);
      this.markEnded('server');
      return false;
    }
    // Also if the stream was closed before and its end waited for the queue.
    this.passWholeQueue();
    this.markEnded('server');
    return true;
  }

  /**
   * Ends the response when the `write()` from which this is called has returned. Nothing is queued.
   * @internal
   */
  private endAfterOwnWrite(): void {
    // An empty queue means that the end waits. After a `write()` of the stream, `pumpQueue()` finds
    // the queue empty and ends the response.
    this.setQueue([]);
    if (!this.isPassingBytes) process.nextTick(() => this.uncork());
  }
}
