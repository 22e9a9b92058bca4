/**
 * The live streams that follow the same set of channels: one frame is right for all of them. Most have no say in it, and are *in
 * step*: their cursor and their counts are kept here, once for all, and to give them a frame touches nothing of theirs but the
 * socket. At tens of thousands of streams what is touched has to come from memory, and that is what it costs.
 */
import type { Socket } from 'node:net';
import { PIECE } from './backlog.ts';
import { clock } from './clock.ts';
import { WRITE_MARK, type Account } from './connection.ts';
import { Frame, fitting } from './frame.ts';
import type { LogEntry } from './log-entry.ts';
import { Slots, type Slotted } from './slots.ts';

/** What all that are in step have been given together. */
export interface Pace extends Account {
  /** Offset of the newest event. */
  readonly cursor: number;
}

/** A live stream, as its audience sees it. */
export interface Member extends Slotted {
  /**
   * Takes what of the frame is beyond its cursor. Never throws.
   * @returns its socket, if it has taken all and the next frames may be written there without asking it
   */
  take(frame: Frame): Socket | undefined;
  /** From here on what it is given is on the audience's account. */
  steppedIn(pace: Pace): void;
  /** From here on it is for itself. */
  steppedOut(pace: Pace): void;
}

// Beyond it the counts are begun anew: V8 keeps an integer of more than 31 bits in an object of its own, for each stream.
const MOST_BYTES = 2 ** 30;

/** Its members from `#waiting` on have had the frame underway, or have come since. */
export class Audience extends Slots<Member> {
  readonly channels: readonly string[];
  // Beside each member that is in step its socket.
  readonly #sockets: (Socket | undefined)[] = [];
  // How many have not had the frame underway.
  #waiting = 0;
  #pace: Pace = { cursor: 0, bytes: 0, events: 0, at: 0 };
  // With the frame underway.
  #paceAfter = this.#pace;
  // The frame that not every member has been given yet, and what has been published since.
  #underway: Frame | undefined;
  #pending: LogEntry[] = [];
  #frame: Frame | undefined;

  constructor(channels: readonly string[]) {
    super();
    this.channels = channels;
  }

  override add(member: Member): void {
    super.add(member);
    this.#sockets.push(undefined);
  }

  override delete(member: Member): boolean {
    if (!this.has(member)) return false;
    this.stepOut(member);
    // Those that wait stay together: the last of them goes to its place before the last of all goes to that one's.
    if (member.slot < this.#waiting) this.#exchange(member, this.members[--this.#waiting] as Member);
    const { slot } = member;
    const last = this.#sockets.pop();
    if (slot < this.#sockets.length) this.#sockets[slot] = last;
    return super.delete(member);
  }

  #exchange(one: Member, other: Member): void {
    const { slot } = one;
    const socket = this.#sockets[slot];
    this.#sockets[slot] = this.#sockets[other.slot];
    this.#sockets[other.slot] = socket;
    this.members[slot] = other;
    this.members[other.slot] = one;
    one.slot = other.slot;
    other.slot = slot;
  }

  /** What has been given to a member in step. */
  paceOf({ slot }: Member): Pace | undefined {
    if (this.#sockets[slot] === undefined) return undefined;
    return slot < this.#waiting ? this.#pace : this.#paceAfter;
  }

  /** Whoever wants to do something else with a member takes it out first; it comes back with the next frame that it takes whole. */
  stepOut(member: Member): void {
    const pace = this.paceOf(member);
    if (pace === undefined) return;
    this.#sockets[member.slot] = undefined;
    member.steppedOut(pace);
  }

  /** @returns whether it is the first that waits */
  push(entry: LogEntry): boolean {
    this.#frame = undefined;
    return this.#pending.push(entry) === 1;
  }

  /** Offset of the newest entry that came. */
  get newest(): number {
    return this.#pending.at(-1)?.offset ?? this.#underway?.last ?? 0;
  }

  /** Gives one member all that is owed, before its turn. */
  flush(member: Member): void {
    this.stepOut(member);
    // One that falls behind on a frame leaves, and gets the rest from the log.
    if (this.#underway !== undefined && this.has(member)) member.take(this.#underway);
    if (this.#pending.length === 0 || !this.has(member)) return;
    // A copy: the frame must not grow when more is published.
    this.#frame ??= new Frame([...this.#pending]);
    member.take(this.#frame);
  }

  /**
   * What has been published is for all members from now on; no more than one write may hold.
   * @returns `false` while another frame is underway, or where nothing waits
   */
  begin(): boolean {
    if (this.#underway !== undefined || this.#pending.length === 0) return false;
    const count = fitting(this.#pending, WRITE_MARK);
    const isAll = count === this.#pending.length;
    const known = isAll ? this.#frame : undefined;
    const frame = known ?? new Frame(isAll ? this.#pending : this.#pending.slice(0, count));
    this.#pending = isAll ? [] : this.#pending.slice(count);
    this.#frame = undefined;
    this.#underway = frame;
    if (this.#pace.bytes > MOST_BYTES) this.#countAnew();
    this.#waiting = this.members.length;
    const { bytes, events } = this.#pace;
    this.#paceAfter = {
      cursor: frame.last,
      bytes: bytes + frame.bytes.length,
      events: events + frame.entries.length,
      at: clock(),
    };
    return true;
  }

  /**
   * Gives the frame underway to so many members more.
   * @returns how many of that number are left when all have had it
   */
  give(most: number): number {
    const frame = this.#underway as Frame;
    // One that is not all new, or larger than one write may be, is a matter for each.
    const isForAll = frame.first > this.#pace.cursor && frame.bytes.length <= WRITE_MARK;
    let left = most;
    // Backwards: those that come meanwhile are behind those that wait.
    for (; left > 0 && this.#waiting > 0; left--) {
      const slot = this.#waiting - 1;
      const socket = this.#sockets[slot];
      if (isForAll && socket?.writable === true && socket.writableLength <= PIECE) {
        this.#waiting = slot;
        socket.write(frame.chunk);
      } else {
        this.#offer(this.members[slot] as Member, frame);
      }
    }
    if (this.#waiting === 0) this.#finish();
    return left;
  }

  /** Whether a frame is underway. */
  get isGiving(): boolean {
    return this.#underway !== undefined;
  }

  #offer(member: Member, frame: Frame): void {
    this.stepOut(member);
    this.#waiting--;
    const socket = member.take(frame);
    if (socket === undefined || !this.has(member)) return;
    this.#sockets[member.slot] = socket;
    member.steppedIn(this.#paceAfter);
  }

  #countAnew(): void {
    for (const member of this.members) this.stepOut(member);
    this.#pace = { ...this.#pace, bytes: 0, events: 0 };
  }

  /** Every member has been given the frame underway. */
  #finish(): void {
    for (const entry of this.#underway?.entries ?? []) entry.rest();
    this.#underway = undefined;
    this.#pace = this.#paceAfter;
  }
}
