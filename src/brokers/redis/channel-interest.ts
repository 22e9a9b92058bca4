/** The channels that a node is subscribed to, or will be. */
import { deferred, type Deferred } from '../../common/async.ts';

/**
 * A channel that streams of this node follow, or followed until recently.
 *
 *     want() ─▶ requested ─▶ isSubscribed ─▶ isReady      leave() ─▶ idle ─▶ expire()
 */
export interface InterestEntry {
  readonly channel: string;
  /** Redis has confirmed the subscription: events of the channel arrive from here on. */
  isSubscribed: boolean;
  /** The state of the channel is known, too: the next event that arrives continues this state. */
  isReady: boolean;
  /** Resolves when `isReady` is set, or when the entry was removed. */
  readonly ready: Deferred<void>;
}

// Maximum number of channels without followers that stay subscribed.
const MAX_IDLE_CHANNELS = 1_000;

/** The set of {@link InterestEntry entries}, with an order of expiry. */
export class ChannelInterest {
  readonly #channels = new Map<string, InterestEntry>();
  // When the last follower left, by channel, in the order of these times.
  readonly #idleSince = new Map<string, number>();
  readonly #pending = new Set<InterestEntry>();

  get(channel: string): InterestEntry | undefined {
    return this.#channels.get(channel);
  }

  /** Whether streams of this node follow the channel now. */
  isFollowed(channel: string): boolean {
    return this.#channels.has(channel) && !this.#idleSince.has(channel);
  }

  /** Whether all of the channels are ready: the events that arrive continue what a read returns. */
  areReady(channels: readonly string[]): boolean {
    return channels.every((channel) => this.#channels.get(channel)?.isReady === true);
  }

  /** Adds a channel, or keeps an idle one. */
  want(channel: string): InterestEntry {
    this.#idleSince.delete(channel);
    const known = this.#channels.get(channel);
    if (known !== undefined) return known;
    const entry: InterestEntry = {
      channel,
      isSubscribed: false,
      isReady: false,
      ready: deferred(),
    };
    this.#channels.set(channel, entry);
    this.#pending.add(entry);
    return entry;
  }

  /** The last stream that followed the channel has left. */
  leave(channel: string, now: number): void {
    if (this.#channels.has(channel)) this.#idleSince.set(channel, now);
  }

  /**
   * Removes channels that have been idle since a time before `before`. If too many channels remain
   * idle, removes those that have been idle for the longest time.
   * @returns the removed entries
   */
  expire(before: number): InterestEntry[] {
    const expired: InterestEntry[] = [];
    for (const [channel, since] of this.#idleSince) {
      if (since > before && this.#idleSince.size <= MAX_IDLE_CHANNELS) break;
      const entry = this.#channels.get(channel) as InterestEntry;
      this.#idleSince.delete(channel);
      this.#channels.delete(channel);
      this.#pending.delete(entry);
      entry.ready.resolve();
      expired.push(entry);
    }
    return expired;
  }

  /** Marks all channels as not subscribed, because a new connection has no subscriptions. */
  resetSubscriptions(): void {
    for (const entry of this.#channels.values()) entry.isSubscribed = false;
  }

  get hasPending(): boolean {
    return this.#pending.size > 0;
  }

  /** @returns at most `max` entries that are not ready */
  pending(max: number): InterestEntry[] {
    const entries: InterestEntry[] = [];
    for (const entry of this.#pending) {
      if (entries.length === max) break;
      entries.push(entry);
    }
    return entries;
  }

  /** Sets an entry ready, and resolves its promise. */
  markReady(entry: InterestEntry): void {
    entry.isReady = true;
    this.#pending.delete(entry);
    entry.ready.resolve();
  }

  /** Resolves the promises of all pending entries: the broker is closed. */
  close(): void {
    for (const { ready } of this.#pending) ready.resolve();
  }

  all(): InterestEntry[] {
    return [...this.#channels.values()];
  }
}
