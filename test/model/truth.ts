/** What was published and what is lost of it, apart from what the library makes of it. */
import type { Broker } from '../../src/index.ts';
import type { ChannelName, FilterKind } from './schedule.ts';

export interface PublishedEvent {
  /** Counts all events of a schedule, and is in the data. */
  readonly n: number;
  readonly channel: ChannelName;
  readonly epoch: string;
  /** 0 on a channel without history. */
  readonly offset: number;
  readonly type: string;
  readonly data: string;
}

/** What is lost at one moment: per channel the offset of the newest event that the log does not hold any more. */
export interface Loss {
  readonly lost: Readonly<Partial<Record<ChannelName, number>>>;
  /** What the log says of it. Of a channel that was forgotten it knows the floor only, so there a gap may be false. */
  readonly trimmed: Readonly<Partial<Record<ChannelName, number>>>;
}

const KEPT = ['a', 'b', 'c', 'n'] as const;

/** A violated promise. */
export class Violation extends Error {}

/** One log, from its first event to its loss. */
export class Truth {
  readonly epoch: string;
  /** By channel, in order. */
  readonly events = new Map<ChannelName, PublishedEvent[]>();
  /** How far the log is, as the broker has it. */
  head = 0;
  now: Loss = { lost: {}, trimmed: {} };
  readonly #log: Broker;
  // By head: what was lost when the log came there, and when it went on.
  readonly #first: Loss[] = [];
  readonly #last: Loss[] = [];
  // Number and age, where no other bound is set: then what is held is known exactly.
  readonly #exactly: { events: number; age?: number } | undefined;
  readonly #clock: { now: number };
  // By offset.
  readonly #times: number[] = [];
  readonly #cleared = new Map<ChannelName, number>();

  constructor(
    log: Broker,
    clock: { now: number },
    exactly: { events: number; age?: number } | undefined,
  ) {
    const position = log.position();
    if (position instanceof Promise) throw new Error('the log itself is asked at once');
    this.epoch = position.epoch;
    this.#log = log;
    this.#exactly = exactly;
    this.#clock = clock;
    this.note();
  }

  of(channel: ChannelName): PublishedEvent[] {
    let events = this.events.get(channel);
    if (events === undefined) this.events.set(channel, (events = []));
    return events;
  }

  cleared(channel: ChannelName): void {
    this.#cleared.set(
      channel,
      this.of(channel).findLast((event) => event.offset <= this.head)?.offset ?? 0,
    );
    this.note();
  }

  /** Looks at what the log holds now. */
  note(): void {
    const page = this.#log.read([...KEPT, 'an unknown one'], 0, Infinity);
    const position = this.#log.position();
    if (page instanceof Promise || position instanceof Promise) {
      throw new Error('the log itself is asked at once');
    }
    while (this.head < position.offset) this.#times[++this.head] = this.#clock.now;
    const lost: Partial<Record<ChannelName, number>> = {};
    const trimmed: Partial<Record<ChannelName, number>> = {};
    const floor = page.trimmed.at(-1) ?? 0;
    for (const [index, channel] of KEPT.entries()) {
      const held = page.entries
        .filter((entry) => entry.channel === channel)
        .map((entry) => entry.offset);
      const gone = (lost[channel] = this.#lostOf(channel, held));
      const told = (trimmed[channel] = page.trimmed[index] ?? 0);
      if (told < gone || (told > gone && told > floor)) {
        throw new Violation(
          `of ${channel} everything up to ${gone} is lost, the log says ${told}, its floor is ${floor}`,
        );
      }
    }
    this.now = { lost, trimmed };
    this.#first[this.head] ??= this.now;
    this.#last[this.head] = this.now;
  }

  /** What was lost at least, and at most, while the log stood there. */
  lossAt(head: number): { least: Loss; most: Loss } {
    const [least, most] = [this.#first[head], this.#last[head]];
    if (least === undefined || most === undefined) {
      throw new Violation(`a cursor says ${head}, where the log has never been`);
    }
    return { least, most };
  }

  /** What must be held of a channel, where that depends on number and age alone. */
  #keptOf(channel: ChannelName, published: number[]): number[] | undefined {
    if (this.#exactly === undefined) return undefined;
    const { events, age = Infinity } = this.#exactly;
    const rest = published.filter((offset) => offset > (this.#cleared.get(channel) ?? 0));
    if (channel === 'n') return rest.slice(-1);
    return rest.slice(-events).filter((offset) => this.#clock.now - this.#times[offset]! <= age);
  }

  #lostOf(channel: ChannelName, held: number[]): number {
    const published = this.of(channel)
      .filter((event) => event.offset <= this.head)
      .map((event) => event.offset);
    const tail = published.slice(published.length - held.length);
    if (held.join() !== tail.join()) {
      throw new Violation(
        `the log holds ${held.join()} of ${channel}, of which ${published.join()} was published`,
      );
    }
    const kept = this.#keptOf(channel, published);
    if (kept !== undefined && held.join() !== kept.join()) {
      throw new Violation(
        `the log holds ${held.join()} of ${channel}, which should be ${kept.join()}`,
      );
    }
    // A newest-only channel loses nothing as long as the newest is there.
    if (channel === 'n' && held.length > 0) return 0;
    return published[published.length - held.length - 1] ?? 0;
  }
}

/** What a filter makes of an event. */
export type Verdict = 'passes' | 'is kept away' | 'ends the stream';

export function verdictOf(filter: FilterKind, n: number): Verdict {
  if (filter === 'none') return 'passes';
  if (filter === 'even') return n % 2 === 0 ? 'passes' : 'is kept away';
  return n % 11 === 7 ? 'ends the stream' : 'passes';
}
