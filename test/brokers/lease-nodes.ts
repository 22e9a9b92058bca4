/** Nodes with short leases and a Redis of their own, for the tests of leases. */
import { setTimeout as delay } from 'node:timers/promises';
import { ownConnection, type RedisConnection } from '../../src/brokers/redis/redis-connection.ts';
import type { PublishOnlyBroker } from '../../src/brokers/redis/publish-only-broker.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels, type Channels, type ChannelsOptions } from '../../src/index.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { startRedis, type RedisClient, type RedisServer } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';

export const LEASE_MS = 600;

const TIMING = { probe: 500, linger: 10_000, wait: { min: 5, max: 100 } };

export type BrokerClass = typeof RedisBroker | typeof PublishOnlyBroker;

interface NodeOptions extends ChannelsOptions {
  /** The class of the broker. */
  kind?: BrokerClass;
  timeout?: number;
  lease?: number;
}

export interface LeaseNode {
  readonly channels: Channels;
  readonly broker: RedisBroker | PublishOnlyBroker;
  /** Number of lease calls. */
  readonly calls: { sent: number; answered: number };
}

/** The limits of the history, for calls of `hold()`. */
export const HISTORY = { events: 10, bytes: 1_000, age: Infinity, latest: false };

/** A Redis, a relay to it, and the nodes of one test. */
export class LeaseNodes implements AsyncDisposable {
  readonly redis: RedisServer;
  /** The connections of the producer pass the relay. */
  readonly relay: Relay;
  readonly client: RedisClient;
  readonly #open: Channels[] = [];

  private constructor(redis: RedisServer, relay: Relay, client: RedisClient) {
    this.redis = redis;
    this.relay = relay;
    this.client = client;
  }

  static async start(): Promise<LeaseNodes> {
    const redis = await startRedis();
    return new LeaseNodes(redis, await startRelay(redis.port), await redis.client());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#open.map((channels) => channels.close()));
    await this.relay[Symbol.asyncDispose]();
    await this.redis[Symbol.asyncDispose]();
  }

  /** @param url of Redis or of the relay */
  make(url: string, options: NodeOptions = {}): LeaseNode {
    const { kind: Kind = RedisBroker, timeout = 2_000, lease = LEASE_MS, ...rest } = options;
    const calls = { sent: 0, answered: 0 };
    const connection = countLeaseCalls(
      ownConnection(url, 500, () => {}),
      calls,
    );
    const broker = new Kind(connection, 'leases', { ...TIMING, timeout, lease });
    const channels = createChannels({ ...rest, broker });
    this.#open.push(channels);
    return { channels, broker, calls };
  }

  /** The channels with a lease. */
  leases(): Promise<string[]> {
    return this.client.zRange('{leases}:leases', 0, -1);
  }

  /** The time in ms at which the lease of the channel runs out; 0 if it has none. */
  async expiry(channel: string): Promise<number> {
    return (await this.client.zScore('{leases}:leases', channel)) ?? 0;
  }

  /** Resolves when leases that run out end their channels, see noteLeaseCall() in log.lua. */
  untilEnding(leaseMs: number): Promise<void> {
    return until('lease calls for the time of a lease', async () => {
      const value = await this.client.hGet('{leases}:limits', '');
      const [since = 0, last = 0] = value?.split(':').slice(1).map(Number) ?? [];
      return last - since >= leaseMs;
    });
  }

  /**
   * Resolves when the lease of the channel was renewed for the time of several leases, or earlier
   * if the channel is not open any more.
   * @returns the state of the channel
   */
  async stateAfterRenewals(channel: string, reader: Channels): Promise<string> {
    const until4 = Date.now() + 4 * LEASE_MS;
    await until('renewals, or the end', async () => {
      return (await this.expiry(channel)) > until4 || (await reader.state(channel)) !== 'open';
    });
    return reader.state(channel);
  }

  /** Resolves when a lease of this channel is in Redis, and no other. */
  untilHeld(channel: string): Promise<void> {
    return until(`the lease of ${channel}`, async () => (await this.leases()).join() === channel);
  }
}

/** A source whose last item a test gives. */
export function makeSource(): { items: AsyncGenerator<string>; finish: () => void } {
  let finish!: () => void;
  const finished = new Promise<void>((resolve) => {
    finish = resolve;
  });
  async function* generate(): AsyncGenerator<string> {
    yield 'first';
    await finished;
  }
  return { items: generate(), finish };
}

/** A source that does not end. */
export async function* endless(): AsyncGenerator<string> {
  for (;;) {
    yield 'more';
    await delay(20);
  }
}

/** Resolves when Redis has answered a lease call that each of the nodes has made after now. */
export async function untilCalled(...nodes: LeaseNode[]): Promise<void> {
  // One call may be pending now.
  const counts = nodes.map(({ calls }) => calls.answered + 2);
  await until('lease calls', () => nodes.every(({ calls }, i) => calls.answered >= counts[i]!));
}

function countLeaseCalls(inner: RedisConnection, calls: LeaseNode['calls']): RedisConnection {
  return {
    ...inner,
    async send(key, args, signal) {
      // EVALSHA, the script, the number of keys, the keys, the operation.
      const isLease = args[3 + Number(args[2])] === 'lease';
      if (isLease) calls.sent++;
      const answer = await inner.send(key, args, signal);
      if (isLease) calls.answered++;
      return answer;
    },
  };
}

export function untilOpen(...nodes: Channels[]): Promise<void> {
  return until('the nodes to be open', () =>
    nodes.every((node) => node.stats().broker.state === 'open'),
  );
}
