/** The number of gaps of a stream, for `Subscription.gaps`. */
import { channelsKey } from './fan-out.ts';
import type { SubscriptionRecord } from './subscription.ts';

/** Gap counts per set of channels: subscriptions to the same set share a count. */
export class GapCounts {
  readonly #counts = new Map<string, number>();

  /** Counts one gap for each set of channels among the subscriptions. */
  add(records: readonly SubscriptionRecord[]): void {
    const keys = new Set(records.map(({ channels }) => channelsKey(channels)));
    for (const key of keys) this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  /** Number of gaps counted for exactly this set of channels. */
  of(channels: readonly string[]): number {
    return this.#counts.get(channelsKey(channels)) ?? 0;
  }

  /** Removes all counts except those of the sets of channels of these subscriptions. */
  keepOnly(records: readonly SubscriptionRecord[]): void {
    const keys = new Set(records.map(({ channels }) => channelsKey(channels)));
    for (const key of this.#counts.keys()) if (!keys.has(key)) this.#counts.delete(key);
  }

  get isEmpty(): boolean {
    return this.#counts.size === 0;
  }
}
