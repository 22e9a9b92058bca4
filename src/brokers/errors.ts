/** What every broker refuses in the same words. */
import { SseError } from '../common/errors.ts';

/** For whatever is asked of channels after their end. */
export function closedError(): SseError {
  return new SseError(
    'ERR_SSE_CLOSED',
    'the channels are closed; publish and subscribe before close()',
    { delivery: 'none' },
  );
}

/** For a broker that is opened twice. */
export function otherRegistryError(): SseError {
  return new SseError(
    'ERR_SSE_OTHER_REGISTRY',
    'this broker serves another registry already; give each createChannels() one of its own',
  );
}
