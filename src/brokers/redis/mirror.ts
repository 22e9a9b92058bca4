/** The newest events of the channels that a node listens to, so that clients which come back are served without asking Redis. */
import { ChannelLog, merged, type HistoryLimits, type Kept, type LogRead } from '../../log.ts';
import type { LogEntry } from '../../log-entry.ts';
import type { Stamp } from './format.ts';

/** What Redis knows of a channel. */
export interface Tail {
  /** Offset of its newest event. */
  readonly newest: number;
  /** Offset of its newest event that is no longer kept. */
  readonly trimmed: number;
  readonly limits: HistoryLimits;
}

interface Mirrored {
  /** Whole beyond `log.gone`; what is older may still be in Redis. */
  readonly log: ChannelLog;
  /** Offset of the newest event that is lost for good. */
  lost: number;
}

export class Mirror {
  readonly #maxBytes: number;
  readonly #now: () => number;
  // In the order of the last event: those that have been quiet longest give way first.
  readonly #channels = new Map<string, Mirrored>();
  #events = 0;
  #bytes = 0;

  /** @param now the clock of Redis, in ms */
  constructor(maxBytes: number, now: () => number) {
    this.#maxBytes = maxBytes;
    this.#now = now;
  }

  get held(): { events: number; bytes: number } {
    return { events: this.#events, bytes: this.#bytes };
  }

  /** Offset of the newest event of the channel that is known here; `undefined` where nothing is known. */
  newest(channel: string): number | undefined {
    const log = this.#channels.get(channel)?.log;
    return log === undefined ? undefined : Math.max(log.newest, log.gone);
  }

  /** What the answer to a question for older events must fit: they are those up to `till`, as long as this is the same run. */
  edge(channel: string): { readonly run: object; readonly from: number; readonly till: number } | undefined {
    const mirrored = this.#channels.get(channel);
    return mirrored === undefined ? undefined : { run: mirrored.log, from: mirrored.lost, till: mirrored.log.gone };
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
  mend(channel: string, tail: Tail, entries: readonly Kept[], isWhole: boolean, head: number): void {
    const newest = this.newest(channel);
    const known = this.#channels.get(channel);
    const end = Math.min(tail.newest, head);
    if (known === undefined || newest === undefined || end < newest || !isWhole) {
      this.forget(channel);
      this.#begin(channel, tail, end);
      return;
    }
    this.#lose(known, tail.trimmed);
    for (const { entry, at } of entries) if (entry.offset > tail.trimmed) this.#push(channel, entry, at, tail.limits);
    this.#shrink();
  }

  /** The next event of a channel that is listened to. */
  push(entry: LogEntry, { at, previous, trimmed, limits }: Stamp): void {
    const { channel } = entry;
    let known = this.#channels.get(channel);
    // One that does not fit on is the first of a new run.
    if (known === undefined || (known.log.events > 0 && previous > known.log.newest)) {
      this.forget(channel);
      known = this.#begin(channel, { newest: previous, trimmed, limits }, previous);
    }
    // Between the one before it and itself there is nothing.
    if (known.log.events === 0) known.log.gone = previous;
    this.#push(channel, entry, at, limits);
    this.#lose(known, trimmed);
    this.#shrink();
  }

  /** Takes in older events, up to the edge that was asked for; what has come or gone meanwhile decides. */
  prepend(channel: string, edge: { run: object; till: number }, tail: Tail, entries: readonly Kept[]): void {
    const known = this.#channels.get(channel);
    if (known === undefined || known.log !== edge.run || known.log.gone !== edge.till) return;
    const { log } = known;
    const before = { events: log.events, bytes: log.bytes };
    if (log.events === 0) setLimits(log, tail.limits);
    log.prepend(entries, Math.min(Math.max(known.lost, tail.trimmed), log.gone));
    this.#events += log.events - before.events;
    this.#bytes += log.bytes - before.bytes;
    this.#lose(known, tail.trimmed);
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
    this.#events -= known.log.events;
    this.#bytes -= known.log.bytes;
  }

  empty(): void {
    this.#channels.clear();
    this.#events = 0;
    this.#bytes = 0;
  }

  /** Which of the channels hold something beyond the offset that is not here. */
  missing(channels: readonly string[], after: number): string[] {
    return channels.filter((channel) => {
      const known = this.#channels.get(channel);
      if (known === undefined) return true;
      this.#age(known);
      return !known.log.skips && Math.max(after, known.lost) < known.log.gone;
    });
  }

  /** As {@link missing} has said that all of it is here. */
  read(channels: readonly string[], after: number, maxBytes: number): LogRead {
    const known = channels.map((channel) => this.#channels.get(channel) as Mirrored);
    const logs = known.map(({ log }) => log);
    return { ...merged(logs, after, maxBytes), trimmed: known.map(({ log, lost }) => (log.skips ? 0 : lost)) };
  }

  #begin(channel: string, { trimmed, limits }: Tail, gone: number): Mirrored {
    const mirrored: Mirrored = { log: new ChannelLog(boundsOf(limits), gone), lost: trimmed };
    this.#channels.set(channel, mirrored);
    return mirrored;
  }

  #push(channel: string, entry: LogEntry, at: number, limits: HistoryLimits): void {
    const known = this.#channels.get(channel) as Mirrored;
    const { log } = known;
    this.#channels.delete(channel);
    this.#channels.set(channel, known);
    setLimits(log, limits);
    log.push(entry, at);
    this.#events++;
    this.#bytes += entry.size;
  }

  /** Keeps the bound over all channels: what is let go of here is still in Redis. */
  #shrink(): void {
    for (const { log } of this.#channels.values()) {
      if (this.#bytes <= this.#maxBytes) break;
      while (this.#bytes > this.#maxBytes && log.events > 0) this.#shift(log);
    }
  }

  #shift(log: ChannelLog): void {
    this.#bytes -= log.shift();
    this.#events--;
  }

  /** What is too old is lost, here and in Redis, whoever notices first. */
  #age(known: Mirrored): void {
    const { log } = known;
    const now = this.#now();
    while (log.isOver(now)) {
      this.#shift(log);
      this.#lose(known, log.gone);
    }
  }

  /** What Redis does not keep any more is not kept here. */
  #lose(known: Mirrored, trimmed: number): void {
    const { log } = known;
    known.lost = Math.max(known.lost, trimmed);
    while (log.events > 0 && (log.at(log.after(0)) as LogEntry).offset <= known.lost) this.#shift(log);
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
