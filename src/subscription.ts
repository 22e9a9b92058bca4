/** A stream that follows channels: its cursor, its filters, its place among the live streams. */
import type { EventStream, Follower, SubscribeOptions, Subscription } from './event-stream.ts';
import { SseError, shown } from './errors.ts';
import { joined, type Audience, type FanOut, type Frame, type Member, type PublishedEvent } from './fan-out.ts';

/** What a follower needs from the registry. */
export interface FollowerHost {
  readonly fanOut: FanOut;
  /** The offset that every later event is above. */
  readonly head: number;
  /** A stream follows the channel now. What is published is received at once where nothing is returned. */
  retain(channel: string): Promise<void> | undefined;
  /** A stream does not follow the channel any more. */
  release(channel: string): void;
  /** The stream follows nothing any more. */
  forget(follower: StreamFollower): void;
}

/** All that one stream follows. It has one cursor, however often `subscribe` was called. */
export class StreamFollower implements Follower, Member {
  readonly host: FollowerHost;
  readonly stream: EventStream;
  slot = -1;
  #cursor = 0;
  #filtered = false;
  #audience: Audience | undefined;
  #holds: Hold[] = [];

  constructor(host: FollowerHost, stream: EventStream) {
    this.host = host;
    this.stream = stream;
  }

  /** Follows these channels, too, from now on. */
  async add(channels: readonly string[], { filter }: SubscribeOptions): Promise<Subscription> {
    const hold = new Hold(this, channels, filter);
    const fresh = channels.filter((channel) => !this.#follows(channel));
    this.#holds.push(hold);
    // Listen first, so that nothing published from here on is unseen.
    const listening = fresh.map((channel) => this.host.retain(channel)).filter((ready) => ready !== undefined);
    if (listening.length > 0) {
      try {
        await Promise.all(listening);
      } catch (error) {
        this.remove(hold);
        throw error;
      }
    }
    // Meanwhile the stream may have ended, or the application may have thought better of it.
    if (this.#holds.includes(hold)) this.#rejoin();
    return hold;
  }

  remove(hold: Hold): void {
    if (!this.#holds.includes(hold)) return;
    this.flush();
    this.#holds = this.#holds.filter((other) => other !== hold);
    for (const channel of hold.channels) if (!this.#follows(channel)) this.host.release(channel);
    this.#rejoin();
  }

  take(frame: Frame): void {
    if (frame.last <= this.#cursor) return;
    let due: Frame | undefined = frame;
    if (this.#filtered || frame.first <= this.#cursor) {
      try {
        const events = frame.events.filter((event) => event.offset > this.#cursor && this.#lets(event));
        due = events.length === 0 ? undefined : joined(events);
      } catch (error) {
        this.#leave();
        this.stream.fail(error);
        return;
      }
    }
    this.#cursor = frame.last;
    if (due !== undefined && this.stream.admits(due.events.length)) this.stream.deliver(due.bytes, due.events.length);
  }

  flush(): void {
    const pending = this.#audience?.pending;
    if (pending !== undefined) this.take(pending);
  }

  drained(): void {}

  stop(): void {
    this.#leave();
    const holds = this.#holds;
    this.#holds = [];
    for (const channel of distinct(holds)) this.host.release(channel);
    this.host.forget(this);
  }

  #follows(channel: string): boolean {
    return this.#holds.some((hold) => hold.channels.includes(channel));
  }

  /** Every hold on the channel has a say; one that lets the event through is enough. */
  #lets(event: PublishedEvent): boolean {
    return this.#holds.some((hold) => hold.channels.includes(event.channel) && hold.lets(event));
  }

  /** Takes its place among the live streams that follow the same channels. */
  #rejoin(): void {
    this.flush();
    this.#leave();
    if (this.#holds.length === 0) return;
    this.#filtered = this.#holds.some((hold) => hold.filter !== undefined);
    this.#cursor = Math.max(this.#cursor, this.host.head);
    this.#audience = this.host.fanOut.join(distinct(this.#holds), this);
  }

  #leave(): void {
    if (this.#audience === undefined) return;
    this.host.fanOut.leave(this.#audience, this);
    this.#audience = undefined;
  }
}

/** What one call of `subscribe` got. */
class Hold implements Subscription {
  readonly channels: readonly string[];
  readonly filter: SubscribeOptions['filter'];
  readonly #follower: StreamFollower;

  constructor(follower: StreamFollower, channels: readonly string[], filter: SubscribeOptions['filter']) {
    this.#follower = follower;
    this.channels = channels;
    this.filter = filter;
  }

  /** @throws {SseError} `ERR_SSE_FILTER` for an answer that is not a boolean; whatever the filter throws */
  lets(event: PublishedEvent): boolean {
    if (this.filter === undefined) return true;
    const answer: unknown = this.filter(event);
    if (typeof answer === 'boolean') return answer;
    throw new SseError('ERR_SSE_FILTER', `expected the filter to return true or false, got ${shown(answer)}; it cannot be async`);
  }

  unsubscribe(): void {
    this.#follower.remove(this);
  }
}

/** A subscription on a stream that has ended. */
export function ended(channels: readonly string[]): Subscription {
  return { channels, unsubscribe: () => {} };
}

/** The channels of the holds, each once; the array of the only one where there is but one. */
function distinct(holds: readonly Hold[]): readonly string[] {
  return holds.length === 1 ? (holds[0] as Hold).channels : [...new Set(holds.flatMap((hold) => hold.channels))];
}
