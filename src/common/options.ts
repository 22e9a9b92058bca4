/** Rules for options: each says in words for the error message what a value may be, and tests it. */
import { SseError, describeValue } from './errors.ts';

/** What an option may be: `expected` completes "expected `name` to be …", `test` tells. */
export interface OptionRule {
  readonly expected: string;
  test(value: unknown): boolean;
}

// The longest delay that Node's timers take; a longer one would fire at once.
export const MAX_TIMER_MS = 2_147_483_647;

/** A whole number of a unit in a range, or one of the values named beside it. */
export function integerRule(
  unit: string,
  min: number,
  max: number,
  ...others: readonly false[]
): OptionRule {
  return {
    expected: `a whole number of ${unit} from ${min} to ${max}${others.map((other) => ` or ${String(other)}`).join('')}`,
    test: (value) => isInteger(value, min, max) || others.includes(value as false),
  };
}

export function oneOfRule(...values: readonly string[]): OptionRule {
  return {
    expected: values.map((value) => `'${value}'`).join(' or '),
    test: (value) => values.includes(value as string),
  };
}

export const functionRule: OptionRule = {
  expected: 'a function',
  test: (value) => typeof value === 'function',
};

export const booleanRule: OptionRule = {
  expected: 'true or false',
  test: (value) => typeof value === 'boolean',
};

/** A time in ms that a timer can take. */
export function millisecondsRule(min: number, ...others: readonly false[]): OptionRule {
  return integerRule('ms', min, MAX_TIMER_MS, ...others);
}

/**
 * @param owner what the options are given to, as the message names it: `sse()`
 * @returns the options as they were checked. Each is read once, so that an accessor cannot say something else afterwards.
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown key or a value out of its range; `undefined` counts as not given
 */
export function assertOptions<T extends object>(
  owner: string,
  given: T,
  rules: Readonly<Record<string, OptionRule>>,
): T {
  if (!isObject(given)) {
    throw new SseError(
      'ERR_SSE_OPTION',
      `expected the options of ${owner} to be an object, got ${describeValue(given)}`,
    );
  }
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(rules, name)) continue;
    throw new SseError(
      'ERR_SSE_OPTION',
      `unknown option \`${name}\` of ${owner}; it takes ${Object.keys(rules).join(', ')}`,
    );
  }
  const checked: Record<string, unknown> = {};
  for (const [name, rule] of Object.entries(rules)) {
    const value = given[name];
    if (value === undefined) continue;
    if (!rule.test(value)) {
      throw new SseError(
        'ERR_SSE_OPTION',
        `expected \`${name}\` of ${owner} to be ${rule.expected}, got ${describeValue(value)}`,
      );
    }
    checked[name] = value;
  }
  return checked as T;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function hasOnly(value: unknown, ...keys: string[]): value is Record<string, unknown> {
  return isObject(value) && Object.keys(value).every((key) => keys.includes(key));
}

export function isInteger(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}
