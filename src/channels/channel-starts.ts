/** The offset from which a catching-up stream receives each of its channels, and gap arithmetic. */
import type { LogEntry } from '../log/log-entry.ts';

/**
 * A stream has one cursor for all of its channels. While the stream catches up, a channel may start
 * at a later offset than the cursor: a channel that was added later, or a channel whose loss was
 * already reported.
 *
 * ```text
 * offset    0 ─────────────────── cursor ───── start of b ───── end of the log
 * a                               │ receives from here ─────────────────►
 * b                                            │ receives from here ────►
 * c                               │── lost ── trimmed │ receives ───────►   trimmed > cursor: a gap
 * ```
 *
 * The start of a channel is `max(cursor, starts.get(channel) ?? 0)`. The channel has lost events
 * if `trimmed`, the offset of its newest event that the log no longer keeps, is greater than its
 * start. Channels that start at their oldest kept event lose only what was trimmed since the
 * subscription was placed (`toleratedUpTo`).
 */
export class ChannelStarts {
  // For some channels, the offset up to which their events are not delivered. OLDEST_KEPT: all
  // events that the log keeps are delivered. The map is created with its first key, because
  // thousands of streams that wait for their turn on a pipelined connection do not need it.
  #starts: Map<string, number> | undefined;
  // For channels that start at their newest or oldest events (`since: { last }` or `'start'`): if
  // events up to this offset are trimmed before the first page is read, that is not a loss.
  #toleratedUpTo: Map<string, number> | undefined;
  // Channels that were requested with a cursor of another log, so that their loss cannot be derived
  // from offsets. The loss is not reported yet.
  #foreign: ReadonlySet<string> = NO_CHANNELS;

  /** Whether the loss of a foreign channel still has to be reported. */
  get hasForeign(): boolean {
    return this.#foreign.size > 0;
  }

  /** Whether the channel is foreign, and its loss still has to be reported. */
  isForeign(channel: string): boolean {
    return this.#foreign.has(channel);
  }

  /** Marks the channels as foreign: they were requested with a cursor of another log. */
  addForeign(channels: readonly string[]): void {
    this.#foreign = new Set([...this.#foreign, ...channels]);
  }

  /** Forgets all foreign channels, because their loss was reported. */
  clearForeign(): void {
    this.#foreign = NO_CHANNELS;
  }

  /**
   * Events of the channel at or below the offset will not be delivered. A start never moves back,
   * except to {@link OLDEST_KEPT}.
   */
  setStart(channel: string, offset: number): void {
    const starts = (this.#starts ??= new Map<string, number>());
    const previous = starts.get(channel);
    starts.set(
      channel,
      previous === undefined || offset === OLDEST_KEPT ? offset : Math.max(previous, offset),
    );
  }

  /**
   * Lets the channel start at events that the log keeps now. If some of these events are trimmed
   * before the first page is read, the stream starts with the other events, and that is not a loss.
   * @param offset the events after this offset; {@link OLDEST_KEPT} for all of them
   * @param toleratedUpTo events up to this offset are no loss if they are trimmed: usually the end
   * of the log when the start was chosen
   */
  setStartOfKept(channel: string, offset: number, toleratedUpTo: number): void {
    this.setStart(channel, offset);
    (this.#toleratedUpTo ??= new Map<string, number>()).set(channel, toleratedUpTo);
  }

  /** Whether the entry comes after the start of its channel, so that the stream may receive it. */
  isAfterStart(entry: LogEntry): boolean {
    return entry.offset > (this.#starts?.get(entry.channel) ?? 0);
  }

  /**
   * Finds the channels that have lost events, and notes the loss as reported: the start of such a
   * channel becomes the trimmed offset, so that the same loss is not found again.
   * @param trimmed for each of the channels, the offset of its newest event that is no longer kept
   * @param cursor the stream's cursor
   */
  collectLost(channels: readonly string[], trimmed: readonly number[], cursor: number): string[] {
    return channels.filter((channel, index) => {
      const trimmedUpTo = trimmed[index] as number;
      const start = this.#starts?.get(channel);
      const toleratedUpTo = this.#toleratedUpTo?.get(channel);
      const isLost = trimmedUpTo > Math.max(cursor, start ?? 0, toleratedUpTo ?? 0);
      if (isLost || toleratedUpTo !== undefined) this.setStart(channel, trimmedUpTo);
      this.#toleratedUpTo?.delete(channel);
      return isLost || this.#foreign.has(channel);
    });
  }

  /** Removes all channels except these, because the stream does not follow the others any more. */
  keepOnly(channels: ReadonlySet<string>): void {
    for (const channel of this.#starts?.keys() ?? []) {
      if (!channels.has(channel)) this.#starts?.delete(channel);
    }
    for (const channel of this.#toleratedUpTo?.keys() ?? []) {
      if (!channels.has(channel)) this.#toleratedUpTo?.delete(channel);
    }
    if (this.hasForeign) {
      this.#foreign = new Set([...this.#foreign].filter((channel) => channels.has(channel)));
    }
  }

  /**
   * The broker has lost its data, and a new log has replaced the log: all channels have lost
   * events, and no start is valid.
   */
  markAllLost(channels: readonly string[]): void {
    this.#starts = undefined;
    this.#toleratedUpTo = undefined;
    this.#foreign = new Set(channels);
  }
}

const NO_CHANNELS: ReadonlySet<string> = new Set();

/**
 * The start of a channel that receives all kept events. Events that were trimmed before the
 * subscription was placed are not a gap for it.
 */
export const OLDEST_KEPT = -1;
