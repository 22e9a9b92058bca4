/**
 * What nodes write for each other, as text, and how it is read back. Total: whatever else somebody writes there is `undefined`.
 *
 * All of it begins with the version of the format, 1. A node takes what it cannot read for missing, and tells its readers of a
 * gap, never of nothing. So a later version is rolled out in two steps: first one that reads both forms and writes the old one,
 * and, when no older node is left, one that writes the new form. The log itself carries the version, too, and a node refuses to
 * write into one that it does not know.
 */
import { SseError } from '../../common/errors.ts';
import type { HistoryLimits } from '../../log/log.ts';
import { LogEntry } from '../../log/log-entry.ts';
import { assertEvent } from '../../protocol/event-stream-format.ts';

/** What happened to the log, for every node: on the spine, after the events themselves. */
export interface SequenceHeader {
  readonly epoch: string;
  /** Where the log stood before. */
  readonly previous: number;
  /** Where it stands now: each change takes one offset. */
  readonly head: number;
  /** Of a probe: who has asked to hear it. */
  readonly nonce: string;
  readonly changes: readonly Change[];
}

/** An event of the channel at this offset; or the channel was cleared, and what it held up to this offset is gone. */
export interface Change {
  readonly isClear: boolean;
  readonly offset: number;
  readonly channel: string;
}

/** What an event knows of its channel. */
export interface EntryMetadata {
  /** Offset of the channel's event before. */
  readonly previous: number;
  /** When it was appended, in ms by the clock of Redis. */
  readonly at: number;
  /** Offset of the newest event of the channel that is no longer kept. */
  readonly trimmed: number;
  readonly limits: HistoryLimits;
}

/** An event as it arrives. Without a stamp it is of a channel without history. */
export interface EventMessage {
  readonly epoch: string;
  readonly offset: number;
  readonly body: string;
  readonly stamp: EntryMetadata | undefined;
}

const HEADER = /^1 ([A-Za-z0-9_-]{1,64}) (\d{1,16}) (\d{1,16}) ([A-Za-z0-9_-]{0,64})$/;
const CHANGE = /^([+-])(\d{1,16}) ([^]+)$/;
const ARRIVAL =
  /^1 ([A-Za-z0-9_-]{1,64}) (\d{1,16}) (\d{1,16}) (\d{1,16}) (\d{1,16}) (\d{1,16}) (\d{1,16}) (\d{1,16}) ([01])$/;

export function parseHeader(text: string): SequenceHeader | undefined {
  const [first = '', ...lines] = text.split('\n');
  const [, epoch, before, after, nonce] = HEADER.exec(first) ?? [];
  if (epoch === undefined || nonce === undefined) return undefined;
  const previous = Number(before);
  const head = Number(after);
  if (!Number.isSafeInteger(head) || head - previous !== lines.length) return undefined;
  const changes: Change[] = [];
  for (const line of lines) {
    const [, sign, digits, channel] = CHANGE.exec(line) ?? [];
    const isClear = sign === '-';
    const offset = Number(digits);
    // Each has the place that it stands in.
    if (channel === undefined || (!isClear && offset !== previous + changes.length + 1)) {
      return undefined;
    }
    changes.push({ isClear, offset, channel });
  }
  return { epoch, previous, head, nonce, changes };
}

export function parseArrival(text: string): EventMessage | undefined {
  const end = text.indexOf('\n');
  const [, epoch, ...digits] = ARRIVAL.exec(text.slice(0, end)) ?? [];
  const numbers = digits.map(Number);
  if (epoch === undefined || !numbers.every((number) => Number.isSafeInteger(number))) {
    return undefined;
  }
  const [offset, previous, at, trimmed, events, bytes, age, latest] = numbers as [
    ...[number, number, number, number],
    ...[number, number, number, number],
  ];
  const body = text.slice(end + 1);
  if (epoch === '-') return { epoch, offset, body, stamp: undefined };
  return {
    epoch,
    offset,
    body,
    stamp: { previous, at, trimmed, limits: limitsOf(events, bytes, age, latest === 1) },
  };
}

/** In Redis no age is 0. */
export function limitsOf(
  events: number,
  bytes: number,
  age: number,
  latest: boolean,
): HistoryLimits {
  return { events, bytes, age: age === 0 ? Infinity : age, latest };
}

/** An event without its place in the log: what the stream in Redis keeps, too. */
export function formatBody(
  event: string | undefined,
  data: string,
  retry: number | undefined,
): string {
  return `1 ${retry ?? ''}\n${event ?? ''}\n${data}`;
}

/** @returns `undefined` for what is none, or would forge something on the wire: others write into Redis, too */
export function entryOf(
  body: string,
  channel: string,
  epoch: string | undefined,
  offset: number,
): LogEntry | undefined {
  const first = body.indexOf('\n');
  const second = body.indexOf('\n', first + 1);
  if (first < 0 || second < 0) return undefined;
  const [, digits] = /^1 (\d{0,16})$/.exec(body.slice(0, first)) ?? [];
  const event = body.slice(first + 1, second);
  if (digits === undefined || !isEvent(event)) return undefined;
  const retry = digits === '' ? undefined : Number(digits);
  if (retry !== undefined && !Number.isSafeInteger(retry)) return undefined;
  return new LogEntry({
    channel,
    epoch,
    offset,
    event: event === '' ? undefined : event,
    data: body.slice(second + 1),
    retry,
  });
}

function isEvent(name: string): boolean {
  try {
    assertEvent(name);
    return true;
  } catch (error) {
    if (error instanceof SseError) return false;
    throw error;
  }
}
