/** History limits: how many events of each channel are kept. */
import { SseError, describeValue } from '../common/errors.ts';
import {
  assertOptions,
  booleanRule,
  functionRule,
  integerRule,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';
import type { HistoryLimits } from './log.ts';

/**
 * Limits for the history of one channel. As soon as one limit is exceeded, the oldest events are
 * removed.
 */
export interface HistoryOptions {
  /** Maximum number of events. @defaultValue `1000`; 1 for a newest-only channel */
  events?: number | undefined;
  /**
   * Maximum number of bytes. An event counts with its text on the wire and a fixed overhead.
   * @defaultValue `1_048_576`
   */
  bytes?: number | undefined;
  /** Maximum age in ms. @defaultValue none */
  age?: number | undefined;
  /**
   * Whether the channel is newest-only, for dashboards: a stream that is behind skips to the newest
   * event, and the skipped events are not reported as a gap.
   * @defaultValue `false`
   */
  latest?: boolean | undefined;
}

const limitRules: Readonly<Record<keyof HistoryOptions, OptionRule>> = {
  events: integerRule('events', 1, Number.MAX_SAFE_INTEGER),
  bytes: integerRule('bytes', 1, Number.MAX_SAFE_INTEGER),
  age: millisecondsRule(1),
  latest: booleanRule,
};

/**
 * The rules for the two history options of `createChannels()`. The content of `history` is checked
 * by {@link LimitsByChannel}.
 */
export const historyRules: Readonly<Record<'history' | 'historyFor', OptionRule>> = {
  history: {
    expected: '{ events, bytes, age, latest } or false',
    test: (value) => value === false || (typeof value === 'object' && value !== null),
  },
  historyFor: functionRule,
};

/** The two history options of `createChannels()`. */
export interface HistorySource {
  history?: HistoryOptions | false | undefined;
  historyFor?: ((name: string) => HistoryOptions | false | undefined) | undefined;
}

/** Finds the history limits of each channel. */
export class LimitsByChannel {
  readonly #defaultLimits: HistoryLimits | false;
  readonly #historyFor: HistorySource['historyFor'];
  // The limits for each object that `historyFor` returned. Most applications return a few objects
  // again and again.
  readonly #limits = new WeakMap<HistoryOptions, HistoryLimits | false>();

  /** @throws {SseError} `ERR_SSE_OPTION` for limits that are out of range */
  constructor({ history = {}, historyFor }: HistorySource) {
    this.#defaultLimits = resolveLimits('history of createChannels()', history);
    this.#historyFor = historyFor;
  }

  /**
   * Calls `historyFor` of the application, if there is one.
   * @returns `false` for a channel without history
   * @throws {SseError} `ERR_SSE_OPTION` if `historyFor` returns anything else than limits; also
   * everything that `historyFor` throws
   */
  limitsFor(channel: string): HistoryLimits | false {
    const options = this.#historyFor?.(channel);
    if (options === undefined) return this.#defaultLimits;
    if (options === false) return false;
    let limits = typeof options === 'object' ? this.#limits.get(options) : undefined;
    if (limits === undefined) {
      limits = resolveLimits(`what historyFor returned for ${describeValue(channel)}`, options);
      this.#limits.set(options, limits);
    }
    return limits;
  }
}

/** Checks history options and fills in the defaults. */
function resolveLimits(owner: string, options: HistoryOptions | false): HistoryLimits | false {
  if (options === false) return false;
  const {
    latest = false,
    age = Infinity,
    bytes = 1_048_576,
    events = latest ? 1 : 1_000,
  } = assertOptions(owner, options, limitRules);
  if (latest && events !== 1) {
    throw new SseError(
      'ERR_SSE_OPTION',
      `a newest-only channel holds one event, got \`events\` ${describeValue(events)} in ${owner}`,
    );
  }
  return { events, bytes, age, latest };
}
