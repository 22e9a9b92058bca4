/** Published events to all live streams: what one turn of the event loop publishes is joined once and written once to each. */
import { PIECE } from './backlog.ts';
import { WRITE_MARK } from './connection.ts';
import type { LogEntry } from './log-entry.ts';
import { SharedBytes } from './shared-bytes.ts';
import { Slots, type Slotted } from './slots.ts';

/** The events of one turn for one audience, in the order of their offsets. */
export class Frame extends SharedBytes {
  readonly entries: readonly LogEntry[];
  /** Offset of the first entry. */
  readonly first: number;
  /** Offset of the last entry. */
  readonly last: number;

  constructor(entries: readonly LogEntry[]) {
    const first = entries[0] as LogEntry;
    super(entries.length === 1 ? first.frame : Buffer.concat(entries.map((entry) => entry.frame)));
    this.entries = entries;
    this.first = first.offset;
    this.last = (entries.at(-1) as LogEntry).offset;
  }

  /** Whether it is these entries, all of them and no others. */
  holds(entries: readonly LogEntry[]): boolean {
    return entries.length === this.entries.length && entries.every((entry, index) => entry === this.entries[index]);
  }
}

/** A live stream, as the fan-out sees it. */
export interface Member extends Slotted {
  /** Takes what of the frame is beyond its cursor. Never throws. */
  take(frame: Frame): void;
}

/** The live streams that follow the same set of channels: one frame is right for all of them. */
export class Audience extends Slots<Member> {
  readonly channels: readonly string[];
  // The frame that not every member has been given yet, and what has been published since.
  #underway: Frame | undefined;
  #pending: LogEntry[] = [];
  #frame: Frame | undefined;

  constructor(channels: readonly string[]) {
    super();
    this.channels = channels;
  }

  /** @returns whether it is the first that waits */
  push(entry: LogEntry): boolean {
    this.#frame = undefined;
    return this.#pending.push(entry) === 1;
  }

  /** Offset of the newest entry that came. */
  get newest(): number {
    return this.#pending.at(-1)?.offset ?? this.#underway?.last ?? 0;
  }

  /** Gives one member all that is owed, before its turn. */
  flush(member: Member): void {
    // One that falls behind on a frame leaves, and gets the rest from the log.
    if (this.#underway !== undefined && this.has(member)) member.take(this.#underway);
    if (this.#pending.length === 0 || !this.has(member)) return;
    // A copy: the frame must not grow when more is published.
    this.#frame ??= new Frame([...this.#pending]);
    member.take(this.#frame);
  }

  /**
   * What has been published, for all members from now on; no more than one write may hold.
   * @returns `undefined` while another is underway, or where nothing waits
   */
  begin(): Frame | undefined {
    if (this.#underway !== undefined || this.#pending.length === 0) return undefined;
    const count = fitting(this.#pending, WRITE_MARK);
    const isAll = count === this.#pending.length;
    this.#underway =
      isAll && this.#frame !== undefined ? this.#frame : new Frame(isAll ? this.#pending : this.#pending.slice(0, count));
    this.#pending = isAll ? [] : this.#pending.slice(count);
    this.#frame = undefined;
    return this.#underway;
  }

  /** Every member has been given the frame underway. */
  finish(): void {
    for (const entry of this.#underway?.entries ?? []) entry.rest();
    this.#underway = undefined;
  }
}

/** How many of the entries one frame of so many bytes may hold, but at least one: more would have to be taken apart for each stream. */
function fitting(entries: readonly LogEntry[], maxBytes: number): number {
  let count = 0;
  let bytes = 0;
  for (const { frame } of entries) {
    bytes += frame.length;
    if (count > 0 && bytes > maxBytes) break;
    count++;
  }
  return count;
}

interface Job {
  readonly audience: Audience;
  readonly frame: Frame;
  /** The member that is next. Counts down: one that leaves is replaced by one that has had its turn. */
  next: number;
}

// So many streams are written to before other work gets its turn; at ten thousand the loop would stall for a tenth of a second.
const SLICE = 250;

/** The audiences of one registry. */
export class FanOut {
  readonly #audiences = new Map<string, Audience>();
  readonly #byChannel = new Map<string, Set<Audience>>();
  readonly #jobs: Job[] = [];
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
    const frame = audience.begin();
    if (frame !== undefined) this.#jobs.push({ audience, frame, next: audience.members.length - 1 });
  }

  #run(): void {
    let left = SLICE;
    for (let job = this.#jobs[0]; job !== undefined && left > 0; job = this.#jobs[0]) {
      const { members } = job.audience;
      for (; job.next >= 0 && left > 0; left--) members[job.next--]?.take(job.frame);
      if (job.next >= 0) break;
      job.audience.finish();
      this.#jobs.shift();
      this.#begin(job.audience);
    }
    this.#isRunning = this.#jobs.length > 0;
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
