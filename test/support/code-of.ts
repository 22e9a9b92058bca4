import { SseError } from '../../src/common/errors.ts';

/** @returns the code of the `SseError` that the action throws. Any other error is thrown again. */
export function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof SseError) return error.code;
    throw error;
  }
  return 'nothing was thrown';
}
