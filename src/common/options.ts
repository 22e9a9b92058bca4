/**
 * Rules for options: each rule tests a value, and describes for an error message what is allowed.
 */
import { ignoreRejection, isThenable } from './async.ts';
import { SseError, describeValue } from './errors.ts';

/** A rule for the value of an option. */
export interface OptionRule {
  /** Completes the sentence "expected `name` to be …". */
  readonly expected: string;
  /** @returns whether the value is allowed */
  test(value: unknown): boolean;
}

/** The longest delay of Node's timers in ms. A timer with a longer delay would fire at once. */
export const MAX_TIMER_MS = 2_147_483_647;

/**
 * A whole number in a range.
 * @param unit plural of the unit, for the error message: `bytes`
 * @param others values that are allowed in addition
 */
export function integerRule(
  unit: string,
  min: number,
  max: number,
  ...others: readonly false[]
): OptionRule {
  const alternatives = others.map((other) => ` or ${String(other)}`).join('');
  return {
    expected: `a whole number of ${unit} from ${min} to ${max}${alternatives}`,
    test: (value) => isInteger(value, min, max) || others.includes(value as false),
  };
}

/** One of these strings. */
export function oneOfRule(...values: readonly string[]): OptionRule {
  return {
    expected: values.map((value) => `'${value}'`).join(' or '),
    test: (value) => values.includes(value as string),
  };
}

/** Any function. */
export const functionRule: OptionRule = {
  expected: 'a function',
  test: (value) => typeof value === 'function',
};

/** `true` or `false`. */
export const booleanRule: OptionRule = {
  expected: 'true or false',
  test: (value) => typeof value === 'boolean',
};

/** A time in ms that is not too long for a timer of Node. */
export function millisecondsRule(min: number, ...others: readonly false[]): OptionRule {
  return integerRule('ms', min, MAX_TIMER_MS, ...others);
}

/**
 * Checks options against their rules. An option that is `undefined` counts as not set.
 * @param owner the function that takes the options, as error messages name it: `sse()`
 * @returns a copy of the checked options. Each option is read once, because a getter could return
 * another value the second time.
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown option or a value that its rule does not allow
 */
export function assertOptions<T extends object>(
  owner: string,
  options: T,
  rules: Readonly<Record<string, OptionRule>>,
): T {
  if (isThenable(options)) {
    ignoreRejection(options);
    throw new SseError(
      'ERR_SSE_OPTION',
      `expected the options of ${owner} to be an object, got a promise; await it`,
    );
  }
  if (!isObject(options)) {
    throw new SseError(
      'ERR_SSE_OPTION',
      `expected the options of ${owner} to be an object, got ${describeValue(options)}`,
    );
  }
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(rules, name)) continue;
    throw new SseError(
      'ERR_SSE_OPTION',
      `unknown option \`${name}\` of ${owner}; it takes ${Object.keys(rules).join(', ')}`,
    );
  }
  const checked: Record<string, unknown> = {};
  for (const [name, rule] of Object.entries(rules)) {
    const value = options[name];
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

/** Whether the value is an object and not an array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Whether the value is an object without other keys than these. */
export function hasOnly(value: unknown, ...keys: string[]): value is Record<string, unknown> {
  return isObject(value) && Object.keys(value).every((key) => keys.includes(key));
}

/** Whether the value is a whole number from `min` to `max`. */
export function isInteger(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}
