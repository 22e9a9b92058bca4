import { SseError } from '../../src/common/errors.ts';

/** The code of the `SseError` that the action throws; another error is thrown on. */
export function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof SseError) return error.code;
    throw error;
  }
  return 'nothing was thrown';
}
