/**
 * A stream that follows channels. It is a cursor into their log, in one of two states: *behind*, it reads the log in pages at
 * the reader's pace; *live*, it is given what each turn of the event loop publishes. A stream is behind when it begins,
 * when it resumes and when it is slow, and it is always the same thing.
 */
import type { Socket } from 'node:net';
import { Arrears } from './arrears.ts';
import type { Audience, Member, Pace } from './audience.ts';
import type { Broker, Page } from './brokers/broker.ts';
import { WRITE_MARK } from './connection.ts';
import { formatCursor, parseCursor, type Cursor } from './cursor.ts';
import { diagnostics } from './diagnostics.ts';
import { SseError, shown } from './errors.ts';
import type { EventStream, Follower, Gap, SubscribeOptions, Subscription } from './event-stream.ts';
import type { FanOut } from './fan-out.ts';
import { Frame } from './frame.ts';
import { LiveOnly, type LiveOnlyOwner } from './live-only.ts';
import type { LogEntry } from './log-entry.ts';
import { startOf, wishedStart, type Start } from './start.ts';
import { GapCounts, Hold, StreamSubscription, channelsOf, ended, type Holder } from './subscription.ts';
import { checkpointText, gapText } from './wire.ts';

// Bytes of one page from the log: about what a reader may have queued before it counts as behind.
const PAGE = WRITE_MARK;

/** What a follower needs from the registry. */
export interface FollowerHost {
  readonly fanOut: FanOut;
  readonly broker: Broker;
  /** Whether the channel keeps a history; without one it is live only. */
  hasHistory(channel: string): boolean;
  /** The offset of the newest entry that this node has received of these channels. */
  newestSeen(channels: readonly string[]): number;
  /** The offset up to which this node has received all that there is. */
  readonly head: number;
  /** How often this node may have missed something. */
  readonly interruptions: number;
  /** A stream follows the channel now. What is published is received at once where nothing is returned. */
  retain(channel: string): Promise<void> | undefined;
  /** A stream does not follow the channel any more. */
  release(channel: string): void;
  /** The stream follows something and is not live: no audience knows of it. */
  remember(follower: StreamFollower): void;
  /** The stream is live, or follows nothing any more. */
  forget(follower: StreamFollower): void;
  /** A gap was told. */
  countGap(): void;
}

/** What a stream follows, and how. Replaced with each change, never changed: live streams that are alike share it. */
interface Terms {
  readonly host: FollowerHost;
  readonly holds: readonly Hold[];
  /** Those with history; a new array with each change, by which a page that was asked for before is known. */
  readonly channels: readonly string[];
  /** The log's name. */
  readonly epoch: string;
  /** Set where the stream is live. */
  readonly audience: Audience | undefined;
  /** Whether a hold has a filter. */
  readonly isFiltered: boolean;
  /** Whether a hold has an `onGap`. */
  readonly isAsked: boolean;
}

/** Whether they are the same, but for whether they are of a live stream. */
function isAlike(one: Terms, other: Terms): boolean {
  if (one.epoch !== other.epoch || one.holds.length !== other.holds.length) return false;
  return one.holds.every((hold, index) => hold.isLike(other.holds[index] as Hold));
}

/** What a stream has only while it is not simply live, or if it has a filter, has lost something or follows what has no history. */
class Affairs {
  /** What it is owed, while behind. */
  arrears: Arrears | undefined;
  /** Its place among those that follow channels without history. */
  liveOnly: LiveOnly | undefined;
  gaps: GapCounts | undefined;
  /** Somebody is reading the log, or in the middle of a frame, and will go on when what he calls has returned. */
  isBusy = false;
  isLeaving = false;

  get isNone(): boolean {
    const hasGaps = this.gaps !== undefined && !this.gaps.isEmpty;
    return this.arrears === undefined && this.liveOnly === undefined && !hasGaps && !this.isBusy && !this.isLeaving;
  }
}

/** All that one stream follows. It has one cursor, however often `subscribe` was called. */
export class StreamFollower implements Follower, Member, Holder, LiveOnlyOwner {
  // Of a live stream this is all, and there are tens of thousands of them. Methods are `private`, not `#`: a class with such
  // methods marks each of its objects, 8 B for each stream.
  slot = -1;
  readonly stream: EventStream;
  // Of the channels with history: everything at or below it was written, filtered out or told as a gap.
  #cursor = 0;
  // The offset of the last id that was written.
  #written = -1;
  #terms: Terms;
  #affairs: Affairs | undefined;

  constructor(host: FollowerHost, stream: EventStream) {
    this.#terms = { host, holds: [], channels: [], epoch: '', audience: undefined, isFiltered: false, isAsked: false };
    this.stream = stream;
  }

  get host(): FollowerHost {
    return this.#terms.host;
  }

  get isFiltered(): boolean {
    return this.#terms.isFiltered;
  }

  /** Whether it is given what is published. */
  get isLive(): boolean {
    return this.#terms.audience !== undefined;
  }

  /** Whether it reads from the log now, and is not given what is published. */
  get isBehind(): boolean {
    return !this.isLive && this.channels.length > 0;
  }

  /** Where the stream is, as an id. */
  get cursor(): string {
    return this.epoch === '' ? '' : formatCursor(this.epoch, this.account?.cursor ?? this.#cursor);
  }

  /** Follows these channels, too. Resolves when the start is known and a gap has been told. */
  async add(channels: readonly string[], options: SubscribeOptions): Promise<Subscription> {
    // What was published before is none of its business.
    this.flush();
    if (this.stream.readyState === 2) return ended(channels);
    const hold = new Hold(channels, options);
    const subscription = new StreamSubscription(this, hold);
    hold.join(channels.filter((channel) => this.hasPlaced(channel)));
    const earlier = this.holds.at(-1);
    // Within an `onGap` the stream waits for the application, so the application must not wait for the stream.
    const mustNotWait = this.#affairs?.arrears?.isTelling === true;
    const fresh = channels.filter((channel) => !this.follows(channel));
    this.hold(this.holds.concat(hold));
    try {
      // Listen first, so that nothing published from here on is unseen.
      const listening = fresh.map((channel) => this.host.retain(channel)).filter((ready) => ready !== undefined);
      if (listening.length > 0) await Promise.all(listening);
      const asked = this.host.broker.position(wishedStart(this.stream.lastEventId, options));
      // No await where none is needed: with the memory broker the stream is live when this call returns.
      const position = asked instanceof Promise ? await asked : asked;
      // Each in its turn, whichever answer comes first.
      if (earlier !== undefined && !earlier.isPlaced && this.holds.includes(earlier)) await earlier.placed();
      this.begin(hold, position);
    } catch (error) {
      this.remove(hold);
      throw error;
    }
    if (!hold.hasBegun && !mustNotWait) await hold.begun();
    return subscription;
  }

  gapsOf(channels: readonly string[]): number {
    return this.#affairs?.gaps?.of(channels) ?? 0;
  }

  remove(hold: Hold): void {
    this.own.isLeaving = true;
    this.flush();
    this.own.isLeaving = false;
    // Gone already, or a filter has just ended the stream.
    const index = this.holds.findIndex((other) => other.isLike(hold));
    if (index === -1) return;
    this.hold(this.holds.toSpliced(index, 1));
    this.#affairs?.gaps?.keepOnly(this.holds);
    for (const channel of hold.channels) if (!this.follows(channel)) this.host.release(channel);
    hold.begin();
    this.regroup();
    if (this.holds.length === 0) this.host.forget(this);
    this.advance();
    this.tidy();
  }

  take(frame: Frame): Socket | undefined {
    const from = this.#cursor;
    if (frame.last <= from) return undefined;
    if (frame.first <= from || this.#terms.isFiltered) {
      this.takePart(frame, from);
      return undefined;
    }
    if (!this.stream.share(frame, frame.entries.length)) {
      this.fallBehind(frame, from);
      return undefined;
    }
    this.#cursor = frame.last;
    this.#written = frame.last;
    if (this.#terms.isAsked) this.noteDelivery();
    // What the other place writes is not on this one's account.
    return this.#affairs?.liveOnly === undefined ? this.stream.direct : undefined;
  }

  get account(): Pace | undefined {
    return this.#terms.audience?.paceOf(this);
  }

  steppedIn(pace: Pace): void {
    this.stream.steppedIn(pace);
  }

  steppedOut(pace: Pace): void {
    this.#cursor = pace.cursor;
    this.#written = pace.cursor;
    this.stream.steppedOut(pace);
  }

  stepOut(): void {
    this.#terms.audience?.stepOut(this);
  }

  flush(): void {
    this.#terms.audience?.flush(this);
    this.#affairs?.liveOnly?.flush();
  }

  /** Something may be missing of what comes: from here on only the log is believed. */
  interrupt(): void {
    // What came before is whole.
    this.flush();
    this.leave();
    this.advance();
  }

  checkpoint(): boolean {
    const arrears = this.#affairs?.arrears;
    if (arrears?.isTelling === true || arrears?.hasForeign === true) return false;
    if (this.channels.length === 0 || this.epoch === '') return false;
    if (!this.holds.some((hold) => hold.options.checkpoints !== false)) return false;
    this.flush();
    this.moveToHead();
    if (this.#cursor <= this.#written) return false;
    this.writeCheckpoint(this.#cursor);
    return true;
  }

  settle(): Promise<void> | undefined {
    this.flush();
    const { broker } = this.host;
    // Of a log that cannot be reached nothing comes.
    if (broker.state !== 'open' || this.stream.readyState !== 1) return undefined;
    const position = broker.position();
    if (!(position instanceof Promise) && !this.isBehind) return undefined;
    return Promise.resolve(position).then(
      () => this.caughtUp(),
      () => {},
    );
  }

  stop(): void {
    this.leave();
    this.#affairs?.liveOnly?.leave();
    const holds = this.holds;
    this.hold([]);
    this.change({ channels: [] });
    for (const channel of channelsOf(holds)) this.host.release(channel);
    for (const hold of holds) hold.begin();
    this.host.forget(this);
  }

  /** Whether a subscription wants the entry: every one on its channel has a say, and one that lets it through is enough. */
  lets(entry: LogEntry): boolean {
    return this.holds.some((hold) => hold.hasPlaced(entry.channel) && hold.lets(entry));
  }

  /** Something threw for this reader: its stream ends, before anything that it should not see. */
  fail(error: unknown): void {
    this.leave();
    this.#affairs?.liveOnly?.leave();
    this.stream.fail(error);
  }

  /** Gives a new subscription its place: where the client left off, or where the application says. */
  private begin(hold: Hold, position: Cursor): void {
    this.flush();
    // Meanwhile the stream may have ended, or the application may have thought better of it.
    if (!this.holds.includes(hold)) return;
    const before = this.channels;
    hold.place();
    for (const other of this.holds) if (!other.isPlaced) other.join(hold.channels);
    this.regroup();
    const added = this.channels.filter((channel) => !before.includes(channel));
    if (added.length === 0) {
      hold.begin();
    } else {
      this.place(before, added, position, startOf(this.stream.lastEventId, hold.options, position));
      if (before.length === 0 && hold.options.checkpoints !== false) this.owed.owesCheckpoint = true;
    }
    this.advance();
  }

  private place(before: readonly string[], added: readonly string[], position: Cursor, start: Start): void {
    const arrears = this.owed;
    if (before.length === 0) {
      if (this.epoch !== position.epoch) this.#written = -1;
      this.change({ epoch: position.epoch });
      this.#cursor = start.offset;
    } else if (start.offset < this.#cursor) {
      // The new channels have to catch up with the cursor: it steps back, once, for them only.
      for (const channel of before) arrears.startAt(channel, this.#cursor);
      this.#cursor = start.offset;
    } else {
      for (const channel of added) arrears.startAt(channel, start.offset);
    }
    if (arrears.isTelling) arrears.addedMeanwhile.push(...added);
    if (start.isForeign) arrears.addForeign(added);
    // All that the history holds is not a gap, whatever it held before.
    if (start.isWhole) for (const channel of added) arrears.startAt(channel, -1);
    if (this.#written <= this.#cursor) return;
    // The client is told at once that ids step back, or it would come back with one beyond what it has of the new channels.
    arrears.steppedBack = true;
    this.writeCheckpoint(this.#cursor);
  }

  private get owed(): Arrears {
    const affairs = this.own;
    affairs.arrears ??= new Arrears();
    return affairs.arrears;
  }

  private get own(): Affairs {
    this.#affairs ??= new Affairs();
    return this.#affairs;
  }

  private tidy(): void {
    if (this.#affairs?.isNone === true) this.#affairs = undefined;
  }

  private get holds(): readonly Hold[] {
    return this.#terms.holds;
  }

  private get channels(): readonly string[] {
    return this.#terms.channels;
  }

  private get epoch(): string {
    return this.#terms.epoch;
  }

  private hold(holds: readonly Hold[]): void {
    this.change({
      holds,
      isFiltered: holds.some(({ options }) => options.filter !== undefined),
      isAsked: holds.some(({ options }) => options.onGap !== undefined),
    });
  }

  private change(changes: Partial<Terms>): void {
    this.#terms = { ...this.#terms, ...changes };
  }

  /** Sorts out which channels are followed, after a change. The stream leaves the live ones until it has caught up. */
  private regroup(): void {
    this.moveToHead();
    const channels = channelsOf(this.holds).filter((channel) => this.hasPlaced(channel));
    this.leave();
    const affairs = this.own;
    affairs.liveOnly?.leave();
    const liveOnly = channels.filter((channel) => !this.host.hasHistory(channel));
    this.change({
      channels: channels.filter((channel) => !liveOnly.includes(channel)),
    });
    affairs.arrears?.keepOnly(this.channels);
    if (liveOnly.length === 0) affairs.liveOnly = undefined;
    else (affairs.liveOnly ??= new LiveOnly(this)).join(liveOnly);
  }

  /** A live stream that has been given all it is owed is at the head, however quiet its channels are. */
  private moveToHead(): void {
    if (this.isLive) this.#cursor = Math.max(this.#cursor, this.host.head);
  }

  /** Catches up with the log, if there is something to catch up with and nobody is at it. */
  private advance(): void {
    if (this.isBehind && this.#affairs?.isBusy !== true) void this.catchUp();
  }

  private async catchUp(): Promise<void> {
    const affairs = this.own;
    affairs.isBusy = true;
    try {
      while (this.isBehind) {
        if (this.stream.isBehind) {
          await this.stream.drained();
          continue;
        }
        const channels = this.channels;
        const { interruptions } = this.host;
        const asked = this.host.broker.read(channels, this.#cursor, PAGE);
        const isNow = !(asked instanceof Promise);
        const page = isNow ? asked : await asked;
        // Another set of channels by now, or none.
        if (channels !== this.channels) continue;
        if (page.position.epoch !== this.epoch) {
          this.beginAnew(page.position.epoch);
          continue;
        }
        const telling = this.tellGap(page);
        if (telling !== undefined) {
          await telling;
          continue;
        }
        this.deliverPage(page);
        // A filter has changed what is followed, or ended the stream.
        if (channels !== this.channels) continue;
        for (const hold of this.holds) if (hold.isPlaced) hold.begin();
        // Read in this turn, or nothing of these channels has come or been missed since: there is nothing in between.
        const isProven = isNow || (interruptions === this.host.interruptions && this.host.newestSeen(channels) <= this.#cursor);
        if (page.complete && isProven) this.join();
        else await nextTurn();
      }
    } catch (error) {
      this.fail(error);
    } finally {
      affairs.isBusy = false;
      this.tidy();
    }
  }

  /** The log was lost, and another has begun: nothing that this stream knows of the old one means anything. */
  private beginAnew(epoch: string): void {
    this.change({ epoch });
    this.#cursor = 0;
    this.#written = -1;
    this.owed.beginAnew(this.channels);
  }

  /**
   * Tells what the page shows to be lost.
   * @returns a promise where the application is asked, after which the log has to be read again
   */
  private tellGap({ trimmed, position }: Page): Promise<void> | undefined {
    const arrears = this.owed;
    const lost = arrears.lostOf(this.channels, trimmed, this.#cursor);
    if (lost.length === 0) return undefined;
    const after = arrears.hasForeign ? '' : this.cursor;
    const gap: Gap = {
      channels: lost,
      lastEventId: this.#written === -1 ? this.stream.lastEventId : after,
      cursor: formatCursor(position.epoch, position.offset),
    };
    arrears.clearForeign();
    arrears.owesCheckpoint = true;
    this.countGap(gap);
    const questions = this.questionsFor(lost);
    const untold = lost.filter((channel) => !questions.some(({ channels }) => channels.includes(channel)));
    this.writeGap(untold, after, gap.cursor);
    return questions.length > 0 ? this.ask(questions, gap, after) : undefined;
  }

  private writeGap(channels: readonly string[], after: string, cursor: string): void {
    if (channels.length > 0) this.stream.writeOwn(gapText(channels, after, cursor));
  }

  /** Which subscription is asked for which of the channels; each channel is answered for once. */
  private questionsFor(lost: readonly string[]): Question[] {
    const questions: Question[] = [];
    let rest = lost;
    for (const hold of this.holds) {
      // Asked again before anything was delivered, a slow handler on a busy channel would never come to an end.
      if (hold.options.onGap === undefined || hold.wasAsked) continue;
      const channels = rest.filter((channel) => hold.hasPlaced(channel));
      if (channels.length === 0) continue;
      questions.push({ hold, channels });
      rest = rest.filter((channel) => !channels.includes(channel));
    }
    return questions;
  }

  private countGap(gap: Gap): void {
    const holds = this.holds.filter((hold) => gap.channels.some((channel) => hold.hasPlaced(channel)));
    for (const hold of holds) hold.lose();
    (this.own.gaps ??= new GapCounts()).add(holds);
    this.host.countGap();
    if (diagnostics.gap.hasSubscribers) diagnostics.gap.publish({ stream: this.stream, ...gap });
  }

  private async ask(questions: readonly Question[], gap: Gap, after: string): Promise<void> {
    const arrears = this.owed;
    arrears.isTelling = true;
    try {
      for (const { hold, channels } of questions) {
        if (!this.holds.includes(hold)) {
          // It has ended while another was asked; others may follow its channels.
          const followed = channels.filter((channel) => this.channels.includes(channel));
          this.writeGap(followed, after, gap.cursor);
          continue;
        }
        hold.wasAsked = true;
        arrears.addedMeanwhile = [];
        const answer = await hold.options.onGap?.(this.stream, { ...gap, channels });
        if (answer !== undefined) this.goOnFrom(answer, hold, channels);
      }
    } finally {
      arrears.isTelling = false;
    }
  }

  /**
   * The answer speaks of what was lost; channels that lost nothing are owed what comes before it, and so are those that were
   * subscribed to anew while the application was thinking.
   * @throws {SseError} `ERR_SSE_CURSOR` for what is no place to go on from, unless the subscription has ended meanwhile
   */
  private goOnFrom(answer: unknown, hold: Hold, asked: readonly string[]): void {
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    if (cursor === undefined || cursor.epoch !== this.epoch || cursor.offset < this.#cursor) {
      if (!this.holds.includes(hold)) return;
      throw new SseError(
        'ERR_SSE_CURSOR',
        `expected onGap to return nothing or a cursor to go on from, as gap.cursor, got ${shown(answer)}`,
      );
    }
    const arrears = this.owed;
    const channels = asked.filter((channel) => this.channels.includes(channel) && !arrears.addedMeanwhile.includes(channel));
    if (this.channels.length === channels.length) this.#cursor = cursor.offset;
    else for (const channel of channels) arrears.startAt(channel, cursor.offset);
  }

  private deliverPage({ entries, complete, position }: Page): void {
    const from = this.#cursor;
    const arrears = this.owed;
    // Before the filters are called: they may call us again.
    this.#cursor = Math.max(from, complete ? position.offset : (entries.at(-1) as LogEntry).offset);
    const due = entries.filter((entry) => arrears.isOwed(entry) && this.lets(entry));
    for (const entry of entries) entry.rest();
    if (arrears.owesCheckpoint) {
      arrears.owesCheckpoint = false;
      // Below it nothing is owed any more, and nothing at or below it is still to come.
      this.writeCheckpoint(Math.max(from, entries[0] === undefined ? position.offset : entries[0].offset - 1));
    }
    if (due.length === 0) return;
    this.#written = (due.at(-1) as LogEntry).offset;
    this.noteDelivery();
    // Streams that come back together are mostly owed the same.
    const frame = this.host.fanOut.joined(due);
    if (frame === undefined || !this.stream.share(frame, due.length)) this.stream.writeAll(due.map((entry) => entry.frame));
  }

  /** Takes what of the frame is beyond the offset and wanted. */
  private takePart(frame: Frame, from: number): void {
    const affairs = this.own;
    if (this.stream.isBehind && !affairs.isLeaving) {
      this.fallBehind(frame, from);
      return;
    }
    // Before the filters are called: they may call us again. Nor may that begin to read the log before this is written.
    this.#cursor = frame.last;
    const wasBusy = affairs.isBusy;
    affairs.isBusy = true;
    try {
      const entries = frame.entries.filter((entry) => entry.offset > from && this.lets(entry));
      if (entries.length > 0) {
        const due = new Frame(entries);
        this.#written = due.last;
        this.noteDelivery();
        this.stream.writeBytes(due.bytes, entries.length);
      }
    } catch (error) {
      this.fail(error);
    } finally {
      affairs.isBusy = wasBusy;
    }
    this.advance();
    // One with a filter needs them again with the next frame.
    if (!this.isFiltered) this.tidy();
  }

  /** A slow reader costs a cursor, not a queue: it leaves the live ones, having been given all before this frame. */
  private fallBehind(frame: Frame, from: number): void {
    if (this.#affairs?.isLeaving === true) {
      // There will be no later: what was published before it leaves is written however much is queued.
      this.takePart(frame, from);
      return;
    }
    this.#cursor = Math.max(this.#cursor, frame.first - 1);
    this.leave();
    this.advance();
  }

  private writeCheckpoint(offset: number): void {
    this.#written = offset;
    this.stream.writeOwn(checkpointText(formatCursor(this.epoch, offset)));
  }

  private join(): void {
    const { arrears } = this.own;
    const steppedBack = arrears?.steppedBack === true;
    this.own.arrears = undefined;
    const audience = this.host.fanOut.join(this.channels, this);
    this.host.forget(this);
    const neighbour = audience.members.at(-2);
    if (neighbour instanceof StreamFollower && isAlike(this.#terms, neighbour.#terms)) this.#terms = neighbour.#terms;
    else this.change({ audience, channels: audience.channels });
    // Until the client knows that it has caught up it would have everything since the step back again.
    if (steppedBack && this.#cursor > this.#written) this.writeCheckpoint(this.#cursor);
    for (const resolve of arrears?.waiting ?? []) resolve();
  }

  /** Whoever loses something from here on is asked again. */
  private noteDelivery(): void {
    for (const hold of this.holds) hold.wasAsked = false;
  }

  private async caughtUp(): Promise<void> {
    if (this.isBehind) await new Promise<void>((resolve) => void this.owed.waiting.push(resolve));
  }

  private leave(): void {
    const { audience } = this.#terms;
    if (audience === undefined) return;
    this.host.fanOut.leave(audience, this);
    this.change({ audience: undefined });
    this.host.remember(this);
  }

  /** Whether the channel has its place in the stream. */
  private hasPlaced(channel: string): boolean {
    return this.holds.some((hold) => hold.hasPlaced(channel));
  }

  private follows(channel: string): boolean {
    return this.holds.some((hold) => hold.channels.includes(channel));
  }
}

/** What a subscription is asked to answer for. */
interface Question {
  readonly hold: Hold;
  readonly channels: readonly string[];
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
