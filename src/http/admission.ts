/** Limits on the number of event streams: of a middleware, and of each key such as a user. */
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks';
import { SseError, describeValue } from '../common/errors.ts';
import { integerRule, oneOfRule, type OptionRule } from '../common/options.ts';
import type { RouteRequest } from './route.ts';

/** A limit on the streams of each key, for example of each user, tenant or address. */
export interface StreamLimit {
  /**
   * Returns the key whose streams are counted together. The function is called once for each
   * request for an event stream, when the request reaches the `sse()` with this option. To limit
   * the streams of each user, pass the option to a second `sse()` on the routes, behind the
   * authentication. Requests for which the function returns `undefined` are not limited. Each
   * `sse()` has a count of its own, and each node counts its own streams.
   * @param req the request, as the framework passes it to route handlers
   */
  key(req: RouteRequest): string | number | undefined;
  /** Maximum number of streams that one key may have at a time. */
  limit: number;
  /**
   * Maximum number of streams that one key may start in each minute. Polls (`ssePoll=1`) are not
   * counted.
   * @defaultValue no limit
   */
  perMinute?: number | undefined;
}

/** The options of `sse()` that limit the number of streams. */
export interface AdmissionOptions {
  /** Maximum number of streams at a time. @defaultValue no limit */
  maxStreams?: number | undefined;
  /** Maximum number of streams of each key, such as a user or an address. @defaultValue no limit */
  maxStreamsPer?: StreamLimit | undefined;
  /**
   * The answer to a request that exceeds a limit. `'retry'` answers an EventSource with 200 and a
   * reconnection time, so that the EventSource tries again later, and any other client with 503.
   * `'reject'` always answers 503, after which an EventSource does not try again.
   * @defaultValue `'retry'`
   */
  whenFull?: 'retry' | 'reject' | undefined;
}

/** The reason for refusing a stream: the name of the option that limits, or a shutdown. */
export type Refusal = 'maxStreams' | 'maxStreamsPer' | 'shutdown';

const streamCountRule = integerRule('streams', 0, Number.MAX_SAFE_INTEGER);

/** The rules for {@link AdmissionOptions}, in the order of that type. */
export const admissionRules: Readonly<Record<keyof AdmissionOptions, OptionRule>> = {
  maxStreams: streamCountRule,
  maxStreamsPer: {
    expected:
      '{ key, limit, perMinute } with a function of the request and ' +
      `${streamCountRule.expected} each, perMinute optional`,
    test: isStreamLimit,
  },
  whenFull: oneOfRule('retry', 'reject'),
};

const MINUTE_MS = 60_000;

// Longer keys are stored as digests. A digest is longer than this limit, so no short key can equal
// the digest of another key.
const MAX_KEY_LENGTH = 64;

// Maximum number of keys that are remembered for `perMinute`. If there were more keys in a minute,
// the oldest would be forgotten, and their `perMinute` would start again from 0.
const MAX_KEYS_PER_MINUTE = 10_000;

// Number of requests, counted from the first one, whose key has to be `undefined` before a warning.
const UNDEFINED_KEYS_BEFORE_WARNING = 100;

type Key = string | number;

/**
 * Counts the places for streams that the responses of one middleware occupy.
 *
 * ```text
 *              reservePlace()          markOpen()            releasePlace()
 *   no place ────────────────▶ pending ───────────▶ streaming ────────────▶ no place
 *                                 └─ answered without a stream: released when a place is needed
 * ```
 *
 * A response holds one place at most, so asking twice for the same response counts once.
 */
export class Admission {
  readonly #maxStreams: number;
  readonly #perKey: StreamLimit | undefined;
  readonly #places = new Map<ServerResponse, Key | undefined>();
  // The responses in `#places` whose handler is running and has not opened a stream yet.
  readonly #pending = new Set<ServerResponse>();
  // Number of places for each key.
  readonly #placesPerKey = new Map<Key, number>();
  // Number of streams that each key has started in the current minute.
  readonly #startsPerKey = new Map<Key, number>();
  readonly #now: () => number;
  readonly #onUndefinedKeys: ((requestCount: number) => void) | undefined;
  #minuteEnd = 0;
  // Number of requests with an undefined key, or Infinity after the first request with a key.
  #undefinedKeyCount = 0;

  /**
   * @param options the limits
   * @param now returns the time of a clock in ms that never steps back
   * @param onUndefinedKeys called once, if the key was `undefined` for each of the first requests,
   * with the number of these requests
   */
  constructor(
    { maxStreams = Infinity, maxStreamsPer }: AdmissionOptions,
    now: () => number = () => performance.now(),
    onUndefinedKeys?: (requestCount: number) => void,
  ) {
    this.#onUndefinedKeys = onUndefinedKeys;
    this.#maxStreams = maxStreams;
    this.#perKey = maxStreamsPer;
    this.#now = now;
  }

  /**
   * Reserves a place for the response, unless the response has one already.
   * @returns the limit that is reached, or `undefined` if the response has a place or no limit
   * is set
   * @throws {SseError} `ERR_SSE_OPTION` if the `key` function returns anything but a string, a
   * number or `undefined`. Errors of the `key` function are passed on.
   */
  reservePlace(res: ServerResponse): Refusal | undefined {
    const isUnlimited = this.#maxStreams === Infinity && this.#perKey === undefined;
    if (isUnlimited || this.#places.has(res)) return undefined;
    if (this.#places.size >= this.#maxStreams) this.#releaseAnswered();
    if (this.#places.size >= this.#maxStreams) return 'maxStreams';
    const key = this.#readKey(res.req);
    if (key !== undefined && !this.#reserveForKey(key)) return 'maxStreamsPer';
    this.#places.set(res, key);
    this.#pending.add(res);
    return undefined;
  }

  /** Marks the place of the response as the place of an open stream. */
  markOpen(res: ServerResponse): void {
    this.#pending.delete(res);
  }

  /** The response is a poll: `perMinute` does not count its start. */
  uncountStart(res: ServerResponse): void {
    const key = this.#places.get(res);
    const starts = key === undefined ? undefined : this.#startsPerKey.get(key);
    if (key !== undefined && starts !== undefined) this.#startsPerKey.set(key, starts - 1);
  }

  /** Releases the place of the response, if the response has one. */
  releasePlace(res: ServerResponse): void {
    const key = this.#places.get(res);
    this.#pending.delete(res);
    if (!this.#places.delete(res) || key === undefined) return;
    const remaining = (this.#placesPerKey.get(key) ?? 0) - 1;
    if (remaining > 0) this.#placesPerKey.set(key, remaining);
    else this.#placesPerKey.delete(key);
  }

  /** Calls the `key` function and counts the requests for which it returns `undefined`. */
  #readKey(req: IncomingMessage): Key | undefined {
    // The framework has added its properties to the request by now.
    const key: unknown = this.#perKey?.key(req as RouteRequest);
    if (key !== undefined) this.#undefinedKeyCount = Infinity;
    else if (this.#perKey !== undefined) this.#countUndefinedKey();
    if (typeof key === 'string') return compactKey(key);
    if (key === undefined || typeof key === 'number') return key;
    throw new SseError(
      'ERR_SSE_OPTION',
      'expected the key of `maxStreamsPer` to be a string, a number or undefined, ' +
        `got ${describeValue(key)}; it cannot be async`,
    );
  }

  #countUndefinedKey(): void {
    this.#undefinedKeyCount++;
    if (this.#undefinedKeyCount === UNDEFINED_KEYS_BEFORE_WARNING) {
      this.#onUndefinedKeys?.(UNDEFINED_KEYS_BEFORE_WARNING);
    }
  }

  /** @returns whether the key is below both of its limits; if so, its place is counted */
  #reserveForKey(key: Key): boolean {
    const { limit, perMinute = Infinity } = this.#perKey as StreamLimit;
    if ((this.#placesPerKey.get(key) ?? 0) >= limit) this.#releaseAnswered();
    const placeCount = this.#placesPerKey.get(key) ?? 0;
    if (placeCount >= limit || !this.#countStart(key, perMinute)) return false;
    this.#placesPerKey.set(key, placeCount + 1);
    return true;
  }

  /**
   * Releases the places of responses that were answered without a stream. Such responses may take
   * a long time to finish, for example downloads, and they do not report that they are no streams.
   */
  #releaseAnswered(): void {
    for (const res of this.#pending) {
      if (res.headersSent || res.writableEnded) this.releasePlace(res);
    }
  }

  /** @returns whether the key is below `perMinute`; if so, the start is counted */
  #countStart(key: Key, perMinute: number): boolean {
    if (perMinute === Infinity) return true;
    const now = this.#now();
    if (now >= this.#minuteEnd) {
      this.#minuteEnd = now + MINUTE_MS;
      this.#startsPerKey.clear();
    }
    const startCount = this.#startsPerKey.get(key) ?? 0;
    if (startCount >= perMinute) return false;
    this.#startsPerKey.set(key, startCount + 1);
    if (this.#startsPerKey.size > MAX_KEYS_PER_MINUTE) {
      this.#startsPerKey.delete(this.#startsPerKey.keys().next().value as Key);
    }
    return true;
  }
}

/**
 * Returns the key in a form that takes little memory. A long key, such as a cookie or a token, is
 * replaced by its digest. A short key is copied: V8 may represent it as a slice of a longer string,
 * which would stay in memory as long as the key.
 */
function compactKey(key: string): string {
  if (key.length > MAX_KEY_LENGTH) {
    return `sha256:${createHash('sha256').update(key).digest('hex')}`;
  }
  return Buffer.from(key, 'utf16le').toString('utf16le');
}

function isStreamLimit(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const { key, limit, perMinute, ...others } = value as Record<string, unknown>;
  return (
    typeof key === 'function' &&
    streamCountRule.test(limit) &&
    (perMinute === undefined || streamCountRule.test(perMinute)) &&
    Object.keys(others).length === 0
  );
}
