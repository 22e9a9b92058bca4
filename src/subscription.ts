/**
 * A stream that follows channels. It is a cursor into their log, in one of two states: *behind*, it reads the log in pages at
 * the reader's pace; *live*, it is given what each turn of the event loop publishes. A stream is behind when it begins,
 * when it resumes and when it is slow, and it is always the same thing.
 */
import type { Broker, Page } from './brokers/broker.ts';
import { WRITE_MARK } from './connection.ts';
import { formatCursor, parseCursor, type Cursor } from './cursor.ts';
import { diagnostics } from './diagnostics.ts';
import { SseError, shown } from './errors.ts';
import type { EventStream, Follower, Gap, SubscribeOptions, Subscription } from './event-stream.ts';
import { Frame, type Audience, type FanOut, type Member } from './fan-out.ts';
import type { LogEntry } from './log-entry.ts';
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
  /** The stream follows nothing any more. */
  forget(follower: StreamFollower): void;
  /** A gap was told. */
  countGap(): void;
}

/** All that one stream follows. It has one cursor, however often `subscribe` was called. */
export class StreamFollower implements Follower, Member {
  readonly host: FollowerHost;
  readonly stream: EventStream;
  slot = -1;
  #holds: Hold[] = [];
  #filtered = false;
  // Those with history; a new array with each change, by which a page that was asked for before is known.
  #channels: readonly string[] = [];
  // Of the channels with history: everything at or below it was written, filtered out or told as a gap.
  #epoch = '';
  #cursor = 0;
  // Channels of which that is already true up to a place beyond the cursor; only while behind.
  #starts: Map<string, number> | undefined;
  // Channels that have lost something which no offset tells: their cursor was not of this log.
  #foreign: Set<string> | undefined;
  // The offset of the last id that was written.
  #written = -1;
  // Set where the stream is live.
  #audience: Audience | undefined;
  #liveOnly: LiveOnly | undefined;
  // Somebody is reading the log, or in the middle of a frame, and will go on when what he calls has returned.
  #isBusy = false;
  #isTelling = false;
  #addedMeanwhile: string[] = [];
  #isLeaving = false;
  // Counts deliveries, to know whether there was one since a handler was asked.
  #delivered = 0;
  #owesCheckpoint = false;
  #steppedBack = false;

  constructor(host: FollowerHost, stream: EventStream) {
    this.host = host;
    this.stream = stream;
  }

  /** Whether it reads from the log now, and is not given what is published. */
  get isBehind(): boolean {
    return this.#audience === undefined && this.#channels.length > 0;
  }

  /** Where the stream is, as an id. */
  get cursor(): string {
    return this.#epoch === '' ? '' : formatCursor(this.#epoch, this.#cursor);
  }

  /** Follows these channels, too. Resolves when the start is known and a gap has been told. */
  async add(channels: readonly string[], options: SubscribeOptions): Promise<Subscription> {
    const hold = new Hold(this, channels, options);
    const earlier = this.#holds.at(-1);
    // Within an `onGap` the stream waits for the application, so the application must not wait for the stream.
    const mustNotWait = this.#isTelling;
    const fresh = channels.filter((channel) => !this.#follows(channel));
    // Not push: that leaves room for many in an array of one.
    this.#holds = this.#holds.concat(hold);
    try {
      // Listen first, so that nothing published from here on is unseen.
      const listening = fresh.map((channel) => this.host.retain(channel)).filter((ready) => ready !== undefined);
      if (listening.length > 0) await Promise.all(listening);
      const asked = this.host.broker.position(parseCursor(wishOf(this.stream.lastEventId, options).text));
      // No await where none is needed: with the memory broker the stream is live when this call returns.
      const position = asked instanceof Promise ? await asked : asked;
      // Each in its turn, whichever answer comes first.
      if (earlier !== undefined && !earlier.isPlaced && this.#holds.includes(earlier)) await earlier.placed;
      this.#begin(hold, position);
    } catch (error) {
      this.remove(hold);
      throw error;
    }
    if (!hold.started && !mustNotWait) await hold.start;
    return hold;
  }

  remove(hold: Hold): void {
    this.#isLeaving = true;
    this.flush();
    this.#isLeaving = false;
    // Gone already, or a filter has just ended the stream.
    if (!this.#holds.includes(hold)) return;
    this.#holds = this.#holds.filter((other) => other !== hold);
    for (const channel of hold.channels) if (!this.#follows(channel)) this.host.release(channel);
    hold.begun();
    this.#regroup();
    if (this.#holds.length === 0) this.host.forget(this);
    this.#advance();
  }

  take(frame: Frame): void {
    const from = this.#cursor;
    if (frame.last <= from) return;
    if (this.#filtered || frame.first <= from) {
      this.#takePart(frame, from);
    } else if (this.stream.share(frame, frame.entries.length)) {
      this.#cursor = frame.last;
      this.#written = frame.last;
      this.#delivered++;
    } else {
      this.#fallBehind(frame, from);
    }
  }

  flush(): void {
    this.#audience?.flush(this);
    this.#liveOnly?.flush();
  }

  /** Something may be missing of what comes: from here on only the log is believed. */
  interrupt(): void {
    // What came before is whole.
    this.flush();
    this.#leave();
    this.#advance();
  }

  checkpoint(): boolean {
    if (this.#isTelling || this.#foreign !== undefined || this.#channels.length === 0 || this.#epoch === '') return false;
    if (!this.#holds.some((hold) => hold.options.checkpoints !== false)) return false;
    this.flush();
    this.#moveToHead();
    if (this.#cursor <= this.#written) return false;
    this.#writeCheckpoint(this.#cursor);
    return true;
  }

  stop(): void {
    this.#leave();
    this.#liveOnly?.leave();
    const holds = this.#holds;
    this.#holds = [];
    this.#channels = [];
    for (const channel of channelsOf(holds)) this.host.release(channel);
    for (const hold of holds) hold.begun();
    this.host.forget(this);
  }

  /** Whether a subscription wants the entry: every one on its channel has a say, and one that lets it through is enough. */
  lets(entry: LogEntry): boolean {
    return this.#holds.some((hold) => hold.isPlaced && hold.channels.includes(entry.channel) && hold.lets(entry));
  }

  /** Something threw for this reader: its stream ends, before anything that it should not see. */
  fail(error: unknown): void {
    this.#leave();
    this.#liveOnly?.leave();
    this.stream.fail(error);
  }

  /** Gives a new subscription its place: where the client left off, or where the application says. */
  #begin(hold: Hold, position: Cursor): void {
    this.flush();
    // Meanwhile the stream may have ended, or the application may have thought better of it.
    if (!this.#holds.includes(hold)) return;
    const before = this.#channels;
    hold.place();
    this.#regroup();
    const added = this.#channels.filter((channel) => !before.includes(channel));
    if (added.length === 0) {
      hold.begun();
    } else {
      this.#place(before, added, position, startOf(this.stream.lastEventId, hold.options, position));
      if (before.length === 0 && hold.options.checkpoints !== false) this.#owesCheckpoint = true;
    }
    this.#advance();
  }

  #place(before: readonly string[], added: readonly string[], position: Cursor, start: Start): void {
    if (before.length === 0) {
      if (this.#epoch !== position.epoch) this.#written = -1;
      this.#epoch = position.epoch;
      this.#cursor = start.offset;
    } else if (start.offset < this.#cursor) {
      // The new channels have to catch up with the cursor: it steps back, once, for them only.
      for (const channel of before) this.#startAt(channel, this.#cursor);
      this.#cursor = start.offset;
    } else {
      for (const channel of added) this.#startAt(channel, start.offset);
    }
    if (this.#isTelling) this.#addedMeanwhile.push(...added);
    if (start.isForeign) this.#foreign = new Set([...(this.#foreign ?? []), ...added]);
    // All that the history holds is not a gap, whatever it held before.
    if (start.isWhole) for (const channel of added) this.#startAt(channel, -1);
    if (this.#written <= this.#cursor) return;
    // The client is told at once that ids step back, or it would come back with one beyond what it has of the new channels.
    this.#steppedBack = true;
    this.#writeCheckpoint(this.#cursor);
  }

  /** Notes that of the channel nothing at or below the offset is owed; -1 = nothing of what is not held any more. */
  #startAt(channel: string, offset: number): void {
    this.#starts ??= new Map();
    const known = this.#starts.get(channel);
    this.#starts.set(channel, known === undefined || offset === -1 ? offset : Math.max(known, offset));
  }

  /** Sorts out which channels are followed, after a change. The stream leaves the live ones until it has caught up. */
  #regroup(): void {
    this.#moveToHead();
    const placed = this.#holds.filter((hold) => hold.isPlaced);
    const channels = channelsOf(placed);
    this.#filtered = placed.some((hold) => hold.options.filter !== undefined);
    this.#leave();
    this.#liveOnly?.leave();
    this.#channels = channels.every((channel) => this.host.hasHistory(channel))
      ? [...channels]
      : channels.filter((channel) => this.host.hasHistory(channel));
    for (const channel of this.#starts?.keys() ?? []) if (!this.#channels.includes(channel)) this.#starts?.delete(channel);
    this.#foreign = setOrNothing(this.#channels.filter((channel) => this.#foreign?.has(channel)));
    const liveOnly = channels.filter((channel) => !this.host.hasHistory(channel));
    if (liveOnly.length === 0) this.#liveOnly = undefined;
    else (this.#liveOnly ??= new LiveOnly(this)).join(liveOnly);
  }

  /** A live stream that has been given all it is owed is at the head, however quiet its channels are. */
  #moveToHead(): void {
    if (this.#audience !== undefined) this.#cursor = Math.max(this.#cursor, this.host.head);
  }

  /** Catches up with the log, if there is something to catch up with and nobody is at it. */
  #advance(): void {
    if (!this.#isBusy && this.isBehind) void this.#catchUp();
  }

  async #catchUp(): Promise<void> {
    this.#isBusy = true;
    try {
      while (this.isBehind) {
        if (this.stream.bufferedAmount > WRITE_MARK) {
          await this.stream.drained();
          continue;
        }
        const channels = this.#channels;
        const { interruptions } = this.host;
        const asked = this.host.broker.read(channels, this.#cursor, PAGE);
        const isNow = !(asked instanceof Promise);
        const page = isNow ? asked : await asked;
        // Another set of channels by now, or none.
        if (channels !== this.#channels) continue;
        if (page.position.epoch !== this.#epoch) {
          this.#beginAnew(page.position.epoch);
          continue;
        }
        const telling = this.#tellGap(page);
        if (telling !== undefined) {
          await telling;
          continue;
        }
        this.#deliverPage(page);
        // A filter has changed what is followed, or ended the stream.
        if (channels !== this.#channels) continue;
        for (const hold of this.#holds) if (hold.isPlaced) hold.begun();
        // Read in this turn, or nothing of these channels has come or been missed since: there is nothing in between.
        const isProven = isNow || (interruptions === this.host.interruptions && this.host.newestSeen(channels) <= this.#cursor);
        if (page.complete && isProven) this.#join();
        else await nextTurn();
      }
    } catch (error) {
      this.fail(error);
    } finally {
      this.#isBusy = false;
    }
  }

  /** The log was lost, and another has begun: nothing that this stream knows of the old one means anything. */
  #beginAnew(epoch: string): void {
    this.#epoch = epoch;
    this.#cursor = 0;
    this.#written = -1;
    this.#starts = undefined;
    this.#foreign = new Set(this.#channels);
  }

  /**
   * Tells what the page shows to be lost.
   * @returns a promise where the application is asked, after which the log has to be read again
   */
  #tellGap({ trimmed, position }: Page): Promise<void> | undefined {
    const lost = this.#lostOf(trimmed);
    if (lost.length === 0) return undefined;
    const after = this.#foreign === undefined ? this.cursor : '';
    const gap: Gap = {
      channels: lost,
      lastEventId: this.#written === -1 ? this.stream.lastEventId : after,
      cursor: formatCursor(position.epoch, position.offset),
    };
    this.#foreign = undefined;
    this.#owesCheckpoint = true;
    this.#countGap(gap);
    const questions = this.#questionsFor(lost);
    const untold = lost.filter((channel) => !questions.some(({ channels }) => channels.includes(channel)));
    if (untold.length > 0) this.stream.writeOwn(gapText(untold, after, gap.cursor));
    return questions.length > 0 ? this.#ask(questions, gap) : undefined;
  }

  /** Which subscription is asked for which of the channels; each channel is answered for once. */
  #questionsFor(lost: readonly string[]): Question[] {
    const questions: Question[] = [];
    let rest = lost;
    for (const hold of this.#holds) {
      // Asked again before anything was delivered, a slow handler on a busy channel would never come to an end.
      if (hold.options.onGap === undefined || hold.askedAt === this.#delivered) continue;
      const channels = rest.filter((channel) => hold.channels.includes(channel));
      if (channels.length === 0) continue;
      questions.push({ hold, channels });
      rest = rest.filter((channel) => !channels.includes(channel));
    }
    return questions;
  }

  /** A channel has lost something exactly if what was trimmed of it goes beyond what the stream has of it. It is noted as told. */
  #lostOf(trimmed: readonly number[]): string[] {
    return this.#channels.filter((channel, index) => {
      const gone = trimmed[index] as number;
      const start = this.#starts?.get(channel);
      const isLost = start !== -1 && gone > Math.max(this.#cursor, start ?? 0);
      if (isLost || start === -1) this.#startAt(channel, gone);
      return isLost || this.#foreign?.has(channel) === true;
    });
  }

  #countGap(gap: Gap): void {
    for (const hold of this.#holds) if (hold.sharesOneOf(gap.channels)) hold.countGap();
    this.host.countGap();
    if (diagnostics.gap.hasSubscribers) diagnostics.gap.publish({ stream: this.stream, ...gap });
  }

  async #ask(questions: readonly Question[], gap: Gap): Promise<void> {
    this.#isTelling = true;
    try {
      for (const { hold, channels } of questions) {
        // It has ended while another was asked.
        if (!this.#holds.includes(hold)) continue;
        hold.askedAt = this.#delivered;
        this.#addedMeanwhile = [];
        const answer = await hold.options.onGap?.(this.stream, { ...gap, channels });
        if (answer !== undefined) this.#goOnFrom(answer, hold, channels);
      }
    } finally {
      this.#isTelling = false;
    }
  }

  /**
   * The answer speaks of what was lost; channels that lost nothing are owed what comes before it, and so are those that were
   * subscribed to anew while the application was thinking.
   * @throws {SseError} `ERR_SSE_CURSOR` for what is no place to go on from, unless the subscription has ended meanwhile
   */
  #goOnFrom(answer: unknown, hold: Hold, asked: readonly string[]): void {
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    if (cursor === undefined || cursor.epoch !== this.#epoch || cursor.offset < this.#cursor) {
      if (!this.#holds.includes(hold)) return;
      throw new SseError(
        'ERR_SSE_CURSOR',
        `expected onGap to return nothing or a cursor to go on from, as gap.cursor, got ${shown(answer)}`,
      );
    }
    const channels = asked.filter((channel) => this.#channels.includes(channel) && !this.#addedMeanwhile.includes(channel));
    if (this.#channels.length === channels.length) this.#cursor = cursor.offset;
    else for (const channel of channels) this.#startAt(channel, cursor.offset);
  }

  #deliverPage({ entries, complete, position }: Page): void {
    const from = this.#cursor;
    const starts = this.#starts;
    // Before the filters are called: they may call us again.
    this.#cursor = Math.max(from, complete ? position.offset : (entries.at(-1) as LogEntry).offset);
    const due = entries.filter((entry) => entry.offset > (starts?.get(entry.channel) ?? 0) && this.lets(entry));
    for (const entry of entries) entry.rest();
    if (this.#owesCheckpoint) {
      this.#owesCheckpoint = false;
      // Below it nothing is owed any more, and nothing at or below it is still to come.
      this.#writeCheckpoint(Math.max(from, entries[0] === undefined ? position.offset : entries[0].offset - 1));
    }
    if (due.length === 0) return;
    this.#written = (due.at(-1) as LogEntry).offset;
    this.#delivered++;
    this.stream.deliverAll(due.map((entry) => entry.frame));
  }

  /** Takes what of the frame is beyond the offset and wanted. */
  #takePart(frame: Frame, from: number): void {
    if (this.stream.bufferedAmount > WRITE_MARK && !this.#isLeaving) {
      this.#fallBehind(frame, from);
      return;
    }
    // Before the filters are called: they may call us again. Nor may that begin to read the log before this is written.
    this.#cursor = frame.last;
    const wasBusy = this.#isBusy;
    this.#isBusy = true;
    try {
      const entries = frame.entries.filter((entry) => entry.offset > from && this.lets(entry));
      if (entries.length > 0) {
        const due = new Frame(entries);
        this.#written = due.last;
        this.#delivered++;
        this.stream.deliver(due.bytes, entries.length);
      }
    } catch (error) {
      this.fail(error);
    } finally {
      this.#isBusy = wasBusy;
    }
    this.#advance();
  }

  /** A slow reader costs a cursor, not a queue: it leaves the live ones, having been given all before this frame. */
  #fallBehind(frame: Frame, from: number): void {
    if (this.#isLeaving) {
      // There will be no later: what was published before it leaves is written however much is queued.
      this.#takePart(frame, from);
      return;
    }
    this.#cursor = Math.max(this.#cursor, frame.first - 1);
    this.#leave();
    this.#advance();
  }

  #writeCheckpoint(offset: number): void {
    this.#written = offset;
    this.stream.writeOwn(checkpointText(formatCursor(this.#epoch, offset)));
  }

  #join(): void {
    this.#starts = undefined;
    this.#audience = this.host.fanOut.join(this.#channels, this);
    if (!this.#steppedBack) return;
    // Until the client knows that it has caught up it would have everything since the step back again.
    this.#steppedBack = false;
    if (this.#cursor > this.#written) this.#writeCheckpoint(this.#cursor);
  }

  #leave(): void {
    if (this.#audience === undefined) return;
    this.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }

  #follows(channel: string): boolean {
    return this.#holds.some((hold) => hold.channels.includes(channel));
  }
}

/** A stream's place among those that follow channels without history. They have no cursor: what is not written now is gone. */
class LiveOnly implements Member {
  readonly #follower: StreamFollower;
  slot = -1;
  #taken = 0;
  #audience: Audience | undefined;

  constructor(follower: StreamFollower) {
    this.#follower = follower;
  }

  join(channels: readonly string[]): void {
    this.#audience = this.#follower.host.fanOut.join(channels, this);
    // What was published before is not for it.
    this.#taken = Math.max(this.#taken, this.#audience.newest);
  }

  leave(): void {
    if (this.#audience === undefined) return;
    this.#follower.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }

  flush(): void {
    this.#audience?.flush(this);
  }

  take(frame: Frame): void {
    const from = this.#taken;
    if (frame.last <= from) return;
    this.#taken = frame.last;
    const { stream } = this.#follower;
    try {
      const entries = frame.entries.filter((entry) => entry.offset > from && this.#follower.lets(entry));
      if (entries.length === 0 || !stream.admits(entries.length)) return;
      const due = entries.length === frame.entries.length ? frame : new Frame(entries);
      if (!stream.share(due, entries.length)) stream.deliver(due.bytes, entries.length);
    } catch (error) {
      this.#follower.fail(error);
    }
  }
}

/** What one call of `subscribe` got. */
class Hold implements Subscription {
  readonly channels: readonly string[];
  readonly options: SubscribeOptions;
  recovered = true;
  gaps = 0;
  /** How much had been delivered when its `onGap` was asked last. */
  askedAt = -1;
  /** Its channels have their place in the stream. */
  isPlaced = false;
  #resolvePlaced: (() => void) | undefined;
  /** The start is known and its gap told, or there will be none any more. */
  started = false;
  readonly #follower: StreamFollower;
  #resolve: (() => void) | undefined;

  constructor(follower: StreamFollower, channels: readonly string[], options: SubscribeOptions) {
    this.#follower = follower;
    this.channels = channels;
    this.options = options;
  }

  get cursor(): string {
    return this.#follower.cursor;
  }

  /** Resolves when the start is known, or the subscription has ended. */
  get start(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  /** Resolves when its channels have their place, or the subscription has ended. For the one that comes next. */
  get placed(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolvePlaced = resolve;
    });
  }

  place(): void {
    this.isPlaced = true;
    this.#resolvePlaced?.();
  }

  begun(): void {
    this.started = true;
    this.#resolvePlaced?.();
    this.#resolve?.();
  }

  countGap(): void {
    this.gaps++;
    if (!this.started) this.recovered = false;
  }

  sharesOneOf(channels: readonly string[]): boolean {
    return channels.some((channel) => this.channels.includes(channel));
  }

  /** @throws {SseError} `ERR_SSE_FILTER` for an answer that is not a boolean; whatever the filter throws */
  lets(entry: LogEntry): boolean {
    const { filter } = this.options;
    if (filter === undefined) return true;
    const answer: unknown = filter(entry);
    if (typeof answer === 'boolean') return answer;
    throw new SseError('ERR_SSE_FILTER', `expected the filter to return true or false, got ${shown(answer)}; it cannot be async`);
  }

  unsubscribe(): void {
    this.#follower.remove(this);
  }
}

/** A subscription on a stream that has ended. */
export function ended(channels: readonly string[]): Subscription {
  return { channels, recovered: false, gaps: 0, cursor: '', unsubscribe: () => {} };
}

/** What a subscription is asked to answer for. */
interface Question {
  readonly hold: Hold;
  readonly channels: readonly string[];
}

interface Start {
  readonly offset: number;
  /** The cursor is not of this log: all that the log holds follows, and the gap is told. */
  readonly isForeign: boolean;
  /** The application has asked for all that the log holds. */
  readonly isWhole: boolean;
}

/** Where a subscription asks to begin. The client's own id, untrusted, goes before what the application says. */
function wishOf(lastEventId: string, { resume = true, since = 'now' }: SubscribeOptions): { text: string; isOfClient: boolean } {
  const isOfClient = resume && lastEventId !== '';
  return { text: isOfClient ? lastEventId : since, isOfClient };
}

function startOf(lastEventId: string, options: SubscribeOptions, { epoch, offset }: Cursor): Start {
  const { text, isOfClient } = wishOf(lastEventId, options);
  if (!isOfClient && text === 'now') return { offset, isForeign: false, isWhole: false };
  if (!isOfClient && text === 'start') return { offset: 0, isForeign: false, isWhole: true };
  const cursor = parseCursor(text);
  const isOurs = cursor !== undefined && cursor.epoch === epoch && cursor.offset <= offset;
  return { offset: isOurs ? cursor.offset : 0, isForeign: !isOurs, isWhole: false };
}

/** The channels of the holds, each once. */
function channelsOf(holds: readonly Hold[]): readonly string[] {
  return holds.length === 1 ? (holds[0] as Hold).channels : [...new Set(holds.flatMap((hold) => hold.channels))];
}

function setOrNothing(channels: readonly string[]): Set<string> | undefined {
  return channels.length === 0 ? undefined : new Set(channels);
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
