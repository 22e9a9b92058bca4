/** The handle for the caller of `subscribe`, which ends the subscription. */
import type { Subscription } from '../stream/subscription-types.ts';
import type { StreamFollower } from './follower.ts';
import { channelsOf, type SubscriptionRecord } from './subscription.ts';

/**
 * The object that the caller of `subscribe` gets. Most callers ignore it. The library keeps no
 * reference to the object, so that it can be garbage-collected.
 */
export class SubscriptionHandle implements Subscription {
  readonly #follower: StreamFollower;
  readonly #record: SubscriptionRecord;
  readonly #gapsBefore: number;
  // The final count, from the moment at which the subscription was ended by this handle.
  #finalGaps: number | undefined;

  constructor(follower: StreamFollower, record: SubscriptionRecord) {
    this.#follower = follower;
    this.#record = record;
    this.#gapsBefore = follower.gapsOf(record.channels);
  }

  get channels(): readonly string[] {
    return this.#record.channels;
  }

  get recovered(): boolean {
    return this.#record.recovered;
  }

  get gaps(): number {
    return this.#finalGaps ?? this.#follower.gapsOf(this.channels) - this.#gapsBefore;
  }

  get cursor(): string {
    return this.#follower.cursor;
  }

  unsubscribe(): void {
    // A second call would end another subscription of the stream with the same channels and
    // options.
    if (this.#finalGaps !== undefined) return;
    this.#finalGaps = this.gaps;
    removeSubscription(this.#follower, this.#record);
  }
}

/** The result of `subscribe` on a stream that has ended. */
export function endedSubscription(channels: readonly string[]): Subscription {
  return { channels, recovered: false, gaps: 0, cursor: '', unsubscribe: () => {} };
}

/**
 * Ends a subscription, after the delivery of pending events. No effect if the subscription has
 * ended before.
 * @param isDeferred whether the call was made during a delivery. The delivery may be the first part
 * of a `send()`, so the stream must not catch up, and perhaps end, inside this call
 */
export function removeSubscription(
  follower: StreamFollower,
  record: SubscriptionRecord,
  isDeferred: boolean = false,
): void {
  const { host, stream } = follower;
  if (host.deliveries.has(stream)) {
    follower.deferChange(() => removeSubscription(follower, record, true));
    return;
  }
  const head = follower.headIfCaughtUp;
  follower.flush(true);
  // A filter that ran in the flush may have ended the stream. The list may contain a shared record
  // in place of this record.
  const index = follower.subscriptions.findIndex((other) => other.isLike(record));
  if (index === -1) return;
  follower.setSubscriptions(follower.subscriptions.toSpliced(index, 1));
  const followed = new Set(channelsOf(follower.subscriptions));
  for (const channel of record.channels) {
    if (!followed.has(channel)) host.followedChannels.release(channel);
  }
  record.finishStart();
  follower.onSubscriptionEnded(record, head, !isDeferred);
}
