/** Errors that all brokers throw. */
import { SseError, describeValue } from '../common/errors.ts';

/** Makes the error of a publish to a channel that has ended. */
export function endedError(channel: string): SseError {
  return new SseError(
    'ERR_SSE_ENDED',
    `channel ${describeValue(channel)} has ended, so nothing more can be published to it; ` +
      'use another name, or call clear() first',
    { delivery: 'none' },
  );
}

/** Makes the error of a call after `close()`. */
export function closedError(): SseError {
  return new SseError(
    'ERR_SSE_CLOSED',
    'the channels are closed; publish and subscribe before close()',
    { delivery: 'none' },
  );
}

/** Makes the error of a broker that is opened twice. */
export function otherRegistryError(): SseError {
  return new SseError(
    'ERR_SSE_OTHER_REGISTRY',
    'this broker is in use by another registry; give each createChannels() its own broker',
  );
}
