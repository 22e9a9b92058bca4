/** Delivery of published events to one stream: frames, and the flush of pending events. */
import type { Socket } from 'node:net';
import type { GzipWindow } from '../protocol/gzip-window.ts';
import type { Audience, GroupProgress, Member } from './audience.ts';
import { FollowerState } from './follower-state.ts';
import type { Frame } from './frame.ts';
import { RareFollowerState } from './rare-follower-state.ts';

/**
 * The base class of `StreamFollower`, which moves the stream between its states. The fields of a
 * quiet stream are in `FollowerState`. Fields that only few streams need are in a
 * {@link RareFollowerState}, which exists only while one of them is in use.
 *
 * ```text
 * the audience ─► takeFrame() ──┬──► written as shared bytes
 *                               ├──► written after the filters
 *                               └──► behind: fallBehind(), reads the log later
 * before an end, a send or a change of subscriptions
 *              ─► flush() ──► takeFrame() for the pending frames
 * ```
 */
export abstract class FrameReceiver extends FollowerState implements Member {
  protected rare: RareFollowerState | undefined;

  // Implemented by the follower.

  abstract fallBehind(): void;
  abstract onAttached(progress: GroupProgress): void;
  abstract onDetached(progress: GroupProgress): void;
  /** Starts to read the log, if the stream is catching up. @param mayRunNow see `CatchUp.start` */
  abstract startCatchUp(mayRunNow: boolean): void;

  get isCompressed(): boolean {
    return this.stream.gzip !== undefined;
  }

  // Frames. The hot path: takeFrame() of every live stream runs for each frame, unless the stream
  // is attached.

  takeFrame(frame: Frame, window?: GzipWindow): Socket | undefined {
    const from = this.cursorOffset;
    if (frame.lastOffset <= from) return undefined;
    if (frame.firstOffset <= from || this.isFiltered || frame.hasEnd) {
      this.writeSelected(frame, from);
      if (frame.hasEnd) this.onEndTaken();
      return undefined;
    }
    const written = this.writtenOffset;
    // Set before anything is written, because a wrapped `res.write` may call back.
    this.cursorOffset = frame.lastOffset;
    this.writtenOffset = frame.lastOffset;
    const { deliveries } = this.host;
    deliveries.enter(this.stream);
    let isWritten: boolean;
    try {
      isWritten = this.stream.writeShared(frame, frame.entries.length, window);
    } finally {
      deliveries.exit();
    }
    if (!isWritten) {
      this.cursorOffset = from;
      this.writtenOffset = written;
      this.onBehind(frame, from);
      return undefined;
    }
    if (this.state.hasGapHandler) this.noteDelivery();
    if (this.rare?.deferredChanges !== undefined) {
      // A deferred change may move the stream out of the audience.
      this.runDeferredChanges();
      return undefined;
    }
    // Not attached if an ephemeral member writes to the same stream.
    return this.rare?.ephemeral === undefined ? this.stream.directSocket : undefined;
  }

  /**
   * The stream has taken a frame with the end of a channel. It falls behind, because the catch-up
   * decides whether the stream ends as well. During `flushAll()`, it falls behind after the flush.
   */
  private onEndTaken(): void {
    if (this.rare?.isFlushingAll === true) this.rare.hasFlushedEnd = true;
    else this.fallBehind();
  }

  /**
   * Writes the entries of the frame that come after `from` and that the filters accept. Used if the
   * stream has filters, if a part of the frame is old, if the frame has an end, and if the stream
   * is behind during `flushAll()`.
   */
  private writeSelected(frame: Frame, from: number): void {
    if (this.stream.isBehind && this.rare?.isFlushingAll !== true) {
      this.onBehind(frame, from);
      return;
    }
    // Set before the filters are called, because a filter may call back.
    this.cursorOffset = frame.lastOffset;
    const { deliveries } = this.host;
    deliveries.enter(this.stream);
    try {
      const rare = this.ensureRareState();
      for (const entry of frame.entries) {
        if (entry.offset > from && this.accepts(entry)) (rare.acceptedEntries ??= []).push(entry);
      }
      this.writeAccepted();
    } catch (error) {
      this.fail(error);
    } finally {
      deliveries.exit();
    }
    this.onDelivered();
  }

  /** Writes the entries that the filters have accepted by now. */
  private writeAccepted(): void {
    const rare = this.rare;
    const accepted = rare?.acceptedEntries;
    if (rare === undefined || accepted === undefined) return;
    rare.acceptedEntries = undefined;
    const frame = this.host.fanOut.frameOf(accepted);
    this.onWriting(frame.lastOffset);
    this.stream.writeBytes(frame.bytes, accepted.length, frame);
  }

  /**
   * The stream is behind, so it leaves its audience: a stream that is behind needs no queue of
   * events, only a cursor. During `flushAll()`, the frame is queued anyway: `writeSelected()` does
   * not call this method then.
   */
  private onBehind(frame: Frame, from: number): void {
    if (this.rare?.isFlushingAll === true) {
      this.writeSelected(frame, from);
      return;
    }
    // The stream has received everything before the frame, also the events of other channels.
    this.cursorOffset = Math.max(this.cursorOffset, frame.firstOffset - 1);
    this.fallBehind();
  }

  /** The fan-out has dropped entries. The stream reads those that the log still has. */
  onDropped(upTo: number): void {
    if (this.cursorOffset < upTo) this.fallBehind();
  }

  /** Makes the deferred changes, and continues the catch-up, after a delivery. */
  onDelivered(): void {
    this.runDeferredChanges();
    this.startCatchUp(false);
    this.releaseRareState();
  }

  // Pending events.

  /**
   * Writes pending events. In the middle of a delivery, calls only {@link flushAccepted}.
   * @param isAll writes all of them, of any size. Otherwise the stream falls behind if more is
   * pending than the current frame and one further frame
   */
  flush(isAll = false): void {
    if (this.host.deliveries.has(this.stream)) {
      this.flushAccepted();
      return;
    }
    const { audience } = this.state;
    if (audience?.isRetired === true) this.fallBehind();
    else if (audience !== undefined && isAll) this.flushAll(audience);
    else if (audience !== undefined) this.host.fanOut.flushMember(audience, this, false);
    this.rare?.ephemeral?.flush();
  }

  /**
   * In the middle of a delivery, pending events would come before the events that are being
   * written. Only the entries that the filters have accepted by now are written, so that an event
   * that a filter sends comes after them.
   */
  private flushAccepted(): void {
    // A wrapped `res.write` may end the stream during each write, so `rare` is read each time.
    this.writeAccepted();
    this.rare?.catchUp?.writeAccepted();
    this.rare?.ephemeral?.writeAccepted();
  }

  /** Writes all pending events, also if the stream is behind. */
  private flushAll(audience: Audience): void {
    const rare = this.ensureRareState();
    rare.isFlushingAll = true;
    this.host.fanOut.flushMember(audience, this, true);
    rare.isFlushingAll = false;
    if (rare.hasFlushedEnd) {
      rare.hasFlushedEnd = false;
      this.fallBehind();
    }
    this.releaseRareState();
  }

  // Deferred changes.

  /** Calls the function when the delivery that is in progress has ended. */
  deferChange(change: () => void): void {
    (this.ensureRareState().deferredChanges ??= []).push(change);
  }

  /** Resolves when the delivery that is in progress has ended. */
  whenDelivered(): Promise<void> {
    return new Promise((resolve) => {
      this.deferChange(resolve);
    });
  }

  /** Makes the deferred changes, unless a delivery is still in progress. */
  runDeferredChanges(): void {
    const rare = this.rare;
    const deferred = rare?.deferredChanges;
    if (rare === undefined || deferred === undefined) return;
    if (this.host.deliveries.has(this.stream)) return;
    rare.deferredChanges = undefined;
    for (const change of deferred) change();
  }

  // Rare state.

  protected ensureRareState(): RareFollowerState {
    return (this.rare ??= new RareFollowerState());
  }

  /** Removes the rare state if none of its fields is in use. */
  protected releaseRareState(): void {
    if (this.rare?.isEmpty === true) this.rare = undefined;
  }
}
