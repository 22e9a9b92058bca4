/**
 * The live streams that follow the same set of channels, so that all of them receive the same
 * frames. Compressed streams have an audience of their own. The files of `stream/` call an audience
 * a group.
 *
 * Most members receive every frame as a whole. Such a member is *attached*: the audience keeps its
 * cursor and its counts, once for all attached members, and the delivery of a frame accesses only
 * the socket of the member. With tens of thousands of streams, each object that is accessed has to
 * be fetched from memory; that is the main cost of a delivery.
 *
 * ```text
 * index        0     1     2     3     4     5
 * members    [ m0    m1    m2    m3    m4    m5 ]
 * #sockets   [ s0    -     s2    s3    s4    -  ]     a socket: the member is attached
 *              └─ pending ─────┘ └─ delivered ──┘     state of the current frame
 *                                ▲
 *                                #pendingCount = 3
 * ```
 *
 * The current frame is delivered backwards, from index `#pendingCount - 1` to 0. A member that
 * joins meanwhile is added at the end, outside the pending part. A member that leaves is replaced
 * by the last member of its part (swap-remove), so that the pending part stays contiguous.
 *
 * Both arrays belong together, so a member has one progress:
 *
 * ```text
 * not attached             the member's own counts
 * attached, pending        #progress         counts without the current frame
 * attached, delivered      #nextProgress     counts with the current frame
 * ```
 */
import type { Socket } from 'node:net';
import { CHUNK_BYTES, HIGH_WATER_MARK } from '../stream/write-queue.ts';
import { clock } from '../common/clock.ts';
import type { WriteProgress } from '../stream/subscription-types.ts';
import type { Feed } from './feed.ts';
import type { Frame } from './frame.ts';
import { IndexedList, type IndexedListMember } from '../common/indexed-list.ts';
import { NO_TOTALS, addToTotals } from '../protocol/gzip.ts';
import { GzipWindow } from '../protocol/gzip-window.ts';

/** Cursor and counts that an audience keeps for all of its attached members. */
export interface GroupProgress extends WriteProgress {
  /** Offset up to which the members have received everything, or events were dropped. */
  readonly cursor: number;
}

/** A live stream or a consumer (`ConsumerBuffer`), as seen by its audience. No method throws. */
export interface Member extends IndexedListMember {
  /** Whether the stream is compressed. Does not change while it is a member. */
  readonly isCompressed: boolean;
  /** While the member is not attached: offset up to which it has received everything. */
  readonly position: number;
  /**
   * Writes the entries of the frame that come after the member's position.
   * @param window of the audience, if its streams are compressed and the frame is the current one
   * @returns the member's socket, if the member has written the whole frame and the audience may
   * write the next frames to the socket directly; the member is attached then
   */
  takeFrame(frame: Frame, window?: GzipWindow): Socket | undefined;
  /** Entries up to the offset were dropped before the member received them. */
  onDropped(upTo: number, events: number): void;
  /** The member leaves the audience, and its stream reads the log. */
  fallBehind(): void;
  /** The member's socket threw an error: the stream ends. */
  fail(error: unknown): void;
  /** The audience counts for the member from here on, starting from `progress`. */
  onAttached(progress: GroupProgress): void;
  /** The member counts for itself from here on, starting from `progress`. */
  onDetached(progress: GroupProgress): void;
}

// If an audience has counted more bytes than this, its counts restart at 0. V8 allocates an object
// for an integer of more than 31 bits, for each stream that copies the counts. The text of a
// compressed audience is limited, too: a stream adds its length modulo 2^32.
const MAX_COUNTED_BYTES = 2 ** 30;

/** The members of one set of channels, and the delivery of the current frame to them. */
export class Audience extends IndexedList<Member> {
  /** The set of channels, each channel once. */
  readonly channels: readonly string[];
  /** The feed of each of the channels. */
  readonly feeds: readonly Feed[];
  /** Whether the broker was interrupted: no frame is delivered any more, and all members leave. */
  isRetired = false;
  /**
   * The state that members with identical subscriptions share. Owned by the audience, defined and
   * set by its members: see `shared-subscription-state.ts`.
   */
  sharedState: object | undefined;
  /** The text that the members have received last, if their streams are compressed. */
  readonly window: GzipWindow | undefined;
  // At the index of each attached member, its socket.
  readonly #sockets: (Socket | undefined)[] = [];
  #attachedCount = 0;
  // Number of members that have not received the current frame.
  #pendingCount = 0;
  #progress: GroupProgress;
  #nextProgress: GroupProgress;
  // The frame that is being delivered.
  #currentFrame: Frame | undefined;
  // The number of dropped entries. Set instead of a frame while the members are informed of the
  // loss.
  #droppedEvents: number | undefined;

  /**
   * @param position offset up to which nothing will be delivered to the members
   * @param isCompressed whether the streams of the members are compressed
   */
  constructor(
    channels: readonly string[],
    feeds: readonly Feed[],
    position: number,
    isCompressed: boolean = false,
  ) {
    super();
    this.channels = channels;
    this.feeds = feeds;
    this.window = isCompressed ? new GzipWindow() : undefined;
    const gzip = isCompressed ? NO_TOTALS : undefined;
    this.#progress = { cursor: position, bytes: 0, events: 0, writtenAt: 0, gzip };
    this.#nextProgress = this.#progress;
  }

  /** Offset up to which the members have received everything, or are receiving it. */
  get position(): number {
    return this.#nextProgress.cursor;
  }

  /** Offset of the newest entry that was published in the channels. */
  get newestOffset(): number {
    return Math.max(...this.feeds.map(({ newest }) => newest));
  }

  /**
   * Looks for entries after the position that were dropped.
   * @returns the offset of the newest of them and their number; `undefined` if there are none
   */
  droppedAfter(position: number): { readonly upTo: number; readonly events: number } | undefined {
    const feeds = this.feeds.filter(({ droppedUpTo }) => droppedUpTo > position);
    if (feeds.length === 0) return undefined;
    const upTo = Math.max(...feeds.map(({ droppedUpTo }) => droppedUpTo));
    return { upTo, events: feeds.reduce((sum, { droppedEvents }) => sum + droppedEvents, 0) };
  }

  // Members.

  override add(member: Member): void {
    super.add(member);
    this.#sockets.push(undefined);
  }

  override delete(member: Member): boolean {
    if (!this.has(member)) return false;
    this.detach(member);
    // First close the hole in the pending part with the last pending member. The hole is then at
    // the border of the parts, and the last of all members can fill it.
    if (member.listIndex < this.#pendingCount) {
      this.#swapMembers(member, this.members[--this.#pendingCount] as Member);
    }
    const { listIndex } = member;
    const last = this.#sockets.pop();
    if (listIndex < this.#sockets.length) this.#sockets[listIndex] = last;
    return super.delete(member);
  }

  #swapMembers(one: Member, other: Member): void {
    const { listIndex } = one;
    const socket = this.#sockets[listIndex];
    this.#sockets[listIndex] = this.#sockets[other.listIndex];
    this.#sockets[other.listIndex] = socket;
    this.members[listIndex] = other;
    this.members[other.listIndex] = one;
    one.listIndex = other.listIndex;
    other.listIndex = listIndex;
  }

  /** @returns what an attached member has received; `undefined` if the member is not attached */
  progressOf({ listIndex }: Member): GroupProgress | undefined {
    if (this.#sockets[listIndex] === undefined) return undefined;
    return listIndex < this.#pendingCount ? this.#progress : this.#nextProgress;
  }

  /**
   * Detaches a member, so that something else can be written to its stream. The member attaches
   * again with the next frame that it takes as a whole. No effect if it is not attached.
   */
  detach(member: Member): void {
    const progress = this.progressOf(member);
    if (progress === undefined) return;
    this.#sockets[member.listIndex] = undefined;
    this.#attachedCount--;
    member.onDetached(progress);
  }

  // Delivery.

  /** The current frame, if the member has not received it yet. */
  pendingFrameOf(member: Member): Frame | undefined {
    return member.listIndex < this.#pendingCount && this.has(member)
      ? this.#currentFrame
      : undefined;
  }

  /** Whether a frame, or the loss of dropped entries, has not reached every member. */
  get isDelivering(): boolean {
    return this.#currentFrame !== undefined || this.#droppedEvents !== undefined;
  }

  /** Starts the delivery of a frame to all members. */
  startFrame(frame: Frame): void {
    const { bytes } = this.window?.moveTo(frame, this.members.length, this.#attachedCount) ?? frame;
    this.#startDelivery(frame.lastOffset, bytes.length, frame);
    this.#currentFrame = frame;
  }

  /** Starts to inform all members that entries up to the offset were dropped. */
  startDropped(upTo: number, events: number): void {
    this.#startDelivery(upTo, 0, undefined);
    this.#droppedEvents = events;
  }

  #startDelivery(cursor: number, addedBytes: number, frame: Frame | undefined): void {
    const counted = Math.max(this.#progress.bytes, this.#progress.gzip?.length ?? 0);
    if (counted > MAX_COUNTED_BYTES) this.#resetCounts();
    this.#pendingCount = this.members.length;
    const { bytes, events, gzip } = this.#progress;
    this.#nextProgress = {
      cursor,
      bytes: bytes + addedBytes,
      events: events + (frame?.entries.length ?? 0),
      writtenAt: clock(),
      gzip: gzip === undefined || frame === undefined ? gzip : addToTotals(gzip, frame.bytes),
    };
  }

  /**
   * Delivers the current frame to a number of pending members.
   * @returns the part of that number that was not used, because no member is pending any more, or a
   * callback has retired the audience
   */
  deliver(maxMembers: number): number {
    const frame = this.#currentFrame;
    // A frame that is partly old, has an end, or is larger than one write may be, needs a decision
    // of each member.
    const isForAll =
      frame !== undefined &&
      !frame.hasEnd &&
      frame.firstOffset > this.#progress.cursor &&
      frame.bytes.length <= HIGH_WATER_MARK;
    const shared = isForAll ? (this.window?.blockOf(frame) ?? frame) : undefined;
    let left = maxMembers;
    for (; left > 0 && this.#pendingCount > 0; left--) {
      const index = this.#pendingCount - 1;
      const socket = this.#sockets[index];
      if (
        shared !== undefined &&
        socket?.writable === true &&
        socket.writableLength <= CHUNK_BYTES
      ) {
        this.#pendingCount = index;
        try {
          socket.write(shared.chunk);
        } catch (error) {
          // The member may have moved meanwhile, or its stream may have ended.
          this.#failMemberAt(this.#sockets.indexOf(socket), error);
        }
      } else {
        this.#deliverTo(this.members[index] as Member);
        // A callback may have retired the audience, and so cleared the frame.
        if (!this.isDelivering) return left;
      }
    }
    if (this.#pendingCount === 0) this.#finishDelivery();
    return left;
  }

  /** Called if `write` of a socket throws: a monitoring agent may have replaced the method. */
  #failMemberAt(index: number, error: unknown): void {
    const member = this.members[index];
    if (member === undefined) return;
    this.detach(member);
    member.fail(error);
  }

  #deliverTo(member: Member): void {
    this.detach(member);
    this.#pendingCount--;
    if (this.#droppedEvents !== undefined) {
      member.onDropped(this.#nextProgress.cursor, this.#droppedEvents);
    }
    if (this.#currentFrame === undefined) return;
    const socket = member.takeFrame(this.#currentFrame, this.window);
    if (socket === undefined || !this.has(member)) return;
    this.#sockets[member.listIndex] = socket;
    this.#attachedCount++;
    member.onAttached(this.#nextProgress);
  }

  #resetCounts(): void {
    for (const member of this.members) this.detach(member);
    const gzip = this.#progress.gzip && NO_TOTALS;
    this.#progress = { ...this.#progress, bytes: 0, events: 0, gzip };
  }

  #finishDelivery(): void {
    this.clearFrame();
    this.#progress = this.#nextProgress;
  }

  /**
   * Releases the current frame. Pending members, if any, will not receive it. They stay counted as
   * pending, because they keep the progress without this frame.
   */
  clearFrame(): void {
    for (const entry of this.#currentFrame?.entries ?? []) entry.releaseView();
    this.window?.release();
    this.#currentFrame = undefined;
    this.#droppedEvents = undefined;
  }
}
