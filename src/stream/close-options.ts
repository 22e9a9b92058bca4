/** The options with which a stream is closed. */
import { assertOptions, booleanRule } from '../common/options.ts';
import { retryTimeRule } from '../common/retry-range.ts';

/** The options of `stream.close()`, and of `closeWhere()` and `revoke()` of the middleware. */
export interface CloseOptions {
  /**
   * Reconnection time in ms, sent to the client before the end; a whole number from 0 to
   * 2,147,483,647.
   * @defaultValue none: the client keeps the time that it has
   */
  retry?: number | undefined;
  /**
   * Whether the client is told not to reconnect. An `EventSource` still reconnects once and is
   * answered 204, after which it stops.
   * @defaultValue `false`
   */
  final?: boolean | undefined;
}

const closeRules = { retry: retryTimeRule, final: booleanRule };

/**
 * @param owner the function that takes the options, as error messages name it: `close()`
 * @returns a copy of the checked options
 * @throws {SseError} `ERR_SSE_OPTION` for an unknown option or a value out of its range
 */
export function assertCloseOptions(owner: string, options: CloseOptions): CloseOptions {
  return assertOptions(owner, options, closeRules);
}
