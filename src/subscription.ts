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
import { joined, type Audience, type FanOut, type Frame, type Member } from './fan-out.ts';
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
  #catchingUp = false;
  #telling = false;
  #handlerJustRan = false;
  #owesCheckpoint = false;

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
    const fresh = channels.filter((channel) => !this.#follows(channel));
    this.#holds.push(hold);
    try {
      // Listen first, so that nothing published from here on is unseen.
      const listening = fresh.map((channel) => this.host.retain(channel)).filter((ready) => ready !== undefined);
      if (listening.length > 0) await Promise.all(listening);
      const asked = this.host.broker.position();
      // No await where none is needed: with the memory broker the stream is live when this call returns.
      const position = asked instanceof Promise ? await asked : asked;
      // Meanwhile the stream may have ended, or the application may have thought better of it.
      if (!this.#holds.includes(hold)) return hold;
      this.#begin(hold, fresh, position);
    } catch (error) {
      this.remove(hold);
      throw error;
    }
    if (!hold.started) await hold.start;
    return hold;
  }

  remove(hold: Hold): void {
    if (!this.#holds.includes(hold)) return;
    this.flush();
    this.#holds = this.#holds.filter((other) => other !== hold);
    for (const channel of hold.channels) if (!this.#follows(channel)) this.host.release(channel);
    hold.begun();
    this.#regroup();
    this.#advance();
  }

  take(frame: Frame): void {
    if (frame.last <= this.#cursor) return;
    if (this.stream.bufferedAmount > WRITE_MARK) {
      // A slow reader costs a cursor, not a queue. All before this frame was written.
      this.#cursor = Math.max(this.#cursor, frame.first - 1);
      this.#leave();
      this.#advance();
      return;
    }
    try {
      let due: Frame | undefined = frame;
      if (this.#filtered || frame.first <= this.#cursor) {
        const entries = frame.entries.filter((entry) => entry.offset > this.#cursor && this.lets(entry));
        due = entries.length === 0 ? undefined : joined(entries);
      }
      this.#cursor = frame.last;
      if (due === undefined) return;
      this.#written = due.last;
      this.#handlerJustRan = false;
      this.stream.deliver(due.bytes, due.entries.length);
    } catch (error) {
      this.#fail(error);
    }
  }

  flush(): void {
    const pending = this.#audience?.pending;
    if (pending !== undefined) this.take(pending);
    this.#liveOnly?.flush();
  }

  checkpoint(): boolean {
    if (this.#telling || this.#foreign !== undefined || this.#channels.length === 0 || this.#epoch === '') return false;
    if (!this.#holds.some((hold) => hold.options.checkpoints !== false)) return false;
    this.flush();
    // What this node has received is on its way to a live stream, so it is at the head.
    if (this.#audience !== undefined) this.#cursor = Math.max(this.#cursor, this.host.head);
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
    for (const channel of distinct(holds)) this.host.release(channel);
    for (const hold of holds) hold.begun();
    this.host.forget(this);
  }

  /** Whether a subscription wants the entry: every one on its channel has a say, and one that lets it through is enough. */
  lets(entry: LogEntry): boolean {
    return this.#holds.some((hold) => hold.channels.includes(entry.channel) && hold.lets(entry));
  }

  /** Gives a new subscription its place: where the client left off, or where the application says. */
  #begin(hold: Hold, fresh: readonly string[], position: Cursor): void {
    this.flush();
    const before = this.#channels;
    this.#regroup();
    const added = fresh.filter((channel) => this.#channels.includes(channel));
    if (added.length === 0) {
      hold.begun();
    } else {
      this.#place(before, added, position, startOf(this.stream.lastEventId, hold.options, position));
      if (before.length === 0) this.#owesCheckpoint = hold.options.checkpoints !== false;
    }
    this.#advance();
  }

  #place(before: readonly string[], added: readonly string[], position: Cursor, start: Start): void {
    if (before.length === 0) {
      this.#epoch = position.epoch;
      this.#cursor = start.offset;
    } else if (start.offset < this.#cursor) {
      // The new channels have to catch up with the cursor: it steps back, once, for them only.
      for (const channel of before) this.#startAt(channel, this.#cursor);
      this.#cursor = start.offset;
    } else {
      for (const channel of added) this.#startAt(channel, start.offset);
    }
    if (start.isForeign) this.#foreign = new Set([...(this.#foreign ?? []), ...added]);
    // All that the history holds is not a gap, whatever it held before.
    if (start.isWhole) for (const channel of added) this.#startAt(channel, -1);
  }

  /** Notes that of the channel nothing at or below the offset is owed; -1 = nothing of what is not held any more. */
  #startAt(channel: string, offset: number): void {
    this.#starts ??= new Map();
    const known = this.#starts.get(channel);
    this.#starts.set(channel, known === undefined || offset === -1 ? offset : Math.max(known, offset));
  }

  /** Sorts out which channels are followed, after a change. The stream leaves the live ones until it has caught up. */
  #regroup(): void {
    const channels = distinct(this.#holds);
    this.#filtered = this.#holds.some((hold) => hold.options.filter !== undefined);
    this.#leave();
    this.#liveOnly?.leave();
    this.#channels = channels.filter((channel) => this.host.hasHistory(channel));
    const liveOnly = channels.filter((channel) => !this.host.hasHistory(channel));
    if (liveOnly.length === 0) this.#liveOnly = undefined;
    else (this.#liveOnly ??= new LiveOnly(this)).join(liveOnly);
  }

  /** Catches up with the log, if there is something to catch up with and nobody is at it. */
  #advance(): void {
    if (!this.#catchingUp && this.isBehind) void this.#catchUp();
  }

  async #catchUp(): Promise<void> {
    this.#catchingUp = true;
    try {
      while (this.isBehind) {
        if (this.stream.bufferedAmount > WRITE_MARK) {
          await this.stream.drained();
          continue;
        }
        const channels = this.#channels;
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
        for (const hold of this.#holds) hold.begun();
        // Read in this turn, or nothing of these channels has come since: there is nothing in between.
        if (page.complete && (isNow || this.host.newestSeen(channels) <= this.#cursor)) this.#join();
        else await nextTurn();
      }
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#catchingUp = false;
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
   * Tells what the page shows to be lost. Rule: a channel has lost something exactly if what was trimmed of it goes beyond
   * what the stream has of it.
   * @returns a promise where the application is asked, after which the log has to be read again
   */
  #tellGap({ trimmed, position }: Page): Promise<void> | undefined {
    const lost: string[] = [];
    for (const [index, channel] of this.#channels.entries()) {
      const gone = trimmed[index] as number;
      const start = this.#starts?.get(channel);
      const isForeign = this.#foreign?.has(channel) === true;
      if (start === -1) this.#startAt(channel, gone);
      if (start !== -1 && gone > Math.max(this.#cursor, start ?? 0)) this.#startAt(channel, gone);
      else if (!isForeign) continue;
      lost.push(channel);
    }
    if (lost.length === 0) return undefined;
    const after = this.#foreign === undefined ? this.cursor : '';
    const gap = {
      channels: lost,
      lastEventId: this.#written === -1 ? this.stream.lastEventId : after,
      cursor: formatCursor(position.epoch, position.offset),
    };
    this.#foreign = undefined;
    this.#owesCheckpoint = true;
    this.#countGap(gap);
    const handler = this.#holds.find(
      (hold) => hold.options.onGap !== undefined && lost.some((channel) => hold.channels.includes(channel)),
    );
    // Asked again before anything was delivered, a slow handler on a busy channel would never come to an end.
    if (handler?.options.onGap !== undefined && !this.#handlerJustRan) return this.#ask(handler.options.onGap, gap);
    this.stream.writeOwn(gapText(lost, after, gap.cursor));
    return undefined;
  }

  #countGap(gap: Gap): void {
    for (const hold of this.#holds) if (gap.channels.some((channel) => hold.channels.includes(channel))) hold.countGap();
    this.host.countGap();
    if (diagnostics.gap.hasSubscribers) diagnostics.gap.publish({ stream: this.stream, ...gap });
  }

  async #ask(onGap: NonNullable<SubscribeOptions['onGap']>, gap: Gap): Promise<void> {
    this.#telling = true;
    this.#handlerJustRan = true;
    try {
      const answer = await onGap(this.stream, gap);
      if (answer !== undefined) this.#cursor = Math.max(this.#cursor, this.#assertCursor(answer));
    } finally {
      this.#telling = false;
    }
  }

  /** @throws {SseError} `ERR_SSE_CURSOR` for what is no place to go on from */
  #assertCursor(answer: unknown): number {
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    if (cursor === undefined || cursor.epoch !== this.#epoch || cursor.offset < this.#cursor) {
      throw new SseError(
        'ERR_SSE_CURSOR',
        `expected onGap to return nothing or a cursor to go on from, as gap.cursor, got ${shown(answer)}`,
      );
    }
    return cursor.offset;
  }

  #deliverPage({ entries, complete, position }: Page): void {
    const due = entries.filter((entry) => entry.offset > (this.#starts?.get(entry.channel) ?? 0) && this.lets(entry));
    for (const entry of entries) entry.rest();
    if (this.#owesCheckpoint) {
      this.#owesCheckpoint = false;
      // Below it nothing is owed any more, and nothing at or below it is still to come.
      this.#writeCheckpoint(Math.max(this.#cursor, entries[0] === undefined ? position.offset : entries[0].offset - 1));
    }
    this.#cursor = Math.max(this.#cursor, complete ? position.offset : (entries.at(-1) as LogEntry).offset);
    if (due.length === 0) return;
    this.#written = (due.at(-1) as LogEntry).offset;
    this.#handlerJustRan = false;
    this.stream.deliverAll(due.map((entry) => entry.frame));
  }

  #writeCheckpoint(offset: number): void {
    this.#written = offset;
    this.stream.writeOwn(checkpointText(formatCursor(this.#epoch, offset)));
  }

  #join(): void {
    this.#starts = undefined;
    this.#audience = this.host.fanOut.join(this.#channels, this);
  }

  #leave(): void {
    if (this.#audience === undefined) return;
    this.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }

  #follows(channel: string): boolean {
    return this.#holds.some((hold) => hold.channels.includes(channel));
  }

  /** Something threw for this reader: its stream ends, before anything that it should not see. */
  #fail(error: unknown): void {
    this.#leave();
    this.#liveOnly?.leave();
    this.stream.fail(error);
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
    // What this turn has published before is not for it.
    this.#taken = Math.max(this.#taken, this.#audience.pending?.last ?? 0);
  }

  leave(): void {
    if (this.#audience === undefined) return;
    this.#follower.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }

  flush(): void {
    const pending = this.#audience?.pending;
    if (pending !== undefined) this.take(pending);
  }

  take(frame: Frame): void {
    const { stream } = this.#follower;
    const entries = frame.entries.filter((entry) => entry.offset > this.#taken && this.#follower.lets(entry));
    this.#taken = Math.max(this.#taken, frame.last);
    if (entries.length > 0 && stream.admits(entries.length)) stream.deliver(joined(entries).bytes, entries.length);
  }
}

/** What one call of `subscribe` got. */
class Hold implements Subscription {
  readonly channels: readonly string[];
  readonly options: SubscribeOptions;
  recovered = true;
  gaps = 0;
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

  begun(): void {
    this.started = true;
    this.#resolve?.();
  }

  countGap(): void {
    this.gaps++;
    if (!this.started) this.recovered = false;
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

interface Start {
  readonly offset: number;
  /** The cursor is not of this log: all that the log holds follows, and the gap is told. */
  readonly isForeign: boolean;
  /** The application has asked for all that the log holds. */
  readonly isWhole: boolean;
}

/** Where a subscription begins. The client's own id, untrusted, goes before what the application says. */
function startOf(lastEventId: string, { resume = true, since = 'now' }: SubscribeOptions, { epoch, offset }: Cursor): Start {
  const resumes = resume && lastEventId !== '';
  if (!resumes && since === 'now') return { offset, isForeign: false, isWhole: false };
  if (!resumes && since === 'start') return { offset: 0, isForeign: false, isWhole: true };
  const cursor = parseCursor(resumes ? lastEventId : since);
  const isOurs = cursor !== undefined && cursor.epoch === epoch && cursor.offset <= offset;
  return { offset: isOurs ? cursor.offset : 0, isForeign: !isOurs, isWhole: false };
}

/** The channels of the holds, each once. */
function distinct(holds: readonly Hold[]): readonly string[] {
  return holds.length === 1 ? (holds[0] as Hold).channels : [...new Set(holds.flatMap((hold) => hold.channels))];
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
