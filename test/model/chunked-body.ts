/**
 * A strict parser of a response with chunked transfer coding (RFC 9112, section 7.1), from its head
 * on.
 */
import { Violation } from './truth.ts';

const LINE_END = Buffer.from('\r\n');

/** Extracts the body of a response with chunked transfer coding. */
export class ChunkedBody {
  readonly #onBytes: (bytes: Buffer) => void;
  #rest: Buffer = Buffer.alloc(0);
  #state: 'head' | 'size' | 'data' | 'data end' | 'end' = 'head';
  // Number of bytes of the chunk that have not arrived.
  #remainingBytes = 0;

  /** @param onBytes called with bytes of the body */
  constructor(onBytes: (bytes: Buffer) => void) {
    this.#onBytes = onBytes;
  }

  /**
   * Parses bytes of the response.
   * @throws {Violation} if the bytes are not valid chunked transfer coding
   */
  feed(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    while (this.#step());
  }

  /**
   * Parses one part.
   * @returns false if more bytes are needed
   */
  #step(): boolean {
    if (this.#state === 'data') return this.#readData();
    const line = this.#readLine();
    if (line === undefined) return false;
    if (this.#state === 'head') {
      if (line === '') this.#state = 'size';
    } else if (this.#state === 'data end') {
      if (line !== '') throw new Violation(`a chunk is longer than its size: ${line.slice(0, 40)}`);
      this.#state = 'size';
    } else if (this.#state === 'size') {
      if (!/^[0-9a-f]+$/i.test(line)) {
        throw new Violation(`invalid chunk size: ${line.slice(0, 40)}`);
      }
      this.#remainingBytes = Number.parseInt(line, 16);
      this.#state = this.#remainingBytes === 0 ? 'end' : 'data';
    } else if (line !== '') {
      throw new Violation(`unexpected data after the last chunk: ${line.slice(0, 40)}`);
    }
    return true;
  }

  #readData(): boolean {
    const part = this.#rest.subarray(0, this.#remainingBytes);
    if (part.length === 0) return false;
    this.#rest = this.#rest.subarray(part.length);
    this.#remainingBytes -= part.length;
    if (this.#remainingBytes === 0) this.#state = 'data end';
    this.#onBytes(part);
    return true;
  }

  #readLine(): string | undefined {
    const end = this.#rest.indexOf(LINE_END);
    if (end === -1) return undefined;
    const line = this.#rest.toString('latin1', 0, end);
    this.#rest = this.#rest.subarray(end + LINE_END.length);
    return line;
  }
}
