/** Nodes with short leases and a Redis of their own, for the tests of leases. */
import { setTimeout as delay } from 'node:timers/promises';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
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
    const connection = ownConnection(url, 500, () => {});
    const broker = new Kind(connection, 'leases', { ...TIMING, timeout, lease });
    const channels = createChannels({ ...rest, broker });
    this.#open.push(channels);
    return { channels, broker };
  }

  /** The channels with a lease. */
  leases(): Promise<string[]> {
    return this.client.zRange('{leases}:leases', 0, -1);
  }

  /** The time in ms of the last lease call of any node, and the time since when they have come. */
  async callTimes(): Promise<{ since: number; last: number }> {
    const value = await this.client.hGet('{leases}:limits', '');
    const [since = 0, last = 0] = value?.split(':').slice(1).map(Number) ?? [];
    return { since, last };
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

export function untilOpen(...nodes: Channels[]): Promise<void> {
  return until('the nodes to be open', () =>
    nodes.every((node) => node.stats().broker.state === 'open'),
  );
}
