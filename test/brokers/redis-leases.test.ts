/** Leases of `channels.pipe()`: which channels end, and which do not. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { PublishOnlyBroker } from '../../src/brokers/redis/publish-only-broker.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels, type Channels, type ChannelsOptions } from '../../src/index.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { startRedis, type RedisClient, type RedisServer } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';

const LEASE_MS = 600;
const TIMING = { probe: 500, linger: 10_000, wait: { min: 5, max: 100 } };

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

type BrokerClass = typeof RedisBroker | typeof PublishOnlyBroker;

interface NodeOptions extends ChannelsOptions {
  /** The class of the broker. */
  kind?: BrokerClass;
  timeout?: number;
  lease?: number;
}

function makeNode(url: string, options: NodeOptions = {}): Channels {
  const { kind: Kind = RedisBroker, timeout = 2_000, lease = LEASE_MS, ...rest } = options;
  const connection = ownConnection(url, 500, () => {});
  const broker = new Kind(connection, 'leases', { ...TIMING, timeout, lease });
  const channels = createChannels({ ...rest, broker });
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

const untilOpen = (...nodes: Channels[]): Promise<void> =>
  until('the nodes to be open', () => nodes.every((node) => node.stats().broker.state === 'open'));

/** A source that does not end. */
async function* endless(): AsyncGenerator<string> {
  for (;;) {
    yield 'more';
    await delay(20);
  }
}

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
  await untilOpen(producer, other);
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
  await untilOpen(producer, other);
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

describe('after an outage of Redis for longer than a lease', () => {
  const lease = 1_200;

  /** A node that pipes to `other`, and does not reach Redis in time. */
  async function closeAfterRefusal(): Promise<() => Promise<void>> {
    const node = makeNode(redis.url, { lease, timeout: 300 });
    await untilOpen(node);
    const piped = node.pipe('other', endless()).catch((error: unknown) => error);
    return async () => {
      expect(await piped).toMatchObject({ code: 'ERR_SSE_BROKER' });
      redis.resume();
      await node.close();
    };
  }

  const makeSweeper = (kind: BrokerClass) => (): Promise<() => Promise<void>> => {
    makeNode(redis.url, { lease, kind });
    return Promise.resolve(() => Promise.resolve(redis.resume()));
  };

  test.each([
    ['a node', makeSweeper(RedisBroker)],
    ['a process that only publishes', makeSweeper(PublishOnlyBroker)],
    ['a node that closes', closeAfterRefusal],
  ])('%s gives living producers the time to renew their leases', async (_who, start) => {
    const [producer, reader] = [makeNode(relay.url, { lease }), makeNode(redis.url, { lease })];
    const resume = await start();
    await untilOpen(producer, reader);
    // From now on, leases that run out end their channels.
    await delay(1.5 * lease);
    const { items, finish } = makeSource();
    const piped = producer.pipe('run', items);
    await until('the lease', async () => (await leases()).includes('run'));
    // The renewals of the producer arrive after the calls of the others.
    relay.stall('commands');
    redis.pause();
    await delay(2 * lease);
    await resume();
    const end = performance.now() + lease / 2;
    while (performance.now() < end) expect(await leases()).toContain('run');
    relay.flow();
    finish();
    expect(await piped).toMatchObject({ events: 1 });
    await untilOpen(reader);
    expect(await reader.state('run')).toBe('ended');
  });
});

test('a node that closes does not end a channel that another node holds by now', async () => {
  const options = { timeout: 300, lease: 60_000 };
  const [closing, other] = [makeNode(relay.url, options), makeNode(redis.url, options)];
  await untilOpen(closing, other);
  const refused = closing.pipe('run', endless());
  await until('the lease', async () => (await leases()).length === 1);
  relay.sever();
  await expect(refused).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  const { items, finish } = makeSource();
  const piped = other.pipe('run', items);
  relay.mend();
  await untilOpen(closing);
  await closing.close();
  expect(await other.state('run')).toBe('open');
  finish();
  expect(await piped).toMatchObject({ events: 1 });
});

test('a node that closes ends the channels that it still holds, and no others', async () => {
  const history = { events: 10, bytes: 1_000, age: Infinity, latest: false };
  const [closing, other] = [1, 2].map(() => {
    const timing = { ...TIMING, timeout: 2_000, lease: 60_000 };
    const broker = new RedisBroker(
      ownConnection(redis.url, 500, () => {}),
      'leases',
      timing,
    );
    open.push(createChannels({ broker }));
    return broker;
  }) as [RedisBroker, RedisBroker];
  closing.hold('own', history);
  closing.hold('taken over', history);
  await until('the leases', async () => (await leases()).length === 2);
  other.hold('taken over', history);
  // Answered after the lease was accepted.
  expect(await other.channelState('own')).toBe('unknown');
  await closing.close();
  expect(await leases()).toEqual(['taken over']);
  expect(await other.channelState('own')).toBe('ended');
  expect(await other.channelState('taken over')).toBe('unknown');
});

test('a producer whose channel was cleared holds it: the channel ends when it dies', async () => {
  const [producer, other] = [makeNode(relay.url), makeNode(redis.url)];
  await untilOpen(producer, other);
  const { items, finish } = makeSource();
  const piped = producer.pipe('run', items);
  await until('the event', async () => (await other.state('run')) === 'open');
  await other.clear('run');
  await other.publish('run', 'after the clear');
  // A producer that lives renews its lease.
  await delay(2 * LEASE_MS);
  expect(await other.state('run')).toBe('open');
  relay.sever();
  await until('the end', async () => (await other.state('run')) === 'ended');
  relay.mend();
  finish();
  await piped;
});

test('a pipe that was refused does not end its channel when it was cleared meanwhile', async () => {
  const [refused, other] = [makeNode(relay.url, { timeout: 300 }), makeNode(redis.url)];
  await untilOpen(refused, other);
  const refusal = refused.pipe('run', endless()).catch((error: unknown) => error);
  // Answered after the lease was accepted.
  await refused.publish('another', 'event');
  relay.sever();
  await other.clear('run');
  expect(await refusal).toMatchObject({ code: 'ERR_SSE_BROKER' });
  relay.mend();
  await untilOpen(refused);
  await expectUsable(other);
  await until('no lease', async () => (await leases()).length === 0);
});

test('a pipe that was refused does not end its channel when others have used it meanwhile', async () => {
  const [refused, other] = [makeNode(relay.url, { timeout: 300 }), makeNode(redis.url)];
  await untilOpen(refused, other);
  const piped = refused.pipe('run', endless());
  // Answered after the lease was accepted.
  await refused.publish('another', 'event');
  relay.sever();
  await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  await other.end('run').catch(() => {});
  await other.clear('run');
  await other.publish('run', 'used');
  relay.mend();
  await untilOpen(refused);
  await expectUsable(other);
  expect(await leases()).toEqual([]);
});

test('a pipe that Redis refused from its first call on ends its channel', async () => {
  const producer = makeNode(redis.url);
  await untilOpen(producer);
  await producer.publish('run', 'before the pipe');
  await client.configSet('maxmemory', '1');
  await expect(producer.pipe('run', ['lost'])).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  await client.configSet('maxmemory', '0');
  await until('the end', async () => (await producer.state('run')) === 'ended');
});

test('a pipe whose lease was never accepted takes no lease from a later pipe that lives', async () => {
  const [away, alive, other] = [
    makeNode(relay.url, { timeout: 300 }),
    makeNode(redis.url),
    makeNode(redis.url),
  ];
  await untilOpen(away, alive, other);
  relay.sever();
  const refusal = away.pipe('run', endless()).catch((error: unknown) => error);
  expect(await refusal).toMatchObject({ code: 'ERR_SSE_BROKER' });
  const stop = new AbortController();
  const piped = alive.pipe('run', endless(), { signal: stop.signal }).catch((error) => error);
  await until('the lease', async () => (await leases()).length === 1);
  relay.mend();
  await untilOpen(away);
  const mended = Date.now();
  // Only a lease that is renewed again and again runs out so late.
  await until('renewals', async () => {
    const expiry = await client.zScore('{leases}:leases', 'run');
    return (await other.state('run')) !== 'open' || (expiry ?? 0) > mended + 4 * LEASE_MS;
  });
  expect(await other.state('run')).toBe('open');
  stop.abort(new Error('the test is over'));
  expect(await piped).toMatchObject({ message: 'the test is over' });
});
