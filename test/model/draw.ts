/** Arbitraries for random schedules of all commands. */
import fc from 'fast-check';
import {
  CLIENT_COUNT,
  type Act,
  type ActKind,
  type Bounds,
  type Brings,
  type ChannelEnd,
  type ChannelName,
  type Command,
  type ConsumeOptions,
  type ConsumerGapKind,
  type FilterKind,
  type FollowOptions,
  type Observer,
  type OnGapKind,
  type Schedule,
  type Since,
  type Size,
  type SnapshotKind,
  type Wrap,
} from './schedule.ts';

const channel = fc.constantFrom<ChannelName>('a', 'a', 'a', 'b', 'b', 'c', 'n', 'x');
/** Draws the index of a client. */
export const client = fc.nat({ max: CLIENT_COUNT - 1 });
const size = fc.constantFrom<Size>('small', 'small', 'small', 'small', 'middle', 'large');

const ACTS = [
  'publishes',
  'publishes',
  'sends',
  'comments',
  'sends to others',
  'unsubscribes',
  'subscribes',
  'closes',
  'ends the channel',
] as const;

/**
 * Draws an act of user code, or none.
 * @param from one of `from` callbacks acts
 */
export function acts(from: number): fc.Arbitrary<Act | undefined> {
  const act = fc.record({ kind: fc.constantFrom<ActKind>(...ACTS), at: fc.nat({ max: 4 }) });
  return fc.oneof(
    { weight: from - 1, arbitrary: fc.constant(undefined) },
    { weight: 1, arbitrary: act },
  );
}

/**
 * Draws a wrapper of `res.write`, or none.
 * @param from one of `from` responses has a wrapper
 */
export function wraps(from: number): fc.Arbitrary<Wrap | undefined> {
  const wrap = fc.record({
    kind: fc.constantFrom<Wrap['kind']>(
      'publishes',
      'publishes',
      'sends',
      'comments',
      'sends to others',
      'subscribes',
      'closes',
      'ends the channel',
    ),
    at: fc.nat({ max: 6 }),
    when: fc.constantFrom<Wrap['when']>('before', 'after'),
  });
  return fc.oneof(
    { weight: from - 1, arbitrary: fc.constant(undefined) },
    { weight: 1, arbitrary: wrap },
  );
}

const observer: fc.Arbitrary<Observer> = fc.record({
  of: fc.constantFrom<Observer['of']>('open', 'gap', 'gap', 'slow', 'close'),
  kind: fc.constantFrom<Observer['kind']>('publishes', 'publishes', 'sends', 'sends to others'),
});

/** Draws subscribers of diagnostics channels. */
export const observers: fc.Arbitrary<Observer[]> = fc.oneof(
  { weight: 3, arbitrary: fc.constant<Observer[]>([]) },
  { weight: 1, arbitrary: fc.array(observer, { minLength: 1, maxLength: 2 }) },
);

const follow: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.uniqueArray(channel, { minLength: 1, maxLength: 3 }),
  since: fc.constantFrom('now', 'now', 'start', 'cursor', 'garbage', 'last', 'last'),
  back: fc.nat({ max: 12 }),
  resume: fc.constantFrom(true, true, true, true, false),
  filter: fc.constantFrom<FilterKind>(
    'none',
    'none',
    'none',
    'none',
    'even',
    'even',
    'throws',
    'promises',
  ),
  onGap: fc.constantFrom<OnGapKind>(
    'none',
    'none',
    'none',
    'cursor',
    'cursor',
    'nothing',
    'slow cursor',
    'slow cursor',
    'slow nothing',
    'throws',
    'other cursor',
    'beyond',
    'ends the channel',
  ),
  snapshot: fc.oneof(
    { weight: 3, arbitrary: fc.constant<SnapshotKind>('none') },
    {
      weight: 1,
      arbitrary: fc.constantFrom<SnapshotKind>(
        'at once',
        'slow',
        'slow',
        'publishes',
        'slow publishes',
        'unsubscribes',
        'throws',
      ),
    },
  ),
  checkpoints: fc.constantFrom(true, true, true, false),
  act: acts(5),
});

/**
 * Draws commands for consumers of `channels.follow()`.
 * @param leaving one of `leaving` consumers leaves its loop
 */
export function consumers(leaving: number): fc.Arbitrary<Command> {
  const consume: fc.Arbitrary<ConsumeOptions> = fc.record({
    channels: fc.uniqueArray(fc.constantFrom('a', 'a', 'a', 'b', 'b', 'c', 'n'), {
      minLength: 1,
      maxLength: 3,
    }),
    since: fc.constantFrom<Since>(
      'now',
      'now',
      'start',
      'cursor',
      'cursor',
      'garbage',
      'last',
      'last',
    ),
    back: fc.nat({ max: 12 }),
    filter: fc.constantFrom<FilterKind>(
      'none',
      'none',
      'none',
      'even',
      'even',
      'throws',
      'promises',
    ),
    onGap: fc.constantFrom<ConsumerGapKind>(
      'none',
      'none',
      'cursor',
      'nothing',
      'slow cursor',
      'slow nothing',
      'throws',
      'other cursor',
      'beyond',
    ),
    isSlow: fc.boolean(),
    leavesAfter: fc.oneof(
      { weight: leaving - 1, arbitrary: fc.constant(undefined) },
      { weight: 1, arbitrary: fc.integer({ min: 1, max: 6 }) },
    ),
  });
  return fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({
        do: fc.constant('consume' as const),
        consume,
        publishes: fc.constantFrom(0, 0, 1, 2),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        do: fc.constant('take' as const),
        which: fc.nat({ max: 3 }),
        count: fc.constantFrom(1, 1, 3, 8),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        do: fc.constant('stop' as const),
        which: fc.nat({ max: 3 }),
        how: fc.constantFrom('abort' as const, 'return' as const),
      }),
    },
  );
}

/**
 * Draws the end of a channel.
 * @param channels the channel is one of these
 */
export function ends(...channels: ChannelName[]): fc.Arbitrary<ChannelEnd> {
  return fc.record({
    do: fc.constant('end channel' as const),
    channel: fc.constantFrom(...channels),
    last: fc.option(fc.record({ size, named: fc.boolean() }), { nil: undefined }),
    key: fc.constantFrom(undefined, undefined, 1),
  });
}

const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      channels: fc.array(channel, { minLength: 1, maxLength: 4 }),
      size,
      named: fc.boolean(),
      key: fc.constantFrom(undefined, undefined, undefined, 1, 2),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('connect' as const),
      client,
      brings: fc.constantFrom<Brings>(
        'last',
        'last',
        'last',
        'last',
        'last',
        'nothing',
        'garbage',
        'other log',
        'beyond',
        'older',
      ),
      back: fc.nat({ max: 12 }),
      eager: fc.boolean(),
      follow,
      wrap: wraps(6),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('unfollow' as const),
      client,
      which: fc.nat({ max: 3 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constantFrom('pause' as const, 'pause' as const, 'go on' as const),
      client,
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'drop' as const,
        'end' as const,
        'end for good' as const,
        'send' as const,
        'send' as const,
        'snapshot' as const,
        'comment' as const,
        'beat' as const,
        'beat' as const,
        'answer' as const,
      ),
      client,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('sip' as const),
      client,
      writes: fc.integer({ min: 1, max: 4 }),
    }),
  },
  { weight: 5, arbitrary: consumers(5) },
  { weight: 2, arbitrary: ends('a', 'a', 'a', 'b', 'b', 'c', 'n', 'x') },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('clear' as const), channel }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('wait' as const),
      ms: fc.constantFrom(1, 600, 1_100, 400_000),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('turn' as const),
      times: fc.constantFrom(1, 1, 1, 2, 5),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'microtasks' as const,
        'microtasks' as const,
        'microtasks' as const,
        'interrupt' as const,
        'interrupt' as const,
        'restart' as const,
      ),
    }),
  },
);

// A channel ends, and a client comes that may have received everything.
const comeback: fc.Arbitrary<Command[]> = fc
  .tuple(
    ends('a', 'b', 'n'),
    fc.record({ do: fc.constant('turn' as const), times: fc.constantFrom(1, 2, 5) }),
    fc.record({
      do: fc.constant('connect' as const),
      client,
      brings: fc.constantFrom<Brings>('last', 'last', 'older'),
      back: fc.nat({ max: 2 }),
      eager: fc.boolean(),
      follow,
      wrap: wraps(6),
    }),
    fc.constantFrom('comment' as const, 'send' as const, 'end' as const),
  )
  .map(([end, turn, connect, used]): Command[] => [
    end,
    turn,
    { ...connect, follow: { ...connect.follow, channels: [end.channel] } },
    turn,
    { do: used, client: connect.client },
  ]);

const bounds: fc.Arbitrary<Bounds> = fc.record({
  history: fc.oneof(
    fc.record({ events: fc.integer({ min: 1, max: 6 }) }),
    fc.record({ bytes: fc.constantFrom(900, 1_800, 3_000, 60_000) }),
    fc.record({ events: fc.constantFrom(4, 1_000), age: fc.constantFrom(500, 1_000) }),
    fc.constant({}),
  ),
  maxHistory: fc.constantFrom(undefined, undefined, 2_000, 4_000, 150_000),
  maxChannels: fc.constantFrom(undefined, undefined, 1, 2, 3),
});

/**
 * Draws a schedule.
 * @param length the maximum number of commands
 */
export function schedules(length: number): fc.Arbitrary<Schedule> {
  return fc.record({
    bounds,
    presence: fc.constantFrom(false, false, true),
    observers,
    ending: fc.constantFrom<Schedule['ending']>('clients', 'clients', 'clients', 'registry'),
    seed: fc.nat(),
    commands: fc
      .array(
        fc.oneof(
          { weight: 30, arbitrary: command.map((each) => [each]) },
          { weight: 1, arbitrary: comeback },
        ),
        { minLength: 3, maxLength: length, size: 'max' },
      )
      .map((parts) => parts.flat()),
  });
}
