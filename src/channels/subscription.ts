/** The record that a stream keeps of one call of `subscribe`. */
import { ignoreRejection } from '../common/async.ts';
import { bindToContext } from '../common/async-context.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { SubscribeOptions } from '../stream/event-stream.ts';
import type { LogEntry } from '../log/log-entry.ts';

/**
 * One subscription of a stream: its channels and options, and the progress of its start.
 *
 * ```text
 * created ──markAllPlaced()──► placed ──finishStart()──► started
 *    │                           │                         ▲
 *    └───────────────────────────┴── finishStart(), if ────┘
 *                                    the subscription ends
 * ```
 *
 * - *created*: the broker has not answered with the position in the log yet. The stream follows
 *   none of the channels, except those that another subscription of the stream had placed before.
 * - *placed*: the stream has an offset for each of the channels, and reads the log.
 * - *started*: the first page was delivered, and a gap at the start was reported. Resolves the
 *   promise of `subscribe()`.
 *
 * Streams with identical started subscriptions share one record: see {@link isLike}.
 */
export class SubscriptionRecord {
  /** The channels, each once. */
  readonly channels: readonly string[];
  readonly options: SubscribeOptions;
  /** Whether no gap was reported before the subscription started: `Subscription.recovered`. */
  recovered = true;
  /**
   * Whether the subscription may start before the position of its stream. Until it is placed, the
   * stream writes no id: a client that reconnects with a later id would lose events.
   */
  mayStartEarlier = false;
  /**
   * The channels whose state its `snapshot` sends at the start; empty if the `snapshot` is not
   * called at the start, or was called. Without the channels that another subscription of the
   * stream followed before.
   */
  snapshotChannels: readonly string[] = [];
  /** Whether its `onGap` was called, and no event was delivered since the call. */
  wasAskedAboutGap = false;
  // `undefined` after the subscription has started or ended.
  #start: PendingStart | undefined = new PendingStart();

  /** @param options are copied, so that later changes of the caller's object have no effect */
  constructor(channels: readonly string[], options: SubscribeOptions) {
    this.channels = channels;
    const { since, resume, filter, onGap, snapshot, checkpoints, control } = options;
    // Functions of the application run in the async context of the call of `subscribe`.
    const boundSnapshot = snapshot && bindToContext(snapshot);
    this.options = {
      since,
      resume,
      filter: filter && bindToContext(filter),
      onGap: boundSnapshot ? snapshotAfterGap(boundSnapshot) : onGap && bindToContext(onGap),
      snapshot: boundSnapshot,
      checkpoints,
      control,
    };
  }

  // Shared records.

  /**
   * Whether several streams may share the record. Records with a filter or `onGap` are not shared:
   * each call of `subscribe` has its own bound function, and `wasAskedAboutGap` belongs to one
   * stream.
   */
  get isShareable(): boolean {
    return (
      this.isStartFinished && this.options.filter === undefined && this.options.onGap === undefined
    );
  }

  /** Whether a stream can use either record in place of the other. */
  isLike(other: SubscriptionRecord): boolean {
    if (this === other) return true;
    const { channels, options } = this;
    return (
      this.isShareable &&
      other.isShareable &&
      options.checkpoints === other.options.checkpoints &&
      options.control === other.options.control &&
      channels.length === other.channels.length &&
      channels.every((channel, index) => channel === other.channels[index])
    );
  }

  // The start.

  /** Whether all of its channels are placed. */
  get isPlaced(): boolean {
    return this.#start?.isPlaced ?? true;
  }

  /** Whether the subscription includes the channel, and the channel is placed. */
  hasPlaced(channel: string): boolean {
    return (
      this.channels.includes(channel) &&
      (this.isPlaced || this.#start?.placedChannels.includes(channel) === true)
    );
  }

  /** The channels of this subscription that are placed. */
  get placedChannels(): readonly string[] {
    return this.isPlaced ? this.channels : (this.#start?.placedChannels ?? []);
  }

  /** Whether the subscription has started, or has ended before it started. */
  get isStartFinished(): boolean {
    return this.#start === undefined;
  }

  /** Returns a signal that aborts if the subscription ends before it is placed. */
  getSignal(): AbortSignal {
    const abort = this.#start?.abort ?? new AbortController();
    if (this.#start === undefined) abort.abort();
    else this.#start.abort = abort;
    return abort.signal;
  }

  /** Resolves when all channels are placed, or the subscription has ended. */
  whenPlaced(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#start === undefined || this.#start.isPlaced) resolve();
      else this.#start.onPlaced = [...this.#start.onPlaced, resolve];
    });
  }

  /** Resolves when the subscription has started or ended. Called at most once. */
  whenStarted(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#start === undefined) resolve();
      else this.#start.onStarted = resolve;
    });
  }

  /**
   * Marks those of its channels that are among `channels` as placed, because the stream follows
   * them already. They remain placed if the other subscription ends.
   */
  markPlaced(channels: readonly string[]): void {
    if (this.#start === undefined) return;
    this.#start.placedChannels = [
      ...this.#start.placedChannels,
      ...channels.filter((channel) => this.channels.includes(channel)),
    ];
  }

  /** Marks all of its channels as placed. */
  markAllPlaced(): void {
    if (this.#start === undefined) return;
    this.#start.isPlaced = true;
    this.#start.abort = undefined;
    for (const resolve of this.#start.onPlaced) resolve();
  }

  /** Marks the subscription as started, or as ended if it has not started. */
  finishStart(): void {
    const start = this.#start;
    this.#start = undefined;
    if (start?.isPlaced === false) start.abort?.abort();
    if (start === undefined) return;
    for (const resolve of start.onPlaced) resolve();
    start.onStarted?.();
  }

  // Events.

  /** Notes that a gap of its channels is reported. */
  noteLoss(): void {
    if (!this.isStartFinished) this.recovered = false;
  }

  /**
   * Applies the filter.
   * @throws {SseError} `ERR_SSE_FILTER` if the filter does not return a boolean
   * @throws the filter's own errors
   */
  accepts(entry: LogEntry): boolean {
    const { filter } = this.options;
    if (filter === undefined) return true;
    const answer: unknown = filter(entry);
    if (typeof answer === 'boolean') return answer;
    ignoreRejection(answer);
    throw new SseError(
      'ERR_SSE_FILTER',
      'expected the filter to return true or false, ' +
        `got ${describeValue(answer)}; it cannot be async`,
    );
  }
}

/** @returns an `onGap` that calls the `snapshot`, and continues after `gap.cursor` */
function snapshotAfterGap(
  snapshot: NonNullable<SubscribeOptions['snapshot']>,
): NonNullable<SubscribeOptions['onGap']> {
  return async (stream, gap) => {
    await snapshot(stream, { reason: 'gap', ...gap });
    return gap.cursor;
  };
}

const NO_CALLBACKS: readonly (() => void)[] = [];

/** The state of a subscription that has not started, and the callbacks that wait for its start. */
class PendingStart {
  isPlaced = false;
  abort: AbortController | undefined;
  placedChannels: readonly string[] = [];
  onPlaced: readonly (() => void)[] = NO_CALLBACKS;
  onStarted: (() => void) | undefined;
}

/** The placed channels of the subscriptions. */
export function placedChannelsOf(records: readonly SubscriptionRecord[]): ReadonlySet<string> {
  return new Set(records.flatMap(({ placedChannels }) => placedChannels));
}

/** The channels of the subscriptions, each once. */
export function channelsOf(records: readonly SubscriptionRecord[]): readonly string[] {
  return records.length === 1
    ? (records[0] as SubscriptionRecord).channels
    : [...new Set(records.flatMap(({ channels }) => channels))];
}
