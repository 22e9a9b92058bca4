/** A process that only publishes to Redis. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { redisBroker } from '../../src/brokers/redis.ts';
import { createChannels, sse, type Channels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { freePort, startRedis, type RedisServer } from '../support/redis-server.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';

let redis: RedisServer;
beforeAll(async () => {
  redis = await startRedis();
});
afterAll(() => redis[Symbol.asyncDispose]());

function makeWorker(): Channels {
  return createChannels({ broker: redisBroker({ url: redis.url, publishOnly: true }) });
}

test('publishes, ends, clears and pipes to the streams of other nodes, over one connection', async () => {
  const node = createChannels({ broker: redisBroker({ url: redis.url }) });
  await using server = await serveStreams((stream) => stream.subscribe(['a', 'b']), {
    channels: node,
  });
  using reader = await read(server.url);
  const client = await redis.client();
  const connections = async (): Promise<number> => (await client.clientList()).length;
  await until('the node', () => node.stats().broker.state === 'open');
  const before = await connections();
  const worker = makeWorker();
  expect(worker.stats().broker.state).toBe('connecting');
  const { id } = await worker.publish('a', '1', { key: 'k' });
  expect(await worker.publish('a', '1', { key: 'k' })).toEqual({ id });
  expect(worker.stats().broker.state).toBe('open');
  expect(await worker.cursor()).toBe(id);
  await worker.pipe('b', ['2', '3']);
  await worker.end('a', '4');
  await reader.end();
  expect(reader.events.map(({ data }) => data)).toEqual(['1', '2', '3', '4', '{}']);
  expect(await connections()).toBe(before + 1);
  expect([await worker.state('a'), await worker.state('c')]).toEqual(['ended', 'unknown']);
  await worker.clear('a');
  expect(await node.state('a')).toBe('unknown');
  await worker.close();
  await until('the connection to be closed', async () => (await connections()) === before);
  await expect(worker.publish('a', '5')).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
  await node.close();
});

test('refuses to let streams and consumers follow, and to read', async () => {
  const worker = makeWorker();
  const errors: unknown[] = [];
  await using server = await serveStreams(
    (stream) => stream.subscribe('a').catch((error: unknown) => errors.push(error)),
    { channels: worker },
  );
  using reader = await read(server.url);
  expect(reader.response.status).toBe(200);
  const option = { code: 'ERR_SSE_OPTION' };
  expect(errors).toMatchObject([option]);
  await expect(worker.follow('a').next()).rejects.toMatchObject(option);
  await expect(worker.read('a')).rejects.toMatchObject(option);
  expect(worker.names()).toEqual([]);
  await worker.close();
});

test('revokes on the other nodes, and asks Redis nothing else', async () => {
  const worker = makeWorker();
  await worker.publish('other', '');
  const client = await redis.client();
  const countCalls = async (): Promise<number> => {
    const stats = await client.info('commandstats');
    return Number(/cmdstat_evalsha:calls=(\d+)/.exec(stats)?.[1]);
  };
  const before = await countCalls();
  const identity = (): string => 'ann';
  const events = sse({ channels: worker, identity });
  await nextTurn();
  // In the order of the calls, so Redis has received what the middleware asks.
  await worker.publish('other', '');
  await events.revoke('bob');
  expect(await countCalls()).toBe(before + 2);

  const node = createChannels({ broker: redisBroker({ url: redis.url }) });
  const options = { channels: node, identity, authorize: () => true };
  await using server = await serveStreams((stream) => stream.subscribe('a'), options);
  const reader = await read(server.url);
  await worker.publish('a', 'before');
  await reader.next();
  await events.revoke('ann');
  await reader.end();
  expect(server.events.stats().closed).toEqual({ revoked: 1 });
  await Promise.all([worker.close(), node.close()]);
});

test('revoke() rejects while Redis is down, and no rejection is left unhandled', async () => {
  const unhandled: unknown[] = [];
  const note = (error: unknown): void => void unhandled.push(error);
  process.on('unhandledRejection', note);
  const url = `redis://127.0.0.1:${await freePort()}`;
  const worker = createChannels({ broker: redisBroker({ url, publishOnly: true, timeout: 200 }) });
  const events = sse({ channels: worker, identity: () => 'ann' });
  for (let attempt = 0; attempt < 2; attempt++) {
    await expect(events.revoke('ann')).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  }
  await worker.close();
  await nextTurn();
  process.off('unhandledRejection', note);
  expect(unhandled).toEqual([]);
});
