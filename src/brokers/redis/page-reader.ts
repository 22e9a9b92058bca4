/** A page of the log straight from Redis. */
import type { LogEntry } from '../../log/log-entry.ts';
import type { LogRead } from '../../log/log.ts';
import type { LogSnapshot } from './log-client.ts';

/**
 * The entries of several channels, merged in the order of the log, at most so many bytes of frames but one entry.
 * @returns also the offset up to which nothing is left out
 */
export function pageOf(
  { answers, till: cut }: LogSnapshot,
  maxBytes: number,
): LogRead & { readonly till: number } {
  const found = answers.flatMap(({ entries }) => entries.map(({ entry }) => entry));
  const all = found.toSorted((one, other) => one.offset - other.offset);
  const entries: LogEntry[] = [];
  let bytes = 0;
  for (const entry of all) {
    if (entries.length > 0 && bytes + entry.frame.length > maxBytes) break;
    entries.push(entry);
    bytes += entry.frame.length;
  }
  const isAll = entries.length === all.length;
  return {
    entries,
    complete: isAll && cut === Infinity,
    trimmed: answers.map(({ limits, length, trimmed }) =>
      limits.latest && length > 0 ? 0 : trimmed,
    ),
    till: isAll ? cut : (entries.at(-1) as LogEntry).offset,
  };
}
