/**
 * Leases: this node holds channels while it publishes to them by `pipe()`, and ends channels that
 * other nodes held when they died.
 *
 * ```text
 * this node      hold ──── renew ──── renew ──── renew ── the channel ends
 * lease in Redis ├──── 30 s ────┤
 *                           ├──── 30 s ────┤
 * a node that has died
 *                hold ──── renew   ×
 *                           ├──── 30 s ────┤ any other node ends the channel
 * ```
 */
import { diagnostics } from '../../common/diagnostics.ts';
import type { HistoryLimits } from '../../log/log.ts';
import type { Lease } from '../broker.ts';
import { formatLimits, type LogClient } from './log-client.ts';

// Number of channels that one call of the script ends.
const MAX_ENDED = 100;

// Number of leases that one call renews. Redis does nothing else during a call.
const MAX_RENEWED = 500;

/** Keeps the leases of one node. */
export class Leases {
  readonly #client: LogClient;
  readonly #leaseMs: number;
  readonly #isOpen: () => boolean;
  readonly #onError: (error: unknown) => void;
  // The leases of this node, each with the number of its holders.
  readonly #held = new Map<string, number>();
  // Leases that this node has given up, which are renewed once more: Redis may have lost them.
  readonly #givenUp = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  #isRenewing = false;
  // Time in ms since which this node is open and Redis has answered every call.
  #openSince: number | undefined;

  /**
   * @param leaseMs time in ms after which a lease runs out that is not renewed
   * @param isOpen whether the node is connected and has missed nothing
   * @param onError called with an error of Redis
   */
  constructor(
    client: LogClient,
    leaseMs: number,
    isOpen: () => boolean,
    onError: (error: unknown) => void,
  ) {
    this.#client = client;
    this.#leaseMs = leaseMs;
    this.#isOpen = isOpen;
    this.#onError = onError;
  }

  /** Starts to renew leases, and to look for leases that have run out. */
  start(): void {
    this.#timer = setInterval(() => void this.#renewAll(), this.#leaseMs / 3).unref();
  }

  /**
   * Ends the work of this node. The channels that it still holds end at once, because this process
   * publishes nothing more to them. Never rejects.
   */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    const names = [...this.#held.keys(), ...this.#givenUp];
    // A call ends at most 100 channels.
    for (let from = 0; from < names.length; from += MAX_ENDED) {
      const isEnded = await this.#renew(names.slice(from, from + MAX_ENDED), true, 0);
      if (!isEnded) return;
    }
  }

  /** As `Broker.hold()`. */
  hold(channel: string, history: HistoryLimits): Lease {
    // The limits are needed if the channel has no entry when it is abandoned.
    const name = [...formatLimits(history), channel].join(':');
    this.#held.set(name, (this.#held.get(name) ?? 0) + 1);
    this.#givenUp.delete(name);
    void this.#renew([name], false);
    let isHeld = true;
    const drop = (): void => {
      if (isHeld) this.#drop(name);
      isHeld = false;
    };
    return {
      // The end of the channel has removed the lease in Redis.
      release: drop,
      abandon: () => {
        if (isHeld) this.#givenUp.add(name);
        drop();
      },
    };
  }

  /** Removes one holder of a lease. */
  #drop(name: string): void {
    const holders = (this.#held.get(name) ?? 0) - 1;
    if (holders > 0) this.#held.set(name, holders);
    else this.#held.delete(name);
  }

  /** Renews all leases of this node, one call after the other. */
  async #renewAll(): Promise<void> {
    if (this.#isRenewing) return;
    this.#isRenewing = true;
    await this.#renewEach(this.#maySweep());
    this.#isRenewing = false;
  }

  /**
   * Whether leases that have run out may be looked for: only after this node has been open for the
   * time of a lease. While Redis was away, no node could renew its leases.
   */
  #maySweep(): boolean {
    const now = performance.now();
    if (!this.#isOpen()) this.#openSince = undefined;
    else this.#openSince ??= now;
    return this.#openSince !== undefined && now - this.#openSince >= this.#leaseMs;
  }

  /**
   * A node that is not open may still publish: its commands have a connection of their own. So its
   * leases are renewed as long as Redis answers.
   */
  async #renewEach(endsExpired: boolean): Promise<void> {
    const givenUp = [...this.#givenUp];
    const names = [...this.#held.keys(), ...givenUp];
    if (names.length === 0 && !endsExpired) return;
    // At least one call, which looks for leases that have run out.
    for (let from = 0; from === 0 || from < names.length; from += MAX_RENEWED) {
      const isRenewed = await this.#renew(names.slice(from, from + MAX_RENEWED), endsExpired);
      if (!isRenewed) return;
    }
    for (const name of givenUp) this.#givenUp.delete(name);
  }

  /** @returns whether Redis has renewed the leases */
  async #renew(
    names: readonly string[],
    endsExpired: boolean,
    leaseMs: number = this.#leaseMs,
  ): Promise<boolean> {
    try {
      const ended = await this.#client.lease(names, leaseMs, endsExpired);
      if (!diagnostics.end.hasSubscribers) return true;
      for (const { channel, id } of ended) {
        diagnostics.end.publish({ channel, id, reason: 'abandoned' });
      }
      return true;
    } catch (error) {
      this.#openSince = undefined;
      this.#onError(error);
      return false;
    }
  }
}
