/** Published events joined: what one turn of the event loop published, or a page from the log, as the bytes that many streams share. */
import type { LogEntry } from '../log/log-entry.ts';
import { SharedBytes } from '../protocol/shared-bytes.ts';

/** The events of one turn for one audience, in the order of their offsets. */
export class Frame extends SharedBytes {
  readonly entries: readonly LogEntry[];
  /** Offset of the first entry. */
  readonly first: number;
  /** Offset of the last entry. */
  readonly last: number;

  constructor(entries: readonly LogEntry[]) {
    const first = entries[0] as LogEntry;
    super(entries.length === 1 ? first.frame : Buffer.concat(entries.map((entry) => entry.frame)));
    this.entries = entries;
    this.first = first.offset;
    this.last = (entries.at(-1) as LogEntry).offset;
  }

  /** Whether it is these entries, all of them and no others. */
  holds(entries: readonly LogEntry[]): boolean {
    return (
      entries.length === this.entries.length &&
      entries.every((entry, index) => entry === this.entries[index])
    );
  }
}

/** How many of the entries one frame of so many bytes may hold, but at least one: more would have to be taken apart for each stream. */
export function countFitting(entries: readonly LogEntry[], maxBytes: number): number {
  let count = 0;
  let bytes = 0;
  for (const { frame } of entries) {
    bytes += frame.length;
    if (count > 0 && bytes > maxBytes) break;
    count++;
  }
  return count;
}
