/** Another server takes over, in a Cluster and under Sentinel. */
import { expect, test, vi } from 'vitest';
import { startRedisCluster } from '../support/redis-cluster.ts';
import { startRedisSentinel } from '../support/redis-sentinel.ts';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

// The key that holds the log of the registry whose prefix is the default; all the others are in its slot.
const KEY = '{res-sse}:log';

test('in a Cluster the slot moves to another master, and a master dies: nobody misses anything', async () => {
  await using cluster = await startRedisCluster(KEY);
  // While its key is being moved a publish waits, and so does the move until the publish has its answer.
  await using scene = await Scene.start({ redis: { urls: cluster.urls }, timeout: 300 });
  const many = Array.from({ length: 12 }, (_, index) => `c${index}`);
  const clients = await scene.connect(6, many);
  scene.publishAllTheTime(many);
  await scene.untilPublished(90);
  const master = await cluster.masterOf(KEY);
  const other = cluster.masters.find((server) => server !== master)!;
  const publishSome = () =>
    Promise.all(many.map((channel) => scene.ledger.publish(scene.choose()!, channel)));
  await cluster.moveSlot(KEY, other, publishSome);
  await scene.untilPublished(30);
  await cluster.moveSlot(KEY, master, publishSome);
  await scene.untilPublished(30);
  // What the master has acknowledged and its replica has not got is the exception, and not what is tried here.
  await scene.quiet();
  await cluster.synchronized();
  await master.kill9();
  scene.publishAllTheTime(many);
  await scene.untilPublished(30);
  expect(await cluster.masterOf(KEY)).toBe(cluster.replica);
  await scene.settle();
  expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
});

test('under Sentinel the replica takes over: nobody misses anything', async () => {
  await using sentinel = await startRedisSentinel();
  const { name, rootNodes } = sentinel;
  await using scene = await Scene.start({ redis: { name, rootNodes } });
  const clients = await scene.connect(6, ['a', 'b']);
  scene.publishAllTheTime(['a', 'b'], { keyed: true });
  await scene.untilPublished(50);
  await scene.quiet();
  await sentinel.synchronized();
  await sentinel.primary.kill9();
  scene.publishAllTheTime(['a', 'b'], { keyed: true });
  await scene.untilPublished(50);
  await until(
    'the sentinels to agree',
    async () => (await sentinel.current()) === sentinel.replica,
  );
  await scene.quiet();
  await until('all to be published', async () => (await scene.ledger.retry(scene.choose()!)) === 0);
  await scene.settle();
  expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
});

test('a replica that takes over without the last writes: who has seen one is told, and no id is used twice', async () => {
  await using sentinel = await startRedisSentinel();
  const { name, rootNodes } = sentinel;
  await using scene = await Scene.start({ redis: { name, rootNodes } });
  const clients = await scene.connect(6, ['a', 'b']);
  await scene.ledger.publish(scene.choose()!, 'a', 10);
  await until('it to be with everybody', () => clients.every((client) => client.received === 10));
  await sentinel.synchronized();
  sentinel.replica.pause();
  // Or it would find them in its socket when it goes on.
  await (await sentinel.primary.client()).sendCommand(['CLIENT', 'KILL', 'TYPE', 'replica']);
  await scene.ledger.publish(scene.choose()!, 'b', 5);
  await until('it to be with everybody', () => clients.every((client) => client.received === 15));
  await sentinel.primary.kill9();
  sentinel.replica.resume();
  await until('the hand-over', async () => (await sentinel.current()) === sentinel.replica);
  await scene.settle();
  expect(clients.map((client) => client.gaps)).toEqual(clients.map(() => 1));
});
