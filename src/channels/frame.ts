/** Published events, joined to one buffer that is written to many streams. */
import type { LogEntry } from '../log/log-entry.ts';
import { encodeAlone } from '../protocol/gzip.ts';
import { SharedBytes } from '../protocol/shared-bytes.ts';

/**
 * Events of one audience, or of one page of the log, in the order of their offsets: those that
 * follow each other, or of them only those that a filter has accepted.
 */
export class Frame extends SharedBytes {
  readonly entries: readonly LogEntry[];
  /** Offset of the first entry. */
  readonly firstOffset: number;
  /** Offset of the last entry. */
  readonly lastOffset: number;
  /** Whether one of the entries is the end of its channel, for which nothing is written. */
  readonly hasEnd: boolean;

  /** @param entries at least one; a single entry's bytes are not copied */
  constructor(entries: readonly LogEntry[]) {
    const first = entries[0] as LogEntry;
    super(entries.length === 1 ? first.frame : Buffer.concat(entries.map((entry) => entry.frame)));
    this.entries = entries;
    this.firstOffset = first.offset;
    this.lastOffset = (entries.at(-1) as LogEntry).offset;
    this.hasEnd = entries.some(({ isEnd }) => isEnd);
  }

  /**
   * Compresses the events of each channel on their own. One channel may have secrets of the reader,
   * and another one texts of other users, who could guess the secrets by the size of a common
   * block.
   */
  protected override compress(): Buffer {
    const runs: LogEntry[][] = [];
    for (const entry of this.entries) {
      const run = runs.at(-1);
      if (run?.[0]?.channel === entry.channel) run.push(entry);
      else runs.push([entry]);
    }
    if (runs.length === 1) return super.compress();
    return Buffer.concat(
      runs.map((run) => encodeAlone(Buffer.concat(run.map(({ frame }) => frame)))),
    );
  }

  /** Whether the frame consists of exactly these entries. */
  consistsOf(entries: readonly LogEntry[]): boolean {
    return (
      entries.length === this.entries.length &&
      entries.every((entry, index) => entry === this.entries[index])
    );
  }
}

/**
 * Counts how many of the entries fit into one frame.
 * @param maxBytes maximum bytes of the frame
 * @returns at least 1 for a list that is not empty, also if its first entry is larger than
 * `maxBytes`
 */
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
