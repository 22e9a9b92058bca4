/** Leases of `channels.pipe()`: which channels end, and which do not. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels, type Channels, type ChannelsOptions } from '../../src/index.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { startRedis, type RedisClient, type RedisServer } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';

const LEASE_MS = 600;
const TIMING = { timeout: 2_000, probe: 500, linger: 10_000, wait: { min: 5, max: 100 } };

let redis: RedisServer;
// The connections of the producer pass the relay.
let relay: Relay;
let client: RedisClient;
const open: Channels[] = [];

beforeEach(async () => {
  redis = await startRedis();
  relay = await startRelay(redis.port);
  client = await redis.client();
});

afterEach(async () => {
  await Promise.all(open.splice(0).map((channels) => channels.close()));
  await relay[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
});

function makeNode(url: string, options: ChannelsOptions = {}): Channels {
  const connection = ownConnection(url, 500, () => {});
  const broker = new RedisBroker(connection, 'leases', { ...TIMING, lease: LEASE_MS });
  const channels = createChannels({ ...options, broker });
  open.push(channels);
  return channels;
}

/** A source whose last item a test gives. */
function makeSource(): { items: AsyncGenerator<string>; finish: () => void } {
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

const leases = (): Promise<string[]> => client.zRange('{leases}:leases', 0, -1);

/** Waits for longer than a lease is valid, and publishes meanwhile. */
async function expectUsable(channels: Channels): Promise<void> {
  const end = performance.now() + 2.5 * LEASE_MS;
  while (performance.now() < end) {
    await channels.publish('run', 'used');
    await delay(50);
  }
  expect(await channels.state('run')).toBe('open');
}

test('a producer that receives no messages, and whose commands work, keeps its channel', async () => {
  const [producer, other] = [makeNode(relay.url), makeNode(redis.url)];
  await until('both nodes', () =>
    [producer, other].every((node) => node.stats().broker.state === 'open'),
  );
  // The other node has been open for long enough to look for abandoned leases.
  await delay(1.5 * LEASE_MS);
  const { items, finish } = makeSource();
  const piped = producer.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  relay.dropAll(() => true);
  await until('the producer to break', () => producer.stats().broker.state === 'broken');
  await delay(3 * LEASE_MS);
  expect(await other.state('run')).toBe('open');
  finish();
  expect(await piped).toMatchObject({ events: 1 });
  expect(await other.state('run')).toBe('ended');
});

test('a renewal that comes after the end does not end the channel when it is used again', async () => {
  const [producer, other] = [makeNode(relay.url), makeNode(redis.url)];
  await until('both nodes', () =>
    [producer, other].every((node) => node.stats().broker.state === 'open'),
  );
  const { items, finish } = makeSource();
  const piped = producer.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  // The answers are late: the producer renews its lease before it knows of the end.
  relay.stall('replies');
  finish();
  await until('the end', async () => (await other.state('run')) === 'ended');
  await delay(LEASE_MS / 2);
  relay.flow();
  await piped;
  await until('no lease', async () => (await leases()).length === 0);
  await other.clear('run');
  await expectUsable(other);
});

test('a pipe that was abandoned and piped anew leaves no lease behind', async () => {
  const [producer, other] = [makeNode(redis.url), makeNode(redis.url)];
  await until('the producer', () => producer.stats().broker.state === 'open');
  await client.configSet('maxmemory', '1');
  await expect(producer.pipe('run', ['lost'])).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  await client.configSet('maxmemory', '0');
  await producer.pipe('run', ['first']);
  await other.clear('run');
  await expectUsable(other);
  expect(await leases()).toEqual([]);
});

test('an end by a node with other limits of the history removes the lease', async () => {
  const [producer, other] = [
    makeNode(redis.url, { history: { events: 500 } }),
    makeNode(redis.url, { history: { events: 700 } }),
  ];
  const { items, finish } = makeSource();
  const piped = producer.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  await other.end('run');
  expect(await leases()).toEqual([]);
  finish();
  // The end of the pipe finds the channel ended.
  await piped;
  await other.clear('run');
  await expectUsable(other);
});
