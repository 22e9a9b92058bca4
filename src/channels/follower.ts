/**
 * A stream that follows channels: the moves between its states.
 *
 * ```text
 * waiting ───────► catching up ───────► live, not attached ◄───────► live, attached
 * the position     CatchUp reads        in an audience; counts       in an audience, which
 * in the log is    the log              for itself                   counts for the stream
 * not known           ▲                         │                           │
 *                     └─────── fallBehind() ────┴───────────────────────────┘
 *                              behind (see send-limit.ts), interruption,
 *                              new subscription, or more pending events
 *                              than one flush writes
 * ```
 *
 * All streams go through the same states: a new stream, one that resumes and one that is behind
 * differ only in their position. Before anything but a frame is written to an attached stream, the
 * stream is detached.
 *
 * The states of one stream concern its channels with history. Membership in an audience of channels
 * without history (`EphemeralMember`) is independent of them.
 */
import type { Cursor } from '../protocol/cursor.ts';
import { diagnostics } from '../common/diagnostics.ts';
import type { Follower, Gap } from '../stream/subscription-types.ts';
import type { GroupProgress } from './audience.ts';
import { CatchUp } from './catch-up.ts';
import { EphemeralMember } from './ephemeral-member.ts';
import { FrameReceiver } from './frame-receiver.ts';
import { GapCounts } from './gap-counts.ts';
import { channelsOf, placedChannelsOf, type SubscriptionRecord } from './subscription.ts';

/** Follows channels for one stream, with one cursor for all subscriptions of the stream. */
export class StreamFollower extends FrameReceiver implements Follower {
  // Properties of the stream that the application can read.

  get channelNames(): readonly string[] {
    return channelsOf(this.subscriptions);
  }

  get lag(): number {
    const { audience } = this.state;
    if (audience?.isRetired === false) return this.host.fanOut.countPending(audience, this);
    return this.isCatchingUp ? this.host.broker.countHeld(this.channels, this.position) : 0;
  }

  // Attaching.

  get groupProgress(): GroupProgress | undefined {
    return this.state.audience?.progressOf(this);
  }

  onAttached(progress: GroupProgress): void {
    this.stream.onAttached(progress);
  }

  onDetached(progress: GroupProgress): void {
    this.cursorOffset = progress.cursor;
    this.writtenOffset = progress.cursor;
    this.stream.onDetached(progress);
  }

  /** Called by the stream before something is written that the audience does not count. */
  detach(): void {
    this.state.audience?.detach(this);
  }

  // Moves between catching up and live.

  fallBehind(): void {
    this.leaveAudience();
    // Not in this call: the application may be in the middle of a `send`.
    this.startCatchUp(false);
  }

  /** Leaves the audience, and takes over the counts if attached. No effect outside an audience. */
  private leaveAudience(): void {
    const { audience } = this.state;
    if (audience === undefined) return;
    this.host.fanOut.removeMember(audience, this);
    this.state = this.state.with({ audience: undefined });
    this.host.trackStream(this.stream);
  }

  /**
   * Starts to read the log, if the stream is catching up.
   * @param mayRunNow as in `CatchUp.start`
   */
  startCatchUp(mayRunNow: boolean): void {
    if (!this.isCatchingUp) return;
    // The stream may still be a member of a retired audience, which its members leave in slices. If
    // the stream joined another audience before, it could never leave the retired audience.
    this.leaveAudience();
    this.ensureCatchUp().start(mayRunNow);
  }

  /** The stream has received everything, and nothing will follow: its client must not reconnect. */
  onAllEnded(): void {
    this.stream.closeFor('final', { final: true });
  }

  /** Joins the audience of the channels. */
  onCaughtUp(): void {
    const catchUp = this.ensureCatchUp();
    this.ensureRareState().catchUp = undefined;
    const audience = this.host.fanOut.addMember(this.channels, this);
    this.host.untrackStream(this.stream);
    this.state = this.state.inAudience(audience);
    this.releaseRareState();
    // If ids have become smaller, the client's newest id may be too small. Without a checkpoint, a
    // client that reconnects now would receive the events since that id again.
    if (catchUp.hasSteppedBack && this.cursorOffset > this.writtenOffset) {
      this.writeCheckpoint(this.cursorOffset);
    }
    catchUp.resolveWaiters();
    this.runDeferredChanges();
  }

  /**
   * Falls behind, so that no more ids are written until the new subscription is placed: it may
   * start earlier. `mayNotWriteIds` stops the catch-up until then. If a later id was written
   * before, a checkpoint with the earlier offset is written at once, so that a client that
   * reconnects meanwhile resumes from there.
   * @param offset the earliest offset at which the subscription may start
   */
  holdBackIds(offset: number): void {
    this.fallBehind();
    if (this.writtenOffset <= offset) return;
    this.ensureCatchUp().hasSteppedBack = true;
    this.writeCheckpoint(offset);
  }

  /**
   * Applies a change of the subscriptions to the stream's channels. The stream leaves its
   * audiences. It joins an audience of the new channels when it has caught up with them.
   * @param head the result of {@link headIfCaughtUp} before the change
   */
  updateChannels(head: number | undefined): void {
    if (this.isLive && head !== undefined) this.cursorOffset = Math.max(this.cursorOffset, head);
    const placed = placedChannelsOf(this.subscriptions);
    const channels = channelsOf(this.subscriptions).filter((channel) => placed.has(channel));
    const { followedChannels } = this.host;
    const ephemeral = channels.filter((channel) => !followedChannels.hasHistory(channel));
    this.leaveAudience();
    const rare = this.ensureRareState();
    const withHistory = new Set(channels);
    for (const channel of ephemeral) withHistory.delete(channel);
    this.state = this.state.with({ channels: [...withHistory] });
    rare.catchUp?.onChannelsChanged(withHistory);
    if (ephemeral.length > 0) (rare.ephemeral ??= new EphemeralMember(this)).follow(ephemeral);
    else {
      rare.ephemeral?.leave();
      rare.ephemeral = undefined;
    }
  }

  /**
   * The end of the log, if the stream is live and no event is pending for it: then the stream has
   * received everything up to the end of the log, even if the newest event of its channels is much
   * older. Must be read before a flush, because filters may publish during the flush.
   */
  get headIfCaughtUp(): number | undefined {
    const { audience } = this.state;
    if (audience?.isRetired !== false || this.host.fanOut.hasPending(audience, this)) {
      return undefined;
    }
    return this.host.broker.head;
  }

  /**
   * A subscription has been removed from the list, and its channels were released.
   * @param head as in {@link updateChannels}
   * @param mayRunNow as in `CatchUp.start`
   */
  onSubscriptionEnded(
    record: SubscriptionRecord,
    head: number | undefined,
    mayRunNow: boolean,
  ): void {
    const rare = this.rare;
    rare?.gapCounts?.keepOnly(this.subscriptions);
    rare?.catchUp?.onSubscriptionEnded(record);
    this.updateChannels(head);
    if (this.subscriptions.length === 0) this.host.untrackStream(this.stream);
    this.startCatchUp(mayRunNow);
    if (!this.isCatchingUp && this.rare?.catchUp?.isIdle === true) this.rare.catchUp = undefined;
    this.releaseRareState();
  }

  // Gaps and errors.

  /** Whether an `onGap` or `snapshot` of the stream is running. */
  get isAskingAboutGap(): boolean {
    return this.rare?.catchUp?.isAsking === true;
  }

  /** Number of gaps reported to subscriptions to exactly this set of channels. */
  gapsOf(channels: readonly string[]): number {
    return this.rare?.gapCounts?.of(channels) ?? 0;
  }

  /** Counts a gap for the subscriptions to its channels. */
  countGap(gap: Gap): void {
    const records = this.subscriptions.filter((record) =>
      gap.channels.some((channel) => record.hasPlaced(channel)),
    );
    (this.ensureRareState().gapCounts ??= new GapCounts()).add(records);
    this.host.countGap();
    if (diagnostics.gap.hasSubscribers) diagnostics.gap.publish({ stream: this.stream, ...gap });
  }

  /** Leaves the audiences first, so that no later event is written. Then ends the stream. */
  fail(error: unknown): void {
    this.leaveAudience();
    this.rare?.ephemeral?.leave();
    this.stream.fail(error);
  }

  // Methods that the stream calls.

  checkpoint(): boolean {
    const catchUp = this.rare?.catchUp;
    // While an `onGap` is running, or a gap is not reported yet, the client does not have
    // everything up to the position.
    if (catchUp?.isAsking === true || catchUp?.starts.hasForeign === true) return false;
    // The position is not known, or is about to change.
    if (this.channels.length === 0 || this.epoch === '' || this.host.deliveries.has(this.stream)) {
      return false;
    }
    if (this.mayNotWriteIds || this.isWithoutControl) return false;
    if (!this.subscriptions.some(({ options }) => options.checkpoints !== false)) return false;
    const written = this.groupProgress?.cursor ?? this.writtenOffset;
    const cursor = Math.max(this.position, this.headIfCaughtUp ?? 0);
    if (cursor <= written) return false;
    // A checkpoint does not belong to the events that the audience counts.
    this.detach();
    this.cursorOffset = cursor;
    this.writeCheckpoint(cursor);
    this.runDeferredChanges();
    return true;
  }

  settle(): Promise<void> | undefined {
    // The entries that are being delivered were published before this call, too.
    if (this.host.deliveries.has(this.stream)) {
      return this.whenDelivered().then(() => this.settle());
    }
    this.flush();
    const { broker } = this.host;
    // A broker that is unreachable for a moment still has the events, so this method waits for its
    // answer, at most until the timeout of the broker. It does not wait for a closed broker.
    if (broker.state === 'closed' || this.stream.readyState === 2) return undefined;
    if (this.channels.length === 0 && !this.isStartingOrCatchingUp) return undefined;
    const position = broker.position();
    if (!(position instanceof Promise) && !this.isStartingOrCatchingUp) return undefined;
    return Promise.resolve(position).then(
      (reached) => this.waitUntilReached(reached),
      // The broker is unreachable, so there is nothing to wait for.
      () => {},
    );
  }

  /** Resolves when the stream has received everything up to the position. */
  private async waitUntilReached({ epoch, offset }: Cursor): Promise<void> {
    await Promise.all(this.subscriptions.map((record) => record.whenPlaced()));
    this.flush();
    // Another log may have replaced the log meanwhile.
    if (this.isCatchingUp && (this.epoch !== epoch || this.cursorOffset < offset)) {
      await this.ensureCatchUp().whenReached(offset);
    }
  }

  /**
   * The stream has ended: leaves its audiences, releases its channels, and resolves the promises
   * that wait for the stream.
   */
  stop(): void {
    this.leaveAudience();
    this.rare?.ephemeral?.leave();
    this.rare?.catchUp?.stop();
    const { subscriptions } = this;
    this.state = this.state.with({ subscriptions: [], channels: [] });
    for (const channel of channelsOf(subscriptions)) this.host.followedChannels.release(channel);
    for (const record of subscriptions) record.finishStart();
    this.host.untrackStream(this.stream);
    const rare = this.rare;
    if (rare === undefined) return;
    // The gap counts remain, because callers may still read `Subscription.gaps`.
    rare.catchUp = undefined;
    const deferred = rare.deferredChanges;
    rare.deferredChanges = undefined;
    for (const change of deferred ?? []) change();
    this.releaseRareState();
  }

  /** Returns the catch-up of the stream, which is made if the stream has none. */
  ensureCatchUp(): CatchUp {
    return (this.ensureRareState().catchUp ??= new CatchUp(this));
  }
}
