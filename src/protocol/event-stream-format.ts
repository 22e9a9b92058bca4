/**
 * The event stream format: converts fields to text. All text that reaches a client is validated or
 * encoded here. See WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event
 * stream".
 *
 * ```text
 * event: tick              optional
 * retry: 1000              optional
 * data: first line         one line for each line of the data
 * data: second line
 * id: 7                    optional, always last
 *                          the blank line dispatches the event
 * ```
 */
import { isAnyArrayBuffer, isMap, isNativeError, isSet } from 'node:util/types';
import { ignoreRejection, isThenable } from '../common/async.ts';
import { SseError, describeThrown, describeValue } from '../common/errors.ts';
import { MAX_RETRY_MS } from '../common/retry-range.ts';

/** The `id` of an event as the application passes it. On the wire every id is text. */
export type EventId = string | number | bigint;

/** The fields of an event in addition to its data. */
export interface EventFields {
  /**
   * Event type, the name for `addEventListener`. Without a type the event is a `message`. Must not
   * contain CR or LF, and must not begin with `sse:`.
   */
  event?: string | undefined;
  /**
   * Last event ID, which the client sends back when it reconnects. Must not contain CR, LF or NUL.
   * `''` resets the id.
   */
  id?: EventId | undefined;
  /** Reconnection time in ms: a whole number from 0 to 2,147,483,647. */
  retry?: number | undefined;
}

/** Converts data that is not a string to text. The default is `JSON.stringify`. */
export type Serialize = (data: unknown) => string | undefined;

/**
 * The id of the last event of a stream that must not be reconnected. A client that reconnects with
 * this id is answered 204, which stops an `EventSource`.
 */
export const FINAL_ID = 'sse:end';

// Spaces and tabs around the value of a header are not part of the value (RFC 9110, 5.5). A client
// that received such an id would send it back without them.
const FINAL_ID_IN_HEADER = /^[ \t]*sse:end[ \t]*$/;

const LINE_BREAK = /\r\n|\r|\n/g;

/**
 * The heartbeat: a comment without text. No blank line follows, because some clients would dispatch
 * an empty event.
 */
export const HEARTBEAT_COMMENT: Buffer = Buffer.from(':\n');

/**
 * Returns the heartbeat that a page can see.
 * @param interval time in ms to the next one, so that the page knows how long silence may be
 */
export function formatPing(interval: number): Buffer {
  return Buffer.from(`event: sse:ping\ndata: {"interval":${interval}}\n\n`);
}

/** The last event of a stream that must not be reconnected. */
export const END_EVENT: string = `event: sse:end\ndata: {}\nid: ${FINAL_ID}\n\n`;

/**
 * Converts data to the text of an event.
 * @param data a string is returned unchanged
 * @param serialize called for any other value
 * @throws {SseError} `ERR_SSE_DATA` if the data cannot be converted
 */
export function serializeData(data: unknown, serialize: Serialize): string {
  if (typeof data === 'string') return data;
  assertSerializable(data, serialize);
  let text: unknown;
  try {
    text = serialize(data);
  } catch (cause) {
    throw new SseError('ERR_SSE_DATA', `\`serialize\` threw: ${describeThrown(cause)}`, { cause });
  }
  if (typeof text !== 'string') {
    throw new SseError(
      'ERR_SSE_DATA',
      `expected \`serialize\` to return a string, got ${describeValue(text)}`,
    );
  }
  return text;
}

/**
 * Rejects data that would be lost silently, because `JSON.stringify` converts it to `undefined` or
 * `{}`.
 * @throws {SseError} `ERR_SSE_DATA`
 */
function assertSerializable(data: unknown, serialize: Serialize): void {
  if (data === undefined || typeof data === 'function' || typeof data === 'symbol') {
    throw new SseError(
      'ERR_SSE_DATA',
      `expected data to be a string or a value for \`serialize\`, got ${describeValue(data)}`,
    );
  }
  if (ArrayBuffer.isView(data) || isAnyArrayBuffer(data)) {
    throw new SseError(
      'ERR_SSE_DATA',
      'an event stream carries text only; encode bytes first, ' +
        'for example with buffer.toString("base64")',
    );
  }
  if (isThenable(data)) {
    ignoreRejection(data);
    throw new SseError('ERR_SSE_DATA', 'got a promise; await it and send the result');
  }
  if (serialize === JSON.stringify && isEmptyAsJson(data)) {
    throw new SseError(
      'ERR_SSE_DATA',
      'JSON.stringify converts a Map, a Set or an Error to {}; ' +
        'send a plain object or an array, or pass `serialize`',
    );
  }
}

/** Whether `JSON.stringify` converts the value to `{}`, although the value has content. */
function isEmptyAsJson(data: unknown): boolean {
  return (
    (isMap(data) || isSet(data) || isNativeError(data)) &&
    typeof (data as { toJSON?: unknown }).toJSON !== 'function'
  );
}

/**
 * Checks the fields of an event.
 * @returns a copy of the checked fields. Each field is read once, because a getter could return
 * another value the second time.
 * @throws {SseError} `ERR_SSE_FIELD` for an unknown key; `ERR_SSE_EVENT`, `ERR_SSE_ID` or
 * `ERR_SSE_RETRY` for a value that would forge, lose or garble something on the wire
 */
export function assertFields(fields: EventFields): EventFields {
  for (const key of Object.keys(fields)) {
    if (key !== 'event' && key !== 'id' && key !== 'retry') {
      throw new SseError(
        'ERR_SSE_FIELD',
        `unknown field \`${key}\`; an event has data, \`event\`, \`id\` and \`retry\``,
      );
    }
  }
  const { event, id, retry } = fields;
  if (event !== undefined) assertEvent(event);
  if (id !== undefined) assertId(id);
  if (retry !== undefined) assertRetry(retry);
  return { event, id, retry };
}

/**
 * Checks an event type.
 * @throws {SseError} `ERR_SSE_EVENT`
 */
export function assertEvent(event: string): void {
  if (typeof event !== 'string') {
    throw new SseError(
      'ERR_SSE_EVENT',
      `expected \`event\` to be a string, got ${describeValue(event)}`,
    );
  }
  if (event.includes('\n') || event.includes('\r')) {
    throw new SseError(
      'ERR_SSE_EVENT',
      `an event name cannot contain CR or LF, got ${describeValue(event)}`,
    );
  }
  if (event.startsWith('sse:')) {
    throw new SseError(
      'ERR_SSE_EVENT',
      `event names that begin with "sse:" are reserved, got ${describeValue(event)}`,
    );
  }
}

/**
 * Checks a last event ID.
 * @throws {SseError} `ERR_SSE_ID`
 */
export function assertId(id: EventId): void {
  if (typeof id === 'string') {
    // A client ignores an id with NUL (9.2.6), and would later resume from an older id.
    if (id.includes('\n') || id.includes('\r') || id.includes('\0')) {
      throw new SseError(
        'ERR_SSE_ID',
        `an id cannot contain CR, LF or NUL, got ${describeValue(id)}`,
      );
    }
    if (FINAL_ID_IN_HEADER.test(id)) {
      throw new SseError(
        'ERR_SSE_ID',
        `the id ${JSON.stringify(id)} is reserved; call close({ final: true }) instead`,
      );
    }
  } else if (typeof id !== 'bigint' && !Number.isFinite(id)) {
    throw new SseError(
      'ERR_SSE_ID',
      `expected \`id\` to be a string, a finite number or a bigint, got ${describeValue(id)}`,
    );
  }
}

/**
 * Checks a reconnection time.
 * @throws {SseError} `ERR_SSE_RETRY`
 */
export function assertRetry(retry: number): void {
  if (!Number.isSafeInteger(retry) || retry < 0 || retry > MAX_RETRY_MS) {
    throw new SseError(
      'ERR_SSE_RETRY',
      `expected \`retry\` to be a whole number of ms from 0 to ${MAX_RETRY_MS}, ` +
        `got ${describeValue(retry)}`,
    );
  }
}

/**
 * Writes an event as it is sent. The fields must have been checked with {@link assertFields}.
 *
 * The id comes last. Some clients store an id as soon as they have read its line. If the connection
 * broke before the data, they would resume after an event that they have not received.
 */
export function formatEvent(data: string, event?: string, id?: EventId, retry?: number): string {
  let text = event === undefined || event === '' ? '' : `event: ${event}\n`;
  if (retry !== undefined) text += formatRetry(retry);
  const end = id === undefined ? '\n\n' : `\nid: ${id}\n\n`;
  // Most data is one line. Two scans and a concatenation are the cheapest way for that.
  if (!data.includes('\n') && !data.includes('\r')) return `${text}data: ${data}${end}`;
  return `${text}data: ${data.replace(LINE_BREAK, '\ndata: ')}${end}`;
}

/**
 * @returns the number of bytes that {@link formatEvent} writes, without id and reconnection time
 */
export function countEventBytes(data: string, event?: string): number {
  const typeBytes =
    event === undefined || event === '' ? 0 : Buffer.byteLength(event) + 'event: \n'.length;
  const bytes = typeBytes + Buffer.byteLength(data) + 'data: \n\n'.length;
  if (!data.includes('\n') && !data.includes('\r')) return bytes;
  // Each line break is replaced by LF and the name of the field.
  let added = 0;
  for (const [lineBreak] of data.matchAll(LINE_BREAK)) {
    added += '\ndata: '.length - lineBreak.length;
  }
  return bytes + added;
}

/** @returns the data of an event that {@link formatEvent} wrote, with LF for every line break */
export function parseEventData(text: string): string {
  const lines = text.split('\n').filter((line) => line.startsWith('data: '));
  return lines.map((line) => line.slice('data: '.length)).join('\n');
}

/**
 * Writes a checkpoint: an event whose id is a cursor from which the client can resume. The event
 * has data, because some clients ignore the id of an event without data.
 */
export function formatCheckpoint(id: string): string {
  return `event: sse:checkpoint\ndata: ${JSON.stringify({ cursor: id })}\nid: ${id}\n\n`;
}

/**
 * Writes a gap notification.
 * @param channels the channels that lost events
 * @param after the cursor of the client
 * @param cursor the cursor of the newest event
 */
export function formatGap(channels: readonly string[], after: string, cursor: string): string {
  return `event: sse:gap\ndata: ${JSON.stringify({ channels, after, cursor })}\n\n`;
}

/**
 * Writes a comment. Each line of the text becomes a comment line.
 * @throws {SseError} `ERR_SSE_COMMENT` for text that is not a string
 */
export function formatComment(text: string): string {
  if (typeof text !== 'string') {
    throw new SseError(
      'ERR_SSE_COMMENT',
      `expected the comment to be a string, got ${describeValue(text)}`,
    );
  }
  return text === '' ? ':\n' : `: ${text.replace(LINE_BREAK, '\n: ')}\n`;
}

/**
 * Writes a reconnection time. The line takes effect at once. No blank line follows, for the same
 * reason as in {@link HEARTBEAT_COMMENT}.
 */
export function formatRetry(retry: number): string {
  return `retry: ${retry}\n`;
}
