/** `channels.read()`: a page of the history of channels. */
import type { Broker } from '../brokers/broker.ts';
import { SseError } from '../common/errors.ts';
import type { ChannelEvent, LogEntry } from '../log/log-entry.ts';
import { formatCursor, parseCursor, type Cursor } from '../protocol/cursor.ts';
import { ChannelStarts, OLDEST_KEPT } from './channel-starts.ts';

// Maximum bytes of each page of the log that is read for the result.
const PAGE_BYTES = 262_144;

/** The options of `channels.read()`. */
export interface ReadOptions {
  /**
   * A cursor: the events after the cursor are read.
   * @defaultValue none: starts at the oldest event that is kept
   */
  after?: string | undefined;
  /**
   * Reads the newest events instead: at most this number of each channel, from 1 to 1000. Not
   * together with `after` and `limit`.
   */
  last?: number | undefined;
  /** Maximum number of events, from 1 to 10000. @defaultValue `100` */
  limit?: number | undefined;
}

/** A page of the history of channels. */
export interface HistoryPage {
  /** The events, the oldest first. */
  readonly events: readonly ChannelEvent[];
  /** The cursor after which the next page begins, and from which a stream can continue. */
  readonly cursor: string;
  /**
   * The channels that have lost events since the cursor `after`; all channels if `after` is not a
   * cursor of this log.
   */
  readonly gap: readonly string[];
  /** Whether the history keeps newer events than this page. `false` with `last`. */
  readonly more: boolean;
}

/**
 * Reads events of channels, the oldest first. See `Channels.read()` for the contract.
 * @param channels valid names of channels with history, each once
 * @param waitForTurn resolves when the limits of a turn of the event loop allow another page
 */
export async function readHistory(
  broker: Broker,
  channels: readonly string[],
  { after, last, limit = 100 }: ReadOptions,
  waitForTurn: () => Promise<void>,
): Promise<HistoryPage> {
  const position = await broker.position(after === undefined ? undefined : parseCursor(after));
  const starts = new ChannelStarts();
  const from = await setStarts(broker, starts, channels, { after, last }, position);
  const events: LogEntry[] = [];
  const channelsWithGap = new Set<string>();
  const max = last === undefined ? limit : Infinity;
  let cursor: Cursor = { epoch: position.epoch, offset: from };
  for (;;) {
    const page = await broker.read(channels, cursor.offset, PAGE_BYTES);
    if (page.position.epoch !== cursor.epoch) {
      // The broker has lost its data: the events that were read so far belong to the old log.
      events.length = 0;
      starts.markAllLost(channels);
      cursor = { epoch: page.position.epoch, offset: 0 };
      continue;
    }
    for (const channel of starts.collectLost(channels, page.trimmed, cursor.offset)) {
      channelsWithGap.add(channel);
    }
    starts.clearForeign();
    for (const entry of page.entries) {
      if (entry.isEnd || !starts.isAfterStart(entry)) continue;
      // The next page begins after the last event of this one.
      if (events.length === max) return toPage(events, channelsWithGap, cursor, true);
      events.push(entry);
      cursor = { epoch: cursor.epoch, offset: entry.offset };
    }
    if (page.complete) {
      const offset = Math.max(cursor.offset, page.position.offset);
      return toPage(events, channelsWithGap, { epoch: cursor.epoch, offset }, false);
    }
    cursor = { epoch: cursor.epoch, offset: (page.entries.at(-1) as LogEntry).offset };
    await waitForTurn();
  }
}

/** @returns the offset after which the log is read */
async function setStarts(
  broker: Broker,
  starts: ChannelStarts,
  channels: readonly string[],
  { after, last }: ReadOptions,
  position: Cursor,
): Promise<number> {
  if (last !== undefined) {
    const offsets = await broker.startsOfNewest(channels, last);
    for (const [index, channel] of channels.entries()) {
      starts.setStartOfKept(channel, offsets[index] as number, Infinity);
    }
    return Math.min(...offsets);
  }
  const cursor = after === undefined ? undefined : parseCursor(after);
  if (cursor?.epoch === position.epoch && cursor.offset <= position.offset) return cursor.offset;
  // Without `after`, trimmed events are not a gap.
  if (after !== undefined) starts.addForeign(channels);
  else for (const channel of channels) starts.setStartOfKept(channel, OLDEST_KEPT, Infinity);
  return 0;
}

function toPage(
  events: readonly ChannelEvent[],
  channelsWithGap: ReadonlySet<string>,
  { epoch, offset }: Cursor,
  more: boolean,
): HistoryPage {
  return { events, cursor: formatCursor(epoch, offset), gap: [...channelsWithGap], more };
}

/**
 * Checks the options that exclude each other.
 * @throws {SseError} `ERR_SSE_OPTION`
 */
export function assertReadOptions({ after, last, limit }: ReadOptions): void {
  if (last === undefined || (after === undefined && limit === undefined)) return;
  throw new SseError(
    'ERR_SSE_OPTION',
    'read() got `last` together with `after` or `limit`; the newest events have no other limit',
  );
}
