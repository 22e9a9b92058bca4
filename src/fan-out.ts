/** Published events to all live streams: what one turn of the event loop publishes is joined once and written once to each. */
import type { LogEntry } from './log-entry.ts';

/** The events of one turn for one audience. */
export interface Frame {
  readonly entries: readonly LogEntry[];
  readonly bytes: Buffer;
  /** Offset of the first entry. */
  readonly first: number;
  /** Offset of the last entry. */
  readonly last: number;
}

/** A live stream, as the fan-out sees it. */
export interface Member {
  /** Its place in its audience, -1 outside. Kept by the audience. */
  slot: number;
  /** Takes what of the frame is beyond its cursor. Never throws. */
  take(frame: Frame): void;
}

/** The live streams that follow the same set of channels: one frame is right for all of them. */
export class Audience {
  readonly channels: readonly string[];
  readonly members: Member[] = [];
  #pending: LogEntry[] = [];
  #frame: Frame | undefined;

  constructor(channels: readonly string[]) {
    this.channels = channels;
  }

  /** @returns whether it is the first of this turn */
  push(entry: LogEntry): boolean {
    this.#frame = undefined;
    return this.#pending.push(entry) === 1;
  }

  /** What this turn has published so far. */
  get pending(): Frame | undefined {
    if (this.#pending.length === 0) return undefined;
    // A copy: the frame must not grow when more is published.
    this.#frame ??= joined([...this.#pending]);
    return this.#frame;
  }

  flush(): void {
    const frame = this.pending;
    if (frame === undefined) return;
    this.#pending = [];
    this.#frame = undefined;
    // Backwards: a member that leaves while it takes is replaced by one that has taken.
    for (let slot = this.members.length - 1; slot >= 0; slot--) this.members[slot]?.take(frame);
    for (const entry of frame.entries) entry.rest();
  }

  add(member: Member): void {
    member.slot = this.members.push(member) - 1;
  }

  delete(member: Member): void {
    const { slot } = member;
    if (slot === -1) return;
    const last = this.members.pop() as Member;
    if (last !== member) {
      this.members[slot] = last;
      last.slot = slot;
    }
    member.slot = -1;
  }
}

/** The audiences of one registry. */
export class FanOut {
  readonly #audiences = new Map<string, Audience>();
  readonly #byChannel = new Map<string, Set<Audience>>();
  #due: Audience[] = [];
  #scheduled = false;

  /** Takes an entry in; its audiences get it when this turn of the event loop is over. */
  push(entry: LogEntry): void {
    const audiences = this.#byChannel.get(entry.channel);
    if (audiences === undefined) return;
    for (const audience of audiences) if (audience.push(entry)) this.#due.push(audience);
    if (this.#scheduled) return;
    this.#scheduled = true;
    // Not a microtask: what other callbacks of this turn publish is joined, too.
    setImmediate(() => this.flush());
  }

  /** Gives every audience what it is owed. */
  flush(): void {
    this.#scheduled = false;
    const due = this.#due;
    this.#due = [];
    for (const audience of due) audience.flush();
  }

  /** @param channels each once */
  join(channels: readonly string[], member: Member): Audience {
    const key = keyOf(channels);
    let audience = this.#audiences.get(key);
    if (audience === undefined) {
      audience = new Audience(channels);
      this.#audiences.set(key, audience);
      for (const channel of channels) {
        const audiences = this.#byChannel.get(channel);
        if (audiences === undefined) this.#byChannel.set(channel, new Set([audience]));
        else audiences.add(audience);
      }
    }
    audience.add(member);
    return audience;
  }

  leave(audience: Audience, member: Member): void {
    audience.delete(member);
    if (audience.members.length > 0) return;
    this.#audiences.delete(keyOf(audience.channels));
    for (const channel of audience.channels) {
      const audiences = this.#byChannel.get(channel);
      audiences?.delete(audience);
      if (audiences?.size === 0) this.#byChannel.delete(channel);
    }
  }
}

// A channel name has no control characters, so the key cannot be ambiguous.
function keyOf(channels: readonly string[]): string {
  return channels.length === 1 ? (channels[0] as string) : channels.toSorted().join('\n');
}

/** Entries, in the order of their offsets, as one frame. */
export function joined(entries: readonly LogEntry[]): Frame {
  const first = entries[0] as LogEntry;
  const last = entries.at(-1) as LogEntry;
  const bytes = entries.length === 1 ? first.frame : Buffer.concat(entries.map((entry) => entry.frame));
  return { entries, bytes, first: first.offset, last: last.offset };
}
