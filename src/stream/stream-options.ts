/** The options of `sse()` that concern one stream: types, rules and defaults. */
import { validateHeaderName, validateHeaderValue, type OutgoingHttpHeader } from 'node:http';
import {
  MAX_TIMER_MS,
  booleanRule,
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
import { formatPing, type Serialize } from '../protocol/event-stream-format.ts';

/** The options of `sse()` that concern one stream. */
export interface StreamOptions {
  /**
   * Time in ms without a write after which a comment is sent, so that proxies and browsers keep the
   * connection open; `false` sends none. `{ interval, visible: true }` sends an `sse:ping` event
   * with `{ interval }` instead of the comment. A page can see the event, and can notice a dead
   * connection by its absence.
   * @defaultValue `15_000`
   */
  heartbeat?:
    | number
    | false
    | { interval?: number | undefined; visible?: boolean | undefined }
    | undefined;
  /**
   * Reconnection time in ms that is sent when the stream opens. `{ min, max }` draws a time for
   * each client.
   * @defaultValue none
   */
  retry?: number | RetryRange | undefined;
  /** Converts data that is not a string to text. @defaultValue `JSON.stringify` */
  serialize?: Serialize | undefined;
  /**
   * Maximum number of bytes that are queued in this process for a slow client when an event is
   * added. If nothing is queued, an event of any size is accepted.
   * @defaultValue `1_048_576`
   */
  maxBuffered?: number | undefined;
  /**
   * The action when an event is sent, or is published to a channel without history, while more than
   * `maxBuffered` bytes are queued: `'close'` ends the stream (its client reconnects), `'drop'`
   * drops the event for this client and counts it.
   * @defaultValue `'close'`
   */
  onSlow?: 'close' | 'drop' | undefined;
  /**
   * Time in ms after which a client that reads none of the queued bytes is disconnected; `false`
   * never disconnects. Time in which the process does not run (a busy event loop, SIGSTOP) does not
   * count.
   * @defaultValue `30_000`
   */
  stallTimeout?: number | false | undefined;
  /**
   * Age in ms (±10 %) at which a stream is closed, so that its client opens a new connection.
   * @defaultValue none
   */
  maxLifetime?: number | undefined;
  /** Maximum number of active `subscribe()` calls on one stream. @defaultValue `100` */
  maxSubscriptions?: number | undefined;
  /**
   * Additional response headers. `Content-Type` may be `text/event-stream; charset=utf-8`.
   * @defaultValue none
   */
  headers?: Readonly<Record<string, string | number | readonly string[]>> | undefined;
  /**
   * Whether streams are sent as gzip to clients that accept it. What is published to channels is
   * compressed once for all streams. What is sent to one stream shares no compression with
   * anything else.
   * @defaultValue `false`
   */
  compress?: boolean | undefined;
}

/** {@link StreamOptions} with all defaults filled in. Times are in ms. */
export interface StreamSettings {
  readonly heartbeat: number | false;
  /** The visible heartbeat. */
  readonly pingEvent: Buffer | undefined;
  readonly retry: RetryRange | undefined;
  readonly serialize: Serialize;
  readonly maxBuffered: number;
  readonly onSlow: 'close' | 'drop';
  readonly stallTimeout: number | false;
  readonly maxLifetime: number | undefined;
  readonly maxSubscriptions: number;
  readonly headers: readonly (readonly [string, OutgoingHttpHeader])[];
  readonly compress: boolean;
}

interface Heartbeat {
  interval?: number | false | undefined;
  visible?: boolean | undefined;
}

const heartbeatRule: OptionRule = {
  expected:
    `a whole number of ms from 1 to ${MAX_TIMER_MS}, false, ` +
    'or { interval, visible } with such a number and a boolean',
  test: (value) =>
    value === false ||
    isInteger(value, 1, MAX_TIMER_MS) ||
    (hasOnly(value, 'interval', 'visible') &&
      (value['interval'] === undefined || isInteger(value['interval'], 1, MAX_TIMER_MS)) &&
      (value['visible'] === undefined || typeof value['visible'] === 'boolean')),
};

// Headers that the stream or Node's HTTP sets. Another value would break the response.
const RESERVED_HEADERS = new Set([
  'connection',
  'content-encoding',
  'content-length',
  'content-type',
  'keep-alive',
  'transfer-encoding',
]);

// An event stream is always UTF-8. Some clients and security scanners require the charset anyway.
const CONTENT_TYPE = 'text/event-stream; charset=utf-8';

const headersRule: OptionRule = {
  expected:
    `an object of header names and values without ${[...RESERVED_HEADERS].join(', ')} ` +
    `(but content-type may be '${CONTENT_TYPE}')`,
  test: (value) =>
    isObject(value) && Object.entries(value).every(([name, content]) => isHeader(name, content)),
};

/** The rules for {@link StreamOptions}, in the order of the interface. */
export const streamRules: Readonly<Record<keyof StreamOptions, OptionRule>> = {
  heartbeat: heartbeatRule,
  retry: retryRangeRule,
  serialize: functionRule,
  maxBuffered: integerRule('bytes', 0, Number.MAX_SAFE_INTEGER),
  onSlow: oneOfRule('close', 'drop'),
  stallTimeout: millisecondsRule(1, false),
  maxLifetime: millisecondsRule(1),
  maxSubscriptions: integerRule('subscriptions', 1, Number.MAX_SAFE_INTEGER),
  headers: headersRule,
  compress: booleanRule,
};

/** Fills in the defaults. The options must have been checked with {@link streamRules}. */
export function resolveStreamOptions(options: StreamOptions): StreamSettings {
  const { heartbeat } = options;
  const { interval = 15_000, visible = false }: Heartbeat =
    typeof heartbeat === 'object' ? heartbeat : { interval: heartbeat };
  return Object.freeze({
    heartbeat: interval,
    pingEvent: visible && interval !== false ? formatPing(interval) : undefined,
    retry: options.retry === undefined ? undefined : toRetryRange(options.retry),
    serialize: options.serialize ?? JSON.stringify,
    maxBuffered: options.maxBuffered ?? 1_048_576,
    onSlow: options.onSlow ?? 'close',
    stallTimeout: options.stallTimeout ?? 30_000,
    maxLifetime: options.maxLifetime,
    maxSubscriptions: options.maxSubscriptions ?? 100,
    // Copied, because the application could change its object later.
    headers: Object.entries(options.headers ?? {}).map(
      ([name, value]) => [name, typeof value === 'object' ? [...value] : value] as const,
    ),
    compress: options.compress ?? false,
  });
}

/** Whether the header may be set on an event stream, and Node accepts its name and value. */
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
