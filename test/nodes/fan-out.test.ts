/** Delivery to clients of several nodes, also when nodes exit. */
import { expect, test, vi } from 'vitest';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

test('events of one node reach the clients of all nodes, once and in one order', async () => {
  await using scene = await Scene.start({ nodes: 3 });
  await scene.connect(6, ['a', 'b']);
  await scene.connect(3, ['b']);
  await scene.connect(3, ['c']);
  scene.publishContinuously(['a', 'b', 'c', 'nobody']);
  await scene.untilPublished(300);
  await scene.verify();
  expect([scene.gaps, scene.ledger.count('accepted')]).toEqual([0, scene.ledger.published]);
  for (const node of scene.nodes) {
    // Wait until the readers of the log have disconnected.
    await until('four streams', async () => (await node.stats()).streams === 4);
    expect((await node.stats()).channels).toMatchObject({
      subscriptions: 6,
      behind: 0,
      gaps: 0,
      broker: { state: 'open' },
    });
  }
});

test('clients of a killed node resume on another node without a gap', async () => {
  await using scene = await Scene.start({ nodes: 3 });
  const clients = await scene.connect(9, ['a', 'b']);
  scene.publishContinuously(['a', 'b']);
  await scene.untilPublished(50);
  await scene.nodes[0]!.kill9();
  await until(
    'three reconnects',
    () => clients.filter((client) => client.reconnects > 0).length === 3,
  );
  await scene.untilPublished(50);
  await scene.nodes[1]!.kill9();
  await until(
    'nine streams on the last node',
    async () => (await scene.nodes[2]!.stats()).streams === 9,
  );
  await scene.untilPublished(50);
  await scene.verify();
  expect(scene.gaps).toBe(0);
});

test('no client misses or repeats an event in a rolling deploy', async () => {
  await using scene = await Scene.start({ nodes: 2 });
  const clients = await scene.connect(10, ['a', 'b']);
  scene.publishContinuously(['a', 'b']);
  for (const node of scene.nodes.slice()) {
    await scene.addNode();
    await scene.untilPublished(20);
    await node.stop();
  }
  await until('a reconnect of every client', () =>
    clients.every((client) => client.reconnects > 0),
  );
  await scene.verify();
  expect(scene.gaps).toBe(0);
});
