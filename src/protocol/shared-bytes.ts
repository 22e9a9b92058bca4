/** Bytes that many connections share, and the HTTP chunk of them, framed once for all (RFC 9112, 7.1). */
export class SharedBytes {
  readonly bytes: Buffer;
  #chunk: Buffer | undefined;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get chunk(): Buffer {
    this.#chunk ??= toHttpChunk(this.bytes);
    return this.#chunk;
  }
}

const CRLF = Buffer.from('\r\n');

/** The bytes as one HTTP chunk. */
export function toHttpChunk(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`, 'latin1'), bytes, CRLF]);
}
