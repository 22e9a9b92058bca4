/**
 * `since: { last }`, `snapshot` and `follow()` over Redis, while nodes are killed and Redis restarts
 * or loses its data. The ledger checks that no reader misses an event without a gap, or receives
 * an event twice.
 */
import { describe, expect, test, vi } from 'vitest';
import type { Client, ClientPath } from './client.ts';
import type { TestNode } from './nodes.ts';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const CHANNELS = ['a', 'b'];

/** The readers of the first node of a scene. If the node is killed, they reconnect elsewhere. */
interface Readers {
  /** Streams of one channel each that start at its newest five events. */
  readonly last: readonly Client[];
  /** Streams with a `snapshot`. */
  readonly withSnapshot: readonly Client[];
  /** Consumers of `follow()`, which start anew after their last event if their node is killed. */
  readonly consumers: readonly Client[];
}

/** Starts readers on the first node, and publishes continuously on all nodes. */
async function startReaders(scene: Scene): Promise<Readers> {
  const [first] = scene.nodes as [TestNode];
  const choose = (): TestNode | undefined => (first.isRunning ? first : scene.choose());
  const connect = (channels: readonly string[], path: ClientPath, count: number) =>
    scene.connect(count, channels, choose, path);
  const newest: number[][] = [];
  for (const channel of CHANNELS) {
    newest.push((await scene.ledger.publish(first, channel, 10)).slice(-5));
  }
  const last = (await Promise.all(CHANNELS.map((name) => connect([name], '/last', 1)))).flat();
  await until('the newest events', () => last.every((client) => client.received === 5));
  expect(last.map(numbersOf)).toEqual(newest);
  const [withSnapshot, consumers] = await Promise.all([
    connect(CHANNELS, '/snapshot', 3),
    connect(CHANNELS, '/follow', 3),
  ]);
  scene.publishContinuously(CHANNELS, { keyed: true });
  await scene.untilPublished(50);
  return { last, withSnapshot, consumers };
}

function numbersOf({ items }: Client): number[] {
  return items.flatMap((item) => (item.kind === 'event' ? [item.n] : []));
}

/** Checks how often the readers were told of a loss, and what the snapshots were called for. */
function expectGaps({ last, withSnapshot, consumers }: Readers, gaps: number): void {
  expect([...last, ...consumers].map((client) => client.gaps)).toEqual(
    [...last, ...consumers].map(() => gaps),
  );
  const reasons = ['start', ...Array.from({ length: gaps }, () => 'gap')];
  expect(withSnapshot.map(({ snapshots }) => snapshots)).toEqual(withSnapshot.map(() => reasons));
  expect(withSnapshot.map((client) => client.gaps)).toEqual(withSnapshot.map(() => 0));
}

/** Connects readers without an id. They start when Redis can be reached. */
function addNewReaders(scene: Scene): readonly Client[] {
  const last = CHANNELS.map((name) => scene.addClient([name], scene.choose, '/last'));
  return [...last, scene.addClient(CHANNELS, scene.choose, '/snapshot')];
}

describe('last, snapshot and follow(), when a node is killed', () => {
  test('that publishes: readers miss no event', async () => {
    await using scene = await Scene.start({ nodes: 3 });
    const readers = await startReaders(scene);
    await scene.nodes[1]!.kill9();
    await scene.untilPublished(50);
    await scene.verify();
    expectGaps(readers, 0);
    expect(scene.clients.map(({ reconnects }) => reconnects)).toEqual(scene.clients.map(() => 0));
  });

  test('that has the readers: they go on after their last id on another node', async () => {
    await using scene = await Scene.start({ nodes: 3 });
    const readers = await startReaders(scene);
    await scene.nodes[0]!.kill9();
    await scene.untilPublished(50);
    await scene.verify();
    expectGaps(readers, 0);
    expect(scene.clients.map(({ reconnects }) => reconnects)).toEqual(scene.clients.map(() => 1));
  });
});

describe.each([
  ['that publishes', 1],
  ['that has the readers', 0],
])('last, snapshot and follow(), when a node is killed %s', (_which, killed) => {
  test('and Redis restarts with its data: readers miss no event', async () => {
    await using scene = await Scene.start({ nodes: 3, server: { appendonly: true } });
    const readers = await startReaders(scene);
    await scene.redis.kill9();
    await scene.nodes[killed]!.kill9();
    const refused = scene.ledger.errors.length;
    await until('refused publishes', () => scene.ledger.errors.length > refused + 5);
    const added = addNewReaders(scene);
    await scene.redis.restart();
    await scene.untilPublished(50);
    await scene.verify();
    expectGaps(readers, 0);
    expect(added.map(({ gaps, snapshots }) => [gaps, snapshots])).toEqual([
      [0, []],
      [0, []],
      [0, ['start']],
    ]);
  });

  test('and Redis restarts without its data: readers get one gap and the new log', async () => {
    await using scene = await Scene.start({ nodes: 3 });
    const readers = await startReaders(scene);
    await scene.redis.kill9();
    await scene.nodes[killed]!.kill9();
    const added = addNewReaders(scene);
    await scene.redis.restart();
    await scene.untilPublished(50);
    await scene.verify();
    expectGaps(readers, 1);
    expect(added.map(({ gaps, snapshots }) => [gaps, snapshots])).toEqual([
      [0, []],
      [0, []],
      [0, ['start']],
    ]);
  });

  test('and Redis is flushed: readers get one gap and the new log', async () => {
    await using scene = await Scene.start({ nodes: 3 });
    const readers = await startReaders(scene);
    const client = await scene.redis.client();
    await Promise.all([client.sendCommand(['FLUSHALL']), scene.nodes[killed]!.kill9()]);
    await scene.untilPublished(50);
    await scene.verify();
    expectGaps(readers, 1);
  });
});
