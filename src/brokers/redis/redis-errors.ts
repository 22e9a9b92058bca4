/** Errors of Redis and of node-redis, and their conversion to an `SseError`. */
import { SseError, describeThrown } from '../../common/errors.ts';

// The first word of an error reply of Redis is a code in capitals.
const ERROR_REPLY = /^[A-Z]{2,} /;

// Messages of node-redis about a command that was never sent.
const UNSENT_COMMAND = /^The client is |^The queue is full|aborted/;

/** Makes an error for a call that had no effect: its `delivery` is `'none'`. */
export function noEffectError(message: string, cause?: unknown): SseError {
  return new SseError('ERR_SSE_BROKER', message, { cause, delivery: 'none' });
}

/** Makes an error for an answer that took too long. */
export function timeoutError(timeoutMs: number): Error {
  return new Error(`Redis has not answered within ${timeoutMs} ms`);
}

/** Makes an error for a connection that is up and on which nothing arrives. */
export function undeliveredError(): Error {
  return new Error('Redis is connected, but its messages do not arrive');
}

/** Whether the error is a reply of Redis itself, so that the connection works. */
export function isErrorReply(error: unknown): boolean {
  const cause = error instanceof SseError && error.cause !== undefined ? error.cause : error;
  return !isSystemError(cause) && ERROR_REPLY.test(messageOf(cause));
}

/** Converts an error of a command to an `SseError` that says whether the command had an effect. */
export function toBrokerError(error: unknown): SseError {
  if (error instanceof SseError) return error;
  const text = messageOf(error);
  // If Redis refuses a write of the script, the script returns an error reply. An error that was
  // raised inside the script may have come after a write.
  const isRaised = text.includes('user_script');
  const hadNoEffect =
    !isSystemError(error) && !isRaised && (ERROR_REPLY.test(text) || UNSENT_COMMAND.test(text));
  const delivery = hadNoEffect ? 'none' : 'unknown';
  return new SseError('ERR_SSE_BROKER', `Redis has not accepted the command: ${text}`, {
    cause: error,
    delivery,
  });
}

/**
 * @returns the message of an error, or the value as text. Before Redis 7, the text of a command
 * that is refused inside a script begins with a place in the script
 */
export function messageOf(error: unknown): string {
  const text = error instanceof Error ? error.message : describeThrown(error);
  return text.replace(/^@user_script: \d+: -?/, '');
}

/** Whether the error comes from the socket, for example `ECONNREFUSED`. */
function isSystemError(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'code' in error;
}
