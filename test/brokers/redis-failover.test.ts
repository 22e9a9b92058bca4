/** Failovers of Redis that close no connection: a node moves to the new primary by itself. */
import { describe, expect, test } from 'vitest';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { read } from '../support/reader.ts';
import { startRedis, type RedisClient } from '../support/redis-server.ts';
import { startRelay } from '../support/relay.ts';
import { until } from '../support/wait.ts';

const CONFIG = ['repl-diskless-sync-delay 0', 'repl-ping-replica-period 1'];
const HEARTBEAT_MS = 300;
const TIMING = {
  timeout: 1_000,
  probe: 300,
  linger: 10_000,
  wait: { min: 5, max: 100 },
  lease: 600,
};

async function replicationOf(client: RedisClient): Promise<string> {
  return client.info('replication');
}

async function isAccepted(published: Promise<unknown>): Promise<boolean> {
  return published.then(
    () => true,
    () => false,
  );
}

test('a node follows a failover that leaves its connections open', async () => {
  await using primary = await startRedis({ config: CONFIG });
  await using replica = await startRedis({
    config: [...CONFIG, `replicaof 127.0.0.1 ${primary.port}`],
  });
  await using relay = await startRelay(primary.port);
  const [old, promoted] = [await primary.client(), await replica.client()];
  await until('the replication', async () =>
    (await replicationOf(promoted)).includes('master_link_status:up'),
  );
  const connection = ownConnection(relay.url, HEARTBEAT_MS, () => {});
  const channels = createChannels({ broker: new RedisBroker(connection, 'failover', TIMING) });
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  using reader = await read(server.url);
  await channels.publish('a', 'before');
  await until('the event', () => reader.events.length === 1);
  await old.sendCommand(['FAILOVER']);
  await until('the new primary', async () =>
    (await replicationOf(promoted)).includes('role:master'),
  );
  relay.redirect(replica.port);
  await until('a publish to be accepted', () => isAccepted(channels.publish('a', 'after')));
  await until('the event after the failover', () => reader.events.length === 2);
  expect(reader.events.map(({ data }) => data)).toEqual(['before', 'after']);
  // Messages come from the new primary as well.
  const topics = await promoted.sendCommand(['PUBSUB', 'CHANNELS', '*']);
  expect(topics).toEqual(expect.arrayContaining(['{failover}:spine', '{failover}:c:a']));
  await channels.close();
});

test('a connection is not replaced again when its server has become the primary meanwhile', async () => {
  await using redis = await startRedis();
  await using relay = await startRelay(redis.port);
  const admin = await redis.client();
  const errors: string[] = [];
  const connection = ownConnection(relay.url, HEARTBEAT_MS, (error) =>
    errors.push((error as Error).message),
  );
  const channels = createChannels({ broker: new RedisBroker(connection, 'failover', TIMING) });
  await channels.publish('a', 'before');
  await admin.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
  await until('the replacement', () => errors.length === 1);
  // The new connection gets a READONLY as well, in the pause before the next replacement.
  await expect(channels.publish('a', 'refused')).rejects.toMatchObject({ delivery: 'none' });
  await admin.sendCommand(['REPLICAOF', 'NO', 'ONE']);
  const end = performance.now() + 4 * HEARTBEAT_MS;
  while (performance.now() < end) await channels.publish('a', 'after');
  expect(errors).toHaveLength(1);
  await channels.close();
});

test('a node follows a failover at once, also soon after one that it could follow only later', async () => {
  await using redis = await startRedis();
  await using other = await startRedis();
  await using relay = await startRelay(redis.port);
  const admin = await redis.client();
  let replacements = 0;
  const connection = ownConnection(relay.url, HEARTBEAT_MS, () => replacements++);
  const channels = createChannels({ broker: new RedisBroker(connection, 'failover', TIMING) });
  await channels.publish('a', 'before');
  await admin.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
  // The pauses between the replacements grow.
  await until('the third replacement', () => replacements === 3);
  await admin.sendCommand(['REPLICAOF', 'NO', 'ONE']);
  const end = performance.now() + 2 * HEARTBEAT_MS;
  while (performance.now() < end) await channels.publish('a', 'between');
  await admin.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
  relay.redirect(other.port);
  await expect(channels.publish('a', 'refused')).rejects.toMatchObject({ delivery: 'none' });
  await channels.publish('a', 'after');
  await channels.close();
});

test('a node leaves a replica that cannot reach its primary and answers no reads', async () => {
  await using redis = await startRedis({ config: ['replica-serve-stale-data no'] });
  await using promoted = await startRedis();
  await using relay = await startRelay(redis.port);
  const admin = await redis.client();
  const connection = ownConnection(relay.url, HEARTBEAT_MS, () => {});
  const channels = createChannels({ broker: new RedisBroker(connection, 'failover', TIMING) });
  await channels.publish('a', 'before');
  await admin.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
  relay.redirect(promoted.port);
  await until('a publish to be accepted', () => isAccepted(channels.publish('a', 'after')));
  await channels.close();
});

describe.each([
  ['with history', {}],
  ['without history', { history: false }],
] as const)('an event %s that a replica refuses', (_, options) => {
  test('is published nowhere, and lets the node move to the new primary at once', async () => {
    await using redis = await startRedis();
    await using promoted = await startRedis();
    await using relay = await startRelay(redis.port);
    const admin = await redis.client();
    const messages: string[] = [];
    const subscriber = await redis.client();
    await subscriber.subscribe('{failover}:c:a', (message) => void messages.push(message));
    const connection = ownConnection(relay.url, HEARTBEAT_MS, () => {});
    // No lease call notices the replica.
    const timing = { ...TIMING, lease: 1_000_000 };
    const broker = new RedisBroker(connection, 'failover', timing);
    const channels = createChannels({ broker, ...options });
    await channels.publish('a', 'before');
    await until('the message', () => messages.length === 1);
    await admin.sendCommand(['REPLICAOF', '127.0.0.1', '1']);
    relay.redirect(promoted.port);
    await expect(channels.publish('a', 'refused')).rejects.toMatchObject({ delivery: 'none' });
    await channels.publish('a', 'after');
    expect(messages).toHaveLength(1);
    await channels.close();
  });
});

test('a client notices a replica before Redis 7, whose error begins with a place in the script', async () => {
  await using redis = await startRedis();
  const problems: string[] = [];
  const connection = ownConnection(redis.url, HEARTBEAT_MS, (problem) =>
    problems.push((problem as Error).message),
  );
  const { signal } = new AbortController();
  const error = "@user_script: 12: -READONLY You can't write against a read only replica.";
  const refused = ['EVAL', 'return redis.error_reply(ARGV[1])', '0', error];
  await until('the replacement', async () => {
    await expect(connection.send('', refused, signal)).rejects.toThrow('READONLY');
    return problems.length > 0;
  });
  expect(problems).toEqual(['Redis is a replica; connecting again']);
  connection.close();
});
