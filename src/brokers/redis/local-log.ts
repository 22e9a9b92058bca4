/**
 * The part of the log that this node has: the channels to which it is subscribed, their recent
 * events, and the place up to which nothing is missing. Passes events on to the registry.
 *
 *     message ─▶ SequenceTracker ─▶ LocalLog ─┬─▶ LogCache
 *                (order, missed?)             └─▶ Receiver.receive(), if streams follow the channel
 */
import type { LogEntry } from '../../log/log-entry.ts';
import type { Receiver } from '../broker.ts';
import { ChannelInterest } from './channel-interest.ts';
import { LogCache } from './log-cache.ts';
import type { ChannelSnapshot, LogSnapshot } from './log-snapshot.ts';
import { parseEntry, type EntryMetadata } from './message-format.ts';
import { SequenceTracker, type SequenceTrackerHost } from './sequence-tracker.ts';

/** The local part of the log. */
export class LocalLog implements SequenceTrackerHost {
  readonly interest: ChannelInterest = new ChannelInterest();
  readonly tracker: SequenceTracker = new SequenceTracker(this);
  readonly cache: LogCache;
  /** The registry; `undefined` before the broker is opened. */
  receiver: Receiver | undefined;
  readonly #isOpen: () => boolean;
  readonly #report: (error: Error) => void;
  // Events of channels without history are numbered on each node.
  #ephemeralOffset = 0;

  /**
   * @param inUseMs see {@link LogCache}
   * @param isOpen whether messages are processed as they arrive, not after a read of the log
   * @param report called with an error for each event that cannot be read
   */
  constructor(inUseMs: number, isOpen: () => boolean, report: (error: Error) => void) {
    this.cache = new LogCache(inUseMs);
    this.#isOpen = isOpen;
    this.#report = report;
  }

  isExpected(channel: string): boolean {
    return this.interest.get(channel)?.isSubscribed === true;
  }

  onAppended(entry: LogEntry, metadata: EntryMetadata): void {
    const { channel } = entry;
    if (this.interest.get(channel) === undefined) return;
    // The clock can be set only by an event that was applied as soon as it arrived.
    if (this.#isOpen()) this.cache.setClock(metadata.at);
    this.cache.push(entry, metadata);
    if (this.interest.isFollowed(channel)) this.receiver?.receive(entry);
  }

  onCleared(channel: string, trimmed: number): void {
    this.cache.clear(channel, trimmed);
  }

  /** Passes on an event of a channel without history. */
  receiveEphemeral(channel: string, body: string): void {
    if (!this.interest.isFollowed(channel)) return;
    const entry = parseEntry(body, channel, undefined, ++this.#ephemeralOffset);
    if (entry === undefined) {
      this.#report(new Error(`an event of channel ${channel} cannot be read`));
    } else {
      this.receiver?.receive(entry);
    }
  }

  /** Adds a channel whose subscription has been confirmed. */
  addChannel(channel: string, snapshot: ChannelSnapshot): void {
    this.cache.add(channel, snapshot, this.tracker.head);
  }

  /**
   * Interrupts the registry if the log has gone back: the offsets of events that an earlier attempt
   * to heal has passed on must not be compared to offsets of this log.
   * @param snapshot the first answer of the attempt
   */
  onReading({ epoch, head }: LogSnapshot): void {
    if (epoch === this.tracker.epoch && head < this.tracker.head) this.receiver?.interrupted();
  }

  /**
   * Updates channels after messages may have been missed.
   * @param snapshot the answer to a query for the events that the cache does not have
   * @param head offset up to which the log is read
   * @param isLast whether the channels are not queried again: events that are missing in the
   * snapshot are then not loaded into the cache
   * @returns number of events in the snapshot
   */
  update(
    channels: readonly string[],
    snapshot: LogSnapshot,
    head: number,
    isLast: boolean,
  ): number {
    const { cache } = this;
    if (snapshot.epoch !== cache.epoch) {
      // An attempt to heal that has failed may have passed on events of the previous log. The
      // offsets of these events must not be compared to offsets of this log.
      if (cache.epoch !== '') this.receiver?.interrupted();
      cache.reset(snapshot.epoch);
    }
    return cache.update(channels, snapshot, head, isLast);
  }

  /** Removes a channel that the node is not subscribed to any more. */
  removeChannel(channel: string): void {
    this.cache.remove(channel);
  }
}
