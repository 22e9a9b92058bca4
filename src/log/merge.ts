/** Merges the entries of several channels in the order of their offsets. */
import type { LogEntry } from './log-entry.ts';

/** Entries of one channel, in the order of their offsets and without a hole. */
export interface EntryRun {
  /** Offset of the newest entry that was ever in the run. */
  readonly newest: number;
  /** @returns the index of the first entry with a larger offset */
  indexAfter(offset: number): number;
  /** @returns the entry at an index of {@link indexAfter}, `undefined` after the last */
  at(index: number): LogEntry | undefined;
}

/**
 * Merges runs.
 * @param after only entries with a larger offset are returned
 * @param maxBytes maximum number of bytes of frames; one entry is returned in any case
 * @returns the entries in the order of their offsets, and whether these are all
 */
export function mergeLogs(
  runs: readonly (EntryRun | undefined)[],
  after: number,
  maxBytes: number,
): { entries: LogEntry[]; complete: boolean } {
  const heads: Head[] = [];
  for (const run of runs) {
    if (run !== undefined && run.newest > after) addHead(heads, run, run.indexAfter(after));
  }
  const entries: LogEntry[] = [];
  let bytes = 0;
  for (let next = heads.pop(); next !== undefined; next = heads.pop()) {
    const { run, index, entry } = next;
    if (entries.length > 0 && bytes + entry.frame.length > maxBytes) {
      return { entries, complete: false };
    }
    entries.push(entry);
    bytes += entry.frame.length;
    addHead(heads, run, index + 1);
  }
  return { entries, complete: true };
}

/** The next entry of one of the runs that are being merged. */
interface Head {
  readonly run: EntryRun;
  readonly index: number;
  readonly entry: LogEntry;
}

/**
 * Adds the entry of a run to the sorted heads, if the run has one there. The head with the lowest
 * offset is the last of the array. A binary search finds the place: with 100 channels, looking at
 * every head for every entry would take most of the time of a merge.
 */
function addHead(heads: Head[], run: EntryRun, index: number): void {
  const entry = run.at(index);
  if (entry === undefined) return;
  const head = { run, index, entry };
  const lowest = heads.at(-1);
  if (lowest === undefined || entry.offset < lowest.entry.offset) {
    heads.push(head);
    return;
  }
  let low = 0;
  let high = heads.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((heads[middle] as Head).entry.offset > entry.offset) low = middle + 1;
    else high = middle;
  }
  heads.splice(low, 0, head);
}
