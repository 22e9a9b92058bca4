/**
 * The published events, the ends of channels and the losses of a log, computed independently of the
 * library.
 */
import type { Broker } from '../../src/index.ts';
import type { ChannelState } from '../../src/brokers/broker.ts';
import type { ChannelName, FilterKind } from './schedule.ts';

/** An entry of the log: an event, or the end of a channel. */
export interface LogItem {
  readonly channel: ChannelName;
  /** 0 on a channel without history; -1 for an event that the log has not accepted. */
  readonly offset: number;
  readonly isEnd: boolean;
}

/** A published event. */
export interface PublishedEvent extends LogItem {
  /** Number of the event in the schedule. The data contains this number. */
  readonly n: number;
  /** The name of the log; `''` for an event that the log has not accepted. */
  epoch: string;
  offset: number;
  readonly isEnd: false;
  readonly type: string;
  readonly data: string;
}

/** A call of `publish()` or `end()`, and the result that the call must have. */
export interface Publishing {
  readonly channel: ChannelName;
  /** The event of the call; `undefined` if the channel ends without a last event. */
  readonly event: PublishedEvent | undefined;
  readonly isEnd: boolean;
  /** The id that was published before with the key of the call. */
  readonly knownId: string | undefined;
  /** Set when the call has reached the log. */
  result: PublishingResult | undefined;
}

/**
 * The result of a call that has appended something, of one that had nothing to do, or of one that
 * must reject.
 */
export type PublishingResult =
  | { readonly isAppended: true; readonly id: string }
  | { readonly isAppended: false; readonly id: string | undefined };

/** The state of a log after a change. */
export interface Version {
  readonly head: number;
  /** The channels that have ended. */
  readonly ended: ReadonlySet<ChannelName>;
  readonly loss: Loss;
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
  /** The entries of each channel that the log has accepted, in order. */
  readonly items = new Map<ChannelName, LogItem[]>();
  /** The states of the log, one for each change. */
  readonly versions: Version[] = [];
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
  // Number of entries that the log holds of each channel.
  readonly #held = new Map<ChannelName, number>();
  #expectedHead = 0;

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

  /** The number of the current state of the log, an index of {@link versions}. */
  get version(): number {
    return this.versions.length - 1;
  }

  /** The accepted entries of a channel. */
  itemsOf(channel: ChannelName): LogItem[] {
    let items = this.items.get(channel);
    if (items === undefined) this.items.set(channel, (items = []));
    return items;
  }

  /** Whether the channel has ended: its newest entry is an end that the log holds. */
  hasEnded(channel: ChannelName): boolean {
    return this.versions.at(-1)?.ended.has(channel) === true;
  }

  stateOf(channel: ChannelName): ChannelState {
    if (this.hasEnded(channel)) return 'ended';
    return (this.#held.get(channel) ?? 0) === 0 ? 'unknown' : 'open';
  }

  /**
   * Whether nothing but ends followed an offset, so that a request with this id needs no stream.
   * @param version index of {@link versions}
   */
  hasOnlyEndsBehind(channels: readonly ChannelName[], offset: number, version: number): boolean {
    const { head, ended, loss } = this.versions[version]!;
    return (
      offset <= head &&
      channels.every(
        (channel) =>
          ended.has(channel) &&
          (loss.trimmed[channel] ?? 0) <= offset &&
          this.itemsOf(channel).every(
            (item) => item.offset <= offset || item.offset > head || item.isEnd,
          ),
      )
    );
  }

  /**
   * A call of `publish()` or `end()` reaches the log. Decides the result of the call, and gives the
   * event and the end their offsets.
   */
  onAppend(publishing: Publishing): void {
    const { channel, event, isEnd, knownId } = publishing;
    if (knownId !== undefined) publishing.result = { isAppended: false, id: knownId };
    else if (channel === 'x') publishing.result = { isAppended: true, id: '' };
    else if (this.hasEnded(channel)) {
      const isRepeated = isEnd && event === undefined;
      const { offset } = this.itemsOf(channel).at(-1)!;
      const id = isRepeated ? `${this.epoch}.${offset}` : undefined;
      publishing.result = { isAppended: false, id };
    } else {
      let offset = this.head;
      if (event !== undefined) {
        event.epoch = this.epoch;
        event.offset = ++offset;
        this.itemsOf(channel).push(event);
      }
      if (isEnd) this.itemsOf(channel).push({ channel, offset: ++offset, isEnd });
      publishing.result = { isAppended: true, id: `${this.epoch}.${offset}` };
      this.#expectedHead = offset;
    }
  }

  onClear(channel: ChannelName): void {
    this.#clearedUpTo.set(channel, this.itemsOf(channel).at(-1)?.offset ?? 0);
    this.update();
  }

  /** Reads the current content of the log, and checks the head, the ends and the losses. */
  update(): void {
    const page = this.#log.read([...HISTORY_CHANNELS, 'an unknown one'], 0, Infinity);
    const position = this.#log.position();
    if (page instanceof Promise || position instanceof Promise) {
      throw new Error('the log must answer synchronously');
    }
    if (position.offset !== this.#expectedHead) {
      throw new Violation(`the head is ${position.offset}, expected ${this.#expectedHead}`);
    }
    while (this.head < position.offset) this.#times[++this.head] = this.#clock.now;
    const ended = new Set<ChannelName>();
    const lost: Partial<Record<ChannelName, number>> = {};
    const trimmed: Partial<Record<ChannelName, number>> = {};
    const floor = page.trimmed.at(-1) ?? 0;
    for (const [index, channel] of HISTORY_CHANNELS.entries()) {
      const held = page.entries
        .filter((entry) => entry.channel === channel)
        .map((entry) => entry.offset);
      const lostOffset = (lost[channel] = this.#lostOffset(channel, held));
      this.#held.set(channel, held.length);
      const newest = this.itemsOf(channel).at(-1);
      if (held.length > 0 && newest?.isEnd === true) ended.add(channel);
      if (page.ended[index] !== ended.has(channel)) {
        throw new Violation(`the log says of ${channel}: ended is ${page.ended[index]}`);
      }
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
    this.versions.push({ head: this.head, ended, loss: this.now });
  }

  /**
   * The offset after which the newest events of a channel come, of those that are kept now.
   * @param count the number of events
   */
  startOfNewest(channel: ChannelName, count: number): number {
    const lost = this.now.lost[channel] ?? 0;
    const kept = this.itemsOf(channel).filter(({ offset, isEnd }) => !isEnd && offset > lost);
    return kept.length > count ? kept[kept.length - count - 1]!.offset : lost;
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
    // A newest-only channel keeps its newest event beside its end.
    if (channel === 'n') return remaining.slice(this.itemsOf('n').at(-1)?.isEnd === true ? -2 : -1);
    return remaining
      .slice(-events)
      .filter((offset) => this.#clock.now - this.#times[offset]! <= age);
  }

  #lostOffset(channel: ChannelName, held: number[]): number {
    const items = this.itemsOf(channel);
    const published = items.map(({ offset }) => offset);
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
    const heldItems = items.slice(items.length - held.length);
    if (channel === 'n' && heldItems.some(({ isEnd }) => !isEnd)) return 0;
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
