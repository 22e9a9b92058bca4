/** The newest entries of one channel that not every audience of the channel has been given yet. */
import type { EntryRun } from '../log/log.ts';
import type { LogEntry } from '../log/log-entry.ts';

export class Feed implements EntryRun {
  readonly channel: string;
  /** Offset of the newest entry that was published, whether or not it is still here. */
  newest = 0;
  /** Offset of the newest entry that was dropped before every audience had been given it; 0 = none. */
  dropped = 0;
  /** How many entries were dropped since all audiences were told last. */
  droppedCount = 0;
  /** Bytes of the entries that are here. */
  bytes = 0;
  /** Whether a round of the fan-out will visit its audiences. */
  isDue = false;
  /** Whether an audience was given only a part of the entries in this round. */
  hasRest = false;
  #entries: LogEntry[] = [];

  constructor(channel: string) {
    this.channel = channel;
  }

  /** Adds a published entry. An entry that came before is ignored. @returns whether it was added */
  push(entry: LogEntry): boolean {
    if (entry.offset <= this.newest) return false;
    this.newest = entry.offset;
    this.bytes += entry.frame.length;
    this.#entries.push(entry);
    return true;
  }

  /** Drops all entries: audiences that have not been given them must be told. @returns their bytes */
  drop(): number {
    this.dropped = this.newest;
    this.droppedCount += this.#entries.length;
    return this.#clear();
  }

  /** Forgets the entries up to the offset, which every audience has been given. @returns their bytes */
  forget(upTo: number): number {
    if (upTo >= this.dropped) this.droppedCount = 0;
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

  get events(): number {
    return this.#entries.length;
  }

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
    // What filters have made of them would stay as long as the log keeps them.
    for (const entry of this.#entries) entry.releaseView();
    this.bytes = 0;
    this.#entries = [];
    return bytes;
  }
}
