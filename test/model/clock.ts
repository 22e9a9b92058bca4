/** A clock that only schedules advance. The age of events and of keys depends on this clock. */
import { afterAll, beforeAll } from 'vitest';

/** Replaces `performance.now()` for the tests of the file. */
export function useClock(): { now: number } {
  const clock = { now: 1_000 };
  beforeAll(() => {
    Object.defineProperty(performance, 'now', {
      value: () => clock.now,
      configurable: true,
      writable: true,
    });
  });
  afterAll(() => {
    delete (performance as Partial<Performance>).now;
  });
  return clock;
}
