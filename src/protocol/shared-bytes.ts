/** Bytes that are written to many streams, and the HTTP chunk of these bytes. */

/** Bytes and their HTTP chunk (RFC 9112, 7.1). The chunk is framed once for all streams. */
export class SharedBytes {
  readonly bytes: Buffer;
  #chunk: Buffer | undefined;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  /** The bytes as one HTTP chunk: framed on the first read, then kept. */
  get chunk(): Buffer {
    this.#chunk ??= toHttpChunk(this.bytes);
    return this.#chunk;
  }
}

const CRLF = Buffer.from('\r\n');

/** Frames the bytes as one HTTP chunk: the length in hexadecimal, CRLF, the bytes, CRLF. */
export function toHttpChunk(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`, 'latin1'), bytes, CRLF]);
}
