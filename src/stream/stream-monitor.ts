/** One timer for all streams of a middleware: keeps silent ones alive, cuts dead ones off, retires old ones. */
import { runOutsideRequests } from '../common/async-context.ts';
import { clock } from '../common/clock.ts';
import { HIGH_WATER_MARK, type ResponseWriter } from './response-writer.ts';
import type { StreamSettings } from './stream-options.ts';
import { IndexedList } from '../common/indexed-list.ts';

// The timer ticks often enough that no time is missed by more than an eighth of it or a second.
const TICKS_PER_TIME = 16;
const LONGEST_TICK = 1_000;

// How often, in ms, a stream without heartbeats is reminded of what else is due.
const DUE_WITHOUT_HEARTBEAT = 15_000;

// So many streams are looked at before other work gets its turn.
const SLICE = 500;

/** A connection with something queued. */
interface Blocked {
  /** When it was first seen with that much delivered, in ms in which the process ran. */
  readonly since: number;
  /** How much had gone to the kernel by then. */
  readonly delivered: number;
  /** What else was due came while it was. */
  isDue: boolean;
}

export class StreamMonitor {
  readonly #interval: number;
  readonly #dueEvery: number;
  readonly #stallTimeout: number;
  readonly #maxLifetime: number;
  readonly #tick: number;
  readonly #connections = new IndexedList<ResponseWriter>();
  // Those with something queued.
  readonly #blocked = new Map<ResponseWriter, Blocked>();
  // When each is to be retired; of those that never are nothing is noted.
  readonly #deadlines = new Map<ResponseWriter, number>();
  #timer: NodeJS.Timeout | undefined;
  #next = -1;
  #dueAt = 0;
  #tickedAt = 0;
  // Time in ms in which the process ran. While it was stopped, suspended or busy, no socket was looked at.
  #ran = 0;
  // Whether what else is due is due in this sweep: for all, because a time of its own for each would cost memory.
  #isDue = false;

  constructor({ heartbeat, stallTimeout, maxLifetime }: StreamSettings) {
    this.#interval = heartbeat === false ? Infinity : heartbeat;
    this.#stallTimeout = stallTimeout === false ? Infinity : stallTimeout;
    this.#maxLifetime = maxLifetime ?? Infinity;
    this.#dueEvery = heartbeat === false ? DUE_WITHOUT_HEARTBEAT : heartbeat;
    const shortest = Math.min(this.#dueEvery, this.#stallTimeout, this.#maxLifetime);
    this.#tick = Math.min(LONGEST_TICK, Math.max(1, Math.floor(shortest / TICKS_PER_TIME)));
  }

  add(connection: ResponseWriter): void {
    const now = clock();
    connection.idleSince = now;
    // ±10 %, so that streams that opened together do not end together.
    if (this.#maxLifetime < Infinity) {
      this.#deadlines.set(connection, now + this.#maxLifetime * (0.9 + Math.random() * 0.2));
    }
    this.#connections.add(connection);
    if (this.#timer !== undefined) return;
    this.#dueAt = now + this.#dueEvery;
    this.#tickedAt = now;
    this.#timer = runOutsideRequests(() => setInterval(() => this.#begin(), this.#tick).unref());
  }

  /** Those that it looks after. */
  get streams(): readonly ResponseWriter[] {
    return this.#connections.members;
  }

  /** @returns whether it was looked after */
  delete(connection: ResponseWriter): boolean {
    if (!this.#connections.delete(connection)) return false;
    this.#blocked.delete(connection);
    this.#deadlines.delete(connection);
    if (this.#connections.members.length > 0) return true;
    clearInterval(this.#timer);
    this.#timer = undefined;
    return true;
  }

  /** A sweep that is not through when the next is due simply goes on. */
  #begin(): void {
    const now = clock();
    // A tick that comes late proves nothing about the readers.
    this.#ran += Math.min(now - this.#tickedAt, 2 * this.#tick);
    this.#tickedAt = now;
    if (this.#next >= 0) return;
    this.#next = this.#connections.members.length - 1;
    this.#isDue = now >= this.#dueAt;
    if (this.#isDue) this.#dueAt = now + this.#dueEvery;
    // Not in this phase of the loop: the sockets are looked at first, so that what readers have taken by now is seen.
    setImmediate(() => this.#sweep());
  }

  // Backwards: what swap-remove moves into a hole has been looked at already.
  #sweep(): void {
    const now = clock();
    const until = Math.max(-1, this.#next - SLICE);
    while (this.#next > until) {
      const connection = this.#connections.members[this.#next--];
      if (connection === undefined) continue;
      try {
        this.#look(connection, now);
      } catch (error) {
        // Whatever it is, it must not keep the others from being looked at.
        connection.onError(error);
      }
    }
    // With an unref'd immediate the loop would wait for something else to happen before it goes on.
    if (this.#next >= 0) setImmediate(() => this.#sweep());
  }

  /** Whether the reader has taken nothing of what is queued for too long. */
  #isStalled(connection: ResponseWriter): boolean {
    const { bytesFlushed } = connection;
    const known = this.#blocked.get(connection);
    if (known !== undefined && bytesFlushed <= known.delivered) {
      return this.#ran - known.since >= this.#stallTimeout;
    }
    this.#blocked.set(connection, {
      since: this.#ran,
      delivered: bytesFlushed,
      isDue: known?.isDue === true,
    });
    return false;
  }

  #look(connection: ResponseWriter, now: number): void {
    const blocked = connection.bufferedAmount > 0;
    const wasDue = this.#blocked.get(connection)?.isDue === true;
    // A `drain` that a wrapped response swallowed, or that a large highWaterMark left out, must hold nobody for ever.
    if (connection.isAwaitingDrain && (connection.res.writableLength || 0) <= HIGH_WATER_MARK) {
      connection.resume();
    }
    // A wrapped response may have been closed by that.
    if (!this.#connections.has(connection)) return;
    if (!blocked) {
      this.#blocked.delete(connection);
    } else if (this.#isStalled(connection)) {
      connection.destroyFor('stalled');
      return;
    }
    if (connection.readyState !== 1) return;
    if (now >= (this.#deadlines.get(connection) ?? Infinity)) {
      connection.onExpired();
      return;
    }
    if ((this.#isDue || wasDue) && !blocked) connection.onTick();
    else if (this.#isDue) (this.#blocked.get(connection) as Blocked).isDue = true;
    if (connection.idleSince === 0) connection.idleSince = now;
    else if (!blocked && now - connection.idleSince >= this.#interval) connection.onIdle();
  }
}
