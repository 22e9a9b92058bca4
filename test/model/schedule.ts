/** What may happen, as values that fast-check draws and shrinks. Types only, and what they are counted by. */

/** `a`, `b` and `c` keep a history, of `n` only the newest event counts, `x` keeps nothing. */
export const CHANNELS = ['a', 'b', 'c', 'n', 'x'] as const;
export type ChannelName = (typeof CHANNELS)[number];

export const CLIENTS = 3;

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
  | 'beyond';

/** What user code does when the library calls it, besides its job. */
export type ActKind =
  | 'publishes'
  | 'sends'
  | 'comments'
  | 'sends to others'
  | 'unsubscribes'
  | 'subscribes'
  | 'closes';

export interface Act {
  kind: ActKind;
  /** In which of its calls it acts first, counted from 0. */
  at: number;
}

/** A `write` that middleware has put in front of the response's own. */
export interface Wrap extends Act {
  kind: Exclude<ActKind, 'unsubscribes'>;
  when: 'before' | 'after';
}

/** A subscriber of a diagnostics channel. */
export interface Observer {
  of: 'open' | 'gap' | 'slow' | 'close';
  kind: 'publishes' | 'sends' | 'sends to others';
}

export interface FollowOptions {
  channels: ChannelName[];
  since: 'now' | 'start' | 'cursor' | 'garbage';
  /** How far behind the head `since: 'cursor'` is. */
  back: number;
  resume: boolean;
  filter: FilterKind;
  onGap: OnGapKind;
  checkpoints: boolean;
  /** What the filter does besides. */
  act: Act | undefined;
}

/** What the client says it has received last. */
export type Brings = 'last' | 'nothing' | 'garbage' | 'other log' | 'beyond' | 'older';

/** What the application does for one client's stream. */
export type ServerCommand =
  | { do: 'follow'; client: number; follow: FollowOptions }
  | { do: 'unfollow'; client: number; which: number }
  | { do: 'send' | 'snapshot' | 'comment' | 'answer' | 'end' | 'end for good'; client: number };

/** What one client does, or the timer does for its stream. */
export type ClientCommand =
  | { do: 'pause' | 'go on' | 'drop' | 'beat'; client: number }
  | { do: 'sip'; client: number; writes: number };

export type Command =
  | ServerCommand
  | ClientCommand
  | { do: 'publish'; channels: ChannelName[]; size: Size; named: boolean; key: number | undefined }
  /** So many events of one channel in one turn. */
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
  | { do: 'clear'; channel: ChannelName }
  | { do: 'wait'; ms: number }
  | { do: 'turn'; times: number }
  /** So many streams more. */
  | { do: 'gather'; streams: number; crowd: Crowd }
  /** The node may have missed something, and has missed what was on its way; only with a broker elsewhere. */
  | { do: 'interrupt' }
  | { do: 'restart' | 'microtasks' };

/**
 * Of whom a crowd consists: `'alike'` all follow `a`; `'mixed'` they follow several sets of channels, some with a filter, some without
 * history; `'returning'` all follow `a` from its start.
 */
export type Crowd = 'alike' | 'mixed' | 'returning';

export interface Bounds {
  history: { events?: number; bytes?: number; age?: number };
  maxHistory: number | undefined;
  maxChannels: number | undefined;
}

export interface Schedule {
  bounds: Bounds;
  /** Whether a stream that ends is told in a channel and to every other stream directly, as a chat does. */
  presence: boolean;
  observers: Observer[];
  /** Who ends what is left at the end. */
  ending: 'clients' | 'registry';
  /** Draws what is not worth shrinking: the delays of a distant broker. */
  seed: number;
  commands: Command[];
}
