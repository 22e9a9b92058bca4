/**
 * Loads older events from Redis into the cache, once for all calls that need them.
 *
 * If thousands of clients reconnect after a restart of the application, then all of them request
 * the same older events at the same time. Events that do not fit into the cache are not loaded,
 * because they would evict the events of channels that are in use. Pages with such events are read
 * from Redis directly.
 */
import type { TimedEntry } from '../../log/log.ts';
import type { ConditionQueue } from './condition-queue.ts';
import type { LogCache, MissingRange } from './log-cache.ts';
import type { LocalLog } from './local-log.ts';
import type { LogClient } from './log-client.ts';
import type { ChannelSnapshot } from './log-snapshot.ts';
import type { SequenceTracker } from './sequence-tracker.ts';
import type { SharedQueries } from './shared-queries.ts';

// Maximum number of sets of channels that are remembered as too large for the cache.
const MAX_OVERSIZED_SETS = 100;

/** The older events of one channel while they are loaded. */
interface ChannelLoad {
  readonly channel: string;
  readonly bytes: number;
  readonly range: MissingRange;
  /** The events after this offset have not been read. */
  readonly after: number;
  /** Offset of the newest event that is not kept or cannot be read. */
  readonly trimmed: number;
  readonly entries: TimedEntry[];
}

/** Loads the {@link MissingRange missing ranges} of channels. */
export class HistoryLoader {
  readonly #client: LogClient;
  readonly #cache: LogCache;
  readonly #tracker: SequenceTracker;
  readonly #conditions: ConditionQueue;
  readonly #queries: SharedQueries;
  readonly #oversizedMs: number;
  // Pending loads, by channel. One load has several channels.
  readonly #loads = new Map<string, Promise<void>>();
  // Bytes of the pending loads, for which the cache has made room.
  #pendingBytes = 0;
  // Sets of channels that did not fit into the cache, and the time in ms until which they are not
  // loaded again; the oldest first.
  readonly #oversizedUntil = new Map<string, number>();

  /**
   * @param oversizedMs time in ms for which channels that do not fit into the cache are not loaded
   */
  constructor(
    client: LogClient,
    { cache, tracker }: LocalLog,
    conditions: ConditionQueue,
    queries: SharedQueries,
    oversizedMs: number,
  ) {
    this.#client = client;
    this.#cache = cache;
    this.#tracker = tracker;
    this.#conditions = conditions;
    this.#queries = queries;
    this.#oversizedMs = oversizedMs;
  }

  /**
   * Loads the older events of channels. Events that do not fit into the cache stay in Redis.
   * @returns a promise that resolves when the cache has been filled as far as possible. It resolves
   * with `true`, because `undefined` is the result of `SharedQueries.answerOrPause` for a failure
   */
  async load(channels: readonly string[]): Promise<true> {
    const added = channels.filter((channel) => !this.#loads.has(channel));
    const setName = added.join('\n');
    const isOversized = (this.#oversizedUntil.get(setName) ?? 0) > performance.now();
    if (added.length > 0 && !isOversized) {
      const load = this.#queries.reportFailureOf(this.#loadSet(added, setName)).finally(() => {
        for (const channel of added) this.#loads.delete(channel);
      });
      for (const channel of added) this.#loads.set(channel, load);
    }
    const pending = new Set<Promise<void>>();
    for (const channel of channels) {
      const load = this.#loads.get(channel);
      if (load !== undefined) pending.add(load);
    }
    await Promise.all(pending);
    return true;
  }

  /** Loads the older events of a set of channels, if they fit into the cache. */
  async #loadSet(channels: readonly string[], setName: string): Promise<void> {
    // The sizes are queried first, because a set that does not fit is not read.
    const snapshot = await this.#client.look(
      channels.map((channel) => ({ channel, after: undefined })),
    );
    if (snapshot.epoch !== this.#cache.epoch) return;
    const sizes = snapshot.channels.map(({ bytes }) => bytes);
    const total = sizes.reduce((sum, bytes) => sum + bytes, 0);
    const keep = new Set([...channels, ...this.#loads.keys()]);
    if (!this.#cache.makeRoom(total + this.#pendingBytes, keep)) {
      this.#noteOversized(setName);
      return;
    }
    this.#pendingBytes += total;
    try {
      const loads = channels.flatMap((channel, index): ChannelLoad[] => {
        const range = this.#cache.missingRange(channel);
        if (range === undefined) return [];
        const bytes = sizes[index] as number;
        return [{ channel, bytes, range, after: range.after, trimmed: 0, entries: [] }];
      });
      await this.#readAll(loads);
    } finally {
      this.#pendingBytes -= total;
    }
  }

  /**
   * Reads some channels at a time until all are complete. The events of a channel are added to the
   * cache when the channel is complete, because the cache must not have a hole.
   */
  async #readAll(loads: readonly ChannelLoad[]): Promise<void> {
    let remaining = loads;
    while (remaining.length > 0) {
      const maxBytes = this.#client.answerBytes;
      const batch = remaining.slice(0, countForAnswer(remaining, maxBytes));
      const queries = batch.map(({ channel, range, after }) => {
        return { channel, after, until: range.until };
      });
      // If the answer had no events, the load would never end, so the bytes are requested in any
      // case.
      const snapshot = await this.#client.look(queries, '', maxBytes, maxBytes);
      if (snapshot.epoch !== this.#cache.epoch) return;
      if (snapshot.head > this.#tracker.head) {
        // The answer is newer than the messages so far. It may say that events are deleted because
        // newer events replaced them, so wait until the newer events are applied.
        await this.#conditions.until(snapshot.head, undefined);
        // The log was replaced or has gone back. The events that are not loaded stay in Redis.
        if (snapshot.epoch !== this.#cache.epoch || snapshot.head > this.#tracker.head) return;
      }
      const unfinished: ChannelLoad[] = [];
      for (const [index, load] of batch.entries()) {
        const state = snapshot.channels[index] as ChannelSnapshot;
        for (const kept of state.entries) load.entries.push(kept);
        const trimmed = Math.max(load.trimmed, state.trimmed);
        if (state.hasMore) {
          unfinished.push({ ...load, after: Math.max(load.after, state.last), trimmed });
        } else {
          this.#cache.prepend(load.channel, load.range, { ...state, trimmed }, load.entries);
        }
      }
      remaining = [...unfinished, ...remaining.slice(batch.length)];
    }
  }

  /** Remembers a set of channels that does not fit, and forgets expired or excess ones. */
  #noteOversized(setName: string): void {
    const now = performance.now();
    for (const [name, until] of this.#oversizedUntil) {
      if (until > now && this.#oversizedUntil.size < MAX_OVERSIZED_SETS) break;
      this.#oversizedUntil.delete(name);
    }
    this.#oversizedUntil.set(setName, now + this.#oversizedMs);
  }
}

/** @returns how many of the loads have about this number of bytes together; at least 1 */
function countForAnswer(loads: readonly ChannelLoad[], maxBytes: number): number {
  let bytes = 0;
  let count = 0;
  for (const load of loads) {
    bytes += load.bytes;
    if (count > 0 && bytes > maxBytes) break;
    count++;
  }
  return count;
}
