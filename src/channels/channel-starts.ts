/** From where a stream is owed each of its channels, and which of them have lost something. Arithmetic of offsets only. */
import type { LogEntry } from '../log/log-entry.ts';

/**
 * A stream has one cursor for all of its channels. While it catches up, some channels may be owed less than the cursor says:
 * those that are followed only from a later offset, and those whose loss was told already.
 *
 * ```text
 * offset    0 ────── trimmed ─────── cursor ─────── start of b ─────── head
 * a                                  │ owed from here ──────────────────►
 * b                                                 │ owed from here ───►
 * c         lost  ◄──────── trimmed is beyond the cursor: a gap
 * ```
 */
export class ChannelStarts {
  // Channels of which nothing at or below the offset is owed, beyond the cursor. WHATEVER_IS_HELD: from the oldest that is held.
  // Made with the first of them: thousands of streams that wait for their turn on a pipelined connection have none.
  #starts: Map<string, number> | undefined;
  // Channels that have lost something which no offset tells: their cursor was not of this log.
  #foreign: ReadonlySet<string> = NONE;

  /** Whether a loss is still to be told that no offset shows. */
  get hasForeign(): boolean {
    return this.#foreign.size > 0;
  }

  addForeign(channels: readonly string[]): void {
    this.#foreign = new Set([...this.#foreign, ...channels]);
  }

  /** The loss is told. */
  clearForeign(): void {
    this.#foreign = NONE;
  }

  /** Nothing of the channel at or below the offset is owed. */
  startAt(channel: string, offset: number): void {
    const starts = (this.#starts ??= new Map<string, number>());
    const known = starts.get(channel);
    starts.set(
      channel,
      known === undefined || offset === WHATEVER_IS_HELD ? offset : Math.max(known, offset),
    );
  }

  isOwed(entry: LogEntry): boolean {
    return entry.offset > (this.#starts?.get(entry.channel) ?? 0);
  }

  /**
   * The channels that have lost something: exactly those of which more was trimmed than the stream has of them. It is noted as told.
   * @param trimmed for each of the channels, the offset of its newest event that is no longer held
   */
  lostOf(channels: readonly string[], trimmed: readonly number[], cursor: number): string[] {
    return channels.filter((channel, index) => {
      const gone = trimmed[index] as number;
      const start = this.#starts?.get(channel);
      const isLost = start !== WHATEVER_IS_HELD && gone > Math.max(cursor, start ?? 0);
      if (isLost || start === WHATEVER_IS_HELD) this.startAt(channel, gone);
      return isLost || this.#foreign.has(channel);
    });
  }

  /** Forgets what it knows of channels that are not followed any more. */
  keepOnly(channels: ReadonlySet<string>): void {
    for (const channel of this.#starts?.keys() ?? []) {
      if (!channels.has(channel)) this.#starts?.delete(channel);
    }
    if (this.hasForeign) {
      this.#foreign = new Set([...this.#foreign].filter((channel) => channels.has(channel)));
    }
  }

  /** The log was lost, and another has begun: all channels have lost something. */
  beginAnew(channels: readonly string[]): void {
    this.#starts = undefined;
    this.#foreign = new Set(channels);
  }
}

const NONE: ReadonlySet<string> = new Set();

/** The start of a channel of which all is owed that is held, whatever was held before: that is no gap. */
export const WHATEVER_IS_HELD = -1;
