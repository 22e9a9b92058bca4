/** Where readers start: the `since` of a command, and what it means for a log. */
import type { SubscribeOptions } from '../../src/index.ts';
import type { ChannelName, Since } from './schedule.ts';
import type { Truth } from './truth.ts';

/** The start of a reader: after an offset, or as the `since` option says. */
export type Start = number | 'now' | 'whole' | 'newest' | 'foreign';

/** The options that decide where a reader starts. */
interface Reading {
  readonly since: Since;
  readonly back: number;
}

/** The `since` with which the application calls the library. */
export function sinceOf({ since, back }: Reading, truth: Truth): string | { last: number } {
  if (since === 'last') return { last: lastOf(back) };
  if (since === 'cursor') return `${truth.epoch}.${Math.max(0, truth.head - back)}`;
  return since === 'garbage' ? 'not a cursor of this log' : since;
}

/** The number of events of `since: { last }`. */
function lastOf(back: number): number {
  return 1 + (back % 5);
}

/** For each channel, the start of `since: { last }` if the log is read now. */
export function newestOf(
  { channels, since, back }: Reading & { readonly channels: readonly ChannelName[] },
  truth: Truth,
): ReadonlyMap<string, number> {
  const starts = new Map<string, number>();
  if (since !== 'last') return starts;
  for (const channel of channels) starts.set(channel, truth.startOfNewest(channel, lastOf(back)));
  return starts;
}

/** The start of a subscription, derived from the text of the cursor alone. */
export function startOf(cursor: NonNullable<SubscribeOptions['since']>, truth: Truth): Start {
  if (typeof cursor !== 'string') return 'newest';
  if (cursor === 'now') return 'now';
  if (cursor === 'start') return 'whole';
  const offset = offsetOf(cursor, truth);
  return offset !== undefined && offset <= truth.head ? offset : 'foreign';
}

/** @returns the offset of a cursor of the log, which may be beyond the head */
export function offsetOf(cursor: string, { epoch }: Truth): number | undefined {
  const offset = Number(cursor.slice(epoch.length + 1));
  return cursor === `${epoch}.${offset}` && Number.isSafeInteger(offset) && offset >= 0
    ? offset
    : undefined;
}
