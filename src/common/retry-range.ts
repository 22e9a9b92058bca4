/** Reconnection times, and ranges from which a time is drawn for each client. */
import { hasOnly, integerRule, isInteger, type OptionRule } from './options.ts';

/**
 * The longest reconnection time in ms. The timer of a client would treat a longer delay as 0 or 1,
 * and the client would not wait at all.
 */
export const MAX_RETRY_MS = 2_147_483_647;

/**
 * A range of reconnection times in ms. A time is drawn for each client, so that many clients do not
 * reconnect at the same moment.
 */
export interface RetryRange {
  /** The shortest time in ms. */
  min: number;
  /** The longest time in ms, at least `min`. */
  max: number;
}

/** The rule for one reconnection time. */
export const retryTimeRule: OptionRule = integerRule('ms', 0, MAX_RETRY_MS);

/** The rule for a reconnection time or a range, as in `sse({ retry })`. */
export const retryRangeRule: OptionRule = {
  expected:
    `a whole number of ms from 0 to ${MAX_RETRY_MS} ` +
    'or { min, max } with such numbers and min <= max',
  test: (value) => isInteger(value, 0, MAX_RETRY_MS) || isRetryRange(value),
};

/** Converts a time or a range to a range. */
export function toRetryRange(retry: number | RetryRange): RetryRange {
  return typeof retry === 'number'
    ? { min: retry, max: retry }
    : { min: retry.min, max: retry.max };
}

/** Draws a whole number of ms from the range, both ends included. */
export function drawRetry({ min, max }: RetryRange): number {
  return min + Math.floor(Math.random() * (max - min + 1));
}

function isRetryRange(value: unknown): value is RetryRange {
  return (
    hasOnly(value, 'min', 'max') &&
    isInteger(value['min'], 0, MAX_RETRY_MS) &&
    isInteger(value['max'], 0, MAX_RETRY_MS) &&
    value['min'] <= value['max']
  );
}
