/** A clock that only the schedules move: the age of events and of keys goes by it. */
import { afterAll, beforeAll } from 'vitest';

/** Replaces the clock for the tests of the file. */
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
