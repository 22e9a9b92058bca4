/**
 * A stream that follows channels. It is a cursor into their log, in one of two states: *behind*, it reads the log in pages at
 * the reader's pace; *live*, it is given what each turn of the event loop publishes. A stream is behind when it begins,
 * when it resumes and when it is slow, and it is always the same thing.
 *
 * ```text
 * subscribe() ──► waits for the broker's position ──► behind ──► live
 *                                                        ▲         │ slow, interrupted, another subscription,
 *                                                        └─────────┘ or more pending than it may be given at once
 * ```
 */
import type { Socket } from 'node:net';
import type { Audience, Member, GroupProgress } from './audience.ts';
import type { Cursor } from '../protocol/cursor.ts';
import { formatCursor } from '../protocol/cursor.ts';
import { CatchUp, type CatchUpHost, type CatchUpOwner } from './catch-up.ts';
import { WHATEVER_IS_HELD } from './channel-starts.ts';
import { diagnostics } from '../common/diagnostics.ts';
import { SseError, describeThrown } from '../common/errors.ts';
import type {
  EventStream,
  Follower,
  Gap,
  SubscribeOptions,
  Subscription,
} from '../stream/event-stream.ts';
import type { FanOut } from './fan-out.ts';
import type { Frame } from './frame.ts';
import { EphemeralMember, type EphemeralOwner } from './ephemeral-member.ts';
import type { LogEntry } from '../log/log-entry.ts';
import { startOf, wishedStart, type Start } from './start.ts';
import {
  GapCounts,
  SubscriptionRecord,
  SubscriptionHandle,
  channelsOf,
  endedSubscription,
  placedChannelsOf,
  type SubscriptionOwner,
} from './subscription.ts';
import { checkpointText } from '../protocol/event-stream-format.ts';

// A stream whose start is not known within this time, in ms, opens all the same: the broker is away.
const OPEN_AFTER = 1_000;

/** What a follower needs from the registry. */
export interface FollowerHost extends CatchUpHost {
  /** The live streams of channels with history. */
  readonly fanOut: FanOut;
  /** The streams of channels without history. */
  readonly liveOnly: FanOut;
  /** Whether the channel keeps a history; without one it is live only. */
  hasHistory(channel: string): boolean;
  /** Whether a channel that is going to be followed keeps a history. Asks the application, which may throw or call back. */
  willHaveHistory(channel: string): boolean;
  /** A stream follows the channel now. */
  retain(channel: string, hasHistory: boolean): void;
  /** A stream does not follow the channel any more. */
  release(channel: string): void;
  /**
   * Resolves when what is published in these channels is received, or the signal is aborted.
   * @returns `undefined` where it is received already
   */
  whenListening(
    channels: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined;
  /** The stream follows something and is not live: no audience knows of it. */
  remember(follower: StreamFollower): void;
  /** The stream is live, or follows nothing any more. */
  forget(follower: StreamFollower): void;
  /** A gap was told. */
  countGap(): void;
}

/** What a stream follows, and how. Immutable, copied on every change: live streams with the same subscriptions share it. */
interface SharedSubscriptionState {
  readonly host: FollowerHost;
  readonly holds: readonly SubscriptionRecord[];
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
function isAlike(one: SharedSubscriptionState, other: SharedSubscriptionState): boolean {
  if (one.epoch !== other.epoch || one.holds.length !== other.holds.length) return false;
  return one.holds.every((hold, index) => hold.isLike(other.holds[index] as SubscriptionRecord));
}

/** What a stream has only while it is not simply live, or if it has lost something or follows what has no history. */
class RareState {
  catchUp: CatchUp | undefined;
  /** Its place among those that follow channels without history. */
  liveOnly: EphemeralMember | undefined;
  gaps: GapCounts | undefined;
  /** The stream gets all that is pending, because there will be no later. */
  isLeaving = false;
  /** Entries that the filters have let through and that are not written yet. */
  passed: LogEntry[] | undefined;
  /** What callbacks have asked for in the middle of a delivery. */
  deferred: (() => void)[] | undefined;

  get isEmpty(): boolean {
    const hasGaps = this.gaps !== undefined && !this.gaps.isEmpty;
    return (
      this.catchUp === undefined &&
      this.liveOnly === undefined &&
      !hasGaps &&
      !this.isLeaving &&
      !this.deferred
    );
  }
}

/** All that one stream follows. It has one cursor, however often `subscribe` was called. */
export class StreamFollower
  implements Follower, Member, SubscriptionOwner, CatchUpOwner, EphemeralOwner
{
  // Of a live stream this is all, and there are tens of thousands of them. Methods are `private`, not `#`: a class with such
  // methods marks each of its objects, 8 B for each stream.
  listIndex = -1;
  readonly stream: EventStream;
  // Of the channels with history: everything at or below it was written, filtered out or told as a gap.
  #cursor = 0;
  // The offset of the last id that was written.
  #written = -1;
  #state: SharedSubscriptionState;
  #rare: RareState | undefined;

  constructor(host: FollowerHost, stream: EventStream) {
    this.#state = {
      host,
      holds: [],
      channels: [],
      epoch: '',
      audience: undefined,
      isFiltered: false,
      isAsked: false,
    };
    this.stream = stream;
  }

  get host(): FollowerHost {
    return this.#state.host;
  }

  get subscriptions(): readonly SubscriptionRecord[] {
    return this.#state.holds;
  }

  get channels(): readonly string[] {
    return this.#state.channels;
  }

  get epoch(): string {
    return this.#state.epoch;
  }

  get isFiltered(): boolean {
    return this.#state.isFiltered;
  }

  /** Whether it is given what is published. */
  get isLive(): boolean {
    return this.#state.audience?.isRetired === false;
  }

  /** Whether it reads from the log now, and is not given what is published. */
  get isBehind(): boolean {
    return !this.isLive && this.channels.length > 0;
  }

  /** Whether it waits for its start, or reads from the log. */
  get isWaiting(): boolean {
    return this.isBehind || this.subscriptions.some(({ isPlaced }) => !isPlaced);
  }

  get position(): number {
    return this.groupProgress?.cursor ?? this.#cursor;
  }

  /** Where the stream is, as an id. */
  get cursor(): string {
    return this.epoch === '' ? '' : formatCursor(this.epoch, this.position);
  }

  get hasWritten(): boolean {
    return this.#written !== -1;
  }

  // Subscriptions.

  /** Follows these channels, too. Resolves when the start is known and a gap has been told. */
  async add(channels: readonly string[], options: SubscribeOptions): Promise<Subscription> {
    // What is being written now is none of its business, nor what was published before.
    if (this.host.deliveries.has(this.stream)) await this.delivered();
    // The application's own code comes first, before anything is changed.
    const histories = new Map(
      channels.map((channel) => [channel, this.host.willHaveHistory(channel)]),
    );
    this.flush(true);
    if (this.stream.isOver) return endedSubscription(channels);
    this.assertFewSubscriptions();
    const hold = new SubscriptionRecord(channels, options);
    const subscription = new SubscriptionHandle(this, hold);
    const placed = placedChannelsOf(this.subscriptions);
    hold.join(channels.filter((channel) => placed.has(channel)));
    const earlier = this.subscriptions.at(-1);
    // Called from inside `onGap`: waiting for the start here would deadlock.
    const mustNotWait = this.#rare?.catchUp?.isAsking === true;
    const followed = new Set(channelsOf(this.subscriptions));
    const fresh = channels.filter((channel) => !followed.has(channel));
    // Before the log is asked where it stands, so that nothing that is published from then on is unseen.
    for (const channel of fresh) this.host.retain(channel, histories.get(channel) === true);
    this.hold(this.subscriptions.concat(hold));
    if (!this.isLive) this.host.remember(this);
    try {
      const located = this.locate(hold, fresh);
      // No await where none is needed: with the memory broker the stream is live when this call returns.
      const position = located instanceof Promise ? await located : located;
      // Thousands of streams may have waited for the same answer.
      if (located instanceof Promise) await this.host.catchUps.turn();
      // Each in its turn, whichever answer comes first.
      if (earlier !== undefined && !earlier.isPlaced && this.subscriptions.includes(earlier)) {
        await earlier.placed();
      }
      if (!this.subscriptions.includes(hold) || this.stream.open().readyState === 2) {
        return endedSubscription(channels);
      }
      this.begin(hold, position);
    } catch (error) {
      // The stream has ended meanwhile, which is no error.
      if (!this.subscriptions.includes(hold)) return endedSubscription(channels);
      this.remove(hold);
      throw error;
    }
    if (!hold.hasBegun && !mustNotWait) await hold.begun();
    return subscription;
  }

  /** Where the log stands, once this node listens to the channels. */
  private locate(hold: SubscriptionRecord, fresh: readonly string[]): Cursor | Promise<Cursor> {
    // A broker in this process answers at once: nothing has to be taken back, and a signal costs several µs.
    const signal = this.host.catchUps.hasWaited ? hold.signal : undefined;
    const listening = this.host.whenListening(fresh, signal);
    const ask = (): Cursor | Promise<Cursor> =>
      this.host.broker.position(wishedStart(this.stream.lastEventId, hold.options), signal);
    const position = listening === undefined ? ask() : listening.then(ask);
    return position instanceof Promise ? this.openMeanwhile(position) : position;
  }

  /** Opens the stream if the broker does not answer soon. Clients that get an error instead would not come back. */
  private openMeanwhile(position: Promise<Cursor>): Promise<Cursor> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        try {
          // Something else may have answered meanwhile, such as a timeout middleware.
          if (!this.stream.res.headersSent) this.stream.open();
        } catch (error) {
          // A listener for the head threw.
          reject(
            error instanceof Error ? error : new Error(describeThrown(error), { cause: error }),
          );
        }
      }, OPEN_AFTER);
      position.finally(() => clearTimeout(timer)).then(resolve, reject);
    });
  }

  gapsOf(channels: readonly string[]): number {
    return this.#rare?.gaps?.of(channels) ?? 0;
  }

  remove(hold: SubscriptionRecord): void {
    if (this.host.deliveries.has(this.stream)) {
      this.defer(() => this.remove(hold));
      return;
    }
    const head = this.head;
    this.flush(true);
    // Gone already, or a filter has just ended the stream.
    const index = this.subscriptions.findIndex((other) => other.isLike(hold));
    if (index === -1) return;
    this.hold(this.subscriptions.toSpliced(index, 1));
    this.#rare?.gaps?.keepOnly(this.subscriptions);
    const followed = new Set(channelsOf(this.subscriptions));
    for (const channel of hold.channels) if (!followed.has(channel)) this.host.release(channel);
    hold.begin();
    this.#rare?.catchUp?.onEnded(hold);
    this.regroup(head);
    if (this.subscriptions.length === 0) this.host.forget(this);
    this.advance(true);
    if (this.#rare?.catchUp?.isIdle === true) this.#rare.catchUp = undefined;
    this.tidy();
  }

  /** Gives a new subscription its place: where the client left off, or where the application says. */
  private begin(hold: SubscriptionRecord, position: Cursor): void {
    const head = this.head;
    this.flush(true);
    // Meanwhile the stream may have ended, or the application may have thought better of it.
    if (!this.subscriptions.includes(hold)) return;
    const before = this.channels;
    hold.place();
    for (const other of this.subscriptions) if (!other.isPlaced) other.join(hold.channels);
    this.regroup(head);
    const known = new Set(before);
    const added = this.channels.filter((channel) => !known.has(channel));
    if (added.length === 0) {
      hold.begin();
    } else {
      this.place(before, added, position, startOf(this.stream.lastEventId, hold.options, position));
      if (before.length === 0 && hold.options.checkpoints !== false) {
        this.catchUp.owesCheckpoint = true;
      }
    }
    this.advance(true);
    this.runDeferred();
  }

  private place(
    before: readonly string[],
    added: readonly string[],
    position: Cursor,
    start: Start,
  ): void {
    const { catchUp } = this;
    const { starts } = catchUp;
    if (before.length === 0) {
      if (this.epoch !== position.epoch) this.#written = -1;
      this.change({ epoch: position.epoch });
      this.#cursor = start.offset;
    } else if (start.offset < this.#cursor) {
      // The new channels have to catch up with the cursor: it steps back, once, for them only.
      for (const channel of before) starts.startAt(channel, this.#cursor);
      this.#cursor = start.offset;
    } else {
      for (const channel of added) starts.startAt(channel, start.offset);
    }
    if (catchUp.isAsking) catchUp.addedMeanwhile = [...(catchUp.addedMeanwhile ?? []), ...added];
    if (start.isForeign) starts.addForeign(added);
    // All that the history holds is not a gap, whatever it held before.
    if (start.isWhole) for (const channel of added) starts.startAt(channel, WHATEVER_IS_HELD);
    if (this.#written <= this.#cursor) return;
    // The client is told at once that ids step back, or it would come back with one beyond what it has of the new channels.
    catchUp.hasSteppedBack = true;
    this.writeCheckpoint(this.#cursor);
  }

  /** @throws {SseError} `ERR_SSE_OPTION` */
  private assertFewSubscriptions(): void {
    const { maxSubscriptions } = this.stream.host.settings;
    if (this.subscriptions.length < maxSubscriptions) return;
    throw new SseError(
      'ERR_SSE_OPTION',
      `this stream has ${maxSubscriptions} subscriptions; name several channels in one call of subscribe(), unsubscribe from what is not needed any more, or raise \`maxSubscriptions\` of sse()`,
    );
  }

  // What an audience gives.

  take(frame: Frame): Socket | undefined {
    const from = this.#cursor;
    if (frame.last <= from) return undefined;
    if (frame.first <= from || this.isFiltered) {
      this.takePart(frame, from);
      return undefined;
    }
    const written = this.#written;
    // Before anything is written: a wrapped `res.write` may call back.
    this.#cursor = frame.last;
    this.#written = frame.last;
    const { deliveries } = this.host;
    deliveries.begin(this.stream);
    let isTaken: boolean;
    try {
      isTaken = this.stream.writeShared(frame, frame.entries.length);
    } finally {
      deliveries.end();
    }
    if (!isTaken) {
      this.#cursor = from;
      this.#written = written;
      this.fallBehindOn(frame, from);
      return undefined;
    }
    if (this.#state.isAsked) this.noteDelivery();
    if (this.#rare?.deferred !== undefined) {
      // A change that was deferred may move the stream.
      this.runDeferred();
      return undefined;
    }
    // What the other place writes is not on this one's account.
    return this.#rare?.liveOnly === undefined ? this.stream.direct : undefined;
  }

  get groupProgress(): GroupProgress | undefined {
    return this.#state.audience?.progressOf(this);
  }

  onAttached(pace: GroupProgress): void {
    this.stream.onAttached(pace);
  }

  onDetached(pace: GroupProgress): void {
    this.#cursor = pace.cursor;
    this.#written = pace.cursor;
    this.stream.onDetached(pace);
  }

  detach(): void {
    this.#state.audience?.detach(this);
  }

  miss(upTo: number): void {
    if (this.#cursor < upTo) this.fallBehind();
  }

  fallBehind(): void {
    this.leave();
    // Not now: the application may be in the middle of a `send`.
    this.advance(false);
  }

  flush(isAll = false): void {
    if (this.host.deliveries.has(this.stream)) {
      this.flushPassed();
      return;
    }
    const { audience } = this.#state;
    if (audience?.isRetired === true) this.fallBehind();
    else if (audience !== undefined && isAll) this.flushAll(audience);
    else if (audience !== undefined) this.host.fanOut.flush(audience, this, false);
    this.#rare?.liveOnly?.flush();
  }

  /**
   * In the middle of a delivery, what is pending would come before what is being written. But what a filter sends comes after
   * what it has let through.
   */
  private flushPassed(): void {
    // Each time, a wrapped `write` may end the stream.
    this.writePassed();
    this.#rare?.catchUp?.writePassed();
    this.#rare?.liveOnly?.writePassed();
  }

  private flushAll(audience: Audience): void {
    this.rare.isLeaving = true;
    this.host.fanOut.flush(audience, this, true);
    this.rare.isLeaving = false;
    this.tidy();
  }

  /** Takes what of the frame is beyond the offset and wanted. */
  private takePart(frame: Frame, from: number): void {
    if (this.stream.isBehind && this.#rare?.isLeaving !== true) {
      this.fallBehindOn(frame, from);
      return;
    }
    // Before the filters are called: they may call back.
    this.#cursor = frame.last;
    const { deliveries } = this.host;
    deliveries.begin(this.stream);
    try {
      const { rare } = this;
      for (const entry of frame.entries) {
        if (entry.offset > from && this.lets(entry)) (rare.passed ??= []).push(entry);
      }
      this.writePassed();
    } catch (error) {
      this.fail(error);
    } finally {
      deliveries.end();
    }
    this.onDelivered();
  }

  /** Writes the entries that the filters have let through by now. */
  private writePassed(): void {
    const passed = this.#rare?.passed;
    if (passed === undefined) return;
    this.rare.passed = undefined;
    const { bytes, last } = this.host.fanOut.joined(passed);
    this.onWriting(last);
    this.stream.writeBytes(bytes, passed.length);
  }

  /** A slow reader costs a cursor, not a queue: it leaves the live ones, having been given all before this frame. */
  private fallBehindOn(frame: Frame, from: number): void {
    if (this.#rare?.isLeaving === true) {
      // There will be no later: what was published before it leaves is written however much is queued.
      this.takePart(frame, from);
      return;
    }
    this.#cursor = Math.max(this.#cursor, frame.first - 1);
    this.fallBehind();
  }

  // What a stream that is behind tells.

  moveTo(offset: number): void {
    this.#cursor = offset;
  }

  beginAnew(epoch: string): void {
    this.change({ epoch });
    this.#cursor = 0;
    this.#written = -1;
  }

  onWriting(offset: number): void {
    this.#written = offset;
    this.noteDelivery();
  }

  onGap(gap: Gap): void {
    const holds = this.subscriptions.filter((hold) =>
      gap.channels.some((channel) => hold.hasPlaced(channel)),
    );
    (this.rare.gaps ??= new GapCounts()).add(holds);
    this.host.countGap();
    if (diagnostics.gap.hasSubscribers) diagnostics.gap.publish({ stream: this.stream, ...gap });
  }

  join(): void {
    const { catchUp } = this;
    this.rare.catchUp = undefined;
    const audience = this.host.fanOut.join(this.channels, this);
    this.host.forget(this);
    const neighbour = audience.members.at(-2);
    if (neighbour instanceof StreamFollower && isAlike(this.#state, neighbour.#state)) {
      this.#state = neighbour.#state;
    } else this.change({ audience, channels: audience.channels });
    this.tidy();
    // Until the client knows that it has caught up it would have everything since the step back again.
    if (catchUp.hasSteppedBack && this.#cursor > this.#written) this.writeCheckpoint(this.#cursor);
    catchUp.onJoined();
    this.runDeferred();
  }

  /** Whether a subscription wants the entry: every one on its channel has a say, and one that lets it through is enough. */
  lets(entry: LogEntry): boolean {
    return this.subscriptions.some((hold) => hold.hasPlaced(entry.channel) && hold.lets(entry));
  }

  /** Something threw for this reader: its stream ends, before anything that it should not see. */
  fail(error: unknown): void {
    this.leave();
    this.#rare?.liveOnly?.leave();
    this.stream.fail(error);
  }

  // What the stream asks and tells.

  checkpoint(): boolean {
    const { catchUp } = this.#rare ?? {};
    if (catchUp?.isAsking === true || catchUp?.starts.hasForeign === true) return false;
    if (this.channels.length === 0 || this.epoch === '' || this.host.deliveries.has(this.stream)) {
      return false;
    }
    if (!this.subscriptions.some((hold) => hold.options.checkpoints !== false)) return false;
    const written = this.groupProgress?.cursor ?? this.#written;
    const cursor = Math.max(this.position, this.head ?? 0);
    if (cursor <= written) return false;
    this.detach();
    this.#cursor = cursor;
    this.writeCheckpoint(cursor);
    this.runDeferred();
    return true;
  }

  settle(): Promise<void> | undefined {
    // What a filter is being shown was published before, too.
    if (this.host.deliveries.has(this.stream)) return this.delivered().then(() => this.settle());
    this.flush();
    const { broker } = this.host;
    // A broker that is away for a moment still has what the stream is owed. After its timeout it is not waited for.
    if (broker.state === 'closed' || this.stream.readyState === 2) return undefined;
    if (this.channels.length === 0 && !this.isWaiting) return undefined;
    const position = broker.position();
    if (!(position instanceof Promise) && !this.isWaiting) return undefined;
    return Promise.resolve(position).then(
      (reached) => this.reached(reached),
      () => {},
    );
  }

  stop(): void {
    this.leave();
    this.#rare?.liveOnly?.leave();
    this.#rare?.catchUp?.stop();
    const { subscriptions } = this;
    this.hold([]);
    this.change({ channels: [] });
    for (const channel of channelsOf(subscriptions)) this.host.release(channel);
    for (const hold of subscriptions) hold.begin();
    this.host.forget(this);
    // Gaps that were told remain counted for those who hold a subscription.
    if (this.#rare !== undefined) this.#rare.catchUp = undefined;
    const deferred = this.#rare?.deferred;
    if (this.#rare !== undefined) this.#rare.deferred = undefined;
    for (const change of deferred ?? []) change();
    this.tidy();
  }

  writeCheckpoint(offset: number): void {
    this.#written = offset;
    const { deliveries } = this.host;
    deliveries.begin(this.stream);
    try {
      this.stream.writeOwn(checkpointText(formatCursor(this.epoch, offset)));
    } finally {
      deliveries.end();
    }
  }

  onDelivered(): void {
    this.runDeferred();
    this.advance(false);
    this.tidy();
  }

  private runDeferred(): void {
    const deferred = this.#rare?.deferred;
    if (deferred === undefined || this.host.deliveries.has(this.stream)) return;
    this.rare.deferred = undefined;
    for (const change of deferred) change();
  }

  /** Resolves when what is being written has been written. */
  private delivered(): Promise<void> {
    return new Promise((resolve) => {
      this.defer(resolve);
    });
  }

  private defer(change: () => void): void {
    (this.rare.deferred ??= []).push(change);
  }

  /** Resolves when the stream has been given everything up to the position. */
  private async reached({ epoch, offset }: Cursor): Promise<void> {
    await Promise.all(this.subscriptions.map((hold) => hold.placed()));
    this.flush();
    // While it was waited for, another log may have begun.
    if (this.isBehind && (this.epoch !== epoch || this.#cursor < offset)) {
      await this.catchUp.reached(offset);
    }
  }

  /**
   * The offset up to which the stream has been given everything if nothing is pending for it: the head of the log, however quiet
   * its channels are. To be read before a flush, because a filter may publish.
   * @returns `undefined` where something is pending, or the stream is not live
   */
  private get head(): number | undefined {
    const { audience } = this.#state;
    if (
      audience === undefined ||
      audience.isRetired ||
      this.host.fanOut.hasPending(audience, this)
    ) {
      return undefined;
    }
    return this.host.head;
  }

  /** Sorts out which channels are followed, after a change. The stream leaves the live ones until it has caught up. */
  private regroup(head: number | undefined): void {
    if (this.isLive && head !== undefined) this.#cursor = Math.max(this.#cursor, head);
    const placed = placedChannelsOf(this.subscriptions);
    const channels = channelsOf(this.subscriptions).filter((channel) => placed.has(channel));
    const liveOnly = channels.filter((channel) => !this.host.hasHistory(channel));
    this.leave();
    const { rare } = this;
    rare.liveOnly?.leave();
    const withHistory = new Set(channels);
    for (const channel of liveOnly) withHistory.delete(channel);
    this.change({ channels: [...withHistory] });
    rare.catchUp?.keepOnly(withHistory);
    if (liveOnly.length === 0) rare.liveOnly = undefined;
    else (rare.liveOnly ??= new EphemeralMember(this)).join(liveOnly);
  }

  /** Catches up with the log, if there is something to catch up with. */
  private advance(isNow: boolean): void {
    if (this.isBehind) this.catchUp.start(isNow);
  }

  private leave(): void {
    const { audience } = this.#state;
    if (audience === undefined) return;
    this.host.fanOut.leave(audience, this);
    this.change({ audience: undefined });
    this.host.remember(this);
  }

  private get catchUp(): CatchUp {
    return (this.rare.catchUp ??= new CatchUp(this));
  }

  private get rare(): RareState {
    return (this.#rare ??= new RareState());
  }

  private tidy(): void {
    if (this.#rare?.isEmpty === true) this.#rare = undefined;
  }

  private hold(holds: readonly SubscriptionRecord[]): void {
    this.change({
      holds,
      isFiltered: holds.some(({ options }) => options.filter !== undefined),
      isAsked: holds.some(({ options }) => options.onGap !== undefined),
    });
  }

  private change(changes: Partial<SharedSubscriptionState>): void {
    this.#state = { ...this.#state, ...changes };
  }

  /** A subscription that loses something from here on is asked again. */
  private noteDelivery(): void {
    for (const hold of this.subscriptions) hold.wasAsked = false;
  }
}
