/** What a response was not yet given: the events of a slow reader, or the rest of a large one. */

/** Bytes that are handed over at once at most, so that progress inside one large event can be seen. */
export const PIECE = 16_384;

// Below it an object for each event would weigh more than its bytes.
const SMALL = 512;

export class Backlog {
  /** Bytes that wait. */
  size = 0;
  // Several come from the log, which keeps them anyway; the array is ours.
  readonly #waiting: Buffer[];

  constructor(many: readonly Buffer[]) {
    this.#waiting = [...many];
    for (const bytes of many) this.size += bytes.length;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  /** Adds at the end; small events are joined, outside of Node's pool, so that what waits weighs what it counts. */
  add(bytes: Buffer): void {
    this.size += bytes.length;
    const last = this.#waiting.at(-1);
    if (bytes.length >= SMALL) {
      this.#waiting.push(bytes);
    } else if (last === undefined || last.length >= SMALL) {
      this.#waiting.push(copied(bytes));
    } else {
      this.#waiting[this.#waiting.length - 1] = copied(last, bytes);
    }
  }

  /** The same for many that somebody else keeps anyway: they are not copied. */
  addAll(many: readonly Buffer[]): void {
    for (const bytes of many) {
      this.size += bytes.length;
      this.#waiting.push(bytes);
    }
  }

  /** Takes one piece from its head: many small events, or a part of a large one. Not of an empty one. */
  take(): Buffer {
    const first = this.#waiting[0] as Buffer;
    let count = 0;
    let length = 0;
    for (const { length: more } of this.#waiting) {
      if (length + more > PIECE) break;
      length += more;
      count++;
    }
    if (count === 0) {
      this.#waiting[0] = first.subarray(PIECE);
      this.size -= PIECE;
      return first.subarray(0, PIECE);
    }
    this.size -= length;
    const piece = this.#waiting.splice(0, count);
    return count === 1 ? first : Buffer.concat(piece, length);
  }
}

function copied(...all: Buffer[]): Buffer {
  const copy = Buffer.allocUnsafeSlow(all.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const each of all) at += each.copy(copy, at);
  return copy;
}
