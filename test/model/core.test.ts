import { describe, test } from 'vitest';
import { useClock } from './clock.ts';
import { fakes } from './fakes.ts';
import { expectKept } from './runs.ts';
import { crowdedSchedules, schedules } from './schedule.ts';

const clock = useClock();

describe.each([
  ['the broker in this process', false],
  ['a broker elsewhere', true],
])('with %s every promise is kept', (where, isDistant) => {
  test.each([
    [12, 6_000],
    [30, 4_000],
    [60, 3_000],
  ])('in schedules of up to %i commands', { timeout: 300_000 }, (length, times) =>
    expectKept(`${where}, up to ${length} commands`, schedules(length), times, () => ({ transport: fakes(), isDistant, clock })),
  );
});

test('in a crowd every promise is kept', { timeout: 300_000 }, () =>
  expectKept('in a crowd', crowdedSchedules(25), 200, () => ({ transport: fakes(), isDistant: false, clock })),
);
