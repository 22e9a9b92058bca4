/** What a response was not yet given: the events of a slow reader, or the rest of a large one. */

/** Bytes that are handed over at once at most, so that progress inside one large event can be seen. */
export const CHUNK_BYTES = 16_384;

// Bytes that one connection is given of what waits in one turn of the event loop, so that others get their turn.
const BYTES_PER_TURN = 262_144;

// Below it an object for each event would weigh more than its bytes.
const COPY_BELOW_BYTES = 512;

// Counts turns of the event loop in which bytes were taken.
let turn = 0;
let isTurnCounted = false;

function currentTurn(): number {
  if (!isTurnCounted) {
    isTurnCounted = true;
    setImmediate(() => {
      isTurnCounted = false;
      turn++;
    });
  }
  return turn;
}

export class WriteQueue {
  /** Bytes that wait. */
  size = 0;
  // Bytes at its head that wait only for further turns of the event loop. Their reader takes all that it is given.
  #excused = 0;
  #isDeferred = false;
  #turn = -1;
  #leftInTurn = 0;
  // Several come from the log, which keeps them anyway; the array is ours.
  readonly #waiting: Buffer[];

  constructor(many: readonly Buffer[]) {
    this.#waiting = [...many];
    for (const bytes of many) this.size += bytes.length;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  /** Whether it has had its share of this turn of the event loop. */
  get isSpent(): boolean {
    const now = currentTurn();
    if (this.#turn !== now) {
      this.#turn = now;
      this.#leftInTurn = BYTES_PER_TURN;
    }
    return this.#leftInTurn <= 0;
  }

  /** Calls `goOn` in the next turn of the event loop, once however often it is called in this one. */
  defer(goOn: () => void): void {
    if (this.#isDeferred) return;
    this.#isDeferred = true;
    // What is added from here on is not excused: a sender that outruns its turns is bounded, too.
    if (this.#excused === 0) this.#excused = this.size;
    setImmediate(() => {
      this.#isDeferred = false;
      goOn();
    });
  }

  /** Bytes for which no reader has been too slow. */
  get excused(): number {
    return this.#isDeferred ? this.#excused : 0;
  }

  /** Adds at the end; small events are joined, outside of Node's pool, so that what waits weighs what it counts. */
  add(bytes: Buffer): void {
    this.size += bytes.length;
    const last = this.#waiting.at(-1);
    if (bytes.length >= COPY_BELOW_BYTES) {
      this.#waiting.push(bytes);
    } else if (last === undefined || last.length >= COPY_BELOW_BYTES) {
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
      if (length + more > CHUNK_BYTES) break;
      length += more;
      count++;
    }
    if (count === 0) {
      this.#waiting[0] = first.subarray(CHUNK_BYTES);
      this.#took(CHUNK_BYTES);
      return first.subarray(0, CHUNK_BYTES);
    }
    this.#took(length);
    const piece = this.#waiting.splice(0, count);
    return count === 1 ? first : Buffer.concat(piece, length);
  }

  #took(bytes: number): void {
    this.size -= bytes;
    this.#leftInTurn -= bytes;
    this.#excused = Math.max(0, this.#excused - bytes);
  }
}

function copied(...all: Buffer[]): Buffer {
  const copy = Buffer.allocUnsafeSlow(all.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const each of all) at += each.copy(copy, at);
  return copy;
}
