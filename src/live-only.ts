/** A stream's place among those that follow channels without history. They have no cursor: what is not written now is gone. */
import type { Audience, Member } from './audience.ts';
import type { EventStream } from './event-stream.ts';
import type { FanOut } from './fan-out.ts';
import { Frame } from './frame.ts';
import type { LogEntry } from './log-entry.ts';

/** Whose place it is. */
export interface LiveOnlyOwner {
  readonly host: { readonly fanOut: FanOut };
  readonly stream: EventStream;
  /** Whether a subscription has a filter. */
  readonly isFiltered: boolean;
  /** Whether a subscription wants the entry. */
  lets(entry: LogEntry): boolean;
  fail(error: unknown): void;
}

export class LiveOnly implements Member {
  readonly #owner: LiveOnlyOwner;
  slot = -1;
  #taken = 0;
  #audience: Audience | undefined;

  constructor(owner: LiveOnlyOwner) {
    this.#owner = owner;
  }

  join(channels: readonly string[]): void {
    this.#audience = this.#owner.host.fanOut.join(channels, this);
    // What was published before is not for it.
    this.#taken = Math.max(this.#taken, this.#audience.newest);
  }

  leave(): void {
    if (this.#audience === undefined) return;
    this.#owner.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }

  flush(): void {
    this.#audience?.flush(this);
  }

  /** Never in step: how much may be queued for its reader is a matter of its own. */
  take(frame: Frame): undefined {
    const from = this.#taken;
    if (frame.last <= from) return;
    this.#taken = frame.last;
    const { stream } = this.#owner;
    try {
      const due = this.#dueOf(frame, from);
      if (due === undefined) return;
      const { length } = due.entries;
      if (stream.admits(length) && !stream.share(due, length)) stream.writeBytes(due.bytes, length);
    } catch (error) {
      this.#owner.fail(error);
    }
  }

  steppedIn(): void {}

  steppedOut(): void {}

  /** What of the frame is beyond the offset and wanted: most often the frame itself. */
  #dueOf(frame: Frame, from: number): Frame | undefined {
    if (!this.#owner.isFiltered && frame.first > from) return frame;
    const entries = frame.entries.filter((entry) => entry.offset > from && this.#owner.lets(entry));
    if (entries.length === 0) return undefined;
    return entries.length === frame.entries.length ? frame : new Frame(entries);
  }
}
