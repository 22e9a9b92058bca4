/**
 * Reads pages of the log. The sources are tried in this order:
 *
 * 1. the cache, if it has all events of the page: the answer is immediate
 * 2. the cache, after older events have been loaded from Redis
 * 3. Redis, if the node is not subscribed to the channels, or their events do not fit in the cache
 */
import type { LogEntry } from '../../log/log-entry.ts';
import type { LogRead } from '../../log/log.ts';
import type { Cursor } from '../../protocol/cursor.ts';
import type { Page } from '../broker.ts';
import type { ConditionQueue } from './condition-queue.ts';
import type { HistoryLoader } from './history-loader.ts';
import type { LocalLog } from './local-log.ts';
import type { LogClient } from './log-client.ts';
import { lostOffset, newestJump, type Discontinuities, type LogSnapshot } from './log-snapshot.ts';
import type { LogSubscription } from './log-subscription.ts';
import type { SharedQueries } from './shared-queries.ts';

// Maximum bytes of each page when a whole history is read.
const PAGE_BYTES = 262_144;

/** Implements `Broker.read()` and `Broker.startsOfNewest()`. */
export class PageReader {
  readonly #client: LogClient;
  readonly #log: LocalLog;
  readonly #subscription: LogSubscription;
  readonly #conditions: ConditionQueue;
  readonly #queries: SharedQueries;
  readonly #loader: HistoryLoader;
  // Pages that are being read from Redis, by their arguments: equal calls share a query.
  readonly #pending = new Map<string, Promise<LogSnapshot>>();

  constructor(
    client: LogClient,
    log: LocalLog,
    subscription: LogSubscription,
    conditions: ConditionQueue,
    queries: SharedQueries,
    loader: HistoryLoader,
  ) {
    this.#client = client;
    this.#log = log;
    this.#subscription = subscription;
    this.#conditions = conditions;
    this.#queries = queries;
    this.#loader = loader;
  }

  /**
   * Reads a page from the cache.
   * @returns `undefined` if the node is not open, or the cache does not have all events of the page
   */
  readCached(channels: readonly string[], after: number, maxBytes: number): Page | undefined {
    const { cache, interest, tracker } = this.#log;
    const isCached =
      this.#subscription.isOpen &&
      interest.areReady(channels) &&
      cache.incomplete(channels, after).length === 0;
    if (!isCached) return undefined;
    const read = cache.read(channels, after, maxBytes);
    return toPage(read, tracker.position(), cache.discontinuities, after);
  }

  /**
   * Reads a page, from the cache or from Redis, as soon as the node is open. A failure of Redis is
   * reported, and the read is tried again.
   * @returns a promise that rejects only when the signal is aborted or the broker is closed
   */
  async read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal: AbortSignal,
  ): Promise<Page> {
    const { cache, interest } = this.#log;
    let from = after;
    // For each channel, the offset of its newest event in the previous pages that cannot be read.
    let unreadableUpTo: readonly number[] = channels.map(() => 0);
    for (;;) {
      await this.#conditions.until(0, signal);
      if (!this.#subscription.isOpen) continue;
      if (interest.areReady(channels)) {
        const missing = cache.incomplete(channels, from);
        if (missing.length > 0) {
          const load = this.#loader.load(missing);
          if ((await this.#queries.answerOrPause(load, signal)) === undefined) continue;
        }
        const page = this.readCached(channels, from, maxBytes);
        if (page !== undefined) {
          return { ...page, trimmed: maxOfEach(page.trimmed, unreadableUpTo) };
        }
        if (!this.#subscription.isOpen) continue;
      }
      // The node is not subscribed to the channels, or their events do not fit into the cache.
      const snapshot = await this.#queryPage(channels, from, maxBytes, signal);
      if (snapshot === undefined) continue;
      const { epoch, head, discontinuities } = snapshot;
      const { pageEnd, ...read } = mergeSnapshot(snapshot, maxBytes);
      const trimmed = maxOfEach(read.trimmed, unreadableUpTo);
      if (read.complete || read.entries.length > 0) {
        const position = { epoch, offset: head };
        return toPage({ ...read, trimmed }, position, discontinuities, after);
      }
      // The page has only events that cannot be read.
      unreadableUpTo = trimmed;
      from = pageEnd;
    }
  }

  /** @returns the result of {@link startsOfNewest}; `undefined` if the cache has too few events */
  startsInCache(channels: readonly string[], count: number): readonly number[] | undefined {
    if (!this.#subscription.isOpen || !this.#log.interest.areReady(channels)) return undefined;
    const starts = channels.map((channel) => this.#log.cache.startOfNewest(channel, count));
    return starts.every((start) => start !== undefined) ? starts : undefined;
  }

  /**
   * Finds where the newest events of channels begin, see `Broker.startsOfNewest`. Reads all events
   * that the log keeps of the channels: usually the cache has these events afterwards, for the
   * readers that follow.
   */
  async startsOfNewest(
    channels: readonly string[],
    count: number,
    signal: AbortSignal,
  ): Promise<readonly number[]> {
    let newest: ReadonlyMap<string, readonly number[]> | undefined;
    while (newest === undefined) newest = await this.#readNewest(channels, count + 1, signal);
    return channels.map((channel) => {
      const offsets = newest.get(channel) ?? [];
      return offsets.length > count ? (offsets[0] as number) : 0;
    });
  }

  /**
   * Reads the log from its beginning.
   * @returns for each channel, the offsets of its newest `most` events; `undefined` if another log
   * has replaced the log between two pages
   */
  async #readNewest(
    channels: readonly string[],
    most: number,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, readonly number[]> | undefined> {
    const newest = new Map<string, number[]>(channels.map((channel) => [channel, []]));
    let epoch: string | undefined;
    for (let after = 0; ;) {
      const { entries, complete, position } = await this.read(channels, after, PAGE_BYTES, signal);
      epoch ??= position.epoch;
      if (position.epoch !== epoch) return undefined;
      for (const { channel, offset, isEnd } of entries) {
        const offsets = newest.get(channel);
        if (isEnd || offsets === undefined) continue;
        offsets.push(offset);
        if (offsets.length > most) offsets.shift();
      }
      if (complete) return newest;
      after = (entries.at(-1) as LogEntry).offset;
    }
  }

  /** Queries Redis for a page. @returns `undefined` if the caller has to try again */
  async #queryPage(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal: AbortSignal,
  ): Promise<LogSnapshot | undefined> {
    const { tracker } = this.#log;
    const epochBefore = tracker.epoch;
    const query = this.#sharedPage(channels, after, maxBytes);
    const snapshot = await this.#queries.answerOrPause(query, signal);
    if (snapshot === undefined || snapshot.epoch === tracker.epoch) return snapshot;
    // A stream must not continue in another log before this node receives the events of that log.
    this.#queries.checkEpoch(snapshot.epoch, epochBefore);
    return undefined;
  }

  /** Queries Redis for a page, once for all equal calls that are pending. */
  #sharedPage(channels: readonly string[], after: number, maxBytes: number): Promise<LogSnapshot> {
    const name = [after, maxBytes, ...channels].join('\n');
    const pending = this.#pending.get(name);
    if (pending !== undefined) return pending;
    const page = this.#queries
      .reportFailureOf(this.#client.page(channels, after, maxBytes))
      .finally(() => this.#pending.delete(name));
    this.#pending.set(name, page);
    return page;
  }
}

/**
 * Merges the events of several channels in the order of the log.
 * @param maxBytes maximum bytes of all frames; the first entry is returned in any case
 * @returns the page, and the offset up to which it is complete
 */
function mergeSnapshot(
  { channels, pageEnd }: LogSnapshot,
  maxBytes: number,
): LogRead & { readonly pageEnd: number } {
  const unordered = channels.flatMap(({ entries }) => entries.map(({ entry }) => entry));
  const all = unordered.toSorted((one, other) => one.offset - other.offset);
  const entries: LogEntry[] = [];
  let bytes = 0;
  for (const entry of all) {
    if (entries.length > 0 && bytes + entry.frame.length > maxBytes) break;
    entries.push(entry);
    bytes += entry.frame.length;
  }
  const hasAll = entries.length === all.length;
  return {
    entries,
    complete: hasAll && pageEnd === Infinity,
    // A newest-only channel loses no events while its newest event is kept. The entry of the end is
    // not an event.
    trimmed: channels.map(({ limits, length, isEnded, trimmed }) =>
      limits.latest && length > (isEnded ? 1 : 0) ? 0 : trimmed,
    ),
    ended: channels.map(({ isEnded }) => isEnded),
    pageEnd: hasAll ? pageEnd : (entries.at(-1) as LogEntry).offset,
  };
}

function maxOfEach(some: readonly number[], others: readonly number[]): readonly number[] {
  return some.map((value, index) => Math.max(value, others[index] as number));
}

/** @param after offset of the reader */
function toPage(
  read: Omit<Page, 'position'>,
  position: Cursor,
  discontinuities: Discontinuities,
  after: number,
): Page {
  const lostUpTo = lostOffset(discontinuities, after);
  const trimmed =
    lostUpTo === 0 ? read.trimmed : read.trimmed.map((offset) => Math.max(offset, lostUpTo));
  return { ...read, trimmed, position, resumedAt: newestJump(discontinuities) };
}
