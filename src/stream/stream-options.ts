/** The options of `sse()` that concern one stream: types, rules and defaults. */
import { validateHeaderName, validateHeaderValue, type OutgoingHttpHeader } from 'node:http';
import {
  MAX_TIMER_MS,
  functionRule,
  hasOnly,
  integerRule,
  isInteger,
  isObject,
  millisecondsRule,
  oneOfRule,
  type OptionRule,
} from '../common/options.ts';
import { toRetryRange, retryRangeRule, type RetryRange } from '../common/retry-range.ts';
import type { Serialize } from '../protocol/event-stream-format.ts';

/** The options of `sse()` that concern one stream. */
export interface StreamOptions {
  /**
   * Silence in ms after which a comment is sent, so that proxies and browsers keep the connection; `false` sends none.
   * `{ interval, visible: true }` sends an `sse:ping` event instead, which a page can see and so notice a dead line.
   * @defaultValue `15_000`
   */
  heartbeat?:
    | number
    | false
    | { interval?: number | undefined; visible?: boolean | undefined }
    | undefined;
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

const heartbeat: OptionRule = {
  expected: `a whole number of ms from 1 to ${MAX_TIMER_MS}, false, or { interval, visible } of such a number and a boolean`,
  test: (value) =>
    value === false ||
    isInteger(value, 1, MAX_TIMER_MS) ||
    (hasOnly(value, 'interval', 'visible') &&
      (value['interval'] === undefined || isInteger(value['interval'], 1, MAX_TIMER_MS)) &&
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
  test: (value) =>
    isObject(value) && Object.entries(value).every(([name, content]) => isHeader(name, content)),
};

/** The rules for {@link StreamOptions}, in its order. */
export const streamRules: Readonly<Record<keyof StreamOptions, OptionRule>> = {
  heartbeat,
  retry: retryRangeRule,
  serialize: functionRule,
  maxBuffered: integerRule('bytes', 0, Number.MAX_SAFE_INTEGER),
  onSlow: oneOfRule('close', 'drop'),
  stallTimeout: millisecondsRule(1, false),
  maxLifetime: millisecondsRule(1),
  maxSubscriptions: integerRule('subscriptions', 1, Number.MAX_SAFE_INTEGER),
  headers,
};

/** Puts every default in place. The options are asserted before. */
export function resolveStreamOptions(given: StreamOptions): StreamSettings {
  const beat =
    typeof given.heartbeat === 'object' ? given.heartbeat : { interval: given.heartbeat };
  return Object.freeze({
    heartbeat: beat.interval ?? 15_000,
    visibleHeartbeat: 'visible' in beat && beat.visible === true,
    retry: given.retry === undefined ? undefined : toRetryRange(given.retry),
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
