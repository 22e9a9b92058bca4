/**
 * A stream that is behind its channels: new, resuming or slow. It reads the log in pages at its reader's pace, until nothing is left.
 *
 * ```text
 * idle ──start()──► queued ──step()──► reading (a broker elsewhere) ──► queued
 *   ▲                 ▲  ▲     │
 *   │                 │  │     ├──► draining: the reader has more than the high-water mark to take ──► queued
 *   │                 │  │     ├──► asking: the application answers `onGap` ──► queued
 *   │                 │  └─────┤    a page was delivered, and it was not the last
 *   └──────────────── │ ───────┘    caught up, ended, or nothing is followed any more
 * ```
 */
import { CHUNK_BYTES, HIGH_WATER_MARK } from '../stream/write-queue.ts';
import type { Broker, Page } from '../brokers/broker.ts';
import type { CatchUpJob, CatchUpQueue } from './catch-up-queue.ts';
import { ChannelStarts } from './channel-starts.ts';
import { formatCursor, parseCursor } from '../protocol/cursor.ts';
import type { Deliveries } from './deliveries.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { Gap } from '../stream/subscription-types.ts';
import type { FanOut } from './fan-out.ts';
import { countFitting } from './frame.ts';
import type { LogEntry } from '../log/log-entry.ts';
import type { SubscriptionRecord } from './subscription.ts';
import { formatGap } from '../protocol/event-stream-format.ts';

// Bytes of one page from the log: about what a reader may have queued before it counts as behind.
const PAGE = HIGH_WATER_MARK;

/** What catching up needs from the registry. */
export interface CatchUpHost {
  readonly broker: Broker;
  readonly catchUps: CatchUpQueue;
  readonly deliveries: Deliveries;
  readonly fanOut: FanOut;
  /** The offset up to which this node has received all that there is. */
  readonly head: number;
  /** How often this node may have missed something. */
  readonly interruptions: number;
  /** The offset of the newest entry that this node has received of these channels. */
  newestSeen(channels: readonly string[]): number;
}

/** The follower whose stream is behind. */
export interface CatchUpOwner {
  readonly host: CatchUpHost;
  readonly stream: EventStream;
  readonly isBehind: boolean;
  readonly subscriptions: readonly SubscriptionRecord[];
  /** The channels with history; a new array with each change. */
  readonly channels: readonly string[];
  readonly epoch: string;
  /** Offset up to which everything was written, filtered out or told as a gap. */
  readonly position: number;
  /** The same as an id. */
  readonly cursor: string;
  /** Whether an id was written since the log began. */
  readonly hasWritten: boolean;
  /** Whether a subscription wants the entry. */
  lets(entry: LogEntry): boolean;
  moveTo(offset: number): void;
  /** The log was lost, and another has begun. */
  beginAnew(epoch: string): void;
  /** Events up to the offset are about to be written. */
  onWriting(offset: number): void;
  /** Events have been written. */
  onDelivered(): void;
  writeCheckpoint(offset: number): void;
  onGap(gap: Gap): void;
  /** Nothing is left: the stream is live from here on. */
  join(): void;
  fail(error: unknown): void;
}

/** What a subscription is asked to answer for. */
interface Question {
  readonly hold: SubscriptionRecord;
  readonly channels: readonly string[];
}

/** Waits until the stream has been given everything up to an offset. */
interface Waiter {
  readonly offset: number;
  readonly resolve: () => void;
}

/** A gap of which the application is to be asked. */
interface GapToAsk {
  readonly questions: readonly Question[];
  readonly gap: Gap;
  /** The id up to which the client has everything; `''` where that is not known. */
  readonly after: string;
}

/** A page, and what was true when it was asked for. */
interface Reading {
  readonly channels: readonly string[];
  readonly interruptions: number;
  readonly page: Page;
}

export class CatchUp implements CatchUpJob {
  readonly starts: ChannelStarts = new ChannelStarts();
  /** Channels that were subscribed to anew while `onGap` was being answered. */
  addedMeanwhile: string[] | undefined;
  /** The client is to be told where it is with the next page. */
  owesCheckpoint = false;
  /** Ids have stepped back for channels that came later. */
  hasSteppedBack = false;
  #phase: 'idle' | 'queued' | 'stepping' | 'reading' | 'draining' | 'asking' = 'idle';
  readonly #owner: CatchUpOwner;
  // A page of a broker elsewhere that waits for the stream's turn.
  #reading: Reading | undefined;
  // Entries that the filters have let through and that are not written yet.
  #passed: LogEntry[] | undefined;
  // Goes on without the answer of the subscription that is being asked, if it is this one.
  #skip: ((ended: SubscriptionRecord) => void) | undefined;
  // Stops what waits for a broker elsewhere.
  #abort: AbortController | undefined;
  // Those who wait until the stream has been given everything up to an offset.
  #waiting: readonly Waiter[] | undefined;

  constructor(owner: CatchUpOwner) {
    this.#owner = owner;
  }

  /** Whether the application is being asked what to do about a gap. */
  get isAsking(): boolean {
    return this.#phase === 'asking';
  }

  /** Whether nothing is under way. */
  get isIdle(): boolean {
    return this.#phase === 'idle';
  }

  /** Only these channels are followed from here on. */
  keepOnly(channels: ReadonlySet<string>): void {
    this.starts.keepOnly(channels);
    // Nothing is owed any more.
    if (channels.size === 0) this.#resolveUpTo(Infinity);
  }

  /**
   * Begins to read, unless that is under way.
   * @param isNow in this turn if possible, instead of in a later one. Callbacks are called from here then.
   */
  start(isNow: boolean): void {
    if (this.#phase !== 'idle') return;
    this.#phase = 'queued';
    this.#owner.host.catchUps.add(this, isNow, this.#reading !== undefined);
  }

  /** The stream has ended. */
  stop(): void {
    this.#owner.host.catchUps.delete(this);
    this.#abort?.abort();
    this.#takeReading();
    this.#resolveUpTo(Infinity);
  }

  /** Resolves when the stream has been given everything up to the offset, or has ended. */
  reached(offset: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = [...(this.#waiting ?? []), { offset, resolve }];
    });
  }

  /** The stream has caught up. */
  onJoined(): void {
    this.#resolveUpTo(Infinity);
  }

  step(): void {
    this.#phase = 'stepping';
    try {
      this.#next();
    } catch (error) {
      this.#owner.fail(error);
    }
    // Nothing that follows has begun.
    if (this.#isStepping) this.#phase = 'idle';
  }

  get #isStepping(): boolean {
    return this.#phase === 'stepping';
  }

  #next(): void {
    const { host, stream, isBehind, channels, position } = this.#owner;
    // A page in hand is used now or dropped: while it is kept it takes the place of another read.
    const reading = this.#takeReading();
    // A delivery that is under way begins anew when it has ended.
    if (!isBehind || host.deliveries.has(stream)) return;
    if (stream.isBehind) {
      this.#drain();
      return;
    }
    if (reading?.channels === channels) {
      this.#take(reading);
      return;
    }
    const { interruptions } = host;
    // A broker elsewhere may answer late: the end of the stream takes the question back.
    const signal = host.catchUps.hasWaited
      ? (this.#abort ??= new AbortController()).signal
      : undefined;
    const page = host.broker.read(channels, position, PAGE, signal);
    if (page instanceof Promise) void this.#read(page, { channels, interruptions });
    else this.#take({ channels, interruptions, page });
  }

  /** The page that is in hand, which is used or dropped now. */
  #takeReading(): Reading | undefined {
    const reading = this.#reading;
    if (reading === undefined) return undefined;
    this.#reading = undefined;
    this.#owner.host.catchUps.endRead();
    return reading;
  }

  #drain(): void {
    this.#phase = 'draining';
    void this.#owner.stream.drained().then(() => this.#again(true));
  }

  async #read(asked: Promise<Page>, question: Omit<Reading, 'page'>): Promise<void> {
    const { catchUps } = this.#owner.host;
    this.#phase = 'reading';
    catchUps.beginRead();
    try {
      this.#reading = { ...question, page: await asked };
      if (!this.#owner.isBehind) this.#takeReading();
      this.#again(true);
    } catch (error) {
      catchUps.endRead();
      this.#phase = 'idle';
      // The end of the stream has taken the question back.
      if (this.#owner.isBehind) this.#owner.fail(error);
    }
  }

  /** The next step follows, in this turn if `isNow` and possible. */
  #again(isNow: boolean): void {
    this.#phase = 'idle';
    if (this.#owner.isBehind) this.start(isNow);
  }

  #take({ channels, interruptions, page }: Reading): void {
    const owner = this.#owner;
    const { host, stream } = owner;
    host.catchUps.spend(page.entries.reduce((sum, { frame }) => sum + frame.length, 0));
    if (page.position.epoch !== owner.epoch) {
      owner.beginAnew(page.position.epoch);
      this.starts.beginAnew(channels);
      this.#again(false);
      return;
    }
    host.deliveries.begin(stream);
    let asked: GapToAsk | undefined;
    try {
      asked = this.#tellGap(page);
      if (asked === undefined) this.#deliver(page);
    } finally {
      host.deliveries.end();
    }
    owner.onDelivered();
    this.#resolveUpTo(owner.position);
    if (asked !== undefined) {
      void this.#ask(asked);
      return;
    }
    // A callback has changed what is followed, or ended the stream.
    if (channels !== owner.channels) {
      this.#again(false);
      return;
    }
    for (const hold of owner.subscriptions) if (hold.isPlaced) hold.begin();
    // Nothing of these channels has come or been missed since the page was read.
    const isProven =
      interruptions === host.interruptions && host.newestSeen(channels) <= owner.position;
    if (page.complete && isProven) owner.join();
    else this.#again(false);
  }

  /**
   * Tells what the page shows to be lost.
   * @returns what the application is to be asked, if it is; the log has to be read again afterwards
   */
  #tellGap({ trimmed, position }: Page): GapToAsk | undefined {
    const owner = this.#owner;
    const lost = this.starts.lostOf(owner.channels, trimmed, owner.position);
    if (lost.length === 0) return undefined;
    const after = this.starts.hasForeign ? '' : owner.cursor;
    const gap: Gap = {
      channels: lost,
      lastEventId: owner.hasWritten ? after : owner.stream.lastEventId,
      cursor: formatCursor(position.epoch, position.offset),
    };
    this.starts.clearForeign();
    this.owesCheckpoint = true;
    owner.onGap(gap);
    const questions = questionsFor(lost, owner.subscriptions);
    const untold = lost.filter(
      (channel) => !questions.some(({ channels }) => channels.includes(channel)),
    );
    this.#writeGap(untold, after, gap.cursor);
    return questions.length === 0 ? undefined : { questions, gap, after };
  }

  #writeGap(channels: readonly string[], after: string, cursor: string): void {
    if (channels.length === 0) return;
    this.#lose(channels);
    this.#owner.stream.writeText(formatGap(channels, after, cursor));
  }

  /** The subscriptions to these channels are told of a loss. */
  #lose(channels: readonly string[]): void {
    for (const hold of this.#owner.subscriptions) {
      if (channels.some((channel) => hold.hasPlaced(channel))) hold.lose();
    }
  }

  async #ask({ questions, gap, after }: GapToAsk): Promise<void> {
    const owner = this.#owner;
    this.#phase = 'asking';
    try {
      for (const { hold, channels } of questions) {
        if (!owner.subscriptions.includes(hold)) {
          // It has ended while another was asked; others may follow its channels.
          this.#writeGap(this.#stillFollowed(channels), after, gap.cursor);
          continue;
        }
        hold.wasAsked = true;
        this.#lose(channels);
        this.addedMeanwhile = [];
        const answer = await this.#answerOf(hold, { ...gap, channels });
        if (!owner.subscriptions.includes(hold)) {
          this.#writeGap(this.#stillFollowed(channels), after, gap.cursor);
        } else if (answer !== undefined) this.#goOnFrom(answer, channels, gap);
      }
    } catch (error) {
      this.#phase = 'idle';
      owner.fail(error);
      return;
    }
    this.#again(true);
  }

  /** Those that another subscription has followed all the time. */
  #stillFollowed(channels: readonly string[]): readonly string[] {
    return channels.filter(
      (channel) =>
        this.#owner.channels.includes(channel) && this.addedMeanwhile?.includes(channel) !== true,
    );
  }

  /** What `onGap` answers; `undefined` as soon as the subscription has ended, because its answer does not matter then. */
  #answerOf(hold: SubscriptionRecord, gap: Gap): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#skip = (ended) => {
        if (ended === hold) resolve(undefined);
      };
      Promise.resolve(hold.options.onGap?.(this.#owner.stream, gap)).then(resolve, reject);
    });
  }

  /** A subscription has ended. */
  onEnded(hold: SubscriptionRecord): void {
    this.#skip?.(hold);
  }

  /**
   * The answer speaks of what was lost; channels that lost nothing are owed what comes before it, and so are those that were
   * subscribed to anew while the application was thinking.
   * @throws {SseError} `ERR_SSE_CURSOR` for what is no place to go on from, unless the stream is being closed
   */
  #goOnFrom(answer: unknown, asked: readonly string[], gap: Gap): void {
    const owner = this.#owner;
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    // Beyond the head, events that are still to be published would be passed over.
    const newest = Math.max(parseCursor(gap.cursor)?.offset ?? 0, owner.host.head);
    if (
      cursor === undefined ||
      cursor.epoch !== owner.epoch ||
      cursor.offset < owner.position ||
      cursor.offset > newest
    ) {
      // The handler has closed the stream, perhaps by an expression whose value it returns.
      if (owner.stream.isClosingOrClosed && typeof answer !== 'string') return;
      throw new SseError(
        'ERR_SSE_CURSOR',
        `expected onGap to return nothing or a cursor to go on from, such as gap.cursor, got ${describeValue(answer)}`,
      );
    }
    const channels = asked.filter(
      (channel) =>
        owner.channels.includes(channel) && this.addedMeanwhile?.includes(channel) !== true,
    );
    if (owner.channels.length === channels.length) owner.moveTo(cursor.offset);
    else for (const channel of channels) this.starts.startAt(channel, cursor.offset);
  }

  #deliver({ entries, complete, position }: Page): void {
    const owner = this.#owner;
    const from = owner.position;
    // Before anything is written and the filters are called: they may call back.
    owner.moveTo(Math.max(from, complete ? position.offset : (entries.at(-1) as LogEntry).offset));
    if (this.owesCheckpoint) {
      this.owesCheckpoint = false;
      // Below it nothing is owed any more, and nothing at or below it is still to come.
      owner.writeCheckpoint(
        Math.max(from, entries[0] === undefined ? position.offset : entries[0].offset - 1),
      );
    }
    try {
      for (const entry of entries) {
        if (this.starts.isOwed(entry) && owner.lets(entry)) (this.#passed ??= []).push(entry);
      }
    } finally {
      for (const entry of entries) entry.releaseView();
    }
    this.writePassed();
  }

  /** Writes the entries that the filters have let through by now. */
  writePassed(): void {
    const passed = this.#passed;
    if (passed === undefined) return;
    this.#passed = undefined;
    this.#owner.onWriting((passed.at(-1) as LogEntry).offset);
    this.#write(passed);
  }

  /**
   * Streams that come back together are mostly owed the same: what a reader can take now is joined once for all of them. The rest
   * is not copied; it waits as the log holds it.
   */
  #write(due: readonly LogEntry[]): void {
    const { stream, host } = this.#owner;
    let rest = due;
    while (rest.length > 0 && stream.bufferedAmount <= CHUNK_BYTES) {
      const count = countFitting(rest, CHUNK_BYTES);
      const frame = host.fanOut.joined(rest.slice(0, count));
      if (!stream.writeShared(frame, count)) break;
      rest = rest.slice(count);
    }
    if (rest.length > 0) stream.writeAll(rest.map(({ frame }) => frame));
  }

  #resolveUpTo(offset: number): void {
    if (this.#waiting === undefined) return;
    const reached = this.#waiting.filter((waiter) => waiter.offset <= offset);
    this.#waiting = this.#waiting.filter((waiter) => waiter.offset > offset);
    for (const { resolve } of reached) resolve();
  }
}

/** Which subscription is asked for which of the channels; each channel is answered for once. */
function questionsFor(lost: readonly string[], holds: readonly SubscriptionRecord[]): Question[] {
  const questions: Question[] = [];
  let rest = lost;
  for (const hold of holds) {
    // Asked again before anything was delivered, a slow handler on a busy channel would never come to an end.
    if (hold.options.onGap === undefined || hold.wasAsked) continue;
    const channels = rest.filter((channel) => hold.hasPlaced(channel));
    if (channels.length === 0) continue;
    questions.push({ hold, channels });
    rest = rest.filter((channel) => !channels.includes(channel));
  }
  return questions;
}
