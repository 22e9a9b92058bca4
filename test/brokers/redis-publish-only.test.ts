/** A process that only publishes to Redis. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { redisBroker } from '../../src/brokers/redis.ts';
import { createChannels, type Channels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
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
