/**
 * Parts of a gzip body (RFC 1952) that are put together without a compressor:
 *
 * ```text
 * GZIP_HEADER │ block │ block │ … │ gzipTrailer(checksum, length)
 * ```
 *
 * Each block is one or several deflate blocks (RFC 1951) that end at a byte boundary, so that a
 * client can decode it at once. A block may refer to the bytes before it in the body only if it was
 * made with these bytes as its dictionary.
 */
import { constants, crc32, deflateRawSync } from 'node:zlib';

/** The header of a gzip body without a name and a time. */
export const GZIP_HEADER: Buffer = Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);

// An empty last block with fixed codes (RFC 1951, 3.2.6).
const LAST_BLOCK = Buffer.from([0x03, 0x00]);

// Maximum bytes of one stored block (RFC 1951, 3.2.4).
const MAX_STORED_BYTES = 65_535;
const STORED_HEADER_BYTES = 5;

// With more, a block of 200 B takes twice the time and becomes 1 % smaller.
const COMPRESSION_LEVEL = 3;

// Less is stored as it is, unless many streams get it: compressing costs more than it saves.
const COMPRESS_FROM_BYTES = 1_024;

/** The checksum and the length of the text of a gzip body, or of a part of it. */
export interface GzipTotals {
  readonly checksum: number;
  /** Number of bytes modulo 2^32. */
  readonly length: number;
}

/** The totals of no bytes. */
export const NO_TOTALS: GzipTotals = Object.freeze({ checksum: 0, length: 0 });

/**
 * Compresses bytes to a block.
 * @param dictionary bytes that come directly before these in the body of every client
 */
export function deflateBlock(bytes: Uint8Array, dictionary?: Buffer): Buffer {
  const output = deflateRawSync(bytes, {
    level: COMPRESSION_LEVEL,
    finishFlush: constants.Z_SYNC_FLUSH,
    ...(dictionary === undefined || dictionary.length === 0 ? {} : { dictionary }),
  });
  // zlib returns the beginning of 16 KiB. A block that waits for a slow reader would keep all of
  // it.
  const block = Buffer.allocUnsafeSlow(output.length);
  block.set(output);
  return block;
}

/** Makes a block of the bytes as they are. */
export function storeBlock(bytes: Uint8Array): Buffer {
  const parts: Uint8Array[] = [];
  for (let start = 0; start < bytes.length; start += MAX_STORED_BYTES) {
    const part = bytes.subarray(start, start + MAX_STORED_BYTES);
    const header = Buffer.alloc(STORED_HEADER_BYTES);
    header.writeUInt16LE(part.length, 1);
    header.writeUInt16LE(part.length ^ 0xffff, 3);
    parts.push(header, part);
  }
  return Buffer.concat(parts);
}

/** Makes a block of bytes that are not compressed together with others. */
export function encodeAlone(bytes: Uint8Array): Buffer {
  return bytes.length < COMPRESS_FROM_BYTES ? storeBlock(bytes) : deflateBlock(bytes);
}

/** The end of a gzip body. */
export function gzipTrailer({ checksum, length }: GzipTotals): Buffer {
  const trailer = Buffer.alloc(LAST_BLOCK.length + 8);
  trailer.set(LAST_BLOCK);
  trailer.writeUInt32LE(checksum, LAST_BLOCK.length);
  trailer.writeUInt32LE(length, LAST_BLOCK.length + 4);
  return trailer;
}

/** The totals after these bytes. */
export function addToTotals({ checksum, length }: GzipTotals, bytes: Uint8Array): GzipTotals {
  return { checksum: crc32(bytes, checksum), length: (length + bytes.length) >>> 0 };
}

/**
 * Replaces the beginning of a text: the totals of `before` and what was added to `from` to get
 * `to`. So a stream adds what its group has received, without reading these bytes.
 */
export function moveTotals(before: GzipTotals, from: GzipTotals, to: GzipTotals): GzipTotals {
  const added = (to.length - from.length) >>> 0;
  // The CRC is linear: crc(ab) = shift(crc(a), |b|) ^ crc(b).
  const checksum = (shiftChecksum(before.checksum ^ from.checksum, added) ^ to.checksum) >>> 0;
  return { checksum, length: (before.length + added) >>> 0 };
}

// The polynomial of CRC-32, its bits reversed (RFC 1952, 8).
const POLYNOMIAL = 0xedb88320;
// The polynomial 1: the bits are reversed.
const ONE = 0x80000000;
const BITS = 32;

/** `POWERS[n]` is x^(8 · 2^n) modulo the polynomial. */
const POWERS = powersOfByte();

/** The checksum of a text, moved by the number of bytes that follow the text. */
function shiftChecksum(checksum: number, bytes: number): number {
  let shifted = checksum;
  for (let power = 0, rest = bytes; rest > 0; power++, rest >>>= 1) {
    if ((rest & 1) === 1) shifted = multiply(POWERS[power] as number, shifted);
  }
  return shifted;
}

/** Multiplies two polynomials over GF(2) modulo the polynomial of CRC-32. */
function multiply(a: number, b: number): number {
  let product = 0;
  let factor = b;
  for (let bit = ONE; bit !== 0; bit >>>= 1) {
    if ((a & bit) !== 0) product ^= factor;
    factor = (factor & 1) === 1 ? (factor >>> 1) ^ POLYNOMIAL : factor >>> 1;
  }
  return product;
}

function powersOfByte(): readonly number[] {
  // x^8
  let power = ONE >>> 8;
  return Array.from({ length: BITS }, () => {
    const current = power;
    power = multiply(power, power);
    return current;
  });
}
