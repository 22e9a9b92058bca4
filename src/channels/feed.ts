/** The newest entries of one channel that at least one audience of the channel has not received. */
import type { EntryRun } from '../log/merge.ts';
import type { LogEntry } from '../log/log-entry.ts';

/**
 * A queue of entries for the audiences of one channel.
 *
 * ```text
 * offsets of the channel    1    2    3    4    5    6    7    8
 *                           dropped      delivered     in the feed
 *                                ▲                            ▲
 *                                droppedUpTo                  newest
 * ```
 *
 * Entries that all audiences have received are removed with {@link forget}. If a feed has too many
 * bytes, {@link dropAll} removes all entries; then audiences whose position is below `droppedUpTo`
 * must be informed that they missed entries.
 */
export class Feed implements EntryRun {
  readonly channel: string;
  /** Offset of the newest published entry, whether or not the entry is still in this feed. */
  newest = 0;
  /** Offset of the newest entry that was dropped before every audience received it; 0 if none. */
  droppedUpTo = 0;
  /** Number of entries dropped since the last time all audiences were informed. */
  droppedEvents = 0;
  /** Bytes of the entries that the feed holds. */
  bytes = 0;
  /** Whether the next round of the fan-out visits the audiences of this feed. */
  isDue = false;
  /** Whether an audience received only a part of the entries in the current round. */
  isIncomplete = false;
  #entries: LogEntry[] = [];

  constructor(channel: string) {
    this.channel = channel;
  }

  /**
   * Adds a published entry.
   * @returns `false` if the entry, or a newer entry, was added before
   */
  push(entry: LogEntry): boolean {
    if (entry.offset <= this.newest) return false;
    this.newest = entry.offset;
    this.bytes += entry.frame.length;
    this.#entries.push(entry);
    return true;
  }

  /**
   * Drops all entries. Audiences that have not received them must be informed.
   * @returns the bytes that the entries held
   */
  dropAll(): number {
    this.droppedUpTo = this.newest;
    this.droppedEvents += this.#entries.length;
    return this.#clear();
  }

  /**
   * Removes the entries up to an offset, because every audience has received them, or none is left.
   * @returns the bytes that the entries held
   */
  forget(upTo: number): number {
    if (upTo >= this.droppedUpTo) this.droppedEvents = 0;
    if (upTo >= this.newest) return this.#clear();
    const index = this.indexAfter(upTo);
    let bytes = 0;
    for (const entry of this.#entries.slice(0, index)) {
      bytes += entry.frame.length;
      entry.releaseView();
    }
    this.#entries = this.#entries.slice(index);
    this.bytes -= bytes;
    return bytes;
  }

  /** Number of entries that the feed holds. */
  get events(): number {
    return this.#entries.length;
  }

  /** Index of the first entry whose offset is greater than `offset`, by binary search. */
  indexAfter(offset: number): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#entries[middle] as LogEntry).offset <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  at(index: number): LogEntry | undefined {
    return this.#entries[index];
  }

  #clear(): number {
    const { bytes } = this;
    // Frees the text that was made for filters. The log keeps the entry longer.
    for (const entry of this.#entries) entry.releaseView();
    this.bytes = 0;
    this.#entries = [];
    return bytes;
  }
}
