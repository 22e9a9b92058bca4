/** A stream's place among those that follow channels without history. They have no cursor: what is not written now is gone. */
import type { Audience, Member } from './audience.ts';
import type { Deliveries } from './deliveries.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { FanOut } from './fan-out.ts';
import type { Frame } from './frame.ts';
import type { LogEntry } from '../log/log-entry.ts';

/** Whose place it is. */
export interface EphemeralOwner {
  readonly host: { readonly liveOnly: FanOut; readonly deliveries: Deliveries };
  readonly stream: EventStream;
  /** Whether a subscription has a filter. */
  readonly isFiltered: boolean;
  /** Whether a subscription wants the entry. */
  lets(entry: LogEntry): boolean;
  /** The stream has been given events. */
  onDelivered(): void;
  fail(error: unknown): void;
}

export class EphemeralMember implements Member {
  readonly #owner: EphemeralOwner;
  listIndex = -1;
  position = 0;
  // Entries that the filters have let through and that are not written yet.
  #passed: LogEntry[] | undefined;
  #audience: Audience | undefined;

  constructor(owner: EphemeralOwner) {
    this.#owner = owner;
  }

  join(channels: readonly string[]): void {
    this.#audience = this.#owner.host.liveOnly.join(channels, this);
    // What was published before is not for it.
    this.position = Math.max(this.position, this.#audience.newest);
  }

  leave(): void {
    if (this.#audience === undefined) return;
    this.#owner.host.liveOnly.leave(this.#audience, this);
    this.#audience = undefined;
  }

  /** Writes all that was published before; there is no log from which the stream could get the rest. */
  flush(): void {
    if (this.#audience !== undefined) this.#owner.host.liveOnly.flush(this.#audience, this, true);
  }

  /** Never in step: how much may be queued for its reader is a matter of its own. */
  take(frame: Frame): undefined {
    const from = this.position;
    if (frame.last <= from) return;
    // Before anything is written: a filter or a wrapped `res.write` may call back.
    this.position = frame.last;
    const { stream, host } = this.#owner;
    host.deliveries.begin(stream);
    try {
      if (frame.first > from && !this.#owner.isFiltered) this.#write(frame);
      else this.#filter(frame, from);
    } catch (error) {
      this.#owner.fail(error);
    } finally {
      host.deliveries.end();
    }
    this.#owner.onDelivered();
  }

  miss(upTo: number, events: number): void {
    if (this.position >= upTo) return;
    this.position = upTo;
    this.#owner.stream.dropEvents(events);
  }

  fallBehind(): void {
    this.leave();
  }

  fail(error: unknown): void {
    this.#owner.fail(error);
  }

  onAttached(): void {}

  onDetached(): void {}

  #write(due: Frame): void {
    const { stream } = this.#owner;
    const { length } = due.entries;
    if (stream.admitEvents(length) && !stream.writeShared(due, length)) {
      stream.writeBytes(due.bytes, length);
    }
  }

  #filter(frame: Frame, from: number): void {
    for (const entry of frame.entries) {
      if (entry.offset > from && this.#owner.lets(entry)) (this.#passed ??= []).push(entry);
    }
    this.writePassed();
  }

  /** Writes the entries that the filters have let through by now. */
  writePassed(): void {
    const passed = this.#passed;
    if (passed === undefined) return;
    this.#passed = undefined;
    this.#write(this.#owner.host.liveOnly.joined(passed));
  }
}
