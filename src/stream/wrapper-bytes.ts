/** The bytes that a wrapped `write()` of a response has taken and has not passed on yet. */
import type { ServerResponse } from 'node:http';

/** The writes of a stream since its wrapper began to answer `false`. */
interface RefusedWrites {
  /** Number of bytes that the response had been given before. */
  readonly givenBefore: number;
  /** Number of bytes that the wrapper has taken since. */
  taken: number;
  /** Number of bytes that the response had been given at the last {@link hasPassedOn}. */
  givenAtCheck: number;
}

// By writer. There is no entry for a writer whose wrapper accepts bytes.
const refusedWrites = new WeakMap<object, RefusedWrites>();

/**
 * @returns number of bytes that the response was given, those that it still holds included; NaN,
 * which equals no other count, if the response counts none
 */
export function countGivenBytes({ socket, writableLength }: ServerResponse): number {
  return (socket ? socket.bytesWritten - socket.writableLength : 0) + writableLength;
}

/**
 * Notes what a wrapped `write()` has answered.
 * @param length number of bytes of the write
 * @param givenBefore result of {@link countGivenBytes} before the write
 */
export function noteAnswer(
  writer: object,
  isAccepted: boolean,
  length: number,
  givenBefore: number,
): void {
  const refused = refusedWrites.get(writer);
  if (isAccepted) refusedWrites.delete(writer);
  else if (refused !== undefined) refused.taken += length;
  else refusedWrites.set(writer, { givenBefore, taken: length, givenAtCheck: givenBefore });
}

/**
 * Counts the bytes that a wrapper holds while it answers `false`. Not for a wrapper that encodes
 * the body: what a compressor holds cannot be counted.
 */
export function countHeldBytes(writer: object, res: ServerResponse): number {
  const refused = refusedWrites.get(writer);
  if (refused === undefined) return 0;
  const held = refused.taken - (countGivenBytes(res) - refused.givenBefore);
  // The next count begins anew: the HTTP chunks have more bytes than the wrapper has taken.
  if (held <= 0) refusedWrites.delete(writer);
  return Math.max(0, held);
}

/** Checks whether the wrapper has passed on bytes since the last call. */
export function hasPassedOn(writer: object, res: ServerResponse): boolean {
  const refused = refusedWrites.get(writer);
  if (refused === undefined) return false;
  const { givenAtCheck } = refused;
  refused.givenAtCheck = countGivenBytes(res);
  return refused.givenAtCheck > givenAtCheck;
}
