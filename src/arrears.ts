/** What a stream that is behind is owed, beyond what its cursor says. A stream that has caught up has none. */
import type { LogEntry } from './log-entry.ts';

export class Arrears {
  /** The application is asked what to do about a gap. */
  isTelling = false;
  /** Channels that were subscribed to anew meanwhile. */
  addedMeanwhile: string[] = [];
  /** The client is to be told where it is with the next page. */
  owesCheckpoint = false;
  /** Who waits until it has caught up. */
  readonly waiting: (() => void)[] = [];
  /** Ids have stepped back for channels that came later. */
  steppedBack = false;
  // Channels of which nothing at or below the offset is owed, beyond the cursor; -1 = nothing of what is not held any more.
  readonly #starts = new Map<string, number>();
  // Channels that have lost something which no offset tells: their cursor was not of this log.
  #foreign: ReadonlySet<string> = new Set();

  get hasForeign(): boolean {
    return this.#foreign.size > 0;
  }

  addForeign(channels: readonly string[]): void {
    this.#foreign = new Set([...this.#foreign, ...channels]);
  }

  /** Their loss is told. */
  clearForeign(): void {
    this.#foreign = new Set();
  }

  /** Notes that of the channel nothing at or below the offset is owed. */
  startAt(channel: string, offset: number): void {
    const known = this.#starts.get(channel);
    this.#starts.set(channel, known === undefined || offset === -1 ? offset : Math.max(known, offset));
  }

  isOwed(entry: LogEntry): boolean {
    return entry.offset > (this.#starts.get(entry.channel) ?? 0);
  }

  /**
   * The channels that have lost something: exactly those of which more was trimmed than the stream has of them. It is noted as told.
   * @param trimmed for each of the channels, the offset of its newest event that is no longer held
   */
  lostOf(channels: readonly string[], trimmed: readonly number[], cursor: number): string[] {
    return channels.filter((channel, index) => {
      const gone = trimmed[index] as number;
      const start = this.#starts.get(channel);
      const isLost = start !== -1 && gone > Math.max(cursor, start ?? 0);
      if (isLost || start === -1) this.startAt(channel, gone);
      return isLost || this.#foreign.has(channel);
    });
  }

  /** Forgets what it knows of channels that are not followed any more. */
  keepOnly(channels: readonly string[]): void {
    for (const channel of this.#starts.keys()) if (!channels.includes(channel)) this.#starts.delete(channel);
    if (this.hasForeign) this.#foreign = new Set(channels.filter((channel) => this.#foreign.has(channel)));
  }

  /** The log was lost, and another has begun: nothing that was known of the old one means anything. */
  beginAnew(channels: readonly string[]): void {
    this.#starts.clear();
    this.#foreign = new Set(channels);
  }
}
