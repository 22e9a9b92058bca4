/** The body of a response in chunks (RFC 9112, 7.1), read strictly from its head on. */
import { Violation } from './truth.ts';

const LINE_END = Buffer.from('\r\n');

export class ChunkedBody {
  readonly #onBytes: (bytes: Buffer) => void;
  #rest: Buffer = Buffer.alloc(0);
  #state: 'head' | 'size' | 'data' | 'data end' | 'end' = 'head';
  // Bytes of the chunk that have not come.
  #left = 0;

  /** @param onBytes bytes of the body have come */
  constructor(onBytes: (bytes: Buffer) => void) {
    this.#onBytes = onBytes;
  }

  /** @throws {Violation} for what is no chunked body */
  feed(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    while (this.#step());
  }

  /** @returns whether there was enough for a step */
  #step(): boolean {
    if (this.#state === 'data') return this.#takeData();
    const line = this.#takeLine();
    if (line === undefined) return false;
    if (this.#state === 'head') {
      if (line === '') this.#state = 'size';
    } else if (this.#state === 'data end') {
      if (line !== '') throw new Violation(`a chunk is longer than it says: ${line.slice(0, 40)}`);
      this.#state = 'size';
    } else if (this.#state === 'size') {
      if (!/^[0-9a-f]+$/i.test(line)) {
        throw new Violation(`no size of a chunk: ${line.slice(0, 40)}`);
      }
      this.#left = Number.parseInt(line, 16);
      this.#state = this.#left === 0 ? 'end' : 'data';
    } else if (line !== '') {
      throw new Violation(`something comes after the last chunk: ${line.slice(0, 40)}`);
    }
    return true;
  }

  #takeData(): boolean {
    const part = this.#rest.subarray(0, this.#left);
    if (part.length === 0) return false;
    this.#rest = this.#rest.subarray(part.length);
    this.#left -= part.length;
    if (this.#left === 0) this.#state = 'data end';
    this.#onBytes(part);
    return true;
  }

  #takeLine(): string | undefined {
    const end = this.#rest.indexOf(LINE_END);
    if (end === -1) return undefined;
    const line = this.#rest.toString('latin1', 0, end);
    this.#rest = this.#rest.subarray(end + LINE_END.length);
    return line;
  }
}
