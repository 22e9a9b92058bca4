/**
 * The event stream format: fields in, bytes out. Everything that reaches a client is validated or encoded here.
 * WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event stream".
 */
import { isAnyArrayBuffer, isMap, isNativeError, isSet } from 'node:util/types';
import { SseError, describeThrown, describeValue } from '../common/errors.ts';
import { MAX_RETRY_MS } from '../common/retry-range.ts';

/** What an event's `id` may be given as; on the wire it is text. */
export type EventId = string | number | bigint;

/** The fields of an event besides its data. */
export interface EventFields {
  /** Event type, what `addEventListener` listens for. Without one the event is a `message`. No CR, no LF, not beginning `sse:`. */
  event?: string | undefined;
  /** Last event ID, which the client sends back when it reconnects. No CR, LF or NUL. `''` resets it. */
  id?: EventId | undefined;
  /** Reconnection time in ms, a whole number from 0 to 2,147,483,647. */
  retry?: number | undefined;
}

/** Makes text of data that is not a string, `JSON.stringify` by default. */
export type Serialize = (data: unknown) => string | undefined;

/** The id that says "do not come back": a client that brings it is answered 204, which stops an EventSource. */
export const FINAL_MARK = 'sse:end';

// Spaces and tabs around the value of a header are not part of it (RFC 9110, 5.5): the id that a client
// sends back has none.
const FINAL_MARK_IN_HEADER = /^[ \t]*sse:end[ \t]*$/;

const LINE_BREAK = /\r\n|\r|\n/g;

/** A comment without text, the heartbeat. No blank line after it: some clients take that for an empty event. */
export const HEARTBEAT: Buffer = Buffer.from(':\n');

/** The heartbeat that a page can see. */
export const PING: Buffer = Buffer.from('event: sse:ping\ndata: {}\n\n');

/** The last event of a stream that is not to be reconnected. */
export const END: string = `event: sse:end\ndata: {}\nid: ${FINAL_MARK}\n\n`;

/**
 * The text of `data` as it goes into an event.
 * @throws {SseError} `ERR_SSE_DATA` for what no text can be made of
 */
export function dataText(data: unknown, serialize: Serialize): string {
  if (typeof data === 'string') return data;
  if (data === undefined || typeof data === 'function' || typeof data === 'symbol') {
    throw new SseError(
      'ERR_SSE_DATA',
      `expected data to be a string or what \`serialize\` can take, got ${describeValue(data)}`,
    );
  }
  if (ArrayBuffer.isView(data) || isAnyArrayBuffer(data)) {
    throw new SseError(
      'ERR_SSE_DATA',
      'an event stream carries text only; encode bytes first, for example with buffer.toString("base64")',
    );
  }
  if (isThenable(data)) {
    throw new SseError('ERR_SSE_DATA', 'got a promise; await it and send what it resolves with');
  }
  if (serialize === JSON.stringify && isEmptyAsJson(data)) {
    throw new SseError(
      'ERR_SSE_DATA',
      'JSON makes {} of a Map, a Set or an Error; send a plain object or an array, or give `serialize`',
    );
  }
  let text: unknown;
  try {
    text = serialize(data);
  } catch (cause) {
    throw new SseError(
      'ERR_SSE_DATA',
      `\`serialize\` could not take the data: ${describeThrown(cause)}`,
      { cause },
    );
  }
  if (typeof text !== 'string') {
    throw new SseError(
      'ERR_SSE_DATA',
      `expected \`serialize\` to return a string, got ${describeValue(text)}`,
    );
  }
  return text;
}

function isThenable(data: unknown): boolean {
  return (
    typeof data === 'object' && data !== null && 'then' in data && typeof data.then === 'function'
  );
}

function isEmptyAsJson(data: unknown): boolean {
  return (
    (isMap(data) || isSet(data) || isNativeError(data)) &&
    typeof (data as { toJSON?: unknown }).toJSON !== 'function'
  );
}

/**
 * @returns the fields as they were checked. Each is read once: an accessor could say something else the second time.
 * @throws {SseError} `ERR_SSE_FIELD` for a key that is no field, `ERR_SSE_EVENT`, `ERR_SSE_ID` or `ERR_SSE_RETRY`
 * for a value that would forge, lose or garble something on the wire
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

/** @throws {SseError} `ERR_SSE_EVENT` */
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
      `event names beginning "sse:" are the library's own, got ${describeValue(event)}`,
    );
  }
}

/** @throws {SseError} `ERR_SSE_ID` */
export function assertId(id: EventId): void {
  if (typeof id === 'string') {
    // A client ignores an id with NUL (9.2.6), so the reader would silently resume in the wrong place.
    if (id.includes('\n') || id.includes('\r') || id.includes('\0')) {
      throw new SseError(
        'ERR_SSE_ID',
        `an id cannot contain CR, LF or NUL, got ${describeValue(id)}`,
      );
    }
    if (FINAL_MARK_IN_HEADER.test(id)) {
      throw new SseError(
        'ERR_SSE_ID',
        `the id ${JSON.stringify(id)} marks a final end; call close({ final: true }) for that`,
      );
    }
  } else if (typeof id !== 'bigint' && !Number.isFinite(id)) {
    throw new SseError(
      'ERR_SSE_ID',
      `expected \`id\` to be a string, a finite number or a bigint, got ${describeValue(id)}`,
    );
  }
}

/** @throws {SseError} `ERR_SSE_RETRY` */
export function assertRetry(retry: number): void {
  if (!Number.isSafeInteger(retry) || retry < 0 || retry > MAX_RETRY_MS) {
    throw new SseError(
      'ERR_SSE_RETRY',
      `expected \`retry\` to be a whole number of ms from 0 to ${MAX_RETRY_MS}, got ${describeValue(retry)}`,
    );
  }
}

/**
 * An event as it goes over the wire. The fields are asserted before: {@link assertFields}.
 * The id comes last: some clients take it with its line, and would resume behind an event that a broken connection cut off.
 */
export function eventText(data: string, event?: string, id?: EventId, retry?: number): string {
  let text = event === undefined || event === '' ? '' : `event: ${event}\n`;
  if (retry !== undefined) text += retryText(retry);
  const end = id === undefined ? '\n\n' : `\nid: ${id}\n\n`;
  // Two scans and a concatenation are the cheapest way for data of one line, which nearly all is (PERFORMANCE, section 5).
  if (!data.includes('\n') && !data.includes('\r')) return `${text}data: ${data}${end}`;
  return `${text}data: ${data.replace(LINE_BREAK, '\ndata: ')}${end}`;
}

/** Bytes of what {@link eventText} writes of these, without the id and the reconnection time. */
export function eventBytes(data: string, event?: string): number {
  const named =
    event === undefined || event === '' ? 0 : Buffer.byteLength(event) + 'event: \n'.length;
  const bytes = named + Buffer.byteLength(data) + 'data: \n\n'.length;
  if (!data.includes('\n') && !data.includes('\r')) return bytes;
  // Each line break becomes LF and the name of the field once more.
  let added = 0;
  for (const [lineBreak] of data.matchAll(LINE_BREAK)) {
    added += '\ndata: '.length - lineBreak.length;
  }
  return bytes + added;
}

/** The data of an event as {@link eventText} wrote it, with LF for every line end. */
export function dataOfEvent(text: string): string {
  const lines = text.split('\n').filter((line) => line.startsWith('data: '));
  return lines.map((line) => line.slice('data: '.length)).join('\n');
}

/** The event that gives a client a place to resume from. It carries data, because some clients take an id only from an event that does. */
export function checkpointText(id: string): string {
  return `event: sse:checkpoint\ndata: ${JSON.stringify({ cursor: id })}\nid: ${id}\n\n`;
}

/** What a client is told of a gap: which channels lost something, after which of its cursors, and where the log is now. */
export function gapText(channels: readonly string[], after: string, cursor: string): string {
  return `event: sse:gap\ndata: ${JSON.stringify({ channels, after, cursor })}\n\n`;
}

/**
 * A comment, each line of it one of its own.
 * @throws {SseError} `ERR_SSE_COMMENT` for text that is not a string
 */
export function commentText(text: string): string {
  if (typeof text !== 'string') {
    throw new SseError(
      'ERR_SSE_COMMENT',
      `expected the comment to be a string, got ${describeValue(text)}`,
    );
  }
  return text === '' ? ':\n' : `: ${text.replace(LINE_BREAK, '\n: ')}\n`;
}

/** The reconnection time on its own. It takes effect with its line and must get no blank line, see {@link HEARTBEAT}. */
export function retryText(retry: number): string {
  return `retry: ${retry}\n`;
}
