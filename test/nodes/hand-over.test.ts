/** Failover to another server, in a Cluster and under Sentinel. */
import { expect, test, vi } from 'vitest';
import { startRedisCluster } from '../support/redis-cluster.ts';
import { startRedisSentinel } from '../support/redis-sentinel.ts';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

// The key of the log of a registry with the default prefix. All its keys are in the same slot.
const KEY = '{res-sse}:log';

test('no client misses an event when a Cluster slot moves and its master dies', async () => {
  await using cluster = await startRedisCluster(KEY);
  // A publish waits while its key is being moved, and the move waits for the result of the publish.
  await using scene = await Scene.start({ redis: { urls: cluster.urls }, timeout: 300 });
  const many = Array.from({ length: 12 }, (_, index) => `c${index}`);
  const clients = await scene.connect(6, many);
  scene.publishContinuously(many);
  await scene.untilPublished(90);
  const master = await cluster.masterOf(KEY);
  const other = cluster.masters.find((server) => server !== master)!;
  const publishSome = () =>
    Promise.all(many.map((channel) => scene.ledger.publish(scene.choose()!, channel)));
  await cluster.moveSlot(KEY, other, publishSome);
  await scene.untilPublished(30);
  await cluster.moveSlot(KEY, master, publishSome);
  await scene.untilPublished(30);
  // Writes that the master acknowledged and the replica did not receive would be lost. This test
  // does not cover that case.
  await scene.stopPublishing();
  await cluster.synchronized();
  await master.kill9();
  scene.publishContinuously(many);
  await scene.untilPublished(30);
  expect(await cluster.masterOf(KEY)).toBe(cluster.replica);
  await scene.verify();
  expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([0, 0]);
});

test('no client misses an event when a replica takes over under Sentinel', async () => {
  await using sentinel = await startRedisSentinel();
  const { name, rootNodes } = sentinel;
  await using scene = await Scene.start({ redis: { name, rootNodes } });
  const clients = await scene.connect(6, ['a', 'b']);
  scene.publishContinuously(['a', 'b'], { keyed: true });
  await scene.untilPublished(50);
  await scene.stopPublishing();
  await sentinel.synchronized();
  await sentinel.primary.kill9();
  scene.publishContinuously(['a', 'b'], { keyed: true });
  await scene.untilPublished(50);
  await until('the failover', async () => (await sentinel.current()) === sentinel.replica);
  await scene.stopPublishing();
  await until(
    'all events to be published',
    async () => (await scene.ledger.retry(scene.choose()!)) === 0,
  );
  await scene.verify();
  expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([0, 0]);
});

test('a replica that lacks the last writes causes gaps, and no id is used twice', async () => {
  await using sentinel = await startRedisSentinel();
  const { name, rootNodes } = sentinel;
  await using scene = await Scene.start({ redis: { name, rootNodes } });
  const clients = await scene.connect(6, ['a', 'b']);
  await scene.ledger.publish(scene.choose()!, 'a', 10);
  await until('all events on all clients', () => clients.every((client) => client.received === 10));
  await sentinel.synchronized();
  sentinel.replica.pause();
  // Otherwise the replica would find the writes in its socket when it resumes.
  await (await sentinel.primary.client()).sendCommand(['CLIENT', 'KILL', 'TYPE', 'replica']);
  await scene.ledger.publish(scene.choose()!, 'b', 5);
  await until('all events on all clients', () => clients.every((client) => client.received === 15));
  await sentinel.primary.kill9();
  sentinel.replica.resume();
  await until('the failover', async () => (await sentinel.current()) === sentinel.replica);
  await scene.verify();
  expect(clients.map((client) => client.gaps)).toEqual(clients.map(() => 1));
});
