/** Schedules in which a few clients are among hundreds of streams. */
import fc from 'fast-check';
import { acts, client, observers, wraps } from './draw.ts';
import {
  CLIENTS,
  type Brings,
  type ChannelName,
  type Command,
  type Crowd,
  type FilterKind,
  type FollowOptions,
  type OnGapKind,
  type Schedule,
  type Size,
} from './schedule.ts';

// A little more than are written to before other work gets its turn, and more than that in two turns.
const CROWDS = [260, 600] as const;

const orderly: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'b'], ['a', 'x']),
  since: fc.constant('now'),
  back: fc.constant(0),
  resume: fc.constant(true),
  filter: fc.constantFrom<FilterKind>('none', 'none', 'even'),
  onGap: fc.constantFrom<OnGapKind>('none', 'cursor'),
  checkpoints: fc.boolean(),
  act: acts(2),
});

const amidACrowd: fc.Arbitrary<Command> = fc.oneof(
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
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow: orderly }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('unfollow' as const), client, which: fc.constant(0) }),
  },
);

const gather: fc.Arbitrary<Command> = fc.record({
  do: fc.constant('gather' as const),
  streams: fc.constantFrom(...CROWDS),
  crowd: fc.constantFrom<Crowd>('alike', 'alike', 'mixed', 'mixed', 'returning'),
});

// What a crowd that returns comes back to: nearly one page.
const BEFORE: Command = { do: 'burst', channel: 'a', events: 5, size: 'middle' };

/** Every client is there before a crowd comes, which is written to in slices: meanwhile the clients wait for their turn. */
export function crowdedSchedules(length: number): fc.Arbitrary<Schedule> {
  const arrivals = fc.tuple(
    ...Array.from({ length: CLIENTS }, (_, number) =>
      fc.record({
        do: fc.constant('connect' as const),
        client: fc.constant(number),
        brings: fc.constant<Brings>('nothing'),
        back: fc.constant(0),
        eager: fc.constant(false),
        follow: orderly,
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
        fc.array(amidACrowd, { minLength: 3, maxLength: length, size: 'max' }),
      )
      .map(([first, crowd, then]): Command[] => ([BEFORE] as Command[]).concat(first, crowd, then)),
  });
}
