/** What one call of `subscribe` agreed on, and what its caller has of it. */
import { bindToContext } from '../common/async-context.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';
import { keyOf } from './fan-out.ts';
import type { LogEntry } from '../log/log-entry.ts';

/** Of whose channels a subscription holds some. */
export interface SubscriptionOwner {
  readonly cursor: string;
  /** How many gaps have been told to those who subscribed to these. */
  gapsOf(channels: readonly string[]): number;
  remove(hold: SubscriptionRecord): void;
}

/** A stream's hold on its channels. Streams that have agreed on the same, and have begun, share one. */
export class SubscriptionRecord {
  readonly channels: readonly string[];
  readonly options: SubscribeOptions;
  /** Whether no gap was told before it had begun. */
  recovered = true;
  /** Whether its `onGap` was asked since anything was delivered. */
  wasAsked = false;
  // Nothing once its start is known and its gap told, or there will be none any more.
  #start: PendingStart | undefined = new PendingStart();

  constructor(channels: readonly string[], options: SubscribeOptions) {
    this.channels = channels;
    const { since, resume, filter, onGap, checkpoints } = options;
    // A copy: what was agreed on does not change with the caller's object. Functions run in the context of the subscriber.
    this.options = {
      since,
      resume,
      filter: filter && bindToContext(filter),
      onGap: onGap && bindToContext(onGap),
      checkpoints,
    };
  }

  /** Whether a stream that has the one might as well have the other. */
  isLike(other: SubscriptionRecord): boolean {
    if (this === other) return true;
    const { channels, options } = this;
    // One that is asked remembers that.
    if (
      !this.hasBegun ||
      !other.hasBegun ||
      options.onGap !== undefined ||
      other.options.onGap !== undefined
    ) {
      return false;
    }
    if (
      options.filter !== other.options.filter ||
      options.checkpoints !== other.options.checkpoints
    ) {
      return false;
    }
    return (
      channels.length === other.channels.length &&
      channels.every((channel, index) => channel === other.channels[index])
    );
  }

  /** Whether its channels have their place in the stream. */
  get isPlaced(): boolean {
    return this.#start?.isPlaced ?? true;
  }

  /** Whether it has the channel, and that has its place in the stream. */
  hasPlaced(channel: string): boolean {
    return (
      this.channels.includes(channel) &&
      (this.isPlaced || this.#start?.joined.includes(channel) === true)
    );
  }

  /** Its channels that have their place in the stream. */
  get placedChannels(): readonly string[] {
    return this.isPlaced ? this.channels : (this.#start?.joined ?? []);
  }

  /** Aborted if the subscription ends before it has its place: what waits for a broker elsewhere waits no more. */
  get signal(): AbortSignal {
    const abort = this.#start?.abort ?? new AbortController();
    if (this.#start === undefined) abort.abort();
    else this.#start.abort = abort;
    return abort.signal;
  }

  /** Whether its start is known and the gap told, or the subscription has ended. */
  get hasBegun(): boolean {
    return this.#start === undefined;
  }

  /** Resolves when its channels have their place, or the subscription has ended. */
  placed(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#start === undefined || this.#start.isPlaced) resolve();
      else this.#start.onPlaced = [...this.#start.onPlaced, resolve];
    });
  }

  /** Resolves when {@link hasBegun}. */
  begun(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#start === undefined) resolve();
      else this.#start.onBegun = resolve;
    });
  }

  /** The stream follows these already: those it has go on where they are, whoever else leaves. */
  join(channels: readonly string[]): void {
    if (this.#start === undefined) return;
    this.#start.joined = [
      ...this.#start.joined,
      ...channels.filter((channel) => this.channels.includes(channel)),
    ];
  }

  place(): void {
    if (this.#start === undefined) return;
    this.#start.isPlaced = true;
    this.#start.abort = undefined;
    for (const resolve of this.#start.onPlaced) resolve();
  }

  begin(): void {
    const start = this.#start;
    this.#start = undefined;
    if (start?.isPlaced === false) start.abort?.abort();
    if (start === undefined) return;
    for (const resolve of start.onPlaced) resolve();
    start.onBegun?.();
  }

  /** A gap of its channels is told. */
  lose(): void {
    if (!this.hasBegun) this.recovered = false;
  }

  /** @throws {SseError} `ERR_SSE_FILTER` for an answer that is not a boolean; whatever the filter throws */
  lets(entry: LogEntry): boolean {
    const { filter } = this.options;
    if (filter === undefined) return true;
    const answer: unknown = filter(entry);
    if (typeof answer === 'boolean') return answer;
    throw new SseError(
      'ERR_SSE_FILTER',
      `expected the filter to return true or false, got ${describeValue(answer)}; it cannot be async`,
    );
  }
}

const NOBODY: readonly (() => void)[] = [];

/** A subscription that has not begun yet, and who waits for it. */
class PendingStart {
  isPlaced = false;
  abort: AbortController | undefined;
  joined: readonly string[] = [];
  onPlaced: readonly (() => void)[] = NOBODY;
  onBegun: (() => void) | undefined;
}

/** What the caller of `subscribe` has of it. Nobody else keeps it: most callers let go of it at once. */
export class SubscriptionHandle implements Subscription {
  readonly #holder: SubscriptionOwner;
  readonly #hold: SubscriptionRecord;
  readonly #gapsBefore: number;
  // Set at its end, after which nothing more counts.
  #gaps: number | undefined;

  constructor(holder: SubscriptionOwner, hold: SubscriptionRecord) {
    this.#holder = holder;
    this.#hold = hold;
    this.#gapsBefore = holder.gapsOf(hold.channels);
  }

  get channels(): readonly string[] {
    return this.#hold.channels;
  }

  get recovered(): boolean {
    return this.#hold.recovered;
  }

  get gaps(): number {
    return this.#gaps ?? this.#holder.gapsOf(this.channels) - this.#gapsBefore;
  }

  get cursor(): string {
    return this.#holder.cursor;
  }

  unsubscribe(): void {
    // The stream may have another like it, which must stay.
    if (this.#gaps !== undefined) return;
    this.#gaps = this.gaps;
    this.#holder.remove(this.#hold);
  }
}

/** How many gaps a stream was told, for each set of channels that was subscribed to. */
export class GapCounts {
  readonly #counts = new Map<string, number>();

  /** A gap concerns these subscriptions. */
  add(holds: readonly SubscriptionRecord[]): void {
    const keys = new Set(holds.map(({ channels }) => keyOf(channels)));
    for (const key of keys) this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  of(channels: readonly string[]): number {
    return this.#counts.get(keyOf(channels)) ?? 0;
  }

  /** Forgets the sets that nobody is subscribed to any more. */
  keepOnly(holds: readonly SubscriptionRecord[]): void {
    const keys = new Set(holds.map(({ channels }) => keyOf(channels)));
    for (const key of this.#counts.keys()) if (!keys.has(key)) this.#counts.delete(key);
  }

  get isEmpty(): boolean {
    return this.#counts.size === 0;
  }
}

/** A subscription on a stream that has ended. */
export function endedSubscription(channels: readonly string[]): Subscription {
  return { channels, recovered: false, gaps: 0, cursor: '', unsubscribe: () => {} };
}

/** The channels of the holds that have their place in the stream. */
export function placedChannelsOf(holds: readonly SubscriptionRecord[]): ReadonlySet<string> {
  return new Set(holds.flatMap(({ placedChannels }) => placedChannels));
}

/** The channels of the holds, each once. */
export function channelsOf(holds: readonly SubscriptionRecord[]): readonly string[] {
  return holds.length === 1
    ? (holds[0] as SubscriptionRecord).channels
    : [...new Set(holds.flatMap((hold) => hold.channels))];
}
