import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createClient, createCluster, createSentinel, RESP_TYPES } from 'redis';
import { redisBroker, type RedisBrokerOptions } from '../../src/brokers/redis.ts';
import { codeOf } from '../support/code-of.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import { brokerContract, Node } from './contract.ts';

let redis: RedisServer;
let count = 0;

beforeAll(async () => {
  redis = await startRedis();
});

afterAll(async () => {
  await redis[Symbol.asyncDispose]();
});

function prefix(): string {
  return `contract-${++count}`;
}

brokerContract('redisBroker({ url })', (log) => redisBroker({ url: redis.url, prefix: log }), {
  shared: true,
});

describe("with the application's own client", () => {
  for (const RESP of [2, 3] as const) {
    test(`a broker publishes and receives over RESP ${RESP} with a type mapping`, async () => {
      const client = createClient({
        url: redis.url,
        RESP,
        commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } },
      });
      client.on('error', () => {});
      await client.connect();
      const node = new Node(redisBroker({ client, prefix: prefix() }));
      await node.listen('a');
      await node.publish('a', 'é€😀');
      await until('an event', () => node.received.length === 1);
      expect(node.received[0]?.data).toBe('é€😀');
      expect(await node.data('a')).toEqual(['é€😀']);
      await node.broker.close();
      // The application must close its client itself.
      expect(await client.ping()).toBe('PONG');
      client.destroy();
    });
  }

  test('a publish is rejected before the client is connected; other calls wait', async () => {
    const client = createClient({ url: redis.url });
    client.on('error', () => {});
    await using node = new Node(redisBroker({ client, prefix: prefix() }));
    const listening = node.listen('a');
    await expect(node.publish('a', '1')).rejects.toMatchObject({
      code: 'ERR_SSE_BROKER',
      delivery: 'none',
    });
    expect(node.broker.state).toBe('connecting');
    await client.connect();
    await listening;
    expect(node.broker.state).toBe('open');
    await node.publish('a', '2');
    await until('an event', () => node.received.length === 1);
    client.destroy();
  });

  test('the client may be for a Cluster or for Sentinel', async () => {
    const brokers = [
      redisBroker({ client: createCluster({ rootNodes: [{ url: redis.url }] }) }),
      redisBroker({
        client: createSentinel({
          name: 'main',
          sentinelRootNodes: [{ host: '127.0.0.1', port: redis.port }],
        }),
      }),
    ];
    expect(brokers.map(({ state }) => state)).toEqual(['connecting', 'connecting']);
    await Promise.all(brokers.map((broker) => broker.close()));
  });
});

test('invalid options are refused, also both a client and a url, or neither of them', () => {
  const client = createClient();
  const wrong: unknown[] = [
    {},
    { url: redis.url, client },
    { url: 'http://localhost' },
    { url: 'localhost:6379' },
    { client: {} },
    { url: redis.url, prefix: '' },
    { url: redis.url, prefix: 'a{b}' },
    { url: redis.url, prefix: 'x'.repeat(65) },
    { url: redis.url, timeout: 0 },
    { url: redis.url, retries: 3 },
  ];
  for (const options of wrong) {
    expect(codeOf(() => redisBroker(options as RedisBrokerOptions))).toBe('ERR_SSE_OPTION');
  }
});

test('a log of another format is refused with an explanation and not changed', async () => {
  const name = prefix();
  const client = await redis.client();
  await client.hSet(`{${name}}:log`, { v: '2', epoch: 'x' });
  await using node = new Node(redisBroker({ url: redis.url, prefix: name }));
  await expect(node.publish('a', '1')).rejects.toThrow(/does not know format 2 of the log/);
  expect(await client.hGetAll(`{${name}}:log`)).toMatchObject({ v: '2', epoch: 'x' });
});

test('events of a quiet channel expire, and are then reported as lost', async () => {
  const name = prefix();
  const client = await redis.client();
  await using node = new Node(redisBroker({ url: redis.url, prefix: name }));
  await node.publish('a', '1');
  expect(await client.pTTL(`{${name}}:s:a`)).toBeGreaterThan(6 * 86_400_000);
  await client.pExpire(`{${name}}:s:a`, 1);
  await until('the stream to expire', async () => (await client.exists(`{${name}}:s:a`)) === 0);
  expect((await node.read(['a'])).trimmed).toEqual([1]);
  await node.publish('a', '2');
  const page = await node.read(['a']);
  expect([page.entries.map(({ data }) => data), page.trimmed]).toEqual([['2'], [1]]);
});
