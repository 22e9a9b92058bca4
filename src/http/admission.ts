/** Who may have a stream: a bound on all streams of a middleware, and one on those of each key. Decided before anything is written. */
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { performance } from 'node:perf_hooks';
import { SseError, describeValue } from '../common/errors.ts';
import { integerRule, oneOfRule, type OptionRule } from '../common/options.ts';
import type { RouteRequest } from './route.ts';

/** A bound on the streams of each key. */
export interface StreamLimit {
  /**
   * Whose streams are counted together: an address, a user, a tenant. Called for each request that asks for a stream, before its
   * handler, so what it reads must have been put there by middleware in front. `undefined` is not limited.
   */
  key(req: RouteRequest): string | number | undefined;
  /** How many streams one key may have at a time. */
  limit: number;
  /** How many streams one key may begin in each minute. @defaultValue none */
  perMinute?: number | undefined;
}

/** The options of `sse()` that say who may have a stream. */
export interface AdmissionOptions {
  /** How many streams there may be at a time. @defaultValue none */
  maxStreams?: number | undefined;
  /** The same for each key, an address, a user or a tenant. @defaultValue none */
  maxStreamsPer?: StreamLimit | undefined;
  /**
   * What becomes of one too many: `'retry'` answers an EventSource 200 with a reconnection time, so that it comes back later, and
   * everybody else 503; `'reject'` answers 503 always, after which an EventSource gives up.
   * @defaultValue `'retry'`
   */
  whenFull?: 'retry' | 'reject' | undefined;
}

/** Why a request gets no stream: the option that says so, or the end of it all. */
export type Refusal = 'maxStreams' | 'maxStreamsPer' | 'shutdown';

const count = integerRule('streams', 0, Number.MAX_SAFE_INTEGER);

/** The rules for {@link AdmissionOptions}, in its order. */
export const admissionRules: Readonly<Record<keyof AdmissionOptions, OptionRule>> = {
  maxStreams: count,
  maxStreamsPer: {
    expected: `{ key, limit, perMinute } of a function of the request and ${count.expected} each, perMinute optional`,
    test: isStreamLimit,
  },
  whenFull: oneOfRule('retry', 'reject'),
};

const MINUTE = 60_000;

// Longer keys are kept as digests, which are longer than this: no key can be taken for the digest of another.
const MAX_KEY_LENGTH = 64;

// So many keys are remembered for `perMinute`; whoever has more of them is not bounded by any.
const MAX_KEYS = 10_000;

// Requests in a row, from the first on, whose key is undefined until that counts as a mistake.
const UNDEFINED_KEYS = 100;

type Key = string | number;

/**
 * The places of one middleware. A place is held for a response while its handler is at work, and until nothing is left of its
 * stream. Where something else has answered, it is given back as soon as another request needs it.
 */
export class Admission {
  readonly #maxStreams: number;
  readonly #per: StreamLimit | undefined;
  readonly #places = new Map<ServerResponse, Key | undefined>();
  // Of these, the responses whose handler is at work and has not opened a stream.
  readonly #idle = new Set<ServerResponse>();
  readonly #counts = new Map<Key, number>();
  // Streams begun since the minute began.
  readonly #begun = new Map<Key, number>();
  readonly #now: () => number;
  readonly #onUndefinedKeys: ((requests: number) => void) | undefined;
  #minuteEnds = 0;
  // Requests whose key was undefined, as long as no other has come.
  #undefinedKeys = 0;

  /**
   * @param now a clock in ms that never steps back
   * @param onUndefinedKeys called once, when the key has been undefined for each of that many requests
   */
  constructor(
    { maxStreams = Infinity, maxStreamsPer }: AdmissionOptions,
    now: () => number = () => performance.now(),
    onUndefinedKeys?: (requests: number) => void,
  ) {
    this.#onUndefinedKeys = onUndefinedKeys;
    this.#maxStreams = maxStreams;
    this.#per = maxStreamsPer;
    this.#now = now;
  }

  /**
   * Takes a place, if the response has none yet.
   * @returns what it is refused for
   * @throws {SseError} `ERR_SSE_OPTION` for a key that is none; whatever the `key` function throws
   */
  take(res: ServerResponse): Refusal | undefined {
    if ((this.#maxStreams === Infinity && this.#per === undefined) || this.#places.has(res)) {
      return undefined;
    }
    if (this.#places.size >= this.#maxStreams) this.#freeAnswered();
    if (this.#places.size >= this.#maxStreams) return 'maxStreams';
    const key = this.#keyOf(res.req);
    if (key !== undefined && !this.#takeFor(key)) return 'maxStreamsPer';
    this.#places.set(res, key);
    this.#idle.add(res);
    return undefined;
  }

  /** The place is that of an open stream now. */
  opened(res: ServerResponse): void {
    this.#idle.delete(res);
  }

  /** Gives the place back, if the response has one. */
  free(res: ServerResponse): void {
    const key = this.#places.get(res);
    this.#idle.delete(res);
    if (!this.#places.delete(res) || key === undefined) return;
    const left = (this.#counts.get(key) ?? 0) - 1;
    if (left > 0) this.#counts.set(key, left);
    else this.#counts.delete(key);
  }

  #keyOf(req: IncomingMessage): Key | undefined {
    // What a framework makes of the request it has made by now.
    const key: unknown = this.#per?.key(req as RouteRequest);
    if (key !== undefined) this.#undefinedKeys = Infinity;
    else if (this.#per !== undefined && ++this.#undefinedKeys === UNDEFINED_KEYS) {
      this.#onUndefinedKeys?.(UNDEFINED_KEYS);
    }
    if (typeof key === 'string') return compact(key);
    if (key === undefined || typeof key === 'number') return key;
    throw new SseError(
      'ERR_SSE_OPTION',
      `expected the key of \`maxStreamsPer\` to be a string, a number or undefined, got ${describeValue(key)}; it cannot be async`,
    );
  }

  #takeFor(key: Key): boolean {
    const { limit, perMinute = Infinity } = this.#per as StreamLimit;
    if ((this.#counts.get(key) ?? 0) >= limit) this.#freeAnswered();
    const open = this.#counts.get(key) ?? 0;
    if (open >= limit || !this.#begin(key, perMinute)) return false;
    this.#counts.set(key, open + 1);
    return true;
  }

  /** Gives the places of requests back that something else than a stream answers, however long that takes. */
  #freeAnswered(): void {
    for (const res of this.#idle) if (res.headersSent || res.writableEnded) this.free(res);
  }

  #begin(key: Key, perMinute: number): boolean {
    if (perMinute === Infinity) return true;
    const now = this.#now();
    if (now >= this.#minuteEnds) {
      this.#minuteEnds = now + MINUTE;
      this.#begun.clear();
    }
    const begun = this.#begun.get(key) ?? 0;
    if (begun >= perMinute) return false;
    this.#begun.set(key, begun + 1);
    if (this.#begun.size > MAX_KEYS) this.#begun.delete(this.#begun.keys().next().value as Key);
    return true;
  }
}

/** The key in little memory: a long one, of a cookie or a token, as its digest, and a short one without what it was cut out of. */
function compact(key: string): string {
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
    count.test(limit) &&
    (perMinute === undefined || count.test(perMinute)) &&
    Object.keys(others).length === 0
  );
}
