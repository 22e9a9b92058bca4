/** Arbitraries for schedules with a few clients among hundreds of other streams. */
import fc from 'fast-check';
import { acts, client, consumers, ends, observers, wraps } from './draw.ts';
import {
  CLIENT_COUNT,
  type Brings,
  type ChannelName,
  type Command,
  type Crowd,
  type FilterKind,
  type FollowOptions,
  type OnGapKind,
  type Schedule,
  type Size,
  type SnapshotKind,
} from './schedule.ts';

// Numbers of streams: a few more than one turn writes to, and more than two turns write to.
const CROWD_SIZES = [260, 600] as const;

const follow: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'b'], ['a', 'x']),
  since: fc.constantFrom('now', 'now', 'last'),
  back: fc.constant(0),
  resume: fc.constant(true),
  filter: fc.constantFrom<FilterKind>('none', 'none', 'even'),
  onGap: fc.constantFrom<OnGapKind>('none', 'cursor'),
  snapshot: fc.constantFrom<SnapshotKind>('none', 'none', 'none', 'slow', 'publishes'),
  checkpoints: fc.boolean(),
  act: acts(2),
});

const crowdCommand: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'a'], ['a', 'b'], ['x', 'a']),
      size: fc.constantFrom<Size>('small', 'small', 'small', 'small', 'middle', 'large'),
      named: fc.boolean(),
      key: fc.constant(undefined),
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('turn' as const), times: fc.constant(1) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'send' as const,
        'send' as const,
        'comment' as const,
        'pause' as const,
        'go on' as const,
        'beat' as const,
      ),
      client,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constantFrom('drop' as const, 'end' as const), client }),
  },
  { weight: 1, arbitrary: fc.constant({ do: 'interrupt' as const }) },
  { weight: 2, arbitrary: consumers(10) },
  {
    weight: 1,
    arbitrary: fc.oneof(
      { weight: 2, arbitrary: ends('a', 'b', 'b') },
      {
        weight: 1,
        arbitrary: fc.record({
          do: fc.constant('clear' as const),
          channel: fc.constantFrom('a', 'b', 'b'),
        }),
      },
    ),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('unfollow' as const), client, which: fc.constant(0) }),
  },
);

const gather: fc.Arbitrary<Command> = fc.record({
  do: fc.constant('gather' as const),
  streams: fc.constantFrom(...CROWD_SIZES),
  crowd: fc.constantFrom<Crowd>('alike', 'alike', 'mixed', 'mixed', 'returning'),
});

// The events that a returning crowd reads: nearly one page.
const INITIAL_BURST: Command = { do: 'burst', channel: 'a', events: 5, size: 'middle' };

/**
 * Draws a schedule in which all clients connect before the crowd. The crowd is written to in
 * slices, so the clients wait for their slice.
 * @param length the maximum number of commands after the arrival of the crowd
 */
export function crowdedSchedules(length: number): fc.Arbitrary<Schedule> {
  const arrivals = fc.tuple(
    ...Array.from({ length: CLIENT_COUNT }, (_, number) =>
      fc.record({
        do: fc.constant('connect' as const),
        client: fc.constant(number),
        brings: fc.constant<Brings>('nothing'),
        back: fc.constant(0),
        eager: fc.constant(false),
        follow,
        wrap: wraps(4),
      }),
    ),
  );
  return fc.record({
    bounds: fc.record({
      history: fc.oneof(fc.record({ events: fc.integer({ min: 1, max: 6 }) }), fc.constant({})),
      maxHistory: fc.constant(undefined),
      maxChannels: fc.constant(undefined),
    }),
    presence: fc.constant(false),
    observers,
    ending: fc.constantFrom<Schedule['ending']>('clients', 'registry'),
    seed: fc.nat(),
    commands: fc
      .tuple(
        arrivals,
        gather,
        fc.array(crowdCommand, { minLength: 3, maxLength: length, size: 'max' }),
      )
      .map(([first, crowd, then]): Command[] =>
        ([INITIAL_BURST] as Command[]).concat(first, crowd, then),
      ),
  });
}
