/**
 * The bounded log of one registry. Each channel has a run: its newest entries, in the order of
 * their offsets and without a hole (no entry is missing between the first and the last). Offsets
 * grow across all channels, so the offsets of one channel are not consecutive.
 *
 * ```text
 * offset          1   2   3   4   5   6   7
 * channel a       ×       ×   a           a      lastMissingOffset 3, newest 7
 * channel b           ×           b   b          lastMissingOffset 2, newest 6
 *
 * × was published and is no longer kept
 * read([a, b], after 2)      4a 5b 6b 7a         trimmed: 3 for a (a gap, 3 > 2), 2 for b (no gap)
 * ```
 */
import type { LogEntry } from './log-entry.ts';
import { mergeLogs, type EntryRun } from './merge.ts';

/** Limits for the history of one channel, with all defaults filled in. */
export interface HistoryLimits {
  /** Maximum number of events. */
  readonly events: number;
  /** Maximum number of bytes, overhead included. */
  readonly bytes: number;
  /** Maximum age in ms; `Infinity` without a limit. */
  readonly age: number;
  /** Whether only the newest event matters, so that older events are not missed. */
  readonly latest: boolean;
}

/** The entries of some channels after an offset. */
export interface LogRead {
  /** The entries, in the order of their offsets. */
  readonly entries: readonly LogEntry[];
  /** Whether these are all entries after the offset. */
  readonly complete: boolean;
  /**
   * For each channel of the call, the offset of the newest event that is no longer kept; 0 if none
   * is missing.
   */
  readonly trimmed: readonly number[];
  /** For each channel of the call, whether it has ended: its newest kept entry is an end. */
  readonly ended: readonly boolean[];
}

/** An entry and the time at which it was appended, in ms of the clock of the log. */
export interface TimedEntry {
  readonly entry: LogEntry;
  readonly appendedAt: number;
}

// If fewer places at the start of the array are unused, the array is not cut.
const MIN_UNUSED_PLACES = 64;

/** The kept entries of one channel: a run without a hole, up to the newest entry. */
export class ChannelLog implements EntryRun {
  /** The limits of the channel, as of its last publish. */
  limits: HistoryLimits;
  /** Number of kept bytes. */
  bytes = 0;
  newest = 0;
  // The places before `#firstIndex` are unused: their entries were removed. The array is cut only
  // now and then, because cutting copies it.
  #entries: TimedEntry[] = [];
  #firstIndex = 0;
  /**
   * Offset of the newest event that is not in the run, or 0. If this offset is not known, because
   * the channel may have been forgotten before, an offset that is at least as large. All events of
   * the channel with a larger offset are in the run.
   */
  lastMissingOffset: number;

  /** @param lastMissingOffset an offset up to which events may have been published before */
  constructor(limits: HistoryLimits, lastMissingOffset: number) {
    this.limits = limits;
    this.lastMissingOffset = lastMissingOffset;
  }

  /** Number of kept entries. */
  get events(): number {
    return this.#entries.length - this.#firstIndex;
  }

  /**
   * Offset of the newest event that is no longer kept; 0 if no event is missing, or if missing
   * events are not a gap (see {@link isNewestOnly}).
   */
  get trimmed(): number {
    return this.isNewestOnly ? 0 : this.lastMissingOffset;
  }

  /**
   * Whether missing older events are not a gap: the channel is newest-only (`latest: true`), and
   * its newest event is kept.
   */
  get isNewestOnly(): boolean {
    return this.limits.latest && this.events > (this.isEnded ? 1 : 0);
  }

  /** The newest entry that is kept; `undefined` if none is. */
  get newestEntry(): LogEntry | undefined {
    return this.#entries.at(-1)?.entry;
  }

  /** Whether the channel has ended: its newest entry is an end that is kept. */
  get isEnded(): boolean {
    return this.newestEntry?.isEnd === true;
  }

  /**
   * Appends an entry.
   * @param at the current time, in ms
   */
  push(entry: LogEntry, at: number): void {
    this.#entries.push({ entry, appendedAt: at });
    this.bytes += entry.size;
    this.newest = entry.offset;
  }

  /**
   * Adds the entries that come directly before the run.
   * @param lastMissingOffset offset of the newest event that is missing before them
   */
  prepend(older: readonly TimedEntry[], lastMissingOffset: number): void {
    this.#entries = [...older, ...this.#entries.slice(this.#firstIndex)];
    this.#firstIndex = 0;
    for (const { entry } of older) this.bytes += entry.size;
    this.newest = Math.max(this.newest, older.at(-1)?.entry.offset ?? 0);
    this.lastMissingOffset = lastMissingOffset;
  }

  /** Removes the oldest entry. The run must not be empty. @returns the bytes of the entry */
  shift(): number {
    const { entry } = this.#entries[this.#firstIndex] as TimedEntry;
    // The entry is released at once. The unused place is cut later.
    this.#entries[this.#firstIndex++] = undefined as unknown as TimedEntry;
    this.lastMissingOffset = entry.offset;
    this.bytes -= entry.size;
    if (this.#firstIndex > MIN_UNUSED_PLACES && this.#firstIndex * 2 > this.#entries.length) {
      this.#entries = this.#entries.slice(this.#firstIndex);
      this.#firstIndex = 0;
    }
    return entry.size;
  }

  /** Whether the oldest entry has to be removed. */
  exceedsLimits(now: number): boolean {
    const { events, bytes, age, latest } = this.limits;
    if (this.events === 0) return false;
    // A newest-only channel keeps its newest event beside its end.
    const maxEvents = latest && this.isEnded ? events + 1 : events;
    return (
      this.events > maxEvents ||
      this.bytes > bytes ||
      now - (this.#entries[this.#firstIndex] as TimedEntry).appendedAt > age
    );
  }

  /** @returns the index of the first entry with a larger offset */
  indexAfter(offset: number): number {
    let low = this.#firstIndex;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#entries[middle] as TimedEntry).entry.offset <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  at(index: number): LogEntry | undefined {
    return this.#entries[index]?.entry;
  }

  /** Number of kept events after the offset, the end not counted. */
  countAfter(offset: number): number {
    const entries = this.#entries.length - this.indexAfter(offset);
    return this.isEnded && entries > 0 ? entries - 1 : entries;
  }

  /** As {@link Log.startOfNewest}. */
  startOfNewest(count: number): number {
    const index = this.#entries.length - (this.isEnded ? 1 : 0) - count - 1;
    return index < this.#firstIndex ? 0 : (this.at(index) as LogEntry).offset;
  }
}

/** The log. Each event is in the run of one channel, and counts for the limits of the whole log. */
export class Log {
  readonly #maxBytes: number;
  readonly #maxChannels: number;
  readonly #now: () => number;
  // The channels without and with subscribers, each in the order of the last publish. The log
  // forgets channels without subscribers first.
  readonly #unfollowed = new Map<string, ChannelLog>();
  readonly #followed = new Map<string, ChannelLog>();
  // The channels with entries, in the order of the last publish. If all channels together exceed
  // `maxBytes`, the first of them lose their oldest entries.
  readonly #withEntries = new Set<ChannelLog>();
  readonly #follows: (channel: string) => boolean;
  #events = 0;
  #bytes = 0;
  // The newest offset of any channel that was forgotten. Every unknown channel may be one of these,
  // so all events up to this offset count as missing there.
  #forgottenOffset = 0;
  /** Number of channels that were forgotten although they had entries. */
  forgottenChannels = 0;

  /**
   * @param maxBytes maximum number of bytes of all channels together
   * @param maxChannels maximum number of channels
   * @param follows whether a channel has subscribers
   * @param now a clock in ms, for the age of entries
   */
  constructor(
    maxBytes: number,
    maxChannels: number,
    follows: (channel: string) => boolean,
    now: () => number,
  ) {
    this.#maxBytes = maxBytes;
    this.#maxChannels = maxChannels;
    this.#follows = follows;
    this.#now = now;
  }

  /** Number of events and bytes of all channels together. */
  get held(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes };
  }

  /** Appends an entry to its channel, and removes entries that exceed a limit. */
  append(entry: LogEntry, limits: HistoryLimits): void {
    const { channel } = entry;
    const log = this.#get(channel) ?? new ChannelLog(limits, this.#forgottenOffset);
    log.limits = limits;
    this.#place(channel, log);
    log.push(entry, this.#now());
    this.#withEntries.delete(log);
    this.#withEntries.add(log);
    this.#events++;
    this.#bytes += entry.size;
    this.#trim(log);
    while (this.#unfollowed.size + this.#followed.size > this.#maxChannels) this.#forgetOldest();
    if (this.#bytes > this.#maxBytes) this.#shrink();
  }

  /** A channel has got its first subscriber, or has lost its last one. */
  onSubscribersChanged(channel: string): void {
    const log = this.#get(channel);
    if (log !== undefined) this.#place(channel, log);
  }

  /**
   * Reads the entries of some channels after an offset.
   * @param maxBytes maximum number of bytes of frames; one entry is returned in any case
   */
  read(channels: readonly string[], after: number, maxBytes: number): LogRead {
    const logs = channels.map((channel) => this.#get(channel));
    for (const log of logs) if (log !== undefined) this.#trim(log);
    const trimmed = logs.map((log) => log?.trimmed ?? this.#forgottenOffset);
    const ended = logs.map((log) => log?.isEnded === true);
    return { ...mergeLogs(logs, after, maxBytes), trimmed, ended };
  }

  /** Number of kept events of the channel after the offset, the end not counted. */
  countAfter(channel: string, offset: number): number {
    return this.#get(channel)?.countAfter(offset) ?? 0;
  }

  /**
   * Finds where the newest events of a channel begin.
   * @param count number of events, the end not counted
   * @returns the offset after which they come; 0 if fewer are kept
   */
  startOfNewest(channel: string, count: number): number {
    const log = this.#get(channel);
    if (log === undefined) return 0;
    this.#trim(log);
    return log.startOfNewest(count);
  }

  /** @returns the newest entry of the channel that is kept; `undefined` if none is */
  newestEntry(channel: string): LogEntry | undefined {
    const log = this.#get(channel);
    if (log === undefined) return undefined;
    this.#trim(log);
    return log.newestEntry;
  }

  /** Removes all entries of a channel. Streams that have not received them report a gap. */
  clear(channel: string): void {
    const log = this.#get(channel);
    if (log === undefined) return;
    while (log.events > 0) this.#shift(log);
  }

  #get(channel: string): ChannelLog | undefined {
    return this.#unfollowed.get(channel) ?? this.#followed.get(channel);
  }

  /** Moves the channel to the end of the order in which channels are forgotten. */
  #place(channel: string, log: ChannelLog): void {
    this.#unfollowed.delete(channel);
    this.#followed.delete(channel);
    (this.#follows(channel) ? this.#followed : this.#unfollowed).set(channel, log);
  }

  /** Removes the entries that exceed the limits of the channel. */
  #trim(log: ChannelLog): void {
    const now = this.#now();
    while (log.exceedsLimits(now)) this.#shift(log);
  }

  /**
   * Removes oldest entries until the whole log is within `maxBytes`: first of the channel whose
   * last publish is the longest ago.
   */
  #shrink(): void {
    for (const leastRecent of this.#withEntries) {
      while (this.#bytes > this.#maxBytes && leastRecent.events > 0) this.#shift(leastRecent);
      if (this.#bytes <= this.#maxBytes) break;
    }
  }

  /** Removes the oldest entry of a channel. */
  #shift(log: ChannelLog): void {
    this.#bytes -= log.shift();
    this.#events--;
    if (log.events === 0) this.#withEntries.delete(log);
  }

  /** Forgets the channel whose last publish is the longest ago. */
  #forgetOldest(): void {
    const logs = this.#unfollowed.size > 0 ? this.#unfollowed : this.#followed;
    const [channel, log] = logs.entries().next().value as [string, ChannelLog];
    if (log.events > 0) this.forgottenChannels++;
    this.clear(channel);
    this.#forgottenOffset = Math.max(this.#forgottenOffset, log.newest);
    logs.delete(channel);
  }
}
