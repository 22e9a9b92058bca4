/**
 * The newest events of the channels that a node is subscribed to, so that reconnecting clients are
 * served without a query to Redis.
 *
 *     channel   ──── lost ─────── log.lastMissingOffset ─────── log.newest ────▶
 *                │     │                    │                       │
 *       deleted ─┘     │  still in          │  in the cache,        └─ the next event is added here
 *       in Redis       │  Redis only        │  without a hole
 *                      └── loadable ────────┘
 */
import { ChannelLog, type HistoryLimits, type TimedEntry, type LogRead } from '../../log/log.ts';
import { mergeLogs } from '../../log/merge.ts';
import type { LogEntry } from '../../log/log-entry.ts';
import {
  lostOffset,
  type ChannelSnapshot,
  type StoredChannel,
  type Discontinuities,
  type LogSnapshot,
} from './log-snapshot.ts';
import type { EntryMetadata } from './message-format.ts';

/**
 * The range of events of a channel that may be in Redis and are not in the cache. It is valid as
 * long as the cache has the same log of the channel, and this log begins at the same offset.
 */
export interface MissingRange {
  readonly log: object;
  /** Offset after which the range begins. */
  readonly after: number;
  /** Offset of the last event of the range. */
  readonly until: number;
}

interface CachedChannel {
  readonly channel: string;
  /** The events after `log.lastMissingOffset`. Older events may still be in Redis. */
  readonly log: ChannelLog;
  /** Offset of the newest event that is not in Redis any more. */
  lostUpTo: number;
  /** Whether the channel has ended, and its end is in Redis. The end may not be in `log`. */
  isEnded: boolean;
  /** Time in ms of the last read or push. */
  usedAt: number;
}

// Time in ms within which another read of a channel does not change the order of eviction.
const SAME_USE_MS = 1_000;

/** A cache of recent events, limited in bytes. */
export class LogCache {
  /** Name of the log; `''` before it is known. */
  epoch = '';
  /** The places where the log has gone back. */
  discontinuities: Discontinuities = { origin: 0, jumps: [] };
  /** Maximum bytes of all events. */
  maxBytes = 0;
  readonly #inUseMs: number;
  readonly #channels = new Map<string, CachedChannel>();
  // The channels with events, in the order of eviction: the least recently used channel first.
  readonly #evictable = new Map<string, CachedChannel>();
  #events = 0;
  #bytes = 0;
  // Difference in ms between the clock of Redis and `performance.now()`.
  #clockOffsetMs = 0;

  /**
   * @param inUseMs a channel that was used within this time in ms is not evicted to make room for
   * older events of another channel
   */
  constructor(inUseMs: number) {
    this.#inUseMs = inUseMs;
  }

  get held(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes };
  }

  /**
   * Sets the clock by which the age of events is determined. The clock of Redis may be set back.
   * @param at time in ms, by the clock of Redis
   */
  setClock(at: number): void {
    this.#clockOffsetMs = at - performance.now();
  }

  /** @returns offset of the newest known event; `undefined` for a channel not in the cache */
  newest(channel: string): number | undefined {
    const log = this.#channels.get(channel)?.log;
    return log === undefined ? undefined : Math.max(log.newest, log.lastMissingOffset);
  }

  /** @returns the events that {@link prepend} takes; `undefined` for a channel not in the cache */
  missingRange(channel: string): MissingRange | undefined {
    const cached = this.#channels.get(channel);
    if (cached === undefined) return undefined;
    return { log: cached.log, after: cached.lostUpTo, until: cached.log.lastMissingOffset };
  }

  /**
   * Adds a channel whose subscription has been confirmed: from here on all its events are pushed.
   * @param head offset up to which all events have been pushed
   */
  add(channel: string, state: StoredChannel, head: number): void {
    const cached = this.#channels.get(channel);
    const newest = this.newest(channel);
    // Events in the cache may be from an earlier subscription, with a hole since then.
    if (cached === undefined || newest === undefined || newest < state.newest) {
      this.#replace(channel, state, Math.min(state.newest, head));
    } else {
      this.#dropLost(cached, state.trimmed);
    }
  }

  /**
   * Updates channels after messages may have been missed.
   * @param snapshot the answer to a query for the events after {@link newest} of each channel
   * @param head offset up to which all events will have been pushed
   * @param isLast whether the events that this snapshot lacks are not queried again
   * @returns number of events in the snapshot
   */
  update(
    channels: readonly string[],
    snapshot: LogSnapshot,
    head: number,
    isLast: boolean,
  ): number {
    this.setClock(snapshot.at);
    this.discontinuities = snapshot.discontinuities;
    let events = 0;
    for (const [index, channel] of channels.entries()) {
      const state = snapshot.channels[index] as ChannelSnapshot;
      // If the log has gone back and continued since, the cache may hold events that were lost.
      if (lostOffset(snapshot.discontinuities, this.newest(channel) ?? head) > 0) {
        this.remove(channel);
      }
      this.#updateChannel(channel, state, head, isLast);
      events += state.entries.length;
    }
    return events;
  }

  /**
   * Adds the events of an answer to the cached events of a channel, if they continue them.
   * Otherwise the channel begins anew, without events: a cache with a hole would not be noticed.
   */
  #updateChannel(channel: string, state: ChannelSnapshot, head: number, isLast: boolean): void {
    const cached = this.#channels.get(channel);
    const cachedUpTo = this.newest(channel) ?? 0;
    const end = Math.min(state.newest, head);
    const hasHole = state.hasMore && isLast;
    if (cached === undefined || cachedUpTo > end || hasHole) {
      this.#replace(channel, state, end);
      return;
    }
    cached.isEnded = state.isEnded;
    this.#dropLost(cached, state.trimmed);
    for (const { entry, appendedAt } of state.entries) {
      if (entry.offset > state.trimmed) this.#push(cached, entry, appendedAt, state.limits);
    }
    this.#evict();
  }

  /** Adds the next event of a channel. */
  push(entry: LogEntry, { at, previous, trimmed, limits }: EntryMetadata): void {
    const { channel } = entry;
    let cached = this.#channels.get(channel);
    // If the event does not come directly after the cached events, it begins a new cached log.
    if (cached === undefined || (cached.log.events > 0 && previous > cached.log.newest)) {
      const state = { newest: previous, trimmed, limits, isEnded: false };
      cached = this.#replace(channel, state, previous);
    }
    // There are no events between `previous` and this one.
    if (cached.log.events === 0) cached.log.lastMissingOffset = previous;
    this.#push(cached, entry, at, limits);
    this.#dropLost(cached, trimmed);
    this.#evict();
  }

  /**
   * Evicts channels that have not been used for a while, to make room for older events.
   * @param bytes bytes of the older events
   * @param channels their channels, which are not evicted
   * @returns `false` if there is not enough room; then nothing is evicted
   */
  makeRoom(bytes: number, channels: ReadonlySet<string>): boolean {
    let excess = this.#bytes + bytes - this.maxBytes;
    const before = performance.now() - this.#inUseMs;
    const evicted: CachedChannel[] = [];
    for (const [channel, cached] of this.#evictable) {
      if (excess <= 0 || cached.usedAt > before) break;
      if (channels.has(channel)) continue;
      evicted.push(cached);
      excess -= cached.log.bytes;
    }
    if (excess > 0) return false;
    for (const cached of evicted) while (cached.log.events > 0) this.#shift(cached);
    return true;
  }

  /**
   * Adds older events. Does nothing if the cache has changed, so that they would not come directly
   * before the cached events.
   * @param range as {@link missingRange} returned it before the events were queried
   * @param entries all events of the range
   */
  prepend(
    channel: string,
    range: MissingRange,
    state: StoredChannel,
    entries: readonly TimedEntry[],
  ): void {
    const cached = this.#channels.get(channel);
    if (
      cached === undefined ||
      cached.log !== range.log ||
      cached.log.lastMissingOffset !== range.until
    ) {
      return;
    }
    const { log } = cached;
    const before = { events: log.events, bytes: log.bytes };
    if (log.events === 0) setLimits(log, state.limits);
    log.prepend(entries, Math.min(Math.max(cached.lostUpTo, state.trimmed), log.lastMissingOffset));
    this.#events += log.events - before.events;
    this.#bytes += log.bytes - before.bytes;
    this.#touch(cached);
    this.#dropLost(cached, state.trimmed);
    this.#evict();
  }

  /** Deletes the events of a channel up to the offset. */
  clear(channel: string, trimmed: number): void {
    const cached = this.#channels.get(channel);
    if (cached !== undefined) this.#dropLost(cached, trimmed);
  }

  /** Removes a channel that the node is not subscribed to any more. */
  remove(channel: string): void {
    const cached = this.#channels.get(channel);
    if (cached === undefined) return;
    this.#channels.delete(channel);
    this.#evictable.delete(channel);
    this.#events -= cached.log.events;
    this.#bytes -= cached.log.bytes;
  }

  /** Removes all channels, because another log has replaced the log. */
  reset(epoch: string): void {
    this.epoch = epoch;
    this.#channels.clear();
    this.#evictable.clear();
    this.#events = 0;
    this.#bytes = 0;
  }

  /** @returns the channels that have events after the offset which are not in the cache */
  incomplete(channels: readonly string[], after: number): string[] {
    return channels.filter((channel) => {
      const cached = this.#channels.get(channel);
      if (cached === undefined) return true;
      this.#dropExpired(cached);
      const { log, lostUpTo, isEnded } = cached;
      // Only the entry of the end shows when the end exceeds the age limit.
      if (isEnded && !log.isEnded) return true;
      // A newest-only channel needs none of its older events.
      return !log.isNewestOnly && Math.max(after, lostUpTo) < log.lastMissingOffset;
    });
  }

  /** Reads channels of which {@link incomplete} returned none. */
  read(channels: readonly string[], after: number, maxBytes: number): LogRead {
    const cached = channels.map((channel) => this.#channels.get(channel) as CachedChannel);
    const now = performance.now();
    for (const one of cached) if (now - one.usedAt > SAME_USE_MS) this.#touch(one);
    const logs = cached.map(({ log }) => log);
    return {
      ...mergeLogs(logs, after, maxBytes),
      // A newest-only channel loses no events.
      trimmed: cached.map(({ log, lostUpTo }) => (log.isNewestOnly ? 0 : lostUpTo)),
      ended: cached.map(({ log }) => log.isEnded),
    };
  }

  /** Number of events of the channel after the offset that are in the cache. */
  countAfter(channel: string, offset: number): number {
    return this.#channels.get(channel)?.log.countAfter(offset) ?? 0;
  }

  /**
   * @returns the offset after which the newest `count` events of the channel come; 0 if there are
   * fewer; `undefined` if the cache has too few of them
   */
  startOfNewest(channel: string, count: number): number | undefined {
    const cached = this.#channels.get(channel);
    if (cached === undefined) return undefined;
    this.#dropExpired(cached);
    const { log, lostUpTo, isEnded } = cached;
    if (isEnded && !log.isEnded) return undefined;
    const start = log.startOfNewest(count);
    return start > 0 || lostUpTo >= log.lastMissingOffset ? start : undefined;
  }

  /**
   * Begins an empty log for the channel.
   * @param lastMissingOffset offset of the newest event, which is not in the cache
   */
  #replace(
    channel: string,
    { trimmed, limits, isEnded }: StoredChannel,
    lastMissingOffset: number,
  ): CachedChannel {
    this.remove(channel);
    const cached: CachedChannel = {
      channel,
      log: new ChannelLog(cacheLimits(limits), lastMissingOffset),
      lostUpTo: trimmed,
      isEnded,
      usedAt: performance.now(),
    };
    this.#channels.set(channel, cached);
    return cached;
  }

  #push(cached: CachedChannel, entry: LogEntry, at: number, limits: HistoryLimits): void {
    const { log } = cached;
    setLimits(log, limits);
    log.push(entry, at);
    cached.isEnded = entry.isEnd;
    this.#events++;
    this.#bytes += entry.size;
    this.#touch(cached);
  }

  /** Moves a channel to the end of the order of eviction. */
  #touch(cached: CachedChannel): void {
    cached.usedAt = performance.now();
    this.#evictable.delete(cached.channel);
    if (cached.log.events > 0) this.#evictable.set(cached.channel, cached);
  }

  /** Enforces the limit over all channels. Evicted events are still in Redis. */
  #evict(): void {
    while (this.#bytes > this.maxBytes) {
      const [cached] = this.#evictable.values();
      if (cached === undefined) break;
      this.#shift(cached);
    }
  }

  #shift(cached: CachedChannel): void {
    this.#bytes -= cached.log.shift();
    this.#events--;
    if (cached.log.events === 0) this.#evictable.delete(cached.channel);
  }

  /**
   * Drops events that exceed the age limit. They count as lost, even if Redis has not deleted them
   * yet.
   */
  #dropExpired(cached: CachedChannel): void {
    const { log } = cached;
    const now = performance.now() + this.#clockOffsetMs;
    while (log.exceedsLimits(now)) {
      this.#shift(cached);
      this.#dropLost(cached, log.lastMissingOffset);
    }
  }

  /** Drops the events that Redis does not keep any more. */
  #dropLost(cached: CachedChannel, trimmed: number): void {
    const { log } = cached;
    cached.lostUpTo = Math.max(cached.lostUpTo, trimmed);
    while (log.events > 0 && (log.at(log.indexAfter(0)) as LogEntry).offset <= cached.lostUpTo) {
      this.#shift(cached);
    }
    if (cached.lostUpTo >= Math.max(log.newest, log.lastMissingOffset)) cached.isEnded = false;
  }
}

function setLimits(log: ChannelLog, limits: HistoryLimits): void {
  const { age, latest } = log.limits;
  if (limits.age !== age || limits.latest !== latest) log.limits = cacheLimits(limits);
}

/**
 * The limits that the cache enforces: only the age. Redis enforces the numbers of events and bytes,
 * and its messages say up to which offset it has deleted events.
 */
function cacheLimits({ age, latest }: HistoryLimits): HistoryLimits {
  return { events: Infinity, bytes: Infinity, age, latest };
}
