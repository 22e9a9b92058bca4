/** Leases of `channels.pipe()` when Redis refuses commands, or loses a part of its keys. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { until } from '../support/wait.ts';
import {
  HISTORY,
  LEASE_MS,
  LeaseNodes,
  makeSource,
  untilCalled,
  untilOpen,
  type LeaseNode,
} from './lease-nodes.ts';

const LEASES = '{leases}:leases';
const LIMITS = '{leases}:limits';
const LOG = '{leases}:log';

let nodes: LeaseNodes;

beforeEach(async () => {
  nodes = await LeaseNodes.start();
});

afterEach(async () => {
  await nodes[Symbol.asyncDispose]();
});

/** Collects the errors that are reported meanwhile. */
function collectErrors(): { messages: string[] } & Disposable {
  const messages: string[] = [];
  const note = (message: unknown): void =>
    void messages.push(String((message as { error: unknown }).error));
  subscribe('res-sse:error', note);
  return { messages, [Symbol.dispose]: () => void unsubscribe('res-sse:error', note) };
}

test('an end that Redis refuses is reported and tried again, until Redis accepts it', async () => {
  const { redis, relay, client } = nodes;
  const [producer, other] = [nodes.make(relay.url), nodes.make(redis.url)];
  await untilOpen(producer.channels, other.channels);
  producer.broker.hold('run', HISTORY);
  await producer.channels.publish('run', 'event');
  await nodes.untilHeld('run');
  relay.sever();
  using errors = collectErrors();
  await client.sendCommand(['ACL', 'SETUSER', 'default', '-xadd']);
  const isReported = (): boolean =>
    errors.messages.some((text) => /could not be ended yet/.test(text));
  await until('the refusal', async () => isReported() || (await nodes.leases()).length === 0);
  expect(await nodes.leases()).toEqual(['run']);
  expect(await other.channels.state('run')).toBe('open');
  await client.sendCommand(['ACL', 'SETUSER', 'default', '+xadd']);
  await until('the end', async () => (await other.channels.state('run')) === 'ended');
  expect(await nodes.leases()).toEqual([]);
  expect(isReported()).toBe(true);
});

test('an end that Redis refuses when a node closes is left to another node', async () => {
  const { redis, relay, client } = nodes;
  const [closing, other] = [nodes.make(relay.url), nodes.make(redis.url)];
  await untilOpen(closing.channels, other.channels);
  closing.broker.hold('run', HISTORY);
  await closing.channels.publish('run', 'event');
  await nodes.untilHeld('run');
  await client.sendCommand(['ACL', 'SETUSER', 'default', '-xadd']);
  await closing.channels.close();
  expect(await nodes.leases()).toEqual(['run']);
  await client.sendCommand(['ACL', 'SETUSER', 'default', '+xadd']);
  await until('the end', async () => (await other.channels.state('run')) === 'ended');
});

describe.each([LEASES, LIMITS, LOG])('Redis that loses the key %s alone', (key) => {
  const isWhole = async (): Promise<boolean> =>
    (await nodes.client.zScore(LEASES, 'run')) !== null &&
    (await nodes.client.hExists(LIMITS, 'run')) === 1;

  test('gets the lease again from a producer that lives', async () => {
    const { redis, relay, client } = nodes;
    const [producer, other] = [nodes.make(relay.url), nodes.make(redis.url)];
    await untilOpen(producer.channels, other.channels);
    producer.broker.hold('run', HISTORY);
    await producer.channels.publish('run', 'event');
    await until('the lease', isWhole);
    await client.del(key);
    const lost = Date.now();
    // A lease that runs out so late was renewed after the loss.
    await until('a renewal', async () => (await nodes.expiry('run')) > lost + LEASE_MS);
    await until('the lease', isWhole);
    relay.sever();
    await until('the end', async () => (await other.channels.state('run')) === 'ended');
    expect(await nodes.leases()).toEqual([]);
  });

  test('does not leave the readers of a producer waiting that has died', async () => {
    const { redis, relay, client } = nodes;
    const [producer, other] = [nodes.make(relay.url), nodes.make(redis.url)];
    await untilOpen(producer.channels, other.channels);
    producer.broker.hold('run', HISTORY);
    await producer.channels.publish('run', 'event');
    await until('the lease', isWhole);
    relay.sever();
    await client.del(key);
    await until('the end', async () => (await other.channels.state('run')) === 'ended');
    expect(await nodes.leases()).toEqual([]);
    expect(await client.hKeys(LIMITS)).toEqual(['']);
  });

  test('does not keep a lease of a pipe that has come to its end', async () => {
    const { redis, client } = nodes;
    const producer = nodes.make(redis.url);
    const { channels } = producer;
    await untilOpen(channels);
    const { items, finish } = makeSource();
    const piped = channels.pipe('run', items);
    await until('the lease', isWhole);
    await client.del(key);
    finish();
    await piped;
    await untilCalled(producer);
    expect(await channels.state('run')).toBe('ended');
    expect(await nodes.leases()).toEqual([]);
    expect(await client.hKeys(LIMITS)).toEqual(['']);
  });
});

describe('Redis that goes back to a snapshot without the newest lease of a channel', () => {
  /** Two nodes that hold the channel. Redis goes back to when only the first one did. */
  async function holdTwice(lease: number): Promise<[older: LeaseNode, newer: LeaseNode]> {
    const { redis, relay, client } = nodes;
    const [older, newer] = [nodes.make(redis.url, { lease }), nodes.make(relay.url, { lease })];
    await untilOpen(older.channels, newer.channels);
    older.broker.hold('run', HISTORY);
    await older.channels.publish('run', 'event');
    await client.sendCommand(['SAVE']);
    newer.broker.hold('run', HISTORY);
    await newer.channels.publish('another', 'answered after the lease was accepted');
    relay.sever();
    await redis.kill9();
    await redis.restart();
    await untilOpen(older.channels);
    return [older, newer];
  }

  test('keeps the channel of the newest holder when the older one closes at once', async () => {
    const [older, newer] = await holdTwice(60_000);
    await older.channels.close();
    nodes.relay.mend();
    expect(await newer.channels.state('run')).toBe('open');
    expect(await nodes.leases()).toEqual(['run']);
  });

  test('keeps the channel of the newest holder when the older one closes later', async () => {
    const [older, newer] = await holdTwice(LEASE_MS);
    // The older one renews its lease in the log of the snapshot before the newer one can.
    const restarted = Date.now();
    await until('a renewal', async () => (await nodes.expiry('run')) > restarted + 1.5 * LEASE_MS);
    nodes.relay.mend();
    await untilOpen(newer.channels);
    await older.channels.close();
    expect(await nodes.stateAfterRenewals('run', newer.channels)).toBe('open');
  });

  test('ends the channel of a holder that closes, if nobody else holds it', async () => {
    const { redis, client } = nodes;
    const [closing, other] = [nodes.make(redis.url), nodes.make(redis.url)];
    await untilOpen(closing.channels, other.channels);
    await closing.channels.publish('run', 'event');
    await client.sendCommand(['SAVE']);
    closing.broker.hold('run', HISTORY);
    await nodes.untilHeld('run');
    await redis.kill9();
    await redis.restart();
    await untilOpen(closing.channels, other.channels);
    await closing.channels.close();
    await until('the end', async () => (await other.channels.state('run')) === 'ended');
    expect(await nodes.leases()).toEqual([]);
  });
});
