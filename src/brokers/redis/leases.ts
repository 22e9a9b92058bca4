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
 * The script decides whether channels may be ended, see `noteLeaseCall()` in log.lua: after an
 * outage, processes that live must have the time to renew their leases. So each node calls the
 * script regularly, also a node without leases.
 */
import { randomBytes } from 'node:crypto';
import { diagnostics } from '../../common/diagnostics.ts';
import type { HistoryLimits } from '../../log/log.ts';
import type { Lease } from '../broker.ts';
import { formatLimits } from './append-format.ts';
import type { LogClient } from './log-client.ts';

// Number of channels that one call of the script ends.
const MAX_ENDED = 100;

// Number of leases that one call renews. Redis does nothing else during a call.
const MAX_RENEWED = 500;

// Number of calls in the time of a lease. The script knows this number.
const CALLS_PER_LEASE = 6;

/** The lease of one channel. */
interface ChannelLease {
  readonly channel: string;
  /** The limits of the history, `<events>:<bytes>:<age>:<latest>`, as given by the last holder. */
  limits: string;
  /** Number of pipes that publish to the channel. With 0, the lease was given up. */
  holders: number;
  /**
   * The log that has accepted the lease (`state` in log.lua); empty before. In the same log, the
   * lease is renewed only if this node still owns it. After a loss of data, the lease is taken
   * anew.
   */
  log: string;
  /**
   * The log in which the hold began. Another log may not know that another node took the channel
   * later.
   */
  begun: string;
}

/** Keeps the leases of one node. */
export class Leases {
  readonly #client: LogClient;
  readonly #leaseMs: number;
  readonly #onError: (error: unknown) => void;
  // Names this node in Redis: a channel belongs to the node that has held it last.
  readonly #owner = randomBytes(9).toString('base64url');
  // By channel. A lease that was given up is kept for one more call: if Redis does not know the
  // lease, the channel would never end.
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
   * publishes nothing more to them. If Redis has lost data since a hold began, the channel is given
   * up, because another node may hold it by now. A channel that was given up ends when its lease
   * has run out, if no other node holds it by then. Never rejects.
   */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    const all = [...this.#leases.values()];
    const own = all.filter(({ holders, log, begun }) => holders > 0 && log === begun);
    const givenUp = all.filter((lease) => !own.includes(lease));
    for (const lease of givenUp) lease.holders = 0;
    if (own.length > 0) await this.#callForEach(own, MAX_ENDED, true);
    if (givenUp.length > 0) await this.#callForEach(givenUp, MAX_RENEWED);
  }

  /** As `Broker.hold()`. */
  hold(channel: string, history: HistoryLimits): Lease {
    const lease = this.#leases.get(channel) ?? {
      channel,
      limits: '',
      holders: 0,
      log: '',
      begun: '',
    };
    this.#leases.set(channel, lease);
    // The limits are needed if the channel has no entry when it is abandoned.
    lease.limits = formatLimits(history).join(':');
    // The channel belongs to the newest holder.
    lease.log = '';
    lease.begun = '';
    lease.holders++;
    void this.#call([lease], { isNew: true });
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
        if (drop()) this.#leases.delete(channel);
      },
      abandon: drop,
    };
  }

  /** @returns the name of this node if it holds the channel; otherwise `''` */
  ownerOf(channel: string): string {
    return (this.#leases.get(channel)?.holders ?? 0) > 0 ? this.#owner : '';
  }

  /**
   * Makes the regular calls. A node that is not open may still publish, because its commands have a
   * connection of their own. So the calls do not depend on the state of the node.
   */
  async #renewAll(): Promise<void> {
    if (this.#isRenewing) return;
    this.#isRenewing = true;
    await this.#callForEach([...this.#leases.values()], MAX_RENEWED);
    this.#isRenewing = false;
  }

  /**
   * Makes one call after the other, until one fails: at least one call, which ends channels whose
   * lease has run out.
   */
  async #callForEach(
    leases: readonly ChannelLease[],
    maxPerCall: number,
    endsNow: boolean = false,
  ): Promise<void> {
    for (let from = 0; from === 0 || from < leases.length; from += maxPerCall) {
      if (!(await this.#call(leases.slice(from, from + maxPerCall), { endsNow }))) return;
    }
  }

  /** @returns whether Redis has accepted the call */
  async #call(
    leases: readonly ChannelLease[],
    { endsNow = false, isNew = false }: { endsNow?: boolean; isNew?: boolean } = {},
  ): Promise<boolean> {
    const heldKind = isNew ? '!' : '+';
    const sent = leases.map((lease) => ({ lease, log: lease.log, isHeld: lease.holders > 0 }));
    try {
      const { log, ended } = await this.#client.lease({
        owner: this.#owner,
        leaseMs: this.#leaseMs,
        endsNow,
        leases: sent.map(
          ({ lease, isHeld }) =>
            `${isHeld ? heldKind : '-'}${lease.log}:${lease.limits}:${lease.channel}`,
        ),
      });
      for (const { lease, log: sentLog, isHeld } of sent) {
        // The channel may have been held anew meanwhile.
        if (lease.log === sentLog) {
          lease.log = log;
          if (isNew) lease.begun = log;
        }
        if (!isHeld && lease.holders === 0) this.#leases.delete(lease.channel);
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
