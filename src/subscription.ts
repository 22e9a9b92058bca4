/** What one call of `subscribe` got: a stream's hold on its channels. */
import { SseError, shown } from './errors.ts';
import type { SubscribeOptions, Subscription } from './event-stream.ts';
import type { LogEntry } from './log-entry.ts';

/** Of whose channels it holds some. */
export interface Holder {
  readonly cursor: string;
  remove(hold: Hold): void;
}

export class Hold implements Subscription {
  readonly channels: readonly string[];
  readonly options: SubscribeOptions;
  recovered = true;
  gaps = 0;
  /** How much had been delivered when its `onGap` was asked last. */
  askedAt = -1;
  readonly #holder: Holder;
  // Nothing once its start is known and its gap told, or there will be none any more.
  #start: Beginning | undefined = new Beginning();

  constructor(holder: Holder, channels: readonly string[], options: SubscribeOptions) {
    this.#holder = holder;
    this.channels = channels;
    this.options = options;
  }

  get cursor(): string {
    return this.#holder.cursor;
  }

  /** Whether its channels have their place in the stream. */
  get isPlaced(): boolean {
    return this.#start?.isPlaced ?? true;
  }

  /** Whether it has the channel, and that has its place in the stream. */
  hasPlaced(channel: string): boolean {
    return this.channels.includes(channel) && (this.isPlaced || this.#start?.joined.includes(channel) === true);
  }

  /** Whether its start is known and the gap told, or the subscription has ended. */
  get hasBegun(): boolean {
    return this.#start === undefined;
  }

  /** Resolves when its channels have their place, or the subscription has ended. For the one that comes next. */
  placed(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#start === undefined || this.#start.isPlaced) resolve();
      else this.#start.onPlaced = resolve;
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
    if (this.#start !== undefined) this.#start.joined = [...this.#start.joined, ...channels];
  }

  place(): void {
    if (this.#start === undefined) return;
    this.#start.isPlaced = true;
    this.#start.onPlaced?.();
  }

  begin(): void {
    const start = this.#start;
    this.#start = undefined;
    start?.onPlaced?.();
    start?.onBegun?.();
  }

  countGap(): void {
    this.gaps++;
    if (!this.hasBegun) this.recovered = false;
  }

  /** @throws {SseError} `ERR_SSE_FILTER` for an answer that is not a boolean; whatever the filter throws */
  lets(entry: LogEntry): boolean {
    const { filter } = this.options;
    if (filter === undefined) return true;
    const answer: unknown = filter(entry);
    if (typeof answer === 'boolean') return answer;
    throw new SseError('ERR_SSE_FILTER', `expected the filter to return true or false, got ${shown(answer)}; it cannot be async`);
  }

  unsubscribe(): void {
    this.#holder.remove(this);
  }
}

/** A subscription that has not begun yet, and who waits for it. */
class Beginning {
  isPlaced = false;
  joined: readonly string[] = [];
  onPlaced: (() => void) | undefined;
  onBegun: (() => void) | undefined;
}

/** A subscription on a stream that has ended. */
export function ended(channels: readonly string[]): Subscription {
  return { channels, recovered: false, gaps: 0, cursor: '', unsubscribe: () => {} };
}

/** The channels of the holds, each once. */
export function channelsOf(holds: readonly Hold[]): readonly string[] {
  return holds.length === 1 ? (holds[0] as Hold).channels : [...new Set(holds.flatMap((hold) => hold.channels))];
}
