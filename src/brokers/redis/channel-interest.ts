/** The channels that a node listens to: those that streams follow, and for a while those that one has just left. */
export interface InterestEntry {
  readonly channel: string;
  /** Redis has said on the line that it is listened to: from here on its events come. */
  isSubscribed: boolean;
  /** Its tail is known, too: what comes next fits on to it. */
  isKnown: boolean;
  /** Resolves when it is known, or nobody wants to know any more. */
  readonly known: Promise<void>;
  readonly resolve: () => void;
}

// Channels that are listened to although nobody follows them.
const MOST_IDLE = 1_000;

export class ChannelInterest {
  readonly #channels = new Map<string, InterestEntry>();
  // Since when nobody follows them, in that order.
  readonly #idle = new Map<string, number>();
  readonly #unknown = new Set<InterestEntry>();

  get(channel: string): InterestEntry | undefined {
    return this.#channels.get(channel);
  }

  isWanted(channel: string): boolean {
    return this.#channels.has(channel) && !this.#idle.has(channel);
  }

  want(channel: string): InterestEntry {
    this.#idle.delete(channel);
    const known = this.#channels.get(channel);
    if (known !== undefined) return known;
    let resolve: (() => void) | undefined;
    const listening: InterestEntry = {
      channel,
      isSubscribed: false,
      isKnown: false,
      known: new Promise((settle) => {
        resolve = settle;
      }),
      resolve: () => resolve?.(),
    };
    this.#channels.set(channel, listening);
    this.#unknown.add(listening);
    return listening;
  }

  leave(channel: string, now: number): void {
    if (this.#channels.has(channel)) this.#idle.set(channel, now);
  }

  /** Forgets those that nobody has followed since then, or that are too many. @returns them */
  expire(since: number): InterestEntry[] {
    const expired: InterestEntry[] = [];
    for (const [channel, at] of this.#idle) {
      if (at > since && this.#idle.size <= MOST_IDLE) break;
      const listening = this.#channels.get(channel) as InterestEntry;
      this.#idle.delete(channel);
      this.#channels.delete(channel);
      this.#unknown.delete(listening);
      listening.resolve();
      expired.push(listening);
    }
    return expired;
  }

  /** Of a new line nothing is known. */
  reset(): void {
    for (const listening of this.#channels.values()) listening.isSubscribed = false;
  }

  get hasUnknown(): boolean {
    return this.#unknown.size > 0;
  }

  /** Some of the channels whose tails are not known. */
  unknown(most: number): InterestEntry[] {
    const some: InterestEntry[] = [];
    for (const listening of this.#unknown) {
      if (some.length === most) break;
      some.push(listening);
    }
    return some;
  }

  settle(listening: InterestEntry): void {
    listening.isKnown = true;
    this.#unknown.delete(listening);
    listening.resolve();
  }

  /** Nobody needs to wait any more. */
  close(): void {
    for (const { resolve } of this.#unknown) resolve();
  }

  all(): InterestEntry[] {
    return [...this.#channels.values()];
  }
}
