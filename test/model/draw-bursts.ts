/**
 * Arbitraries for schedules in which one turn publishes more bytes than one write may hold, or more
 * than may be pending.
 */
import fc from 'fast-check';
import { acts, client, consumers, ends, wraps } from './draw.ts';
import {
  type Brings,
  type ChannelName,
  type Command,
  type FilterKind,
  type FollowOptions,
  type OnGapKind,
  type Schedule,
  type Size,
  type SnapshotKind,
} from './schedule.ts';

const follow: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'b'], ['b'], ['x'], ['a', 'x']),
  since: fc.constantFrom('now', 'now', 'start', 'last'),
  back: fc.constant(0),
  resume: fc.constant(true),
  filter: fc.constantFrom<FilterKind>('none', 'none', 'even'),
  onGap: fc.constantFrom<OnGapKind>('none', 'cursor'),
  snapshot: fc.constantFrom<SnapshotKind>('none', 'none', 'none', 'slow', 'publishes'),
  checkpoints: fc.constantFrom(true, true, false),
  act: acts(4),
});

const connect: fc.Arbitrary<Command> = fc.record({
  do: fc.constant('connect' as const),
  client,
  brings: fc.constantFrom<Brings>('last', 'nothing', 'older'),
  back: fc.nat({ max: 30 }),
  eager: fc.boolean(),
  follow,
  wrap: wraps(5),
});

const burst: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('burst' as const),
      channel: fc.constantFrom<ChannelName>('a', 'a', 'b', 'x'),
      events: fc.integer({ min: 3, max: 12 }),
      size: fc.constant<Size>('middle'),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('burst' as const),
      channel: fc.constantFrom<ChannelName>('a', 'a', 'a', 'x'),
      events: fc.integer({ min: 2, max: 17 }),
      size: fc.constant<Size>('large'),
    }),
  },
);

const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: burst },
  { weight: 2, arbitrary: connect },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'send' as const,
        'send' as const,
        'snapshot' as const,
        'comment' as const,
        'beat' as const,
        'pause' as const,
        'go on' as const,
        'end' as const,
        'end for good' as const,
      ),
      client,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('unfollow' as const),
      client,
      which: fc.nat({ max: 1 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow }) },
  { weight: 3, arbitrary: consumers(20) },
  { weight: 1, arbitrary: ends('a', 'b') },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant('turn' as const), times: fc.constantFrom(1, 1, 3) }),
  },
);

/**
 * Draws a schedule with bursts of events.
 * @param length the maximum number of commands after two connects
 */
export function burstSchedules(length: number): fc.Arbitrary<Schedule> {
  return fc.record({
    bounds: fc.record({
      history: fc.constantFrom({}, { bytes: 8_388_608 }, { events: 5 }),
      maxHistory: fc.constant(undefined),
      maxChannels: fc.constant(undefined),
    }),
    presence: fc.constant(false),
    observers: fc.constant([]),
    ending: fc.constant<Schedule['ending']>('clients'),
    seed: fc.nat(),
    commands: fc
      .tuple(connect, connect, fc.array(command, { minLength: 3, maxLength: length, size: 'max' }))
      .map(([one, other, then]): Command[] => ([] as Command[]).concat(one, other, then)),
  });
}
