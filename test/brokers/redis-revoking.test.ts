/** Revoking, on two nodes that share a log in Redis. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import {
  createChannels,
  type Channels,
  type ChannelsOptions,
  type SseOptions,
} from '../../src/index.ts';
import { serveUsers, testRevoking } from '../promises/revoking.ts';
import { RedisNodes } from '../promises/nodes.ts';
import { read } from '../support/reader.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { until } from '../support/wait.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testRevoking(nodes.make);

const TIMING = { timeout: 2_000, probe: 200, linger: 60_000, wait: { min: 5, max: 100 } };

function makeNode(url: string, options: ChannelsOptions = {}): Channels {
  const connection = ownConnection(url, 500, () => {});
  return createChannels({ ...options, broker: new RedisBroker(connection, 'revoking', TIMING) });
}

async function untilState(node: Channels, state: 'open' | 'broken'): Promise<void> {
  await until(`a node to be ${state}`, () => node.stats().broker.state === state);
}

describe('a node that was cut off', () => {
  let redis: RedisServer;
  let relay: Relay;

  beforeEach(async () => {
    redis = await startRedis();
    relay = await startRelay(redis.port);
  });

  afterEach(async () => {
    await relay[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
  });

  async function save(): Promise<void> {
    const client = await redis.client();
    await client.sendCommand(['SAVE']);
  }

  test.each<[string, boolean, SseOptions['authorize']]>([
    ['received the newest event of the snapshot, and asks', false, () => false],
    ['received a later event, and asks', true, () => false],
    ['has no authorize', false, undefined],
  ])(
    'ends the streams of a revocation that Redis loses when it goes back to a snapshot, if it %s',
    async (_what, hasSeenMore, authorize) => {
      const [node, cutOff] = [makeNode(redis.url), makeNode(relay.url)];
      await using here = await serveUsers(node);
      await using there = await serveUsers(cutOff, { authorize });
      const reader = await read(`${there.url}/?user=ann`);
      await until('the stream', () => cutOff.stats().subscriptions >= 2);
      await node.publish('a', 'kept');
      await save();
      if (hasSeenMore) await node.publish('a', 'lost');
      await until('the events', () => reader.events.length === (hasSeenMore ? 2 : 1));
      relay.sever();
      await untilState(cutOff, 'broken');
      await here.events.revoke('ann');
      await redis.kill9();
      await redis.restart();
      await untilState(node, 'open');
      relay.mend();
      await untilState(cutOff, 'open');
      await node.publish('a', 'secret');
      await reader.end();
      expect(there.events.stats().closed).toEqual({ revoked: 1 });
      expect(reader.text).not.toContain('secret');
      await Promise.all([node.close(), cutOff.close()]);
    },
  );

  test('asks about no stream if all revocations are in the log, however many channels it has forgotten', async () => {
    const limits = { maxChannels: 100 };
    const [node, cutOff] = [makeNode(redis.url, limits), makeNode(relay.url, limits)];
    let asked = 0;
    await using server = await serveUsers(cutOff, {
      authorize: () => {
        asked++;
        return true;
      },
    });
    using reader = await read(`${server.url}/?user=ann`);
    await until('the stream', () => cutOff.stats().subscriptions >= 2);
    for (let index = 0; index < 400; index++) await node.publish(`other:${index}`, '');
    await node.publish('a', 'before');
    expect((await reader.next()).data).toBe('before');
    for (const name of ['first', 'second']) {
      relay.sever();
      await untilState(cutOff, 'broken');
      await node.publish('a', name);
      relay.mend();
      expect((await reader.next()).data).toBe(name);
    }
    expect(asked).toBe(0);
    expect(reader.ended).toBe(false);
    await Promise.all([node.close(), cutOff.close()]);
  });
});
