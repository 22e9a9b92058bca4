/**
 * The part of `ServerResponse` that the library uses, with a reader that receives bytes on demand.
 */
import { EventEmitter } from 'node:events';
import type { ServerResponse } from 'node:http';

// The default high-water mark of Node's writable streams, in bytes.
const HIGH_WATER_MARK = 16_384;

/** A response without a socket. Written bytes wait in a queue until {@link deliver} is called. */
export class FakeResponse extends EventEmitter {
  readonly req: object;
  readonly socket: object = {};
  statusCode = 200;
  headersSent = false;
  writableEnded = false;
  destroyed = false;
  /** Number of bytes that the reader has not received. */
  writableLength = 0;
  /**
   * Writes that the reader has not received yet. After a disconnect the reader never receives them.
   */
  unread: Buffer[] = [];
  readonly #onBytes: (bytes: Buffer) => void;
  readonly #onWrite: (bytes: Buffer) => void;
  /** Whether the reader receives each write at once, as a kernel with empty buffers does. */
  isEager: boolean;
  #needsDrain = false;
  #isClosing = false;

  /**
   * @param onBytes called when bytes have reached the reader
   * @param onWrite called when bytes are written
   */
  constructor(
    req: object,
    eager: boolean,
    onBytes: (bytes: Buffer) => void,
    onWrite: (bytes: Buffer) => void = () => {},
  ) {
    super();
    this.req = req;
    this.isEager = eager;
    this.#onBytes = onBytes;
    this.#onWrite = onWrite;
  }

  getHeader(): undefined {}

  getHeaderNames(): string[] {
    return [];
  }

  /** This response with the type that the library expects. */
  get asResponse(): ServerResponse {
    return this as unknown as ServerResponse;
  }

  setHeader(): this {
    return this;
  }

  removeHeader(): void {}

  getHeaders(): object {
    return {};
  }

  flushHeaders(): void {
    this.headersSent = true;
  }

  // A fake response has no packets, so there is nothing to cork.
  cork(): void {}

  uncork(): void {}

  write(bytes: Buffer): boolean {
    if (this.writableEnded) throw new Error('write after end');
    // Like Node, ignore writes between `destroy()` and `'close'`.
    if (this.destroyed) return false;
    this.headersSent = true;
    this.#onWrite(bytes);
    if (this.isEager && this.unread.length === 0) {
      this.#onBytes(bytes);
      return true;
    }
    this.unread.push(bytes);
    this.writableLength += bytes.length;
    if (this.writableLength >= HIGH_WATER_MARK) this.#needsDrain = true;
    return this.writableLength < HIGH_WATER_MARK;
  }

  /** Delivers up to `writes` writes to the reader, and emits `'drain'` if necessary. */
  deliver(writes: number): void {
    if (this.destroyed) return;
    for (const bytes of this.unread.splice(0, writes)) {
      this.writableLength -= bytes.length;
      this.#onBytes(bytes);
    }
    if (this.unread.length > 0) return;
    if (this.writableEnded) this.#close();
    else if (this.#needsDrain) {
      this.#needsDrain = false;
      this.emit('drain');
    }
  }

  end(): void {
    this.headersSent = true;
    this.writableEnded = true;
    if (this.unread.length === 0) this.#close();
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.writableLength = 0;
    this.#close();
  }

  #close(): void {
    if (this.#isClosing) return;
    this.#isClosing = true;
    // Like Node, emit `'close'` after the call that ends the response has returned.
    process.nextTick(() => {
      this.destroyed = true;
      this.emit('close');
    });
  }
}
