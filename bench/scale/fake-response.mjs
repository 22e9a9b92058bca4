/** A fake of `ServerResponse`, whose client takes all bytes at once and stores none. */
import { EventEmitter } from 'node:events';
import process from 'node:process';

/** Implements only the members of `ServerResponse` that the library uses. */
export class FakeResponse extends EventEmitter {
  socket = {};
  statusCode = 200;
  headersSent = false;
  writableEnded = false;
  destroyed = false;
  writableLength = 0;
  /** Number of bytes that were written. */
  taken = 0;

  constructor(headers) {
    super();
    this.req = {
      method: 'GET',
      url: '/',
      headers: { accept: 'text/event-stream', ...headers },
      socket: {},
    };
  }

  setHeader() {
    return this;
  }

  removeHeader() {}

  getHeader() {}

  getHeaders() {
    return {};
  }

  getHeaderNames() {
    return [];
  }

  flushHeaders() {
    this.headersSent = true;
  }

  cork() {}

  uncork() {}

  write(bytes) {
    this.headersSent = true;
    this.taken += bytes.length;
    return true;
  }

  end() {
    this.writableEnded = true;
    this.destroy();
  }

  destroy() {
    if (this.destroyed) return;
    this.destroyed = true;
    process.nextTick(() => this.emit('close'));
  }
}
