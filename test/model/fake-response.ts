/** The least of a `ServerResponse` that the library uses, with a reader who takes bytes when told to. */
import { EventEmitter } from 'node:events';
import type { ServerResponse } from 'node:http';

// From here on Node's writables say that they have enough.
const HIGH_WATER_MARK = 16_384;

export class FakeResponse extends EventEmitter {
  readonly req: object;
  readonly socket: object = {};
  statusCode = 200;
  headersSent = false;
  writableEnded = false;
  destroyed = false;
  /** Bytes that the reader has not taken. */
  writableLength = 0;
  /** What the reader has not taken and never will: it left before. */
  untaken: Buffer[] = [];
  readonly #onBytes: (bytes: Buffer) => void;
  readonly #onWrite: (bytes: Buffer) => void;
  /** Whether the reader takes whatever comes at once, as a kernel does whose buffers are empty. */
  eager: boolean;
  #needsDrain = false;
  #closing = false;

  /**
   * @param onBytes bytes have come to the reader
   * @param onWrite bytes were written
   */
  constructor(
    req: object,
    eager: boolean,
    onBytes: (bytes: Buffer) => void,
    onWrite: (bytes: Buffer) => void = () => {},
  ) {
    super();
    this.req = req;
    this.eager = eager;
    this.#onBytes = onBytes;
    this.#onWrite = onWrite;
  }

  getHeader(): undefined {}

  getHeaderNames(): string[] {
    return [];
  }

  /** As the library sees it. */
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

  // Packets are the kernel's business.
  cork(): void {}

  uncork(): void {}

  write(bytes: Buffer): boolean {
    if (this.writableEnded || this.destroyed) throw new Error('written to after its end');
    this.headersSent = true;
    this.#onWrite(bytes);
    if (this.eager && this.untaken.length === 0) {
      this.#onBytes(bytes);
      return true;
    }
    this.untaken.push(bytes);
    this.writableLength += bytes.length;
    if (this.writableLength >= HIGH_WATER_MARK) this.#needsDrain = true;
    return this.writableLength < HIGH_WATER_MARK;
  }

  /** The reader takes so many writes. */
  take(writes: number): void {
    if (this.destroyed) return;
    for (const bytes of this.untaken.splice(0, writes)) {
      this.writableLength -= bytes.length;
      this.#onBytes(bytes);
    }
    if (this.untaken.length > 0) return;
    if (this.writableEnded) this.#close();
    else if (this.#needsDrain) {
      this.#needsDrain = false;
      this.emit('drain');
    }
  }

  end(): void {
    this.writableEnded = true;
    if (this.untaken.length === 0) this.#close();
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.writableLength = 0;
    this.#close();
  }

  #close(): void {
    if (this.#closing) return;
    this.#closing = true;
    // As Node does, not in the middle of the call that ends it.
    process.nextTick(() => {
      this.destroyed = true;
      this.emit('close');
    });
  }
}
