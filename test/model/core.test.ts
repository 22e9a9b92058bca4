import { describe, test } from 'vitest';
import { useClock } from './clock.ts';
import { burstSchedules } from './draw-bursts.ts';
import { crowdedSchedules } from './draw-crowd.ts';
import { schedules } from './draw.ts';
import { fakes } from './fakes.ts';
import { expectContractKept } from './runs.ts';
import { WorkMeter } from './work.ts';
import type { WorldOptions } from './world.ts';

const clock = useClock();

function optionsOf(isDistant: boolean): () => Omit<WorldOptions, 'tally'> {
  return () => {
    const work = new WorkMeter();
    return { transport: fakes(work), isDistant, clock, work };
  };
}

describe.each([
  ['a broker in this process', false],
  ['a remote broker', true],
])('channels with %s keep their contract', (brokerName, isDistant) => {
  test.each([
    [12, 3_500],
    [30, 2_200],
    [60, 1_700],
  ])('in schedules of up to %i commands', { timeout: 300_000 }, (length, times) =>
    expectContractKept(
      `${brokerName}, up to ${length} commands`,
      schedules(length),
      times,
      optionsOf(isDistant),
    ),
  );

  test('in schedules with a crowd of streams', { timeout: 300_000 }, () =>
    expectContractKept(
      `${brokerName}, with a crowd`,
      crowdedSchedules(25),
      100,
      optionsOf(isDistant),
      // No client comes back.
      ['resumed', 'noContent', 'gaps', 'asked', 'consumerGaps'],
    ),
  );

  test('in schedules with bursts of events', { timeout: 300_000 }, () =>
    expectContractKept(
      `${brokerName}, with bursts`,
      burstSchedules(16),
      150,
      optionsOf(isDistant),
      ['noContent', 'gaps', 'asked'],
    ),
  );
});
