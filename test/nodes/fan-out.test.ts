/** What clients of several nodes get, whichever node they are on and whichever ends. */
import { expect, test, vi } from 'vitest';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

test('what is published on one node reaches the clients of all, once and in one order', async () => {
  await using scene = await Scene.start({ nodes: 3 });
  await scene.connect(6, ['a', 'b']);
  await scene.connect(3, ['b']);
  await scene.connect(3, ['c']);
  scene.publishAllTheTime(['a', 'b', 'c', 'nobody']);
  await scene.untilPublished(300);
  await scene.settle();
  expect([scene.gaps, scene.ledger.count('accepted')]).toEqual([0, scene.ledger.published]);
  for (const node of scene.nodes) {
    // Who has read the log has left.
    await until('the clients to be all there is', async () => (await node.stats()).streams === 4);
    expect((await node.stats()).channels).toMatchObject({
      subscriptions: 6,
      behind: 0,
      gaps: 0,
      broker: { state: 'open' },
    });
  }
});

test('clients of a node that is killed go on elsewhere where they left off', async () => {
  await using scene = await Scene.start({ nodes: 3 });
  const clients = await scene.connect(9, ['a', 'b']);
  scene.publishAllTheTime(['a', 'b']);
  await scene.untilPublished(50);
  await scene.nodes[0]!.kill9();
  await until(
    'its clients to be elsewhere',
    () => clients.filter((client) => client.returns > 0).length === 3,
  );
  await scene.untilPublished(50);
  await scene.nodes[1]!.kill9();
  await until(
    'all clients to be on one node',
    async () => (await scene.nodes[2]!.stats()).streams === 9,
  );
  await scene.untilPublished(50);
  await scene.settle();
  expect(scene.gaps).toBe(0);
});

test('in a rolling deploy every node is replaced, and nobody misses or repeats anything', async () => {
  await using scene = await Scene.start({ nodes: 2 });
  const clients = await scene.connect(10, ['a', 'b']);
  scene.publishAllTheTime(['a', 'b']);
  for (const old of scene.nodes.slice()) {
    await scene.addNode();
    await scene.untilPublished(20);
    await old.stop();
  }
  await until('all clients to be back', () => clients.every((client) => client.returns > 0));
  await scene.settle();
  expect(scene.gaps).toBe(0);
});
