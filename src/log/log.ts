/** The bounded log of one registry: per channel a run of entries, and what is known of those that are gone. */
import type { LogEntry } from './log-entry.ts';

/** How much of a channel is kept; whichever bound bites first. */
export interface HistoryLimits {
  readonly events: number;
  readonly bytes: number;
  /** In ms. */
  readonly age: number;
  /** Only the newest event matters: what it replaced is not missed. */
  readonly latest: boolean;
}

/** What the log holds of some channels after a place in it. */
export interface LogRead {
  /** In the order of their offsets. */
  readonly entries: readonly LogEntry[];
  /** Whether these are all. */
  readonly complete: boolean;
  /** For each channel asked for, the offset of the newest event that is no longer kept; 0 where none is missing. */
  readonly trimmed: readonly number[];
}

/** An entry, and when it was appended, in ms of some clock. */
export interface TimedEntry {
  readonly entry: LogEntry;
  readonly appendedAt: number;
}

/** Entries of one channel in the order of their offsets, without a hole. */
export interface EntryRun {
  /** Offset of the newest entry. */
  readonly newest: number;
  /** Index of the first entry beyond the offset. */
  after(offset: number): number;
  at(index: number): LogEntry | undefined;
}

/** What is kept of one channel: a run of entries without a hole, up to its newest. */
export class ChannelLog implements EntryRun {
  limits: HistoryLimits;
  bytes = 0;
  newest = 0;
  // Entries before `first` are gone; the array is cut now and then.
  #entries: TimedEntry[] = [];
  #first = 0;
  /** Offset of the newest event that is not here, or 0: beyond it the run is whole. */
  lastMissingOffset: number;

  /** @param gone what is known of a channel of this name before */
  constructor(limits: HistoryLimits, gone: number) {
    this.limits = limits;
    this.lastMissingOffset = gone;
  }

  get events(): number {
    return this.#entries.length - this.#first;
  }

  /** Offset of the newest event that is gone and missed. */
  get trimmed(): number {
    return this.isNewestOnly ? 0 : this.lastMissingOffset;
  }

  /** Whether what is gone is not missed: only the newest event matters, and it is here. */
  get isNewestOnly(): boolean {
    return this.limits.latest && this.events > 0;
  }

  push(entry: LogEntry, at: number): void {
    this.#entries.push({ entry, appendedAt: at });
    this.bytes += entry.size;
    this.newest = entry.offset;
  }

  /** Takes in what comes right before the run, which then goes back to the offset. */
  prepend(older: readonly TimedEntry[], gone: number): void {
    this.#entries = [...older, ...this.#entries.slice(this.#first)];
    this.#first = 0;
    for (const { entry } of older) this.bytes += entry.size;
    this.newest = Math.max(this.newest, older.at(-1)?.entry.offset ?? 0);
    this.lastMissingOffset = gone;
  }

  /** Lets go of the oldest entry. @returns its bytes */
  shift(): number {
    const { entry } = this.#entries[this.#first] as TimedEntry;
    // Let go of it at once; the hole is cut later.
    this.#entries[this.#first++] = undefined as unknown as TimedEntry;
    this.lastMissingOffset = entry.offset;
    this.bytes -= entry.size;
    if (this.#first > 64 && this.#first * 2 > this.#entries.length) {
      this.#entries = this.#entries.slice(this.#first);
      this.#first = 0;
    }
    return entry.size;
  }

  /** Whether the oldest entry is beyond a bound. */
  exceedsLimits(now: number): boolean {
    const { events, bytes, age } = this.limits;
    if (this.events === 0) return false;
    return (
      this.events > events ||
      this.bytes > bytes ||
      now - (this.#entries[this.#first] as TimedEntry).appendedAt > age
    );
  }

  /** Index of the first entry beyond the offset. */
  after(offset: number): number {
    let low = this.#first;
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
}

export class Log {
  readonly #maxBytes: number;
  readonly #maxChannels: number;
  readonly #now: () => number;
  // Each in the order of the last publish. Channels that nobody follows are forgotten first.
  readonly #idle = new Map<string, ChannelLog>();
  readonly #followed = new Map<string, ChannelLog>();
  // Those that hold something, whose oldest events go first when all together hold too much.
  readonly #holding = new Set<ChannelLog>();
  readonly #follows: (channel: string) => boolean;
  #events = 0;
  #bytes = 0;
  // The newest offset of any channel that was forgotten: of an unknown channel nothing better is known.
  #floor = 0;
  /** Channels that were forgotten although they held events. */
  forgottenChannels = 0;

  /**
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

  get held(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes };
  }

  append(entry: LogEntry, limits: HistoryLimits): void {
    const { channel } = entry;
    const log = this.#get(channel) ?? new ChannelLog(limits, this.#floor);
    log.limits = limits;
    this.#place(channel, log);
    log.push(entry, this.#now());
    this.#holding.delete(log);
    this.#holding.add(log);
    this.#events++;
    this.#bytes += entry.size;
    this.#trim(log);
    while (this.#idle.size + this.#followed.size > this.#maxChannels) this.#forgetOldest();
    if (this.#bytes > this.#maxBytes) this.#shrink();
  }

  /** A channel has got its first subscriber, or lost its last. */
  onSubscribersChanged(channel: string): void {
    const log = this.#get(channel);
    if (log !== undefined) this.#place(channel, log);
  }

  /**
   * What the channels hold beyond the offset, merged.
   * @param maxBytes at most so many bytes of frames, but at least one entry
   */
  read(channels: readonly string[], after: number, maxBytes: number): LogRead {
    const logs = channels.map((channel) => this.#get(channel));
    for (const log of logs) if (log !== undefined) this.#trim(log);
    const trimmed = logs.map((log) => log?.trimmed ?? this.#floor);
    return { ...mergeLogs(logs, after, maxBytes), trimmed };
  }

  /** Forgets what a channel holds; whoever has not got it yet has lost it. */
  clear(channel: string): void {
    const log = this.#get(channel);
    if (log === undefined) return;
    while (log.events > 0) this.#shift(log);
  }

  #get(channel: string): ChannelLog | undefined {
    return this.#idle.get(channel) ?? this.#followed.get(channel);
  }

  /** Puts it at the end of the order in which channels are forgotten. */
  #place(channel: string, log: ChannelLog): void {
    this.#idle.delete(channel);
    this.#followed.delete(channel);
    (this.#follows(channel) ? this.#followed : this.#idle).set(channel, log);
  }

  #trim(log: ChannelLog): void {
    const now = this.#now();
    while (log.exceedsLimits(now)) this.#shift(log);
  }

  /** Lets go of the oldest events of the channels that were published to least recently. */
  #shrink(): void {
    for (const leastRecent of this.#holding) {
      while (this.#bytes > this.#maxBytes && leastRecent.events > 0) this.#shift(leastRecent);
      if (this.#bytes <= this.#maxBytes) break;
    }
  }

  #shift(log: ChannelLog): void {
    this.#bytes -= log.shift();
    this.#events--;
    if (log.events === 0) this.#holding.delete(log);
  }

  #forgetOldest(): void {
    const logs = this.#idle.size > 0 ? this.#idle : this.#followed;
    const [channel, log] = logs.entries().next().value as [string, ChannelLog];
    if (log.events > 0) this.forgottenChannels++;
    this.clear(channel);
    this.#floor = Math.max(this.#floor, log.newest);
    logs.delete(channel);
  }
}

/**
 * The entries of all runs beyond the offset, in the order of their offsets.
 * @param maxBytes at most so many bytes of frames, but at least one entry
 */
export function mergeLogs(
  runs: readonly (EntryRun | undefined)[],
  after: number,
  maxBytes: number,
): { entries: LogEntry[]; complete: boolean } {
  const heads = runs.flatMap((run) =>
    run === undefined || run.newest <= after ? [] : [{ run, index: run.after(after) }],
  );
  const entries: LogEntry[] = [];
  let bytes = 0;
  for (;;) {
    const next = oldest(heads);
    if (next === undefined) return { entries, complete: true };
    const entry = next.run.at(next.index) as LogEntry;
    if (entries.length > 0 && bytes + entry.frame.length > maxBytes) {
      return { entries, complete: false };
    }
    entries.push(entry);
    bytes += entry.frame.length;
    next.index++;
  }
}

interface Head {
  readonly run: EntryRun;
  index: number;
}

/** The head whose entry is next in the order of the offsets. A stream follows at most 100 channels, so looking at each will do. */
function oldest(heads: readonly Head[]): Head | undefined {
  let found: Head | undefined;
  let lowest = Infinity;
  for (const head of heads) {
    const offset = head.run.at(head.index)?.offset;
    if (offset !== undefined && offset < lowest) {
      lowest = offset;
      found = head;
    }
  }
  return found;
}
