/**
 * The live streams that follow the same set of channels: one frame is right for all of them.
 *
 * Most of them take every frame whole. They are *in step*: their cursor and their counts are kept here, once for all, and a
 * frame touches nothing of theirs but the socket. At tens of thousands of streams each object that is touched has to come
 * from memory, which is what a delivery costs.
 *
 * ```text
 * members   m0   m1   m2   m3   m4   m5        sockets[i]: the socket of m(i) while it is in step, else undefined
 *           └── waiting ──┘└── done ───┘       done: has been given the current frame, or has come since
 *                         ▲ #waiting           the current frame is given from the end of `waiting` to its beginning
 * ```
 */
import type { Socket } from 'node:net';
import { CHUNK_BYTES, HIGH_WATER_MARK } from '../stream/write-queue.ts';
import { clock } from '../common/clock.ts';
import type { WriteProgress } from '../stream/subscription-types.ts';
import type { Feed } from './feed.ts';
import type { Frame } from './frame.ts';
import { IndexedList, type IndexedListMember } from '../common/indexed-list.ts';

/** What all that are in step have been given together. */
export interface GroupProgress extends WriteProgress {
  /** Offset of the newest event. */
  readonly cursor: number;
}

/** A live stream, as its audience sees it. */
export interface Member extends IndexedListMember {
  /** Offset up to which it has been given everything, while it is not in step. */
  readonly position: number;
  /**
   * Takes what of the frame is beyond its position. Never throws.
   * @returns its socket, if it has taken all and the next frames may be written there without asking it
   */
  take(frame: Frame): Socket | undefined;
  /** Entries up to the offset were dropped before it was given them. Never throws. */
  miss(upTo: number, events: number): void;
  /** It is not to be given what is pending, or anything any more: it leaves, and reads the log. Never throws. */
  fallBehind(): void;
  /** Its socket has thrown: the stream ends. Never throws. */
  fail(error: unknown): void;
  /** From here on what it is given is on the audience's account. */
  onAttached(pace: GroupProgress): void;
  /** From here on it is for itself. */
  onDetached(pace: GroupProgress): void;
}

/** Audiences between two interruptions. Afterwards they are retired: their streams have to read the log. */
export interface Generation {
  readonly isRetired: boolean;
}

// Beyond it the counts are begun anew: V8 keeps an integer of more than 31 bits in an object of its own, for each stream.
const MAX_COUNTED_BYTES = 2 ** 30;

export class Audience extends IndexedList<Member> {
  readonly channels: readonly string[];
  readonly feeds: readonly Feed[];
  readonly #generation: Generation;
  // Beside each member that is in step its socket.
  readonly #sockets: (Socket | undefined)[] = [];
  // How many members have not been given the current frame.
  #waiting = 0;
  #pace: GroupProgress;
  // With the current frame.
  #paceAfter: GroupProgress;
  // The frame that not every member has been given yet.
  #current: Frame | undefined;
  // How many entries were dropped, where the members are told of that instead of being given a frame.
  #dropped: number | undefined;

  /** @param position offset up to which nothing is to be given to the members */
  constructor(
    channels: readonly string[],
    feeds: readonly Feed[],
    position: number,
    generation: Generation,
  ) {
    super();
    this.channels = channels;
    this.feeds = feeds;
    this.#pace = { cursor: position, bytes: 0, events: 0, writtenAt: 0 };
    this.#paceAfter = this.#pace;
    this.#generation = generation;
  }

  get isRetired(): boolean {
    return this.#generation.isRetired;
  }

  /** Offset up to which its members have been given everything, or are being given it. */
  get position(): number {
    return this.#paceAfter.cursor;
  }

  /** Offset of the newest entry that was published in its channels. */
  get newest(): number {
    return Math.max(...this.feeds.map(({ newest }) => newest));
  }

  /** What was dropped beyond the position: up to which offset, and how many entries. */
  droppedAfter(position: number): { readonly upTo: number; readonly events: number } | undefined {
    const feeds = this.feeds.filter(({ dropped }) => dropped > position);
    if (feeds.length === 0) return undefined;
    const upTo = Math.max(...feeds.map(({ dropped }) => dropped));
    return { upTo, events: feeds.reduce((sum, { droppedCount }) => sum + droppedCount, 0) };
  }

  override add(member: Member): void {
    super.add(member);
    this.#sockets.push(undefined);
  }

  override delete(member: Member): boolean {
    if (!this.has(member)) return false;
    this.detach(member);
    // Those that wait stay together: the last of them goes to its place before the last of all goes to that one's.
    if (member.listIndex < this.#waiting) {
      this.#exchange(member, this.members[--this.#waiting] as Member);
    }
    const { listIndex } = member;
    const last = this.#sockets.pop();
    if (listIndex < this.#sockets.length) this.#sockets[listIndex] = last;
    return super.delete(member);
  }

  #exchange(one: Member, other: Member): void {
    const { listIndex } = one;
    const socket = this.#sockets[listIndex];
    this.#sockets[listIndex] = this.#sockets[other.listIndex];
    this.#sockets[other.listIndex] = socket;
    this.members[listIndex] = other;
    this.members[other.listIndex] = one;
    one.listIndex = other.listIndex;
    other.listIndex = listIndex;
  }

  /** What has been given to a member in step. */
  progressOf({ listIndex }: Member): GroupProgress | undefined {
    if (this.#sockets[listIndex] === undefined) return undefined;
    return listIndex < this.#waiting ? this.#pace : this.#paceAfter;
  }

  /** Takes a member out of step, before anything else is done with it. The next frame that it takes whole brings it back. */
  detach(member: Member): void {
    const pace = this.progressOf(member);
    if (pace === undefined) return;
    this.#sockets[member.listIndex] = undefined;
    member.onDetached(pace);
  }

  /** The frame that the member has still to be given, if there is one. */
  frameFor(member: Member): Frame | undefined {
    return member.listIndex < this.#waiting && this.has(member) ? this.#current : undefined;
  }

  /** The frame is for all members from now on. */
  begin(frame: Frame): void {
    this.#start(frame.last, frame.bytes.length, frame.entries.length);
    this.#current = frame;
  }

  /** Entries up to the offset were dropped: the members are told, instead of being given them. */
  beginDropped(upTo: number, events: number): void {
    this.#start(upTo, 0, 0);
    this.#dropped = events;
  }

  #start(cursor: number, addedBytes: number, addedEvents: number): void {
    if (this.#pace.bytes > MAX_COUNTED_BYTES) this.#countAnew();
    this.#waiting = this.members.length;
    const { bytes, events } = this.#pace;
    this.#paceAfter = {
      cursor,
      bytes: bytes + addedBytes,
      events: events + addedEvents,
      writtenAt: clock(),
    };
  }

  /**
   * Gives the current frame to so many members more.
   * @returns how many of that number are left when all have had it
   */
  give(most: number): number {
    const frame = this.#current;
    // A frame that is not all new, or larger than one write may be, is a matter for each member.
    const isForAll =
      frame !== undefined &&
      frame.first > this.#pace.cursor &&
      frame.bytes.length <= HIGH_WATER_MARK;
    let left = most;
    // Backwards: members that come meanwhile are behind those that wait.
    for (; left > 0 && this.#waiting > 0; left--) {
      const slot = this.#waiting - 1;
      const socket = this.#sockets[slot];
      if (isForAll && socket?.writable === true && socket.writableLength <= CHUNK_BYTES) {
        this.#waiting = slot;
        try {
          socket.write(frame.chunk);
        } catch (error) {
          // The member may have moved meanwhile, or its stream may have ended.
          this.#failAt(this.#sockets.indexOf(socket), error);
        }
      } else {
        this.#offer(this.members[slot] as Member);
        // A callback may have had the frame abandoned.
        if (!this.isGiving) return left;
      }
    }
    if (this.#waiting === 0) this.#finish();
    return left;
  }

  /** An agent has put a `write` of its own on the socket of the member there, and it has thrown. */
  #failAt(slot: number, error: unknown): void {
    const member = this.members[slot];
    if (member === undefined) return;
    this.detach(member);
    member.fail(error);
  }

  /** Whether not every member has been given the current frame. */
  get isGiving(): boolean {
    return this.#current !== undefined || this.#dropped !== undefined;
  }

  #offer(member: Member): void {
    this.detach(member);
    this.#waiting--;
    if (this.#dropped !== undefined) member.miss(this.#paceAfter.cursor, this.#dropped);
    if (this.#current === undefined) return;
    const socket = member.take(this.#current);
    if (socket === undefined || !this.has(member)) return;
    this.#sockets[member.listIndex] = socket;
    member.onAttached(this.#paceAfter);
  }

  #countAnew(): void {
    for (const member of this.members) this.detach(member);
    this.#pace = { ...this.#pace, bytes: 0, events: 0 };
  }

  /** Every member has been given the current frame. */
  #finish(): void {
    this.abandon();
    this.#pace = this.#paceAfter;
  }

  /** The members that still wait for the current frame will not be given it. */
  abandon(): void {
    for (const entry of this.#current?.entries ?? []) entry.releaseView();
    this.#current = undefined;
    this.#dropped = undefined;
  }
}
