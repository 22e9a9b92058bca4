/** The options of `sse()` and of the middleware's `close()`. */
import { admissionRules, type AdmissionOptions } from './admission.ts';
import type { IdentityOptions } from './identities.ts';
import {
  booleanRule,
  functionRule,
  millisecondsRule,
  oneOfRule,
  type OptionRule,
} from '../common/options.ts';
import { retryRangeRule, type RetryRange } from '../common/retry-range.ts';
import type { EventStream, Subscribe } from '../stream/event-stream.ts';
import type { revocationSource, RevocationSource } from '../stream/revocation-types.ts';
import { streamRules, type StreamOptions } from '../stream/stream-options.ts';

/** A registry, as the middleware uses it. */
interface ChannelsOfStreams {
  subscribe(...args: Parameters<Subscribe>): ReturnType<Subscribe>;
  /** @internal */
  readonly [revocationSource]?: RevocationSource;
}

/** The options of `sse()`. */
export interface SseOptions extends StreamOptions, AdmissionOptions, IdentityOptions {
  /**
   * The registry that `res.sse.subscribe()` uses, as returned by `createChannels()`.
   * @defaultValue none: `subscribe()` rejects with `ERR_SSE_NO_CHANNELS`
   */
  channels?: ChannelsOfStreams | undefined;
  /**
   * Whether detected misuse is reported by `process.emitWarning()`, once for each code.
   * @defaultValue `true`
   */
  warnings?: boolean | undefined;
  /**
   * Which requests get a stream: `'event-stream'`, those that name `text/event-stream` in `Accept`;
   * `'any'`, all that do not refuse an event stream with q=0. LLM clients send
   * `Accept: application/json` and read a stream.
   * @defaultValue `'event-stream'`
   */
  accept?: 'event-stream' | 'any' | undefined;
  /**
   * Called for each error after a stream has opened: errors of a handler or generator of
   * `stream()`, of a filter, of `onGap` and of a wrapped `res.write`, and an attempt to send
   * another response to the request. The client is not told about the error.
   * @defaultValue prints the error by `console.error()`, unless the diagnostics channel
   * `res-sse:error` has a subscriber or `NODE_ENV` is `test`
   */
  onError?: ((error: unknown, stream: EventStream) => void) | undefined;
}

/** The options of the middleware's `close()`. */
export interface ShutdownOptions {
  /**
   * Time in ms over which the streams are ended, in waves of at least ten. Streams that have not
   * ended after this time are destroyed.
   * @defaultValue `10_000`
   */
  within?: number | undefined;
  /**
   * Reconnection time in ms that is sent to each client, drawn at random from the range.
   * @defaultValue `{ min: 1_000, max: 5_000 }`
   */
  retry?: number | RetryRange | undefined;
}

/** The rules for {@link SseOptions}. */
export const sseRules: Readonly<Record<keyof SseOptions, OptionRule>> = {
  channels: {
    expected: 'the return value of createChannels()',
    test: (value) =>
      typeof value === 'object' && value !== null && 'subscribe' in value && 'publish' in value,
  },
  ...streamRules,
  ...admissionRules,
  identity: functionRule,
  authorize: functionRule,
  warnings: booleanRule,
  accept: oneOfRule('event-stream', 'any'),
  onError: functionRule,
};

/** The rules for {@link ShutdownOptions}. */
export const shutdownRules: Readonly<Record<keyof ShutdownOptions, OptionRule>> = {
  within: millisecondsRule(0),
  retry: retryRangeRule,
};
