/** Reconnection times, and ranges from which one is drawn for each client. */
import { hasOnly, integerRule, isInteger, type OptionRule } from './options.ts';

/** The longest reconnection time in ms. A client's timer would treat a longer delay as 0 or 1, and the client would not wait at all. */
export const MAX_RETRY_MS = 2_147_483_647;

/** A range of ms from which one value is drawn for each client, so that many clients do not return at the same moment. */
export interface RetryRange {
  min: number;
  max: number;
}

/** One reconnection time in ms. */
export const retryTimeRule: OptionRule = integerRule('ms', 0, MAX_RETRY_MS);

/** A retry range as `close({ retry })` of the middleware takes it, too. */
export const retryRangeRule: OptionRule = {
  expected: `a whole number of ms from 0 to ${MAX_RETRY_MS} or { min, max } of such with min <= max`,
  test: (value) => isInteger(value, 0, MAX_RETRY_MS) || isRetryRange(value),
};

/** One time for all is a range, too. */
export function toRetryRange(retry: number | RetryRange): RetryRange {
  return typeof retry === 'number'
    ? { min: retry, max: retry }
    : { min: retry.min, max: retry.max };
}

/** A whole number drawn from the range, both ends included. */
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
