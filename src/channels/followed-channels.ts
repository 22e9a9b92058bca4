/** The channels that this node follows, and the newest entry that it has received of each. */
import type { Broker } from '../brokers/broker.ts';
import type { LimitsByChannel } from '../log/history.ts';
import type { LogEntry } from '../log/log-entry.ts';
import type { CatchUpQueue } from './catch-up-queue.ts';

type ListeningCallback = (error?: Error) => void;

/** The kind of a follower: a stream, or a consumer (`channels.follow()` and revocations). */
type FollowerKind = 'stream' | 'consumer';

interface FollowedChannel {
  /** Number of streams that follow the channel. */
  streams: number;
  /** Number of consumers that follow the channel. */
  consumers: number;
  /** Offset of the newest received entry of the channel; see `newestInterruptions`. */
  newest: number;
  /**
   * `interruptions` when that entry was received. If it has changed since, `newest` counts as 0.
   */
  newestInterruptions: number;
  readonly hasHistory: boolean;
  /** Called when the broker listens to the channel, or cannot; `undefined` from then on. */
  onListening: Set<ListeningCallback> | undefined;
  /** The broker could not listen to the channel. The next follower of the channel tries again. */
  hasFailed: boolean;
}

// Number of callbacks that are called before other work gets its turn. Each callback may start a
// stream.
const MAX_CALLBACKS_PER_TURN = 250;

/** Counts the followers of each channel, and lets the broker listen to the followed channels. */
export class FollowedChannels {
  readonly #channels = new Map<string, FollowedChannel>();
  readonly #broker: Broker;
  readonly #limits: LimitsByChannel;
  readonly #catchUpQueue: CatchUpQueue;
  /**
   * Number of streams of all channels: a stream that follows three channels counts three times.
   * Consumers are not counted.
   */
  followers = 0;
  /** Number of times that this node may have missed entries. */
  interruptions = 0;

  constructor(broker: Broker, limits: LimitsByChannel, catchUpQueue: CatchUpQueue) {
    this.#broker = broker;
    this.#limits = limits;
    this.#catchUpQueue = catchUpQueue;
  }

  get size(): number {
    return this.#channels.size;
  }

  names(): string[] {
    return [...this.#channels.keys()];
  }

  has(channel: string): boolean {
    return this.#channels.has(channel);
  }

  /** Number of streams that follow the channel. */
  followersOf(channel: string): number {
    return this.#channels.get(channel)?.streams ?? 0;
  }

  /** Whether a followed channel keeps a history. Without history, events cannot be read later. */
  hasHistory(channel: string): boolean {
    return this.#channels.get(channel)?.hasHistory === true;
  }

  /**
   * Whether a channel that a stream is about to follow keeps a history. Calls `historyFor` of the
   * application, which may throw, or call back into the library.
   */
  willHaveHistory(channel: string): boolean {
    return this.#channels.get(channel)?.hasHistory ?? this.#limits.limitsFor(channel) !== false;
  }

  /**
   * A stream or a consumer follows the channel. Every call needs a {@link release}.
   */
  retain(channel: string, hasHistory: boolean, by: FollowerKind = 'stream'): void {
    const followed = this.#channels.get(channel) ?? this.#add(channel, hasHistory);
    if (by === 'stream') {
      followed.streams++;
      this.followers++;
    } else followed.consumers++;
    if (followed.hasFailed) this.#listen(channel, followed);
  }

  #add(channel: string, hasHistory: boolean): FollowedChannel {
    const followed: FollowedChannel = {
      streams: 0,
      consumers: 0,
      newest: 0,
      newestInterruptions: 0,
      hasHistory,
      onListening: undefined,
      hasFailed: false,
    };
    this.#channels.set(channel, followed);
    this.#listen(channel, followed);
    return followed;
  }

  #listen(channel: string, followed: FollowedChannel): void {
    followed.hasFailed = false;
    const listening = this.#broker.listen(channel);
    if (listening === undefined) return;
    this.#catchUpQueue.isBrokerRemote = true;
    const callbacks = new Set<ListeningCallback>();
    followed.onListening = callbacks;
    const callAll = (error?: Error): void => {
      followed.onListening = undefined;
      followed.hasFailed = error !== undefined;
      callInSlices(callbacks, error);
    };
    listening.then(() => callAll(), callAll);
  }

  /** A stream or a consumer does not follow the channel any more. */
  release(channel: string, by: FollowerKind = 'stream'): void {
    const followed = this.#channels.get(channel);
    if (by === 'stream') this.followers--;
    if (followed === undefined) return;
    if (by === 'stream') followed.streams--;
    else followed.consumers--;
    if (followed.streams + followed.consumers > 0) return;
    this.#channels.delete(channel);
    this.#broker.unlisten(channel);
  }

  /**
   * Resolves when this node receives the entries of all these channels, or the signal is aborted.
   * Rejects if the broker cannot listen to one of them.
   * @returns `undefined` if the node receives them already
   */
  whenListening(
    channels: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined {
    const waits = channels.flatMap((channel) => this.#channels.get(channel)?.onListening ?? []);
    if (waits.length === 0) return undefined;
    return new Promise((resolve, reject) => {
      let left = waits.length;
      const onListening: ListeningCallback = (error) => {
        if (error !== undefined) reject(error);
        else if (--left === 0) resolve();
      };
      for (const callbacks of waits) callbacks.add(onListening);
      // Without this, streams that end while the broker is unreachable would stay in memory.
      const onAbort = (): void => {
        for (const callbacks of waits) callbacks.delete(onListening);
        resolve();
      };
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** Notes an entry that the node has received. */
  noteReceived({ channel, offset }: LogEntry): void {
    const followed = this.#channels.get(channel);
    if (followed === undefined) return;
    followed.newest = offset;
    followed.newestInterruptions = this.interruptions;
  }

  /**
   * The offset of the newest entry that this node has received of these channels; 0 if it has
   * received none since the last interruption. Entries before the interruption may belong to
   * another log.
   */
  newestReceived(channels: readonly string[]): number {
    return Math.max(
      ...channels.map((channel) => {
        const followed = this.#channels.get(channel);
        return followed?.newestInterruptions === this.interruptions ? followed.newest : 0;
      }),
    );
  }
}

/**
 * Calls the callbacks, a limited number per turn. Callbacks that are deleted meanwhile are skipped.
 */
function callInSlices(callbacks: Set<ListeningCallback>, error: Error | undefined): void {
  let left = MAX_CALLBACKS_PER_TURN;
  for (const callback of callbacks) {
    if (left-- === 0) {
      setImmediate(callInSlices, callbacks, error);
      return;
    }
    callbacks.delete(callback);
    callback(error);
  }
}
