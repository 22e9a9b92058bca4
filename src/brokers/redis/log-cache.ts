/** The newest events of the channels that a node listens to, so that clients which come back are served without asking Redis. */
import {
  ChannelLog,
  mergeLogs,
  type HistoryLimits,
  type TimedEntry,
  type LogRead,
} from '../../log/log.ts';
import type { LogEntry } from '../../log/log-entry.ts';
import type { EntryMetadata } from './message-format.ts';

/** What Redis knows of a channel. */
export interface Tail {
  /** Offset of its newest event. */
  readonly newest: number;
  /** Offset of its newest event that is no longer kept. */
  readonly trimmed: number;
  readonly limits: HistoryLimits;
}

/** A place in a channel: events up to `till` belong before what is held of it, as long as this is the same run. */
export interface Edge {
  readonly run: object;
  readonly from: number;
  readonly till: number;
}

interface Mirrored {
  readonly channel: string;
  /** Whole beyond `log.gone`; what is older may still be in Redis. */
  readonly log: ChannelLog;
  /** Offset of the newest event that is lost for good. */
  lost: number;
  /** When it was last read or added to, in ms. */
  usedAt: number;
}

// Reading a channel again within this time in ms does not change the order in which channels give way.
const SAME_USE = 1_000;

export class LogCache {
  /** The log that it mirrors. */
  epoch = '';
  readonly #maxBytes: number;
  readonly #now: () => number;
  readonly #inUse: number;
  readonly #channels = new Map<string, Mirrored>();
  // Those that hold something, the least recently used first: they give way first.
  readonly #holding = new Map<string, Mirrored>();
  #events = 0;
  #bytes = 0;

  /**
   * @param now the clock of Redis, in ms
   * @param inUse a channel that was used within this time in ms does not give way to older events of another
   */
  constructor(maxBytes: number, now: () => number, inUse: number) {
    this.#maxBytes = maxBytes;
    this.#now = now;
    this.#inUse = inUse;
  }

  get held(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes };
  }

  /** Offset of the newest event of the channel that is known here; `undefined` where nothing is known. */
  newest(channel: string): number | undefined {
    const log = this.#channels.get(channel)?.log;
    return log === undefined ? undefined : Math.max(log.newest, log.lastMissingOffset);
  }

  /** What the answer to a question for older events must fit: they are those up to `till`, as long as this is the same run. */
  edge(channel: string): Edge | undefined {
    const mirrored = this.#channels.get(channel);
    return mirrored === undefined
      ? undefined
      : { run: mirrored.log, from: mirrored.lost, till: mirrored.log.lastMissingOffset };
  }

  /**
   * A channel is listened to: from here on all of it is pushed.
   * @param head the offset up to which all has been pushed
   */
  learn(channel: string, tail: Tail, head: number): void {
    const known = this.#channels.get(channel);
    const newest = this.newest(channel);
    // What came before may be of a time when it was listened to once, with a hole since.
    if (known === undefined || newest === undefined || newest < tail.newest) {
      this.forget(channel);
      this.#begin(channel, tail, Math.min(tail.newest, head));
    } else {
      this.#lose(known, tail.trimmed);
    }
  }

  /**
   * The channel anew, after something may have been missed.
   * @param entries those beyond the newest that was known here, all of them if `isWhole`
   * @param head the offset up to which all will have been pushed then
   */
  mend(
    channel: string,
    tail: Tail,
    entries: readonly TimedEntry[],
    isWhole: boolean,
    head: number,
  ): void {
    const newest = this.newest(channel);
    const known = this.#channels.get(channel);
    const end = Math.min(tail.newest, head);
    if (known === undefined || newest === undefined || end < newest || !isWhole) {
      this.forget(channel);
      this.#begin(channel, tail, end);
      return;
    }
    this.#lose(known, tail.trimmed);
    for (const { entry, appendedAt } of entries) {
      if (entry.offset > tail.trimmed) this.#push(known, entry, appendedAt, tail.limits);
    }
    this.#shrink();
  }

  /** The next event of a channel that is listened to. */
  push(entry: LogEntry, { at, previous, trimmed, limits }: EntryMetadata): void {
    const { channel } = entry;
    let known = this.#channels.get(channel);
    // One that does not fit on is the first of a new run.
    if (known === undefined || (known.log.events > 0 && previous > known.log.newest)) {
      this.forget(channel);
      known = this.#begin(channel, { newest: previous, trimmed, limits }, previous);
    }
    // Between the one before it and itself there is nothing.
    if (known.log.events === 0) known.log.lastMissingOffset = previous;
    this.#push(known, entry, at, limits);
    this.#lose(known, trimmed);
    this.#shrink();
  }

  /**
   * Lets go of what has not been used for a while, so that there is room for so many bytes of these channels.
   * @returns `false` where there is not enough of that; then nothing is let go of
   */
  makeRoom(bytes: number, channels: ReadonlySet<string>): boolean {
    let over = this.#bytes + bytes - this.#maxBytes;
    const before = performance.now() - this.#inUse;
    const giving: Mirrored[] = [];
    for (const [channel, known] of this.#holding) {
      if (over <= 0 || known.usedAt > before) break;
      if (channels.has(channel)) continue;
      giving.push(known);
      over -= known.log.bytes;
    }
    if (over > 0) return false;
    for (const known of giving) while (known.log.events > 0) this.#shift(known);
    return true;
  }

  /** Takes in older events, up to the edge that was asked for; what has come or gone meanwhile decides. */
  prepend(channel: string, edge: Edge, tail: Tail, entries: readonly TimedEntry[]): void {
    const known = this.#channels.get(channel);
    if (
      known === undefined ||
      known.log !== edge.run ||
      known.log.lastMissingOffset !== edge.till
    ) {
      return;
    }
    const { log } = known;
    const before = { events: log.events, bytes: log.bytes };
    if (log.events === 0) setLimits(log, tail.limits);
    log.prepend(entries, Math.min(Math.max(known.lost, tail.trimmed), log.lastMissingOffset));
    this.#events += log.events - before.events;
    this.#bytes += log.bytes - before.bytes;
    this.#use(known);
    this.#lose(known, tail.trimmed);
    this.#shrink();
  }

  /** What the channel held up to the offset is to be forgotten. */
  clear(channel: string, trimmed: number): void {
    const known = this.#channels.get(channel);
    if (known !== undefined) this.#lose(known, trimmed);
  }

  forget(channel: string): void {
    const known = this.#channels.get(channel);
    if (known === undefined) return;
    this.#channels.delete(channel);
    this.#holding.delete(channel);
    this.#events -= known.log.events;
    this.#bytes -= known.log.bytes;
  }

  /** Begins with another log. */
  begin(epoch: string): void {
    this.epoch = epoch;
    this.#channels.clear();
    this.#holding.clear();
    this.#events = 0;
    this.#bytes = 0;
  }

  /** Which of the channels hold something beyond the offset that is not here. */
  missing(channels: readonly string[], after: number): string[] {
    return channels.filter((channel) => {
      const known = this.#channels.get(channel);
      if (known === undefined) return true;
      this.#age(known);
      return !known.log.isNewestOnly && Math.max(after, known.lost) < known.log.lastMissingOffset;
    });
  }

  /** As {@link missing} has said that all of it is here. */
  read(channels: readonly string[], after: number, maxBytes: number): LogRead {
    const known = channels.map((channel) => this.#channels.get(channel) as Mirrored);
    const now = performance.now();
    for (const one of known) if (now - one.usedAt > SAME_USE) this.#use(one);
    const logs = known.map(({ log }) => log);
    return {
      ...mergeLogs(logs, after, maxBytes),
      trimmed: known.map(({ log, lost }) => (log.isNewestOnly ? 0 : lost)),
    };
  }

  #begin(channel: string, { trimmed, limits }: Tail, gone: number): Mirrored {
    const mirrored: Mirrored = {
      channel,
      log: new ChannelLog(boundsOf(limits), gone),
      lost: trimmed,
      usedAt: performance.now(),
    };
    this.#channels.set(channel, mirrored);
    return mirrored;
  }

  #push(known: Mirrored, entry: LogEntry, at: number, limits: HistoryLimits): void {
    const { log } = known;
    setLimits(log, limits);
    log.push(entry, at);
    this.#events++;
    this.#bytes += entry.size;
    this.#use(known);
  }

  /** Puts it at the end of the order in which channels give way. */
  #use(known: Mirrored): void {
    known.usedAt = performance.now();
    this.#holding.delete(known.channel);
    if (known.log.events > 0) this.#holding.set(known.channel, known);
  }

  /** Keeps the bound over all channels: what is let go of here is still in Redis. */
  #shrink(): void {
    while (this.#bytes > this.#maxBytes) {
      const [known] = this.#holding.values();
      if (known === undefined) break;
      this.#shift(known);
    }
  }

  #shift(known: Mirrored): void {
    this.#bytes -= known.log.shift();
    this.#events--;
    if (known.log.events === 0) this.#holding.delete(known.channel);
  }

  /** What is too old is lost, here and in Redis, whoever notices first. */
  #age(known: Mirrored): void {
    const { log } = known;
    const now = this.#now();
    while (log.exceedsLimits(now)) {
      this.#shift(known);
      this.#lose(known, log.lastMissingOffset);
    }
  }

  /** What Redis does not keep any more is not kept here. */
  #lose(known: Mirrored, trimmed: number): void {
    const { log } = known;
    known.lost = Math.max(known.lost, trimmed);
    while (log.events > 0 && (log.at(log.indexAfter(0)) as LogEntry).offset <= known.lost) {
      this.#shift(known);
    }
  }
}

function setLimits(log: ChannelLog, limits: HistoryLimits): void {
  const { age, latest } = log.limits;
  if (limits.age !== age || limits.latest !== latest) log.limits = boundsOf(limits);
}

/** Redis counts events and bytes, and says what it has let go of. */
function boundsOf({ age, latest }: HistoryLimits): HistoryLimits {
  return { events: Infinity, bytes: Infinity, age, latest };
}
