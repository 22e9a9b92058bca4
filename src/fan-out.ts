/** Published events to all live streams: what one turn of the event loop publishes is joined once and written once to each. */
import { Audience, type Member } from './audience.ts';
import { PIECE } from './backlog.ts';
import { Frame, fitting } from './frame.ts';
import type { LogEntry } from './log-entry.ts';

// So many streams are written to before other work gets its turn; at ten thousand the loop would stall for a tenth of a second.
const SLICE = 250;

/** The audiences of one registry. */
export class FanOut {
  readonly #audiences = new Map<string, Audience>();
  readonly #byChannel = new Map<string, Set<Audience>>();
  // Those with a frame underway, in the order in which they began.
  readonly #giving: Audience[] = [];
  #due: Audience[] = [];
  // What was joined last of what ends with an entry. Weak: what the log lets go of is not to be kept here.
  readonly #joined = new WeakMap<LogEntry, WeakRef<Frame>>();
  #isScheduled = false;
  #isRunning = false;

  /** Takes an entry in; its audiences get it when this turn of the event loop is over. */
  push(entry: LogEntry): void {
    const audiences = this.#byChannel.get(entry.channel);
    if (audiences === undefined) return;
    for (const audience of audiences) if (audience.push(entry)) this.#due.push(audience);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    // Not a microtask: what other callbacks of this turn publish is joined, too.
    setImmediate(() => this.#flush());
  }

  /**
   * Entries from the log, joined. Streams that come back together are mostly owed the same, and are given the same bytes.
   * @returns `undefined` for more than one write, which is joined as the reader takes it
   */
  joined(entries: readonly LogEntry[]): Frame | undefined {
    const last = entries.at(-1) as LogEntry;
    // Each stream has asked the log what it is owed: what was joined for another is right for it if it is the same.
    const known = this.#joined.get(last)?.deref();
    if (known?.holds(entries) === true) return known;
    if (fitting(entries, PIECE) < entries.length) return undefined;
    const frame = new Frame(entries);
    this.#joined.set(last, new WeakRef(frame));
    return frame;
  }

  #flush(): void {
    this.#isScheduled = false;
    const due = this.#due;
    this.#due = [];
    for (const audience of due) this.#begin(audience);
    if (!this.#isRunning) this.#run();
  }

  /** One frame after the other: under load what is published meanwhile is joined, and the next frame is larger. */
  #begin(audience: Audience): void {
    if (audience.begin()) this.#giving.push(audience);
  }

  #run(): void {
    let left = SLICE;
    for (let audience = this.#giving[0]; audience !== undefined && left > 0; audience = this.#giving[0]) {
      left = audience.give(left);
      if (audience.isGiving) break;
      this.#giving.shift();
      this.#begin(audience);
    }
    this.#isRunning = this.#giving.length > 0;
    if (this.#isRunning) setImmediate(() => this.#run());
  }

  /** The members of all audiences, as they are now. */
  get members(): Member[] {
    return [...this.#audiences.values()].flatMap(({ members }) => members);
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

/** One key for each set of channels. A channel name has no control characters, so it cannot be ambiguous. */
export function keyOf(channels: readonly string[]): string {
  return channels.length === 1 ? (channels[0] as string) : channels.toSorted().join('\n');
}
