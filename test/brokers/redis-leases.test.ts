/** Leases of `channels.pipe()`: which channels end, and which do not. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PublishOnlyBroker } from '../../src/brokers/redis/publish-only-broker.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import type { Channels } from '../../src/index.ts';
import type { Relay } from '../support/relay.ts';
import type { RedisClient, RedisServer } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import {
  endless,
  HISTORY,
  LEASE_MS,
  LeaseNodes,
  makeSource,
  untilCalled,
  untilOpen,
  type BrokerClass,
  type LeaseNode,
} from './lease-nodes.ts';

let nodes: LeaseNodes;
let redis: RedisServer;
let relay: Relay;
let client: RedisClient;

beforeEach(async () => {
  nodes = await LeaseNodes.start();
  ({ redis, relay, client } = nodes);
});

afterEach(async () => {
  await nodes[Symbol.asyncDispose]();
});

const makeNode = (...args: Parameters<LeaseNodes['make']>): Channels =>
  nodes.make(...args).channels;

const leases = (): Promise<string[]> => nodes.leases();

/** Checks that the channel has no lease, and that no call of the nodes takes one. */
async function expectUsable(...all: LeaseNode[]): Promise<void> {
  const [{ channels }] = all as [LeaseNode];
  expect(await leases()).toEqual([]);
  await channels.publish('run', 'used');
  await untilCalled(...all);
  expect(await leases()).toEqual([]);
  expect(await channels.state('run')).toBe('open');
}

/** Uses the channel until its lease has run out, and checks that it does not end. */
async function expectNoEnd(channels: Channels): Promise<void> {
  await channels.publish('run', 'used');
  await until('no lease', async () => (await leases()).length === 0);
  expect(await channels.state('run')).toBe('open');
}

test('a producer that receives no messages, and whose commands work, keeps its channel', async () => {
  const [producer, other] = [makeNode(relay.url), makeNode(redis.url)];
  await untilOpen(producer, other);
  await nodes.untilEnding(LEASE_MS);
  const { items, finish } = makeSource();
  const piped = producer.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  relay.dropAll(() => true);
  await until('the producer to break', () => producer.stats().broker.state === 'broken');
  expect(await nodes.stateAfterRenewals('run', other)).toBe('open');
  finish();
  expect(await piped).toMatchObject({ events: 1 });
  expect(await other.state('run')).toBe('ended');
});

test('a renewal that comes after the end does not end the channel when it is used again', async () => {
  const [producer, other] = [nodes.make(relay.url), nodes.make(redis.url)];
  await untilOpen(producer.channels, other.channels);
  const { items, finish } = makeSource();
  const piped = producer.channels.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  await untilCalled(producer);
  // The answers are late: the producer renews its lease before it knows of the end.
  relay.stall('replies');
  finish();
  await until('the end', async () => (await other.channels.state('run')) === 'ended');
  const { sent } = producer.calls;
  await until('a renewal', () => producer.calls.sent > sent);
  relay.flow();
  await piped;
  await other.channels.clear('run');
  await expectUsable(other, producer);
});

test('a pipe that was abandoned and piped anew leaves no lease behind', async () => {
  const [producer, other] = [nodes.make(redis.url), nodes.make(redis.url)];
  await until('the producer', () => producer.channels.stats().broker.state === 'open');
  await client.configSet('maxmemory', '1');
  await expect(producer.channels.pipe('run', ['lost'])).rejects.toMatchObject({
    code: 'ERR_SSE_BROKER',
  });
  await client.configSet('maxmemory', '0');
  await producer.channels.pipe('run', ['first']);
  await other.channels.clear('run');
  await expectUsable(other, producer);
});

test('an end by a node with other limits of the history removes the lease', async () => {
  const [producer, other] = [
    nodes.make(redis.url, { history: { events: 500 } }),
    nodes.make(redis.url, { history: { events: 700 } }),
  ];
  const { items, finish } = makeSource();
  const piped = producer.channels.pipe('run', items);
  await until('the lease', async () => (await leases()).length === 1);
  await other.channels.end('run');
  expect(await leases()).toEqual([]);
  finish();
  // The end of the pipe finds the channel ended.
  await piped;
  await other.channels.clear('run');
  await expectUsable(other, producer);
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
    const producer = makeNode(relay.url, { lease });
    const reader = nodes.make(redis.url, { lease });
    const resume = await start();
    await untilOpen(producer, reader.channels);
    await nodes.untilEnding(lease);
    const { items, finish } = makeSource();
    const piped = producer.pipe('run', items);
    await until('the lease', async () => (await leases()).includes('run'));
    // The renewals of the producer arrive after the calls of the others.
    relay.stall('commands');
    const expiry = await nodes.expiry('run');
    redis.pause();
    await until('the lease to run out', () => Date.now() > expiry);
    await resume();
    // Without the time to renew, this call would end the channel.
    await untilCalled(reader);
    expect(await leases()).toContain('run');
    relay.flow();
    finish();
    expect(await piped).toMatchObject({ events: 1 });
    await untilOpen(reader.channels);
    expect(await reader.channels.state('run')).toBe('ended');
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
  const options = { lease: 60_000 };
  const [closing, other] = [1, 2].map(() => nodes.make(redis.url, options).broker) as [
    RedisBroker,
    RedisBroker,
  ];
  closing.hold('own', HISTORY);
  closing.hold('taken over', HISTORY);
  await until('the leases', async () => (await leases()).length === 2);
  other.hold('taken over', HISTORY);
  // Answered after the lease was accepted.
  expect(await other.channelState('own')).toBe('unknown');
  await closing.close();
  expect(await leases()).toEqual(['taken over']);
  expect(await other.channelState('own')).toBe('ended');
  expect(await other.channelState('taken over')).toBe('unknown');
});

test('a node that renews its leases takes none from a later holder that lives', async () => {
  const [closing, other] = [nodes.make(redis.url), nodes.make(redis.url, { lease: 60_000 })];
  await untilOpen(closing.channels, other.channels);
  closing.broker.hold('run', HISTORY);
  await closing.channels.publish('run', 'event');
  other.broker.hold('run', HISTORY);
  await other.channels.publish('run', 'answered after the lease was accepted');
  await untilCalled(closing);
  // If the lease were its own, the node would end the channel now.
  await closing.channels.close();
  expect(await other.channels.state('run')).toBe('open');
  expect(await leases()).toEqual(['run']);
});

test('a node that closes does not end a channel whose later holder has not renewed in time', async () => {
  const [closing, other] = [nodes.make(redis.url, { lease: 60_000 }), nodes.make(relay.url)];
  await untilOpen(closing.channels, other.channels);
  closing.broker.hold('run', HISTORY);
  await closing.channels.publish('run', 'event');
  // To the node that closes, this lease of a short time is late.
  other.broker.hold('run', HISTORY);
  await other.channels.publish('run', 'answered after the lease was accepted');
  await closing.channels.close();
  expect(await other.channels.state('run')).toBe('open');
  expect(await leases()).toEqual(['run']);
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
  expect(await nodes.stateAfterRenewals('run', other)).toBe('open');
  relay.sever();
  await until('the end', async () => (await other.state('run')) === 'ended');
  relay.mend();
  finish();
  await piped;
});

test.each([
  ['a node', RedisBroker],
  ['a process that only publishes', PublishOnlyBroker],
])('the channel of %s ends if it publishes after a clear and then dies', async (_who, kind) => {
  // The producer dies before it renews its lease.
  const lease = 6 * LEASE_MS;
  const [producer, other] = [
    nodes.make(relay.url, { kind, lease }),
    nodes.make(redis.url).channels,
  ];
  await untilOpen(other);
  producer.broker.hold('run', HISTORY);
  await producer.channels.publish('run', 'before the clear');
  await other.clear('run');
  await producer.channels.publish('run', 'after the clear');
  relay.sever();
  expect(await other.state('run')).toBe('open');
  await until('the end', async () => (await other.state('run')) === 'ended');
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
  await expectNoEnd(other);
});

test('a pipe that was refused does not end its channel when others have used it meanwhile', async () => {
  const [refused, other] = [nodes.make(relay.url, { timeout: 300 }), nodes.make(redis.url)];
  await untilOpen(refused.channels, other.channels);
  const piped = refused.channels.pipe('run', endless());
  // Answered after the lease was accepted.
  await refused.channels.publish('another', 'event');
  relay.sever();
  await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  await other.channels.end('run').catch(() => {});
  await other.channels.clear('run');
  await other.channels.publish('run', 'used');
  relay.mend();
  await untilOpen(refused.channels);
  await expectUsable(other, refused);
});

test('a pipe whose lease was accepted without an answer does not end a cleared channel', async () => {
  const refused = nodes.make(relay.url, { timeout: 300, lease: 3 * LEASE_MS });
  const other = makeNode(redis.url);
  await untilOpen(refused.channels, other);
  // From now on, Redis gets the calls of the producer, and the producer no answers.
  relay.stall('replies');
  const piped = refused.channels.pipe('run', endless());
  await until('the lease', async () => (await leases()).length === 1);
  await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  await other.clear('run');
  // The node tells Redis that it has given the lease up.
  const { sent } = refused.calls;
  await until('a call', () => refused.calls.sent > sent);
  relay.flow();
  await expectNoEnd(other);
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
  expect(await nodes.stateAfterRenewals('run', other)).toBe('open');
  stop.abort(new Error('the test is over'));
  expect(await piped).toMatchObject({ message: 'the test is over' });
});

test('a channel that two processes hold ends when both of them have died', async () => {
  const [older, newer, other] = [
    nodes.make(redis.url),
    nodes.make(relay.url),
    nodes.make(redis.url).channels,
  ];
  await untilOpen(older.channels, newer.channels, other);
  const lease = older.broker.hold('run', HISTORY);
  await older.channels.publish('run', 'event');
  newer.broker.hold('run', HISTORY);
  await newer.channels.publish('another', 'answered after the lease was accepted');
  relay.sever();
  expect(await nodes.stateAfterRenewals('run', other)).toBe('open');
  lease.abandon();
  await until('the end', async () => (await other.state('run')) === 'ended');
});
