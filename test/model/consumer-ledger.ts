/**
 * Checks what one consumer of `channels.follow()` receives against the contract of channels. The
 * calls are checked when they happen: nothing lies between the library and its consumer.
 */
import type { ChannelEvent } from '../../src/log/log-entry.ts';
import { SseError, type Gap } from '../../src/index.ts';
import type { ConsumeOptions } from './schedule.ts';
import { newestOf, offsetOf, type Start } from './starts.ts';
import { Violation, verdictOf, type Loss, type PublishedEvent, type Truth } from './truth.ts';

/** The state of one channel: the events that the consumer must receive. */
interface Owed {
  /** All events up to this offset were received, filtered out, or never owed. */
  doneUpTo: number;
  /** If the exact moment of the start is unknown, it is not later than this offset. */
  uncertainUpTo: number;
  /** Losses up to this offset were reported. */
  reportedAtLeast: number;
  reportedAtMost: number;
}

/** The start of a consumer. */
interface ConsumerStart {
  readonly start: Start;
  /** Whether the start lies between the call and the answer of a remote broker. */
  readonly isUncertain: boolean;
}

/** The ledger of one consumer. */
export class ConsumerLedger {
  /** Number of events that the consumer has received. */
  received = 0;
  /** Number of gaps, reported or thrown. */
  gaps = 0;
  readonly #truth: Truth;
  readonly #options: ConsumeOptions;
  readonly #published: readonly PublishedEvent[];
  readonly #owed = new Map<string, Owed>();
  readonly #versionAtCall: number;
  #isForeign: boolean;
  #lastOffset = 0;
  // The version of the log when the consumer received its newest event.
  #versionOfLast: number;
  // The head of the log at the start: events up to there may be trimmed before the first page is
  // read, and that is no gap.
  #headAtStart: number;
  #isStartKnown: boolean;
  readonly #toleratesLoss: boolean;
  // Whether the first page was read: an event or a gap has come.
  #hasBegun = false;
  // The event that the filter has accepted, and the consumer has not got yet.
  #accepted: PublishedEvent | undefined;
  // The error with which the next call of next() must reject.
  #expectedError: string | undefined;
  #pendingGap: readonly string[] | undefined;
  readonly #history: string[] = [];

  constructor(
    truth: Truth,
    options: ConsumeOptions,
    { start, isUncertain }: ConsumerStart,
    published: readonly PublishedEvent[],
  ) {
    this.#truth = truth;
    this.#options = options;
    this.#published = published;
    this.#versionAtCall = truth.version;
    this.#versionOfLast = truth.version;
    this.#isForeign = start === 'foreign';
    this.#headAtStart = truth.head;
    this.#toleratesLoss = start === 'whole' || start === 'newest';
    const mayMove = isUncertain && (start === 'now' || start === 'newest' || start === 'whole');
    this.#isStartKnown = !mayMove;
    const newest = newestOf(options, truth);
    for (const channel of options.channels) {
      const from = start === 'newest' ? newest.get(channel)! : start === 'now' ? truth.head : start;
      this.#owed.set(channel, {
        doneUpTo: typeof from === 'number' ? from : 0,
        uncertainUpTo: mayMove && start !== 'whole' ? Infinity : -1,
        reportedAtLeast: 0,
        reportedAtMost: this.#toleratesLoss ? (truth.now.lost[channel] ?? 0) : 0,
      });
    }
  }

  /** The remote broker has certainly told the start by now. */
  fixStart(): void {
    if (this.#isStartKnown) return;
    this.#isStartKnown = true;
    this.#headAtStart = this.#truth.head;
    const newest = newestOf(this.#options, this.#truth);
    for (const [channel, owed] of this.#owed) {
      if (owed.uncertainUpTo === Infinity) {
        owed.uncertainUpTo = newest.get(channel) ?? this.#truth.head;
      }
    }
  }

  /** Number of bytes of the events that the consumer must still receive. */
  get owedBytes(): number {
    return [...this.#owed.keys()]
      .flatMap((channel) => this.#missing(channel, this.#truth.head))
      .reduce((sum, { data }) => sum + data.length, 0);
  }

  /** Whether something must still come: an event, a gap or the end. */
  get isWaiting(): boolean {
    return (
      this.#isForeign || this.#hasAllEnded || this.#findMissing(this.#truth.head) !== undefined
    );
  }

  get #hasAllEnded(): boolean {
    return this.#options.channels.every((channel) => this.#truth.hasEnded(channel));
  }

  /** The filter gets an event. @returns the answer of the filter */
  onFilter(event: ChannelEvent): boolean {
    const known = this.#onSeen(event);
    const verdict = verdictOf(this.#options.filter, known.n);
    if (verdict === 'ends the stream') {
      if (this.#options.filter === 'throws') {
        this.#expectedError = 'the filter throws';
        throw new Error('the filter throws');
      }
      this.#expectedError = 'ERR_SSE_FILTER';
      return Promise.resolve(true) as unknown as boolean;
    }
    if (verdict === 'passes') this.#accepted = known;
    return verdict === 'passes';
  }

  /** The consumer gets an event. */
  onEvent(event: ChannelEvent): void {
    const known = this.#options.filter === 'none' ? this.#onSeen(event) : this.#accepted;
    if (known === undefined || known !== this.#known(event)) {
      this.#violation(`got ${event.id} of ${event.channel}, but the filter has not accepted it`);
    }
    this.#accepted = undefined;
    this.received++;
  }

  #known(event: ChannelEvent): PublishedEvent | undefined {
    return this.#published[Number.parseInt(event.data.slice(5), 10)];
  }

  #onSeen(event: ChannelEvent): PublishedEvent {
    this.#note(`${event.channel} ${event.id}`);
    const known = this.#known(event);
    if (
      known === undefined ||
      known.channel !== event.channel ||
      known.type !== event.event ||
      known.data !== event.data ||
      event.id !== `${this.#truth.epoch}.${known.offset}`
    ) {
      this.#violation(`got ${event.id} of ${event.channel} as ${event.data.slice(0, 20)}`);
    }
    if (this.#accepted !== undefined || this.#expectedError !== undefined) {
      this.#violation('an event came before the result of the filter was used');
    }
    if (this.#pendingGap !== undefined) this.#violation('an event came while onGap was pending');
    if (this.#isForeign) this.#violation('an event came before the gap was reported');
    const owed = this.#owed.get(known.channel);
    if (owed === undefined) this.#violation(`${known.channel} is not followed`);
    if (known.offset <= owed.doneUpTo || known.offset <= this.#lastOffset) {
      this.#violation(`${known.channel}@${known.offset} came twice or out of order`);
    }
    this.#begin(this.#truth.now);
    const missing = this.#findMissing(known.offset, known);
    if (missing !== undefined) {
      this.#violation(`${known.channel}@${known.offset} came before ${describe(missing)}`);
    }
    this.#lastOffset = known.offset;
    this.#versionOfLast = this.#truth.version;
    for (const each of this.#owed.values()) each.doneUpTo = Math.max(each.doneUpTo, known.offset);
    owed.uncertainUpTo = -1;
    return known;
  }

  /** `onGap` is called. */
  onGap({ channels, lastEventId, cursor }: Gap): void {
    this.#note(`gap ${channels.join()} after "${lastEventId}", head ${cursor}`);
    this.gaps++;
    if (this.#options.onGap === 'none') this.#violation('onGap was called, but not given');
    if (this.#pendingGap !== undefined) this.#violation('onGap was called while it was pending');
    const head = this.#offsetOf(cursor);
    if ((lastEventId === '') !== this.#isForeign) {
      this.#violation(`unexpected gap after "${lastEventId}"`);
    }
    if (lastEventId !== '') {
      const offset = this.#offsetOf(lastEventId);
      if (offset > head || offset < this.#lastOffset) {
        this.#violation(`the gap is after ${offset}, the consumer had ${this.#lastOffset}`);
      }
    }
    if (this.#isForeign && channels.length < this.#owed.size) {
      this.#violation('the cursor belongs to another log, but not all channels have a gap');
    }
    const { least, most } = this.#truth.lossAt(head);
    this.#expectLoss(channels, most);
    this.#begin(most);
    this.#isForeign = false;
    for (const channel of channels) {
      const owed = this.#owed.get(channel)!;
      owed.reportedAtLeast = Math.max(owed.reportedAtLeast, least.trimmed[channel as 'a'] ?? 0);
      owed.reportedAtMost = Math.max(owed.reportedAtMost, most.lost[channel as 'a'] ?? 0);
    }
    this.#pendingGap = channels;
  }

  /** `onGap` answers. @param cursor its answer */
  onAnswer(cursor: string | undefined): void {
    const channels = this.#pendingGap ?? [];
    this.#pendingGap = undefined;
    const { onGap } = this.#options;
    if (onGap === 'other cursor' || onGap === 'beyond') this.#expectedError = 'ERR_SSE_CURSOR';
    if (onGap === 'throws') this.#expectedError = 'onGap throws';
    if (this.#expectedError !== undefined || cursor === undefined) return;
    const offset = this.#offsetOf(cursor);
    for (const channel of channels) {
      const owed = this.#owed.get(channel)!;
      owed.doneUpTo = Math.max(owed.doneUpTo, offset);
      owed.uncertainUpTo = -1;
    }
  }

  /** The iteration has thrown an error. */
  onError(error: unknown): void {
    this.#note(`error ${String(error)}`);
    const { code, message } = error as SseError;
    if (this.#expectedError !== undefined) {
      if (this.#expectedError === (error instanceof SseError ? code : message)) return;
      this.#violation(`got ${String(error)}, expected ${this.#expectedError}`);
    }
    if (!(error instanceof SseError) || code !== 'ERR_SSE_GAP' || this.#options.onGap !== 'none') {
      this.#violation(`unexpected error ${String(error)}`);
    }
    this.gaps++;
    // The log may have lost the events at any time since the consumer received something.
    const isExplained = this.#truth.versions
      .slice(this.#versionOfLast)
      .some(({ loss }) => this.#options.channels.some((channel) => this.#hasLost(channel, loss)));
    if (!this.#isForeign && !isExplained) this.#violation('a gap, but nothing was lost');
  }

  /** The iteration has ended. @param wasStopped whether the application has ended it */
  onDone(wasStopped: boolean): void {
    this.#note('done');
    if (wasStopped) return;
    if (this.#expectedError !== undefined) {
      this.#violation(`the iteration ended, expected ${this.#expectedError}`);
    }
    if (this.#isForeign) this.#violation('the iteration ended before the gap was reported');
    this.#begin(this.#truth.now);
    const isExplained = this.#truth.versions
      .slice(this.#versionAtCall)
      .some(
        ({ head, ended }) =>
          head >= this.#lastOffset &&
          this.#options.channels.every((channel) => ended.has(channel)) &&
          this.#findMissing(head) === undefined,
      );
    if (!isExplained) this.#violation('the iteration ended, but its channels have not all ended');
  }

  /** All work is done, and the iteration has not ended. */
  expectComplete(): void {
    if (this.#isForeign) this.#violation('a gap was not reported');
    const missing = this.#findMissing(this.#truth.head);
    if (missing !== undefined) this.#violation(`${describe(missing)} did not come`);
    if (this.#hasAllEnded) this.#violation('all channels have ended, but not the iteration');
  }

  /** A first page was read, not before the log had lost this much. */
  #begin({ lost }: Loss): void {
    this.fixStart();
    if (this.#hasBegun) return;
    this.#hasBegun = true;
    if (!this.#toleratesLoss) return;
    for (const [channel, owed] of this.#owed) {
      const tolerated = Math.min(this.#headAtStart, lost[channel as 'a'] ?? 0);
      owed.reportedAtMost = Math.max(owed.reportedAtMost, tolerated);
    }
  }

  #expectLoss(channels: readonly string[], loss: Loss): void {
    if (channels.length === 0) this.#violation('a gap names no channel');
    for (const channel of channels) {
      if (!this.#owed.has(channel)) this.#violation(`gap in ${channel}, which is not followed`);
      if (!this.#isForeign && !this.#hasLost(channel, loss)) {
        this.#violation(`gap in ${channel}, but the channel has lost nothing`);
      }
    }
  }

  /** Whether the log reports a loss that the consumer does not know of. */
  #hasLost(channel: string, { trimmed }: Loss): boolean {
    const { doneUpTo, reportedAtLeast } = this.#owed.get(channel)!;
    return (trimmed[channel as 'a'] ?? 0) > Math.max(doneUpTo, reportedAtLeast);
  }

  #findMissing(upTo: number, except?: PublishedEvent): PublishedEvent | undefined {
    for (const channel of this.#owed.keys()) {
      const [missing] = this.#missing(channel, upTo, except);
      if (missing !== undefined) return missing;
    }
    return undefined;
  }

  /** The events up to the offset that must come and have not come. */
  #missing(channel: string, upTo: number, except?: PublishedEvent): PublishedEvent[] {
    const { doneUpTo, uncertainUpTo, reportedAtMost } = this.#owed.get(channel)!;
    const items = this.#truth.itemsOf(channel as 'a');
    const events = items.filter((item): item is PublishedEvent => !item.isEnd);
    const lost = this.#truth.now.lost[channel as 'a'] ?? 0;
    const canBeTolerated = this.#toleratesLoss && !this.#hasBegun;
    const toleratedUpTo = canBeTolerated ? Math.min(this.#headAtStart, lost) : 0;
    const from = Math.max(doneUpTo, uncertainUpTo, reportedAtMost, toleratedUpTo);
    // Of a newest-only channel, only the newest event must come.
    const candidates = channel === 'n' ? events.slice(-1) : events;
    return candidates.filter(
      (event) =>
        event.offset > from &&
        event.offset <= upTo &&
        event !== except &&
        verdictOf(this.#options.filter, event.n) !== 'is rejected',
    );
  }

  #offsetOf(cursor: string): number {
    const offset = offsetOf(cursor, this.#truth);
    if (offset === undefined || offset > this.#truth.head) {
      this.#violation(`${cursor} is not an id of the log up to ${this.#truth.head}`);
    }
    return offset;
  }

  #note(description: string): void {
    this.#history.push(description);
  }

  #violation(description: string): never {
    const lines = [JSON.stringify(this.#options), ...this.#history.slice(-20)];
    throw new Violation(`a consumer: ${description}\n  ${lines.join('\n  ')}`);
  }
}

function describe({ channel, offset, n }: PublishedEvent): string {
  return `${channel}@${offset} (n = ${n})`;
}
