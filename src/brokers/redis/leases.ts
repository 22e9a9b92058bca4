/**
 * Leases: this node holds channels while it publishes to them by `pipe()`, and ends channels that
 * other nodes held when they died.
 *
 * ```text
 * this node      hold ── renew ── renew ── renew ── the channel ends
 * lease in Redis ├────── 30 s ──────┤
 *                       ├────── 30 s ──────┤
 * a node that has died
 *                hold ── renew   ×
 *                       ├────── 30 s ──────┤ any other node ends the channel
 * ```
 *
 * The script decides whether channels may be ended, see `mayEndExpired()` in log.lua: after an
 * outage, processes that live must have the time to renew their leases. So each node calls the
 * script regularly, also a node without leases.
 */
import { diagnostics } from '../../common/diagnostics.ts';
import type { HistoryLimits } from '../../log/log.ts';
import type { Lease } from '../broker.ts';
import { formatLimits, type LogClient } from './log-client.ts';

// Number of channels that one call of the script ends.
const MAX_ENDED = 100;

// Number of leases that one call renews. Redis does nothing else during a call.
const MAX_RENEWED = 500;

// Number of calls in the time of a lease. The script knows this number.
const CALLS_PER_LEASE = 6;

/** The lease of one channel. */
interface ChannelLease {
  /** Number of pipes that publish to the channel. With 0, the lease was given up. */
  holders: number;
  /** Whether Redis has accepted the lease. */
  isTaken: boolean;
}

/** Keeps the leases of one node. */
export class Leases {
  readonly #client: LogClient;
  readonly #leaseMs: number;
  readonly #onError: (error: unknown) => void;
  // By `<events>:<bytes>:<age>:<latest>:<channel>`. A lease that was given up is kept until one more
  // call was made.
  readonly #leases = new Map<string, ChannelLease>();
  #timer: NodeJS.Timeout | undefined;
  #isRenewing = false;

  /**
   * @param leaseMs time in ms after which a lease runs out that is not renewed
   * @param onError called with an error of Redis
   */
  constructor(client: LogClient, leaseMs: number, onError: (error: unknown) => void) {
    this.#client = client;
    this.#leaseMs = leaseMs;
    this.#onError = onError;
  }

  /** Starts to renew leases, and to end channels whose lease has run out. */
  start(): void {
    const intervalMs = this.#leaseMs / CALLS_PER_LEASE;
    this.#timer = setInterval(() => void this.#renewAll(), intervalMs).unref();
  }

  /**
   * Ends the work of this node. The channels that it still holds end at once, because this process
   * publishes nothing more to them. A channel that was given up may be held by another node by now.
   * Never rejects.
   */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    if (this.#leases.size > 0) await this.#callForAll('-', MAX_ENDED);
  }

  /** As `Broker.hold()`. */
  hold(channel: string, history: HistoryLimits): Lease {
    // The limits are needed if the channel has no entry when it is abandoned.
    const name = [...formatLimits(history), channel].join(':');
    const lease = this.#leases.get(name) ?? { holders: 0, isTaken: false };
    this.#leases.set(name, lease);
    lease.holders++;
    void this.#call([[name, lease]], '+');
    let isHeld = true;
    const drop = (): boolean => {
      const isLast = isHeld && lease.holders === 1;
      if (isHeld) lease.holders--;
      isHeld = false;
      return isLast;
    };
    return {
      // The end of the channel has removed the lease in Redis.
      release: () => {
        if (drop()) this.#leases.delete(name);
      },
      abandon: drop,
    };
  }

  /**
   * Makes the regular calls. A node that is not open may still publish, because its commands have a
   * connection of their own. So the calls do not depend on the state of the node.
   */
  async #renewAll(): Promise<void> {
    if (this.#isRenewing) return;
    this.#isRenewing = true;
    await this.#callForAll('+', MAX_RENEWED);
    this.#isRenewing = false;
  }

  /**
   * Calls the script for all leases of this node, one call after the other, until one fails.
   * @param heldKind what the script does with the leases that were not given up
   * @param maxPerCall number of leases of one call
   */
  async #callForAll(heldKind: '+' | '-', maxPerCall: number): Promise<void> {
    const all = [...this.#leases];
    // At least one call, which ends channels whose lease has run out.
    for (let from = 0; from === 0 || from < all.length; from += maxPerCall) {
      if (!(await this.#call(all.slice(from, from + maxPerCall), heldKind))) return;
    }
  }

  /** @returns whether Redis has accepted the call */
  async #call(
    leases: readonly (readonly [string, ChannelLease])[],
    heldKind: '+' | '-',
  ): Promise<boolean> {
    const items = leases.map(([name, lease]) => {
      const isGivenUp = lease.holders === 0;
      // A lease that was given up runs out in Redis. It is taken if Redis has never accepted it;
      // with '?' the script takes it anew if Redis has lost its data.
      const givenUpKind = lease.isTaken ? '?' : '+';
      return { name, lease, isGivenUp, kind: isGivenUp ? givenUpKind : heldKind };
    });
    try {
      const ended = await this.#client.lease(
        items.map(({ kind, name }) => kind + name),
        this.#leaseMs,
      );
      for (const { name, lease, isGivenUp } of items) {
        lease.isTaken = true;
        // It may have been held again, or given up, while the call was pending.
        if (isGivenUp && lease.holders === 0) this.#leases.delete(name);
      }
      if (!diagnostics.end.hasSubscribers) return true;
      for (const { channel, id } of ended) {
        diagnostics.end.publish({ channel, id, reason: 'abandoned' });
      }
      return true;
    } catch (error) {
      this.#onError(error);
      return false;
    }
  }
}
