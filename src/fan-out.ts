/** Published events to all live streams: what one turn of the event loop publishes is joined once and written once to each. */
import type { LogEntry } from './brokers/broker.ts';
import type { ChannelEvent } from './event-stream.ts';
import { eventText } from './wire.ts';

/** A published event on its way: encoded once, and parsed once for all filters. */
export class PublishedEvent implements ChannelEvent {
  readonly offset: number;
  readonly channel: string;
  readonly id: string;
  readonly event: string;
  readonly data: string;
  readonly bytes: Buffer;
  #json: { value: unknown } | undefined;

  constructor({ offset, channel, id, event, data, retry }: LogEntry) {
    this.offset = offset;
    this.channel = channel;
    this.id = id;
    this.event = event ?? 'message';
    this.data = data;
    this.bytes = Buffer.from(eventText(data, event, id, retry));
  }

  json(): unknown {
    this.#json ??= { value: parsed(this.data) };
    return this.#json.value;
  }
}

/** The events of one turn for one audience. */
export interface Frame {
  readonly events: readonly PublishedEvent[];
  readonly bytes: Buffer;
  /** Offset of the first event. */
  readonly first: number;
  /** Offset of the last event. */
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
  #pending: PublishedEvent[] = [];
  #frame: Frame | undefined;

  constructor(channels: readonly string[]) {
    this.channels = channels;
  }

  /** @returns whether it is the first of this turn */
  push(event: PublishedEvent): boolean {
    this.#frame = undefined;
    return this.#pending.push(event) === 1;
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

  /** Takes an event in; its audiences get it when this turn of the event loop is over. */
  push(entry: LogEntry): void {
    const audiences = this.#byChannel.get(entry.channel);
    if (audiences === undefined) return;
    const event = new PublishedEvent(entry);
    for (const audience of audiences) if (audience.push(event)) this.#due.push(audience);
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

/** Events, in the order of their offsets, as one frame. */
export function joined(events: readonly PublishedEvent[]): Frame {
  const first = events[0] as PublishedEvent;
  const last = events.at(-1) as PublishedEvent;
  const bytes = events.length === 1 ? first.bytes : Buffer.concat(events.map((event) => event.bytes));
  return { events, bytes, first: first.offset, last: last.offset };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
