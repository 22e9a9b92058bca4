/**
 * Commands and options of a schedule, as values that fast-check draws and shrinks. Types and
 * constants only.
 */

/**
 * Channels `a`, `b` and `c` keep a history, `n` keeps only the newest event, `x` keeps no history.
 */
export const CHANNELS = ['a', 'b', 'c', 'n', 'x'] as const;
export type ChannelName = (typeof CHANNELS)[number];

export const CLIENT_COUNT = 3;

export type Size = 'small' | 'middle' | 'large';
export type FilterKind = 'none' | 'even' | 'throws' | 'promises';
export type OnGapKind =
  | 'none'
  | 'cursor'
  | 'nothing'
  | 'slow cursor'
  | 'slow nothing'
  | 'throws'
  | 'other cursor'
  | 'beyond'
  | 'ends the channel';

/** The behaviour of a `snapshot`. Each sends the state; a slow one waits for `answer`. */
export type SnapshotKind =
  | 'none'
  | 'at once'
  | 'slow'
  | 'publishes'
  | 'slow publishes'
  | 'unsubscribes'
  | 'throws';

/** An extra action of user code when the library calls a callback. */
export type ActKind =
  | 'publishes'
  | 'ends the channel'
  | 'sends'
  | 'comments'
  | 'sends to others'
  | 'unsubscribes'
  | 'subscribes'
  | 'closes';

export interface Act {
  kind: ActKind;
  /** Number of the call in which the callback acts first, counted from 0. */
  at: number;
}

/** A wrapper of `res.write`, as middleware installs one. */
export interface Wrap extends Act {
  kind: Exclude<ActKind, 'unsubscribes'>;
  when: 'before' | 'after';
}

/** A subscriber of a diagnostics channel. */
export interface Observer {
  of: 'open' | 'gap' | 'slow' | 'close';
  kind: 'publishes' | 'sends' | 'sends to others';
}

/** The `since` of a reader. */
export type Since = 'now' | 'start' | 'cursor' | 'garbage' | 'last';

export interface FollowOptions {
  channels: ChannelName[];
  since: Since;
  /**
   * Distance between the head and the cursor of `since: 'cursor'`. Also determines the number of
   * `since: { last }`.
   */
  back: number;
  resume: boolean;
  filter: FilterKind;
  onGap: OnGapKind;
  /** Given in place of `onGap`, unless a channel has no history. */
  snapshot: SnapshotKind;
  checkpoints: boolean;
  /** An extra action of the filter. */
  act: Act | undefined;
}

/** The behaviour of the `onGap` of a consumer. Without one, a gap is thrown. */
export type ConsumerGapKind = Exclude<OnGapKind, 'ends the channel'>;

/** Options of a consumer of `channels.follow()`. */
export interface ConsumeOptions {
  channels: Exclude<ChannelName, 'x'>[];
  since: Since;
  /** As in {@link FollowOptions}. */
  back: number;
  filter: FilterKind;
  onGap: ConsumerGapKind;
  /** Whether the consumer takes an event only on the command `take`. */
  isSlow: boolean;
  /** Number of events after which the consumer leaves its loop. */
  leavesAfter: number | undefined;
}

/** The last event of a channel that ends. */
export interface LastEvent {
  size: Size;
  named: boolean;
}

/** The `Last-Event-ID` that the client sends. */
export type Brings = 'last' | 'nothing' | 'garbage' | 'other log' | 'beyond' | 'older';

/** A command for the application, for the stream of one client. */
export type ServerCommand =
  | { do: 'follow'; client: number; follow: FollowOptions }
  | { do: 'unfollow'; client: number; which: number }
  | { do: 'send' | 'snapshot' | 'comment' | 'answer' | 'end' | 'end for good'; client: number };

/** A command for one client, or for the timer of its stream. */
export type ClientCommand =
  | { do: 'pause' | 'go on' | 'drop' | 'beat'; client: number }
  | { do: 'sip'; client: number; writes: number };

/** Ends a channel, with a last event or without one. */
export interface ChannelEnd {
  do: 'end channel';
  channel: ChannelName;
  last: LastEvent | undefined;
  key: number | undefined;
}

export type Command =
  | ServerCommand
  | ClientCommand
  | { do: 'publish'; channels: ChannelName[]; size: Size; named: boolean; key: number | undefined }
  | ChannelEnd
  /** Several events of one channel in one turn. */
  | { do: 'burst'; channel: ChannelName; events: number; size: Size }
  | {
      do: 'connect';
      client: number;
      brings: Brings;
      back: number;
      eager: boolean;
      follow: FollowOptions;
      wrap: Wrap | undefined;
    }
  /** Starts a consumer, and publishes some events in the same call. */
  | { do: 'consume'; consume: ConsumeOptions; publishes: number }
  /** Lets a consumer take events, or its slow `onGap` answer. */
  | { do: 'take'; which: number; count: number }
  /** Ends a consumer from outside of its loop. */
  | { do: 'stop'; which: number; how: 'abort' | 'return' }
  | { do: 'clear'; channel: ChannelName }
  | { do: 'wait'; ms: number }
  | { do: 'turn'; times: number }
  /** Opens more streams. */
  | { do: 'gather'; streams: number; crowd: Crowd }
  /**
   * Interrupts the connection to the broker. Messages in transit are lost. Only with a remote
   * broker.
   */
  | { do: 'interrupt' }
  | { do: 'restart' | 'microtasks' };

/**
 * The members of a crowd. `'alike'`: all follow `a`. `'mixed'`: members follow several sets of
 * channels, some with a filter, some without history. `'returning'`: all follow `a` from its start.
 */
export type Crowd = 'alike' | 'mixed' | 'returning';

export interface Bounds {
  history: { events?: number; bytes?: number; age?: number };
  maxHistory: number | undefined;
  maxChannels: number | undefined;
}

export interface Schedule {
  bounds: Bounds;
  /**
   * Whether the end of a stream is announced in a channel and to every other stream, as a chat
   * does.
   */
  presence: boolean;
  observers: Observer[];
  /** How the remaining streams end: the clients disconnect, or the registry closes. */
  ending: 'clients' | 'registry';
  /** Seed for values that are not worth shrinking: the delays of a remote broker. */
  seed: number;
  commands: Command[];
}
