/** The registry, as seen by the followers of its channels. */
import type { Broker } from '../brokers/broker.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { CatchUpQueue } from './catch-up-queue.ts';
import type { Deliveries } from './deliveries.ts';
import type { FanOut } from './fan-out.ts';
import type { FollowedChannels } from './followed-channels.ts';

/** The parts of a registry that its followers use. */
export interface FollowerHost {
  readonly broker: Broker;
  readonly followedChannels: FollowedChannels;
  /** Delivers events of channels with history to the live streams. */
  readonly fanOut: FanOut;
  /** Delivers events of channels without history. */
  readonly ephemeralFanOut: FanOut;
  readonly catchUpQueue: CatchUpQueue;
  readonly deliveries: Deliveries;
  /**
   * Whether a stream may receive events now: its middleware has no `identity`, or no revocation can
   * be missing and no `authorize` is running for the stream.
   */
  mayReceive(stream: EventStream): boolean;
  /**
   * Resolves when the stream may receive the events of the log up to an offset.
   * @param signal ends the wait: the promise rejects
   * @returns `undefined` if the stream may receive these events now
   */
  whenMayReceive(
    stream: EventStream,
    offset: number,
    signal: AbortSignal | undefined,
  ): Promise<void> | undefined;
  /**
   * The stream has a subscription and is not live. The registry cannot find such a stream by the
   * audiences of {@link fanOut}, so it keeps a list.
   */
  trackStream(stream: EventStream): void;
  /** The stream is live, or has no subscription any more. */
  untrackStream(stream: EventStream): void;
  /** A gap was reported to a stream. */
  countGap(): void;
}
