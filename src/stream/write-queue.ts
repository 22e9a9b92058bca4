/**
 * The queue of bytes that were not passed to a response yet, because the response holds enough
 * bytes, or because the rest of a large event has to wait.
 */

/** Maximum bytes of one write, so that the progress within a large event can be noticed. */
export const CHUNK_BYTES = 16_384;

/** Queued bytes beyond which a stream is behind, and a sender must wait: see send-limit.ts. */
export const HIGH_WATER_MARK = 65_536;

// Maximum bytes that one queue passes on in one turn of the event loop (its share of the turn), so
// that other streams get their turn.
const MAX_BYTES_PER_TURN = 262_144;

// Smaller buffers are joined: otherwise the object of a buffer would need more memory than its
// bytes.
const COPY_BELOW_BYTES = 512;

// Number of the current turn of the event loop. Turns in which no queue is used are not counted.
let turn = 0;
let isTurnCounted = false;

/** @returns a number that is the same until the current turn of the event loop ends */
function countTurn(): number {
  if (!isTurnCounted) {
    isTurnCounted = true;
    setImmediate(() => {
      isTurnCounted = false;
      turn++;
    });
  }
  return turn;
}

/** A queue of bytes. A stream has one while it has bytes that its response does not take yet. */
export class WriteQueue {
  /** Number of queued bytes. */
  size = 0;
  // Number of bytes at the head of the queue that wait only for the next turn of the event loop, or
  // for the end of a pause.
  #deferredBytes = 0;
  #isDeferred = false;
  #turn = -1;
  #bytesLeftInTurn = 0;
  // Buffers of the log are queued as they are, because the log keeps them anyway.
  readonly #buffers: Buffer[];

  /** @param buffers the first bytes of the queue; not copied */
  constructor(buffers: readonly Buffer[]) {
    this.#buffers = [...buffers];
    for (const bytes of buffers) this.size += bytes.length;
  }

  /** Whether nothing is queued. */
  get isEmpty(): boolean {
    return this.#buffers.length === 0;
  }

  /**
   * Number of queued bytes that wait only for the next turn of the event loop, or for the end of a
   * pause. These bytes do not show that the client is slow.
   */
  get deferredBytes(): number {
    return this.#isDeferred ? this.#deferredBytes : 0;
  }

  /**
   * Starts a new share if a new turn of the event loop has begun.
   * @returns whether the share of this turn is used up
   */
  hasUsedUpTurn(): boolean {
    const now = countTurn();
    if (this.#turn !== now) {
      this.#turn = now;
      this.#bytesLeftInTurn = MAX_BYTES_PER_TURN;
    }
    return this.#bytesLeftInTurn <= 0;
  }

  /**
   * Calls back once, also after several calls.
   * @param pauseMs time in ms. @defaultValue until the next turn of the event loop
   */
  defer(callback: () => void, pauseMs?: number): void {
    if (this.#isDeferred) return;
    this.#isDeferred = true;
    // Bytes that are added later do not count as deferred. Otherwise `maxBuffered` would not bound
    // a sender that adds more in each turn than one share.
    if (this.#deferredBytes === 0) this.#deferredBytes = this.size;
    const onTime = (): void => {
      this.#isDeferred = false;
      callback();
    };
    if (pauseMs === undefined) setImmediate(onTime);
    else setTimeout(onTime, pauseMs);
  }

  /**
   * Adds bytes at the end. Small buffers are joined and copied out of Node's buffer pool, so that
   * the queue occupies no more memory than it counts.
   */
  add(bytes: Buffer): void {
    this.size += bytes.length;
    const last = this.#buffers.at(-1);
    if (bytes.length >= COPY_BELOW_BYTES) {
      this.#buffers.push(bytes);
    } else if (last === undefined || last.length >= COPY_BELOW_BYTES) {
      this.#buffers.push(joinCopied(bytes));
    } else {
      this.#buffers[this.#buffers.length - 1] = joinCopied(last, bytes);
    }
  }

  /** Adds buffers that the caller keeps in memory anyway; they are not copied. */
  addAll(buffers: readonly Buffer[]): void {
    for (const bytes of buffers) {
      this.size += bytes.length;
      this.#buffers.push(bytes);
    }
  }

  /**
   * Removes up to {@link CHUNK_BYTES} from the head: several small events, or a part of a large
   * one. The queue must not be empty.
   */
  shift(): Buffer {
    const first = this.#buffers[0] as Buffer;
    let count = 0;
    let length = 0;
    for (const { length: more } of this.#buffers) {
      if (length + more > CHUNK_BYTES) break;
      length += more;
      count++;
    }
    if (count === 0) {
      this.#buffers[0] = first.subarray(CHUNK_BYTES);
      this.#subtract(CHUNK_BYTES);
      return first.subarray(0, CHUNK_BYTES);
    }
    this.#subtract(length);
    const removed = this.#buffers.splice(0, count);
    return count === 1 ? first : Buffer.concat(removed, length);
  }

  #subtract(bytes: number): void {
    this.size -= bytes;
    this.#bytesLeftInTurn -= bytes;
    this.#deferredBytes = Math.max(0, this.#deferredBytes - bytes);
  }
}

/** Joins buffers in memory of their own, outside of Node's buffer pool. */
function joinCopied(...buffers: Buffer[]): Buffer {
  const total = buffers.reduce((sum, { length }) => sum + length, 0);
  const joined = Buffer.allocUnsafeSlow(total);
  let offset = 0;
  for (const bytes of buffers) offset += bytes.copy(joined, offset);
  return joined;
}
