/** One table per set of options: what each may be, in words for the error message, and how to tell. */
import { validateHeaderName, validateHeaderValue, type OutgoingHttpHeader } from 'node:http';
import { SseError, shown } from './errors.ts';
import { MAX_RETRY_MS, type Serialize } from './wire.ts';

/** A range of ms from which one value is drawn for each client, so that many clients do not return at the same moment. */
export interface RetryRange {
  min: number;
  max: number;
}

/** The options of `sse()` that concern one stream. */
export interface StreamOptions {
  /**
   * Silence in ms after which a comment is sent, so that proxies and browsers keep the connection; `false` sends none.
   * `{ interval, visible: true }` sends an `sse:ping` event instead, which a page can see and so notice a dead line.
   * @defaultValue `15_000`
   */
  heartbeat?: number | false | { interval?: number | undefined; visible?: boolean | undefined } | undefined;
  /** Reconnection time in ms, sent when the stream opens. `{ min, max }` draws one for each client. @defaultValue none */
  retry?: number | RetryRange | undefined;
  /** Makes text of data that is not a string. @defaultValue `JSON.stringify` */
  serialize?: Serialize | undefined;
  /**
   * Bytes that a slow reader may have queued in this process before an event is added.
   * One event, however large, always fits an empty queue.
   * @defaultValue `1_048_576`
   */
  maxBuffered?: number | undefined;
  /**
   * What happens at `maxBuffered` to an event that is sent directly: `'close'` ends the stream (its client reconnects),
   * `'drop'` drops the event for this reader and counts it.
   * @defaultValue `'close'`
   */
  onSlow?: 'close' | 'drop' | undefined;
  /**
   * Time in ms with bytes queued and none of them taken after which a peer counts as dead and is cut off; `false` = never.
   * Time in which the process did not run (a busy event loop, SIGSTOP) does not count.
   * @defaultValue `30_000`
   */
  stallTimeout?: number | false | undefined;
  /** Age in ms, ±10 %, at which a stream is closed so that its client connects anew. @defaultValue none */
  maxLifetime?: number | undefined;
  /** `subscribe` calls that may be active on one stream at a time. @defaultValue `100` */
  maxSubscriptions?: number | undefined;
  /** Extra response headers; `Content-Type` may be `text/event-stream; charset=utf-8`. @defaultValue none */
  headers?: Readonly<Record<string, string | number | readonly string[]>> | undefined;
}

/** {@link StreamOptions} with every default in place, as the code below reads them. */
export interface StreamSettings {
  readonly heartbeat: number | false;
  readonly visibleHeartbeat: boolean;
  readonly retry: RetryRange | undefined;
  readonly serialize: Serialize;
  readonly maxBuffered: number;
  readonly onSlow: 'close' | 'drop';
  readonly stallTimeout: number | false;
  readonly maxLifetime: number | undefined;
  readonly maxSubscriptions: number;
  readonly headers: readonly (readonly [string, OutgoingHttpHeader])[];
}

/** What an option may be: `expected` completes "expected `name` to be …", `test` tells. */
export interface OptionRule {
  readonly expected: string;
  test(value: unknown): boolean;
}

// The longest delay that Node's timers take; a longer one would fire at once.
const MAX_TIMER = 2_147_483_647;

/** A whole number of a unit in a range, or one of the values named beside it. */
export function integer(unit: string, min: number, max: number, ...others: readonly false[]): OptionRule {
  return {
    expected: `a whole number of ${unit} from ${min} to ${max}${others.map((other) => ` or ${String(other)}`).join('')}`,
    test: (value) => isInteger(value, min, max) || others.includes(value as false),
  };
}

export function oneOf(...values: readonly string[]): OptionRule {
  return {
    expected: values.map((value) => `'${value}'`).join(' or '),
    test: (value) => values.includes(value as string),
  };
}

export const aFunction: OptionRule = { expected: 'a function', test: (value) => typeof value === 'function' };

export const aBoolean: OptionRule = { expected: 'true or false', test: (value) => typeof value === 'boolean' };

/** One reconnection time in ms. */
export const retryTime: OptionRule = integer('ms', 0, MAX_RETRY_MS);

/** A retry range as `close({ retry })` of the middleware takes it, too. */
export const retryRange: OptionRule = {
  expected: `a whole number of ms from 0 to ${MAX_RETRY_MS} or { min, max } of such with min <= max`,
  test: (value) => isInteger(value, 0, MAX_RETRY_MS) || isRetryRange(value),
};

/** A time in ms that a timer can take. */
export function milliseconds(min: number, ...others: readonly false[]): OptionRule {
  return integer('ms', min, MAX_TIMER, ...others);
}

const heartbeat: OptionRule = {
  expected: `a whole number of ms from 1 to ${MAX_TIMER}, false, or { interval, visible } of such a number and a boolean`,
  test: (value) =>
    value === false ||
    isInteger(value, 1, MAX_TIMER) ||
    (hasOnly(value, 'interval', 'visible') &&
      (value['interval'] === undefined || isInteger(value['interval'], 1, MAX_TIMER)) &&
      (value['visible'] === undefined || typeof value['visible'] === 'boolean')),
};

// Set by the stream itself or by HTTP; another value would break the one or the other.
const RESERVED_HEADERS = new Set([
  'connection',
  'content-encoding',
  'content-length',
  'content-type',
  'keep-alive',
  'transfer-encoding',
]);

// The charset that an event stream has anyway. Some clients and scanners want it named.
const CONTENT_TYPE = 'text/event-stream; charset=utf-8';

const headers: OptionRule = {
  expected: `an object of header names and values without ${[...RESERVED_HEADERS].join(', ')} (but content-type may be '${CONTENT_TYPE}')`,
  test: (value) => isObject(value) && Object.entries(value).every(([name, content]) => isHeader(name, content)),
};

/** The rules for {@link StreamOptions}, in its order. */
export const streamRules: Readonly<Record<keyof StreamOptions, OptionRule>> = {
  heartbeat,
  retry: retryRange,
  serialize: aFunction,
  maxBuffered: integer('bytes', 0, Number.MAX_SAFE_INTEGER),
  onSlow: oneOf('close', 'drop'),
  stallTimeout: milliseconds(1, false),
  maxLifetime: milliseconds(1),
  maxSubscriptions: integer('subscriptions', 1, Number.MAX_SAFE_INTEGER),
  headers,
};

/**
 * @param owner what the options are given to, as the message names it: `sse()`
 * @returns the options as they were checked. Each is read once, so that an accessor cannot say something else afterwards.
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown key or a value out of its range; `undefined` counts as not given
 */
export function assertOptions<T extends object>(owner: string, given: T, rules: Readonly<Record<string, OptionRule>>): T {
  if (!isObject(given)) {
    throw new SseError('ERR_SSE_OPTION', `expected the options of ${owner} to be an object, got ${shown(given)}`);
  }
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(rules, name)) continue;
    throw new SseError('ERR_SSE_OPTION', `unknown option \`${name}\` of ${owner}; it takes ${Object.keys(rules).join(', ')}`);
  }
  const checked: Record<string, unknown> = {};
  for (const [name, rule] of Object.entries(rules)) {
    const value = given[name];
    if (value === undefined) continue;
    if (!rule.test(value)) {
      throw new SseError('ERR_SSE_OPTION', `expected \`${name}\` of ${owner} to be ${rule.expected}, got ${shown(value)}`);
    }
    checked[name] = value;
  }
  return checked as T;
}

/** Puts every default in place. The options are asserted before. */
export function resolveStreamOptions(given: StreamOptions): StreamSettings {
  const beat = typeof given.heartbeat === 'object' ? given.heartbeat : { interval: given.heartbeat };
  return Object.freeze({
    heartbeat: beat.interval ?? 15_000,
    visibleHeartbeat: 'visible' in beat && beat.visible === true,
    retry: given.retry === undefined ? undefined : rangeOf(given.retry),
    serialize: given.serialize ?? JSON.stringify,
    maxBuffered: given.maxBuffered ?? 1_048_576,
    onSlow: given.onSlow ?? 'close',
    stallTimeout: given.stallTimeout ?? 30_000,
    maxLifetime: given.maxLifetime,
    maxSubscriptions: given.maxSubscriptions ?? 100,
    headers: Object.entries(given.headers ?? {}).map(
      ([name, value]) => [name, typeof value === 'object' ? [...value] : value] as const,
    ),
  });
}

/** One time for all is a range, too. */
export function rangeOf(retry: number | RetryRange): RetryRange {
  return typeof retry === 'number' ? { min: retry, max: retry } : { min: retry.min, max: retry.max };
}

/** A whole number drawn from the range, both ends included. */
export function draw({ min, max }: RetryRange): number {
  return min + Math.floor(Math.random() * (max - min + 1));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function hasOnly(value: unknown, ...keys: string[]): value is Record<string, unknown> {
  return isObject(value) && Object.keys(value).every((key) => keys.includes(key));
}

function isInteger(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}

function isRetryRange(value: unknown): value is RetryRange {
  return (
    hasOnly(value, 'min', 'max') &&
    isInteger(value['min'], 0, MAX_RETRY_MS) &&
    isInteger(value['max'], 0, MAX_RETRY_MS) &&
    value['min'] <= value['max']
  );
}

function isHeader(name: string, value: unknown): boolean {
  if (name.toLowerCase() === 'content-type') return value === CONTENT_TYPE;
  if (RESERVED_HEADERS.has(name.toLowerCase())) return false;
  try {
    validateHeaderName(name);
    for (const part of Array.isArray(value) ? value : [value]) {
      if (typeof part !== 'string' && typeof part !== 'number') return false;
      validateHeaderValue(name, String(part));
    }
    return true;
  } catch {
    return false;
  }
}
