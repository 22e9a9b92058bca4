/** A strict reader of a response with a chunked body (RFC 9112, 7.1). */
const LINE_END = Buffer.from('\r\n');

export class ChunkedBody {
  readonly #onBytes: (bytes: Buffer) => void;
  readonly #onRest: ((bytes: Buffer) => void) | undefined;
  #rest: Buffer = Buffer.alloc(0);
  #state: 'head' | 'size' | 'data' | 'data end' | 'end' | 'rest' = 'head';
  // Number of bytes of the current chunk that have not arrived.
  #left = 0;

  /**
   * @param onBytes called with bytes of the body
   * @param onRest called with bytes after the body; without this function, such bytes are an error
   */
  constructor(onBytes: (bytes: Buffer) => void, onRest?: (bytes: Buffer) => void) {
    this.#onBytes = onBytes;
    this.#onRest = onRest;
  }

  /** @throws {Error} if the bytes are not a valid chunked body */
  feed(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    while (this.#step());
  }

  /** @returns whether there were enough bytes for a step */
  #step(): boolean {
    if (this.#state === 'data') return this.#takeData();
    if (this.#state === 'rest') {
      this.#onRest?.(this.#rest);
      this.#rest = this.#rest.subarray(this.#rest.length);
      return false;
    }
    const line = this.#takeLine();
    if (line === undefined) return false;
    if (this.#state === 'head') {
      if (line === '') this.#state = 'size';
    } else if (this.#state === 'data end') {
      if (line !== '') throw new Error(`a chunk is longer than it says: ${line.slice(0, 40)}`);
      this.#state = 'size';
    } else if (this.#state === 'size') {
      if (!/^[0-9a-f]+$/i.test(line)) {
        throw new Error(`no size of a chunk: ${line.slice(0, 40)}`);
      }
      this.#left = Number.parseInt(line, 16);
      this.#state = this.#left === 0 ? 'end' : 'data';
    } else if (this.#onRest !== undefined && line === '') {
      this.#state = 'rest';
    } else if (line !== '') {
      throw new Error(`something comes after the last chunk: ${line.slice(0, 40)}`);
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
