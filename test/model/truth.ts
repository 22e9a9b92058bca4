/** The published events and the losses of a log, computed independently of the library. */
import type { Broker } from '../../src/index.ts';
import type { ChannelName, FilterKind } from './schedule.ts';

/** A published event. */
export interface PublishedEvent {
  /** Number of the event in the schedule. The data contains this number. */
  readonly n: number;
  readonly channel: ChannelName;
  readonly epoch: string;
  /** 0 on a channel without history. */
  readonly offset: number;
  readonly type: string;
  readonly data: string;
}

/**
 * The losses of a log at one moment: for each channel, the offset of the newest event that the log
 * does not hold any more.
 */
export interface Loss {
  readonly lost: Readonly<Partial<Record<ChannelName, number>>>;
  /**
   * The losses that the log reports. For a channel that the log forgot, the log knows only a lower
   * bound for all channels, so a gap may be false.
   */
  readonly trimmed: Readonly<Partial<Record<ChannelName, number>>>;
}

const HISTORY_CHANNELS = ['a', 'b', 'c', 'n'] as const;

/** An error: a rule of the contract was violated. */
export class Violation extends Error {}

/** One log, from its first event to its end. */
export class Truth {
  readonly epoch: string;
  /** The published events of each channel, in order. */
  readonly events = new Map<ChannelName, PublishedEvent[]>();
  /** The head of the log, as the broker reports it. */
  head = 0;
  now: Loss = { lost: {}, trimmed: {} };
  readonly #log: Broker;
  // For each head: the losses when the log reached this head, and when the log went beyond it.
  readonly #firstLosses: Loss[] = [];
  readonly #lastLosses: Loss[] = [];
  // The limits for number and age, if no other limit is set. In that case the content of the log
  // can be computed exactly.
  readonly #exactLimits: { events: number; age?: number } | undefined;
  readonly #clock: { now: number };
  // The time of each event, by offset.
  readonly #times: number[] = [];
  readonly #clearedUpTo = new Map<ChannelName, number>();

  constructor(
    log: Broker,
    clock: { now: number },
    exactly: { events: number; age?: number } | undefined,
  ) {
    const position = log.position();
    if (position instanceof Promise) throw new Error('the log must answer synchronously');
    this.epoch = position.epoch;
    this.#log = log;
    this.#exactLimits = exactly;
    this.#clock = clock;
    this.update();
  }

  eventsOf(channel: ChannelName): PublishedEvent[] {
    let events = this.events.get(channel);
    if (events === undefined) this.events.set(channel, (events = []));
    return events;
  }

  onClear(channel: ChannelName): void {
    this.#clearedUpTo.set(
      channel,
      this.eventsOf(channel).findLast((event) => event.offset <= this.head)?.offset ?? 0,
    );
    this.update();
  }

  /** Reads the current content of the log, and checks the reported losses. */
  update(): void {
    const page = this.#log.read([...HISTORY_CHANNELS, 'an unknown one'], 0, Infinity);
    const position = this.#log.position();
    if (page instanceof Promise || position instanceof Promise) {
      throw new Error('the log must answer synchronously');
    }
    while (this.head < position.offset) this.#times[++this.head] = this.#clock.now;
    const lost: Partial<Record<ChannelName, number>> = {};
    const trimmed: Partial<Record<ChannelName, number>> = {};
    const floor = page.trimmed.at(-1) ?? 0;
    for (const [index, channel] of HISTORY_CHANNELS.entries()) {
      const held = page.entries
        .filter((entry) => entry.channel === channel)
        .map((entry) => entry.offset);
      const lostOffset = (lost[channel] = this.#lostOffset(channel, held));
      const reported = (trimmed[channel] = page.trimmed[index] ?? 0);
      if (reported < lostOffset || (reported > lostOffset && reported > floor)) {
        throw new Violation(
          `${channel} is lost up to ${lostOffset}, the log says ${reported}, its floor is ${floor}`,
        );
      }
    }
    this.now = { lost, trimmed };
    this.#firstLosses[this.head] ??= this.now;
    this.#lastLosses[this.head] = this.now;
  }

  /** The smallest and the largest losses while the log had this head. */
  lossAt(head: number): { least: Loss; most: Loss } {
    const [least, most] = [this.#firstLosses[head], this.#lastLosses[head]];
    if (least === undefined || most === undefined) {
      throw new Violation(`the cursor ${head} is not a head that the log had`);
    }
    return { least, most };
  }

  /** The offsets that the log must hold for a channel, if they depend on number and age only. */
  #expectedOffsets(channel: ChannelName, published: number[]): number[] | undefined {
    if (this.#exactLimits === undefined) return undefined;
    const { events, age = Infinity } = this.#exactLimits;
    const remaining = published.filter((offset) => offset > (this.#clearedUpTo.get(channel) ?? 0));
    if (channel === 'n') return remaining.slice(-1);
    return remaining
      .slice(-events)
      .filter((offset) => this.#clock.now - this.#times[offset]! <= age);
  }

  #lostOffset(channel: ChannelName, held: number[]): number {
    const published = this.eventsOf(channel)
      .filter((event) => event.offset <= this.head)
      .map((event) => event.offset);
    const tail = published.slice(published.length - held.length);
    if (held.join() !== tail.join()) {
      throw new Violation(
        `the log holds ${held.join()} of ${channel}, published were ${published.join()}`,
      );
    }
    const expected = this.#expectedOffsets(channel, published);
    if (expected !== undefined && held.join() !== expected.join()) {
      throw new Violation(
        `the log holds ${held.join()} of ${channel}, expected ${expected.join()}`,
      );
    }
    // A newest-only channel has no loss while the log holds its newest event.
    if (channel === 'n' && held.length > 0) return 0;
    return published[published.length - held.length - 1] ?? 0;
  }
}

/** The result of a filter for one event. */
export type Verdict = 'passes' | 'is rejected' | 'ends the stream';

export function verdictOf(filter: FilterKind, n: number): Verdict {
  if (filter === 'none') return 'passes';
  if (filter === 'even') return n % 2 === 0 ? 'passes' : 'is rejected';
  return n % 11 === 7 ? 'ends the stream' : 'passes';
}
