/**
 * The text format of the messages and bodies that nodes exchange through Redis.
 *
 * Other programs can write into Redis, too, so the parsers accept any text: for text that does not
 * match the format they return `undefined`. They never throw.
 *
 * Every text begins with the version of the format, 1. A node treats a message that it cannot read
 * as missing, so its clients get a gap notification instead of losing an event silently. A later
 * version is therefore introduced in two steps: first a release that reads both formats and writes
 * the old format; then, when no older node is left, a release that writes the new format. The log
 * itself has a version, too, and the script refuses to write to a log with another version.
 *
 *     header, on the topic `…:spine`          event message, on the topic `…:c:<channel>`
 *
 *     1 <epoch> <previous> <head> <nonce>     1 <epoch> <offset> <previous> <at> <trimmed> \
 *     +<offset> <channel>                       <events> <bytes> <age> <latest>
 *     -<offset> <channel>                     <body>
 *
 *     body, also kept in the stream of the channel
 *
 *     1 <retry>                           1 <retry> <meta as JSON>         1 end
 *     <event>                             <event>
 *     <data>                              <data>                           the end of a channel
 */
import { SseError } from '../../common/errors.ts';
import type { HistoryLimits } from '../../log/log.ts';
import { LogEntry } from '../../log/log-entry.ts';
import { assertEvent } from '../../protocol/event-stream-format.ts';

/** The changes of the log by one call. Sent to every node, after the events themselves. */
export interface SequenceHeader {
  readonly epoch: string;
  /** Offset of the log before the changes. */
  readonly previous: number;
  /** Offset of the log after the changes. Each change takes one offset. */
  readonly head: number;
  /** In a probe, a text by which the node that sent the probe recognises it; otherwise `''`. */
  readonly nonce: string;
  readonly changes: readonly Change[];
}

/** One change of the log: an event was appended, or a channel was cleared. */
export interface Change {
  readonly isClear: boolean;
  /** Offset of the event. For a clear, the offset up to which the channel has no events. */
  readonly offset: number;
  readonly channel: string;
}

/** The state of a channel when an event was appended to it. */
export interface EntryMetadata {
  /** Offset of the previous event of the channel. */
  readonly previous: number;
  /** Time of the append in ms, by the clock of Redis. */
  readonly at: number;
  /** Offset of the newest event of the channel that is no longer kept. */
  readonly trimmed: number;
  readonly limits: HistoryLimits;
}

/** An event as it is sent to the nodes. */
export interface EventMessage {
  readonly epoch: string;
  readonly offset: number;
  readonly body: string;
  /** `undefined` for an event of a channel without history. */
  readonly metadata: EntryMetadata | undefined;
}

const HEADER = /^1 ([A-Za-z0-9_-]{1,64}) (\d{1,16}) (\d{1,16}) ([A-Za-z0-9_-]{0,64})$/;
const CHANGE = /^([+-])(\d{1,16}) ([^]+)$/;
// Epoch, seven numbers, flag.
const METADATA = new RegExp(
  String.raw`^1 ([A-Za-z0-9_-]{1,64})${String.raw` (\d{1,16})`.repeat(7)} ([01])$`,
);

/** @returns `undefined` for text that is not a header */
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
    // The line number determines the offset of an event.
    if (channel === undefined || (!isClear && offset !== previous + changes.length + 1)) {
      return undefined;
    }
    changes.push({ isClear, offset, channel });
  }
  return { epoch, previous, head, nonce, changes };
}

/** @returns `undefined` for text that is not an event message; the body is not checked */
export function parseEventMessage(text: string): EventMessage | undefined {
  const end = text.indexOf('\n');
  const [, epoch, ...digits] = METADATA.exec(text.slice(0, end)) ?? [];
  const numbers = digits.map(Number);
  if (epoch === undefined || !numbers.every((number) => Number.isSafeInteger(number))) {
    return undefined;
  }
  const [offset, previous, at, trimmed, events, bytes, age, latest] = numbers as [
    ...[number, number, number, number],
    ...[number, number, number, number],
  ];
  const body = text.slice(end + 1);
  // An event without history belongs to no log.
  if (epoch === '-') return { epoch, offset, body, metadata: undefined };
  const limits = toHistoryLimits(events, bytes, age, latest === 1);
  return { epoch, offset, body, metadata: { previous, at, trimmed, limits } };
}

/** @param age in ms; 0 in Redis means that there is no limit */
export function toHistoryLimits(
  events: number,
  bytes: number,
  age: number,
  latest: boolean,
): HistoryLimits {
  return { events, bytes, age: age === 0 ? Infinity : age, latest };
}

/** The body of the end of a channel. */
export const END_BODY = '1 end';

/** Formats an event without its place in the log. */
export function formatBody(
  event: string | undefined,
  data: string,
  retry: number | undefined,
  meta?: string,
): string {
  // JSON has no line breaks.
  const metaText = meta === undefined ? '' : ` ${meta}`;
  return `1 ${retry ?? ''}${metaText}\n${event ?? ''}\n${data}`;
}

/**
 * Makes a log entry from a body.
 * @param epoch `undefined` for a channel without history
 * @returns `undefined` for text that is not a body, and for fields that would forge other fields in
 * the event stream of a client
 */
export function parseEntry(
  body: string,
  channel: string,
  epoch: string | undefined,
  offset: number,
): LogEntry | undefined {
  if (body === END_BODY) {
    // A channel without history has no end.
    if (epoch === undefined) return undefined;
    return new LogEntry({ channel, epoch, offset, data: '', isEnd: true });
  }
  const first = body.indexOf('\n');
  const second = body.indexOf('\n', first + 1);
  if (first < 0 || second < 0) return undefined;
  // Not `.`, which does not match U+2028 and U+2029; the line contains no other line break.
  const [, digits, meta] = /^1 (\d{0,16})(?: ([^]+))?$/.exec(body.slice(0, first)) ?? [];
  const event = body.slice(first + 1, second);
  if (digits === undefined || !isEventName(event)) return undefined;
  const retry = digits === '' ? undefined : Number(digits);
  if (retry !== undefined && !Number.isSafeInteger(retry)) return undefined;
  return new LogEntry({
    channel,
    epoch,
    offset,
    event: event === '' ? undefined : event,
    data: body.slice(second + 1),
    retry,
    meta,
  });
}

function isEventName(name: string): boolean {
  try {
    assertEvent(name);
    return true;
  } catch (error) {
    if (error instanceof SseError) return false;
    throw error;
  }
}
