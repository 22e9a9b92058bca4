/** What may happen, as values that fast-check draws and shrinks. */
import fc from 'fast-check';

/** `a`, `b` and `c` keep a history, of `n` only the newest event counts, `x` keeps nothing. */
export const CHANNELS = ['a', 'b', 'c', 'n', 'x'] as const;
export type ChannelName = (typeof CHANNELS)[number];

export const CLIENTS = 3;

export type Size = 'small' | 'middle' | 'large';
export type FilterKind = 'none' | 'even' | 'throws' | 'promises';
export type OnGapKind = 'none' | 'cursor' | 'nothing' | 'slow cursor' | 'slow nothing' | 'throws' | 'other cursor';

export interface FollowOptions {
  channels: ChannelName[];
  since: 'now' | 'start' | 'cursor' | 'garbage';
  /** How far behind the head `since: 'cursor'` is. */
  back: number;
  resume: boolean;
  filter: FilterKind;
  onGap: OnGapKind;
  checkpoints: boolean;
}

/** What the client says it has received last. */
export type Brings = 'last' | 'nothing' | 'garbage' | 'other log' | 'beyond' | 'older';

/** What the application does for one client's stream. */
export type ServerCommand =
  | { do: 'follow'; client: number; follow: FollowOptions }
  | { do: 'unfollow'; client: number; which: number }
  | { do: 'send' | 'answer' | 'end'; client: number };

/** What one client does, or the timer does for its stream. */
export type ClientCommand =
  | { do: 'pause' | 'go on' | 'drop' | 'beat'; client: number }
  | { do: 'sip'; client: number; writes: number };

export type Command =
  | ServerCommand
  | ClientCommand
  | { do: 'publish'; channels: ChannelName[]; size: Size; named: boolean; key: number | undefined }
  | { do: 'connect'; client: number; brings: Brings; back: number; eager: boolean; follow: FollowOptions }
  | { do: 'clear'; channel: ChannelName }
  | { do: 'wait'; ms: number }
  | { do: 'turn'; times: number }
  /** So many streams more follow `a` and only listen. */
  | { do: 'gather'; streams: number }
  | { do: 'restart' | 'microtasks' };

export interface Bounds {
  history: { events?: number; bytes?: number; age?: number };
  maxHistory: number | undefined;
  maxChannels: number | undefined;
}

export interface Schedule {
  bounds: Bounds;
  /** Whether a stream that ends is told in a channel and to every other stream directly, as a chat does. */
  presence: boolean;
  /** Draws what is not worth shrinking: the delays of a distant broker. */
  seed: number;
  commands: Command[];
}

const channel = fc.constantFrom<ChannelName>('a', 'a', 'a', 'b', 'b', 'c', 'n', 'x');
const client = fc.nat({ max: CLIENTS - 1 });
const size = fc.constantFrom<Size>('small', 'small', 'small', 'small', 'middle', 'large');

const follow: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.uniqueArray(channel, { minLength: 1, maxLength: 3 }),
  since: fc.constantFrom('now', 'now', 'start', 'cursor', 'garbage'),
  back: fc.nat({ max: 12 }),
  resume: fc.constantFrom(true, true, true, true, false),
  filter: fc.constantFrom<FilterKind>('none', 'none', 'none', 'none', 'even', 'even', 'throws', 'promises'),
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
  ),
  checkpoints: fc.constantFrom(true, true, true, false),
});

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
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('unfollow' as const), client, which: fc.nat({ max: 3 }) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('pause' as const, 'pause' as const, 'go on' as const), client }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom('drop' as const, 'end' as const, 'send' as const, 'send' as const, 'beat' as const, 'answer' as const),
      client,
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('sip' as const), client, writes: fc.integer({ min: 1, max: 4 }) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('clear' as const), channel }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(1, 600, 1_100, 400_000) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant('turn' as const), times: fc.constantFrom(1, 1, 1, 2, 5) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constantFrom('microtasks' as const, 'microtasks' as const, 'microtasks' as const, 'restart' as const),
    }),
  },
);

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

// More than are written to before other work gets its turn.
const CROWD = 260;

const orderly: fc.Arbitrary<FollowOptions> = fc.record({
  channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'b']),
  since: fc.constant('now'),
  back: fc.constant(0),
  resume: fc.constant(true),
  filter: fc.constantFrom<FilterKind>('none', 'none', 'even'),
  onGap: fc.constantFrom<OnGapKind>('none', 'cursor'),
  checkpoints: fc.boolean(),
});

const amidACrowd: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      channels: fc.constantFrom<ChannelName[]>(['a'], ['a'], ['a', 'a'], ['a', 'b']),
      size: fc.constantFrom<Size>('small', 'small', 'large'),
      named: fc.boolean(),
      key: fc.constant(undefined),
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('turn' as const), times: fc.constant(1) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom('send' as const, 'send' as const, 'pause' as const, 'go on' as const, 'beat' as const),
      client,
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('drop' as const, 'end' as const), client }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('follow' as const), client, follow: orderly }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('unfollow' as const), client, which: fc.constant(0) }) },
);

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
    seed: fc.constant(0),
    commands: fc
      .tuple(arrivals, fc.array(amidACrowd, { minLength: 3, maxLength: length, size: 'max' }))
      .map(([first, then]): Command[] => ([] as Command[]).concat(first, { do: 'gather', streams: CROWD }, then)),
  });
}

/** @param length how many commands at most */
export function schedules(length: number): fc.Arbitrary<Schedule> {
  return fc.record({
    bounds,
    presence: fc.constantFrom(false, false, true),
    seed: fc.nat(),
    commands: fc.array(command, { minLength: 3, maxLength: length, size: 'max' }),
  });
}
