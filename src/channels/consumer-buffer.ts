/** The events of a consumer that `next()` has not taken yet, in memory. */
import type { LogEntry } from '../log/log-entry.ts';
import { HIGH_WATER_MARK } from '../stream/write-queue.ts';
import type { Audience, Member } from './audience.ts';
import type { ChannelStarts } from './channel-starts.ts';
import type { FanOut } from './fan-out.ts';
import type { Frame } from './frame.ts';

/**
 * Takes events from pages of the log and, as a member of an audience, from frames. A full buffer
 * leaves the audience, so its size is bounded: the consumer reads the log instead.
 */
export class ConsumerBuffer implements Member {
  /** Index in the audience's list of members. Set by the audience. */
  listIndex = -1;
  /** Offset up to which the buffer has taken everything. */
  position: number;
  readonly isCompressed = false;
  readonly #fanOut: FanOut;
  readonly #starts: ChannelStarts;
  #entries: LogEntry[] = [];
  #bytes = 0;
  #audience: Audience | undefined;
  // Resolves the pending `whenChanged()`.
  #wake: (() => void) | undefined;

  /**
   * @param starts events up to the start of their channel are not taken
   * @param position offset up to which nothing will be taken
   */
  constructor(fanOut: FanOut, starts: ChannelStarts, position: number) {
    this.#fanOut = fanOut;
    this.#starts = starts;
    this.position = position;
  }

  /** Whether the buffer receives the published events. */
  get isLive(): boolean {
    return this.#audience !== undefined;
  }

  /** Whether no event is left. The end of a channel is not an event. */
  get hasNoEvent(): boolean {
    return this.#entries.every(({ isEnd }) => isEnd);
  }

  /** Adds entries that were read from the log, and moves the position. */
  addRead(entries: readonly LogEntry[], position: number): void {
    this.#add(entries);
    this.position = Math.max(this.position, position);
  }

  #add(entries: readonly LogEntry[]): void {
    for (const entry of entries) {
      if (!this.#starts.isAfterStart(entry)) continue;
      this.#entries.push(entry);
      this.#bytes += entry.frame.length;
    }
  }

  /** Removes and returns the oldest entry. */
  shift(): LogEntry | undefined {
    const entry = this.#entries.shift();
    this.#bytes -= entry?.frame.length ?? 0;
    return entry;
  }

  /** The starts have changed: removes the entries that come before them. */
  applyStarts(): void {
    this.#replaceEntries(this.#entries);
  }

  /** Puts the entries of another buffer, which are older, before the entries of this buffer. */
  prepend(older: ConsumerBuffer): void {
    this.#replaceEntries([...older.#entries, ...this.#entries]);
  }

  #replaceEntries(entries: readonly LogEntry[]): void {
    this.#entries = [];
    this.#bytes = 0;
    this.#add(entries);
  }

  /** Receives from here on what is published in the channels. */
  join(channels: readonly string[]): void {
    this.#audience = this.#fanOut.addMember(channels, this);
  }

  /** Leaves the audience. No effect outside an audience. */
  leave(): void {
    if (this.#audience !== undefined) this.#fanOut.removeMember(this.#audience, this);
    this.#audience = undefined;
  }

  /** Leaves the audience and releases the entries. A pending `whenChanged()` resolves. */
  close(): void {
    this.leave();
    this.#replaceEntries([]);
    this.#wake?.();
  }

  /** Resolves when entries were added, or the buffer has left the audience. */
  whenChanged(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        this.#wake = undefined;
        resolve();
      };
    });
  }

  // Methods of a member of an audience.

  takeFrame({ entries, lastOffset, hasEnd }: Frame): undefined {
    const { position } = this;
    if (lastOffset <= position) return undefined;
    this.#add(entries.filter(({ offset }) => offset > position));
    this.position = lastOffset;
    // After an end, the next page of the log shows whether all of the channels have ended.
    if (hasEnd || this.#bytes > HIGH_WATER_MARK) this.leave();
    this.#wake?.();
    return undefined;
  }

  onDropped(upTo: number): void {
    if (this.position < upTo) this.fallBehind();
  }

  /** Leaves the audience: the consumer reads the log instead. */
  fallBehind(): void {
    this.leave();
    this.#wake?.();
  }

  /** Never called: a buffer has no socket. */
  fail(): void {}

  /** Never called: a buffer is not attached. */
  onAttached(): void {}

  onDetached(): void {}
}
