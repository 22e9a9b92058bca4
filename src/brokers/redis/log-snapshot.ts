/** The state of the log at one moment: the answer of the script to a query. */
import type { HistoryLimits, TimedEntry } from '../../log/log.ts';
import type { ChannelState } from '../broker.ts';
import { parseEntry, toHistoryLimits } from './message-format.ts';

/** A query about one channel. */
export interface ChannelQuery {
  readonly channel: string;
  /** The events after this offset are read; with `undefined` no events. */
  readonly after: number | undefined;
  /** The events up to this offset are read. @defaultValue up to the newest */
  readonly until?: number | undefined;
}

/** The state of a channel in Redis. */
export interface StoredChannel {
  /** Offset of the newest event. */
  readonly newest: number;
  /** Offset of the newest event that is no longer kept. */
  readonly trimmed: number;
  readonly limits: HistoryLimits;
  /** Whether the newest entry is the end of the channel. */
  readonly isEnded: boolean;
}

/** The state of a channel in Redis, and the events that were queried. */
export interface ChannelSnapshot extends StoredChannel {
  /** Bytes of the events that are kept. */
  readonly bytes: number;
  /** Number of events that are kept; 0 if one of them cannot be read. */
  readonly length: number;
  readonly entries: readonly TimedEntry[];
  /** Whether more events match the query than were returned. */
  readonly hasMore: boolean;
  /** Offset of the last event that was returned, readable or not; 0 without events. */
  readonly last: number;
}

/** @returns the state of a channel, as the application sees it */
export function toChannelState(stored: ChannelSnapshot | undefined): ChannelState {
  if (stored === undefined || stored.length === 0) return 'unknown';
  return stored.isEnded ? 'ended' : 'open';
}

/** The state of the log in Redis at one moment. */
export interface LogSnapshot {
  readonly epoch: string;
  readonly head: number;
  /** Time in ms, by the clock of Redis. */
  readonly at: number;
  readonly discontinuities: Discontinuities;
  /** Offset of the last event of a page; `Infinity` if no events follow the page. */
  readonly pageEnd: number;
  /** In the order of the query. */
  readonly channels: readonly ChannelSnapshot[];
}

/**
 * The places where the log has gone back, for example after a failover to a replica that had not
 * received the last events: the field `breaks` of the log. The log then continues at a much higher
 * offset (a jump), so that no event id is used twice:
 *
 *     offsets   ─── origin ─── … ─── from ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ to ─────▶
 *
 *     reader      A                    B        C                 D
 *
 *     A   jumps before `origin` are not recorded any more: the reader may have lost events
 *     B   has received only events that are still in the log
 *     C   has received events that the log has lost
 *     D   as B
 */
export interface Discontinuities {
  /** Jumps before this offset are not recorded any more. */
  readonly origin: number;
  readonly jumps: readonly { readonly from: number; readonly to: number }[];
}

/**
 * @returns the offset up to which a reader may have lost events of all channels; 0 if it has lost
 * none
 */
export function lostOffset({ origin, jumps }: Discontinuities, after: number): number {
  const jump = jumps.find(({ from, to }) => from < after && after < to);
  if (jump !== undefined) return jump.to;
  return after < origin ? origin : 0;
}

/** @returns the offset at which the log has continued after it last went back; 0 if it never has */
export function newestJump({ jumps }: Discontinuities): number {
  return jumps.at(-1)?.to ?? 0;
}

/**
 * Parses the answer of the script to `look` or `page`.
 * @param channels in the order of the query
 * @param onProblem called with a description of each part that cannot be read; the rest of the
 * answer is used
 */
export function parseSnapshot(
  answer: readonly unknown[],
  channels: readonly string[],
  onProblem: (problem: string) => void,
): LogSnapshot {
  const [epoch, head, origin, breaks, at, pageEnd, ...states] = answer as [
    ...[string, string, string, string, string, string],
    ...string[][],
  ];
  const jumps = breaks.split(' ').flatMap((jump) => {
    const [from, to] = jump.split(':');
    return to === undefined ? [] : [{ from: Number(from), to: Number(to) }];
  });
  return {
    epoch,
    head: Number(head),
    at: Number(at),
    discontinuities: { origin: Number(origin), jumps },
    pageEnd: pageEnd === '' ? Infinity : Number(pageEnd),
    channels: states.map((state, index) =>
      parseChannel(state, channels[index] as string, epoch, onProblem),
    ),
  };
}

// Number of values before the events of a channel, and of each event.
const STATE_VALUES = 11;
const EVENT_VALUES = 3;

function parseChannel(
  values: readonly string[],
  channel: string,
  epoch: string,
  onProblem: (problem: string) => void,
): ChannelSnapshot {
  const [newest, trimmed, bytes, length, events, limit, age] = values.slice(0, 7).map(Number) as [
    ...[number, number, number, number],
    ...[number, number, number],
  ];
  const [latest, problem, hasMore, isEnded] = values.slice(7, STATE_VALUES);
  if (problem !== '') {
    onProblem(`the history of channel ${channel} cannot be read: ${problem ?? 'no answer'}`);
  }
  const entries: TimedEntry[] = [];
  let readableAfter = trimmed;
  let last = 0;
  for (let index = STATE_VALUES; index < values.length; index += EVENT_VALUES) {
    const offset = Number(values[index]);
    last = offset;
    const entry = parseEntry(values[index + 2] as string, channel, epoch, offset);
    if (entry === undefined) {
      onProblem(`event ${offset} of channel ${channel} cannot be read`);
      readableAfter = Math.max(readableAfter, offset);
    } else {
      entries.push({ entry, appendedAt: Number(values[index + 1]) });
    }
  }
  return {
    newest,
    // For readers, an event that cannot be read counts as not kept.
    trimmed: readableAfter,
    bytes,
    // If one event cannot be read, a newest-only channel may have lost its newest event.
    length: readableAfter === trimmed ? length : 0,
    limits: toHistoryLimits(events, limit, age, latest === '1'),
    hasMore: hasMore === '1',
    isEnded: isEnded === '1' && readableAfter < newest,
    last,
    entries,
  };
}
