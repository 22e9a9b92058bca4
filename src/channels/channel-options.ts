/** Validation of channel names and of the options of a registry's methods. */
import {
  assertOptions,
  booleanRule,
  functionRule,
  hasOnly,
  integerRule,
  isInteger,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';
import { ignoreRejection, isThenable } from '../common/async.ts';
import { SseError, describeValue } from '../common/errors.ts';
import { historyRules } from '../log/history.ts';
import type { SubscribeOptions } from '../stream/event-stream.ts';
import type {
  EndOptions,
  FollowOptions,
  PipeToChannelOptions,
  PublishOptions,
} from './channels.ts';
import type { ReadOptions } from './read.ts';
import type { ChannelsOptions } from './registry-options.ts';

// Maximum number of newest events with which a reader may start.
const MAX_LAST = 1_000;

/** The rules of `createChannels()`. */
export const channelsRules: Readonly<Record<keyof ChannelsOptions, OptionRule>> = {
  broker: {
    expected: 'a broker',
    test: (value) => typeof value === 'object' && value !== null && 'append' in value,
  },
  ...historyRules,
  maxHistory: integerRule('bytes', 0, Number.MAX_SAFE_INTEGER),
  maxChannels: integerRule('channels', 1, Number.MAX_SAFE_INTEGER),
  maxEvent: integerRule('bytes', 1, Number.MAX_SAFE_INTEGER),
  serialize: functionRule,
};

/** The rules of `publish()`. Control characters and ranges are checked with the event's fields. */
export const publishRules: Readonly<Record<keyof PublishOptions, OptionRule>> = {
  event: { expected: 'a string', test: (value) => typeof value === 'string' },
  retry: {
    expected: 'a whole number of ms from 0 to 2147483647',
    test: (value) => typeof value === 'number',
  },
  key: {
    expected: 'a non-empty string of at most 256 UTF-8 bytes',
    test: (value) => typeof value === 'string' && value !== '' && Buffer.byteLength(value) <= 256,
  },
  // Checked by `toMetaText`.
  meta: { expected: 'a JSON value', test: () => true },
};

const MAX_META_BYTES = 4_096;

/**
 * Converts a `meta` to JSON.
 * @throws {SseError} `ERR_SSE_OPTION` for a value without JSON, and for too large a value
 */
export function toMetaText(meta: unknown): string | undefined {
  if (meta === undefined) return undefined;
  let text: string | undefined;
  let cause: unknown;
  try {
    ignoreRejection(meta);
    text = isThenable(meta) ? undefined : JSON.stringify(meta);
  } catch (error) {
    cause = error;
  }
  if (text !== undefined && Buffer.byteLength(text) <= MAX_META_BYTES) return text;
  throw new SseError(
    'ERR_SSE_OPTION',
    `expected \`meta\` of publish() to be a value with at most ${MAX_META_BYTES} bytes of JSON, ` +
      `got ${describeValue(meta)}`,
    { cause },
  );
}

/** The rules of `end()`. */
export const endRules: Readonly<Record<keyof EndOptions, OptionRule>> = {
  event: publishRules.event,
  key: publishRules.key,
};

/** The rules of `channels.pipe()`. */
export const pipeRules: Readonly<Record<keyof PipeToChannelOptions<unknown>, OptionRule>> = {
  event: {
    expected: 'a string or a function that returns one for each event',
    test: (value) => typeof value === 'string' || typeof value === 'function',
  },
  map: functionRule,
  every: millisecondsRule(1),
  join: functionRule,
  end: {
    expected: 'true, false or a function that returns the last event',
    test: (value) => typeof value === 'boolean' || typeof value === 'function',
  },
  signal: {
    expected: 'an AbortSignal',
    test: (value) => typeof value === 'object' && value !== null && 'aborted' in value,
  },
};

const sinceRule: OptionRule = {
  expected: "'now', 'start', { last } with a number of events from 1 to 1000, or a cursor",
  test: (value) =>
    typeof value === 'string' || (hasOnly(value, 'last') && isInteger(value['last'], 1, MAX_LAST)),
};

/** The rules of `channels.follow()`. */
export const followRules: Readonly<Record<keyof FollowOptions, OptionRule>> = {
  since: sinceRule,
  signal: pipeRules.signal,
  filter: functionRule,
  onGap: functionRule,
};

/** The rules of `channels.read()`. */
export const readRules: Readonly<Record<keyof ReadOptions, OptionRule>> = {
  after: { expected: 'a cursor', test: (value) => typeof value === 'string' },
  last: integerRule('events', 1, MAX_LAST),
  limit: integerRule('events', 1, 10_000),
};

/** The rules of `subscribe()` and `listen()`. Any string is valid as `since`: see `start.ts`. */
const subscribeRules: Readonly<Record<keyof SubscribeOptions, OptionRule>> = {
  since: sinceRule,
  resume: booleanRule,
  filter: functionRule,
  onGap: functionRule,
  snapshot: functionRule,
  checkpoints: booleanRule,
  control: booleanRule,
};

const MAX_NAME_BYTES = 256;
const MAX_NAMES = 100;

/**
 * Checks the options of `subscribe()` and `listen()`.
 * @param owner as for {@link assertOptions}
 * @throws {SseError} `ERR_SSE_OPTION`
 */
export function assertSubscribeOptions(owner: string, options: SubscribeOptions): SubscribeOptions {
  const checked = assertOptions(owner, options, subscribeRules);
  if (checked.onGap === undefined || checked.snapshot === undefined) return checked;
  throw new SseError(
    'ERR_SSE_OPTION',
    `${owner} got both \`snapshot\` and \`onGap\`; \`snapshot\` is called after a gap, too`,
  );
}

/**
 * Names often come from a URL, so they are checked at run time, too.
 * @throws {SseError} `ERR_SSE_CHANNEL_NAME`
 */
export function assertChannelName(name: string): void {
  const isValid =
    typeof name === 'string' &&
    name !== '' &&
    Buffer.byteLength(name) <= MAX_NAME_BYTES &&
    // Control characters, and surrogates that are not in a pair.
    !/[\p{Cc}\p{Cs}]/u.test(name);
  if (isValid) return;
  throw new SseError(
    'ERR_SSE_CHANNEL_NAME',
    `expected a channel name to be a non-empty string of at most ${MAX_NAME_BYTES} UTF-8 bytes ` +
      `without control characters, got ${describeValue(name)}`,
  );
}

/**
 * Checks a list of names, and removes duplicates.
 * @returns 1 to 100 names
 * @throws {SseError} `ERR_SSE_CHANNEL_NAME`
 */
export function toChannelSet(names: string | readonly string[]): string[] {
  const distinct = [
    ...new Set(Array.isArray(names) ? (names as readonly string[]) : [names as string]),
  ];
  if (distinct.length === 0 || distinct.length > MAX_NAMES) {
    throw new SseError(
      'ERR_SSE_CHANNEL_NAME',
      `expected 1 to ${MAX_NAMES} channel names, got ${distinct.length}`,
    );
  }
  for (const name of distinct) assertChannelName(name);
  return distinct;
}
