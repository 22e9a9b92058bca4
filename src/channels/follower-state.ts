/** The position of one stream in the log, and its subscription state. */
import type { EventStream } from '../stream/event-stream.ts';
import type { Gap } from '../stream/subscription-types.ts';
import { formatCursor } from '../protocol/cursor.ts';
import { formatCheckpoint } from '../protocol/event-stream-format.ts';
import type { LogEntry } from '../log/log-entry.ts';
import type { GroupProgress } from './audience.ts';
import type { FollowerHost } from './follower-host.ts';
import { SharedSubscriptionState } from './shared-subscription-state.ts';
import { channelsOf, type SubscriptionRecord } from './subscription.ts';

const NOTHING_WRITTEN = -1;

/**
 * The base class of `FrameReceiver` and `StreamFollower`. `CatchUp` and `EphemeralMember` know the
 * follower by this class. `FollowerState` and `FrameReceiver` are base classes and not objects of
 * their own: a quiet live stream has only two objects, `EventStream` and `StreamFollower`, and
 * there may be tens of thousands of such streams. Methods are `private` or `protected`, not
 * `#private`: a class with `#private` methods adds 8 bytes to each of its objects.
 *
 * ```text
 * offsets     ...  41   42   43   44   45   46   47   ...    of all channels of the registry
 *                       ▲         ▲              ▲
 *                       │         │              end of the log
 *                       │         position: everything up to here was written, filtered out,
 *                       │                   or reported as a gap
 *                       writtenOffset: the id that was written last
 * ```
 */
export abstract class FollowerState {
  /** Index in the audience's list of members. Set by the audience. */
  listIndex = -1;
  readonly stream: EventStream;
  // Both are valid while the follower is not attached to an audience. While it is attached, the
  // audience has the cursor, which is also the newest written id.
  protected cursorOffset = 0;
  protected writtenOffset: number = NOTHING_WRITTEN;
  protected state: SharedSubscriptionState;

  constructor(host: FollowerHost, stream: EventStream) {
    this.stream = stream;
    this.state = SharedSubscriptionState.initial(host);
  }

  // Implemented by the follower.

  /** The counts that the audience keeps for the follower while the follower is attached. */
  abstract get groupProgress(): GroupProgress | undefined;
  /** A delivery to the stream has ended. */
  abstract onDelivered(): void;
  /** Counts a gap that is about to be reported. */
  abstract countGap(gap: Gap): void;
  /** Nothing is left to read from the log: the stream becomes live. */
  abstract onCaughtUp(): void;
  /** Nothing is left to read from the log, and all channels have ended: the stream ends. */
  abstract onAllEnded(): void;
  /** Ends the stream, because code that runs for it threw an error. */
  abstract fail(error: unknown): void;

  // Subscriptions.

  get host(): FollowerHost {
    return this.state.host;
  }

  /** In the order of the calls of `subscribe`. */
  get subscriptions(): readonly SubscriptionRecord[] {
    return this.state.subscriptions;
  }

  /** The channels with history that are placed, see `SubscriptionRecord`. */
  get channels(): readonly string[] {
    return this.state.channels;
  }

  /** Whether a subscription has a filter. */
  get isFiltered(): boolean {
    return this.state.isFiltered;
  }

  /** Whether the library must not send `sse:` events on this stream (`control: false`). */
  get isWithoutControl(): boolean {
    return this.state.isWithoutControl;
  }

  /** Whether the stream receives published events from an audience. */
  get isLive(): boolean {
    return this.state.audience?.isRetired === false;
  }

  /** Whether the stream reads from the log, and receives no events from an audience. */
  get isCatchingUp(): boolean {
    return !this.isLive && this.channels.length > 0;
  }

  /** Whether the stream waits for the start of a subscription, or is catching up. */
  get isStartingOrCatchingUp(): boolean {
    return this.isCatchingUp || this.subscriptions.some(({ isPlaced }) => !isPlaced);
  }

  /**
   * Whether the stream follows nothing but channels that have ended.
   * @param ended for each of {@link channels}, whether it has ended
   */
  followsOnlyEnded(ended: readonly boolean[]): boolean {
    // A channel that is not placed, or has no history, is not among `channels`.
    return (
      ended.every((isEnded) => isEnded) &&
      this.channels.length === channelsOf(this.subscriptions).length
    );
  }

  /** Whether no id may be written, because a subscription that is not placed may start earlier. */
  get mayNotWriteIds(): boolean {
    return this.subscriptions.some(({ mayStartEarlier, isPlaced }) => mayStartEarlier && !isPlaced);
  }

  /** Replaces the list of subscriptions. */
  setSubscriptions(subscriptions: readonly SubscriptionRecord[]): void {
    this.state = this.state.with({ subscriptions });
  }

  /**
   * Applies the filters: the stream receives an event if at least one of its subscriptions to the
   * channel accepts the event. Nothing is written for the end of a channel.
   */
  accepts(entry: LogEntry): boolean {
    if (entry.isEnd) return false;
    return this.subscriptions.some(
      (record) => record.hasPlaced(entry.channel) && record.accepts(entry),
    );
  }

  // Position.

  /** The epoch of the log to which the position belongs; `''` before it is known. */
  get epoch(): string {
    return this.state.epoch;
  }

  /** Offset up to which everything was written, filtered out, or reported as a gap. */
  get position(): number {
    return this.groupProgress?.cursor ?? this.cursorOffset;
  }

  /** The position as an event id; `''` before it is known. */
  get cursor(): string {
    return this.epoch === '' ? '' : formatCursor(this.epoch, this.position);
  }

  /** Whether an id of this log was written to the client. */
  get hasWritten(): boolean {
    return this.writtenOffset !== NOTHING_WRITTEN;
  }

  /** Whether the client has received an id beyond the position. Not called while attached. */
  get hasWrittenBeyondPosition(): boolean {
    return this.writtenOffset > this.cursorOffset;
  }

  /** Sets the position. Not called while attached. */
  moveTo(offset: number): void {
    this.cursorOffset = offset;
  }

  /** Sets the position in another log, or in the first log of the stream. */
  moveToLog(epoch: string, offset: number): void {
    if (this.epoch !== epoch) {
      this.writtenOffset = NOTHING_WRITTEN;
      this.state = this.state.with({ epoch });
    }
    this.cursorOffset = offset;
  }

  /** Events up to the offset are about to be written to the client. */
  onWriting(offset: number): void {
    this.writtenOffset = offset;
    this.noteDelivery();
  }

  /** Writes an `sse:checkpoint` event, from which the client resumes, unless `control: false`. */
  writeCheckpoint(offset: number): void {
    if (this.isWithoutControl) return;
    this.writtenOffset = offset;
    const { deliveries } = this.host;
    deliveries.enter(this.stream);
    try {
      this.stream.writeText(formatCheckpoint(formatCursor(this.epoch, offset)));
    } finally {
      deliveries.exit();
    }
  }

  /** Events were delivered: after the next gap, `onGap` is called again. */
  protected noteDelivery(): void {
    for (const record of this.subscriptions) record.wasAskedAboutGap = false;
  }
}
