/** Bytes that are written to many streams, and the HTTP chunk and the gzip block of these bytes. */
import { deflateBlock } from './gzip.ts';

/** Bytes as they are sent, and their HTTP chunk (RFC 9112, 7.1): framed once for all streams. */
export class WireBytes {
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

/** The text of events, for plain and for compressed streams. */
export class SharedBytes extends WireBytes {
  #gzip: WireBytes | undefined;

  /** The text as a gzip block without a dictionary: compressed on the first read, then kept. */
  get gzip(): WireBytes {
    this.#gzip ??= new WireBytes(this.compress());
    return this.#gzip;
  }

  protected compress(): Buffer {
    return deflateBlock(this.bytes);
  }
}

const CRLF = Buffer.from('\r\n');

/** Frames the bytes as one HTTP chunk: the length in hexadecimal, CRLF, the bytes, CRLF. */
export function toHttpChunk(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`, 'latin1'), bytes, CRLF]);
}
