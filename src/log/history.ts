/** How much of which channel is kept. */
import { SseError, describeValue } from '../common/errors.ts';
import type { HistoryLimits } from './log.ts';
import {
  booleanRule,
  functionRule,
  assertOptions,
  integerRule,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';

/** How much of a channel is kept; whichever bound bites first. */
export interface HistoryOptions {
  /** @defaultValue `1000`; 1 of a newest-only channel */
  events?: number | undefined;
  /** Bytes, counting each event's frame and a fixed overhead. @defaultValue `1_048_576` */
  bytes?: number | undefined;
  /** In ms. @defaultValue none */
  age?: number | undefined;
  /**
   * A newest-only channel, for dashboards: a reader that lags skips to the newest event, and that is no gap.
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

/** The rules for the two options of `createChannels()`; what is in a history is asserted when it is resolved. */
export const historyRules: Readonly<Record<'history' | 'historyFor', OptionRule>> = {
  history: {
    expected: '{ events, bytes, age, latest } or false',
    test: (value) => value === false || (typeof value === 'object' && value !== null),
  },
  historyFor: functionRule,
};

/** Answers for each channel what is kept of it. */
export class History {
  readonly #common: HistoryLimits | false;
  readonly #historyFor: ((name: string) => HistoryOptions | false | undefined) | undefined;
  // By the object that `historyFor` returned: most applications return the same few.
  readonly #resolved = new WeakMap<HistoryOptions, HistoryLimits | false>();

  /** @throws {SseError} `ERR_SSE_OPTION` */
  constructor({
    history = {},
    historyFor,
  }: {
    history?: HistoryOptions | false | undefined;
    historyFor?: ((name: string) => HistoryOptions | false | undefined) | undefined;
  }) {
    this.#common = resolve('history of createChannels()', history);
    this.#historyFor = historyFor;
  }

  /** @throws {SseError} `ERR_SSE_OPTION` for what `historyFor` returns; whatever it throws */
  limitsFor(channel: string): HistoryLimits | false {
    const own = this.#historyFor?.(channel);
    if (own === undefined) return this.#common;
    if (own === false) return false;
    let limits = typeof own === 'object' ? this.#resolved.get(own) : undefined;
    if (limits === undefined) {
      limits = resolve(`what historyFor returned for ${describeValue(channel)}`, own);
      this.#resolved.set(own, limits);
    }
    return limits;
  }
}

function resolve(owner: string, given: HistoryOptions | false): HistoryLimits | false {
  if (given === false) return false;
  const checked = assertOptions(owner, given, limitRules);
  const {
    latest = false,
    age = Infinity,
    bytes = 1_048_576,
    events = latest ? 1 : 1_000,
  } = checked;
  if (latest && events !== 1) {
    throw new SseError(
      'ERR_SSE_OPTION',
      `a newest-only channel holds one event, got \`events\` ${describeValue(events)} in ${owner}`,
    );
  }
  return { events, bytes, age, latest };
}
