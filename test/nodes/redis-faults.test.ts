/** Streams and publishes when Redis is killed, pauses, loses data, or is disconnected. */
import { cpSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { Message } from '../support/resp.ts';
import type { TestNode } from './nodes.ts';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const statesOf = (scene: Scene) =>
  Promise.all(scene.nodes.map(async (node) => (await node.stats()).channels.broker.state));
const countHeals = (scene: Scene) =>
  Promise.all(scene.nodes.map(async (node) => (await node.stats()).heals.length));
const allAre = (scene: Scene, state: string) => async () =>
  (await statesOf(scene)).every((each) => each === state);

describe('if Redis is killed', () => {
  test('and restarts with its data, streams stay open and miss no event', async () => {
    await using scene = await Scene.start({ server: { appendonly: true } });
    const clients = await scene.connect(6, ['a', 'b']);
    scene.publishContinuously(['a', 'b'], { keyed: true });
    await scene.untilPublished(50);
    await scene.redis.kill9();
    await until('six refused publishes', () => scene.ledger.errors.length > 5);
    await until('state "broken" on all nodes', allAre(scene, 'broken'));
    const beats = clients.map((client) => client.heartbeats);
    await until('a heartbeat on every client', () =>
      clients.every((client, index) => client.heartbeats > beats[index]!),
    );
    await scene.redis.restart();
    await scene.untilPublished(50);
    await scene.stopPublishing();
    // A publish with an unknown outcome can be retried on any node, because it has a key.
    await until(
      'all events to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.verify();
    expect(scene.ledger.count('accepted')).toBe(scene.ledger.published);
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([
      0, 0,
    ]);
    await until('state "open" on all nodes', allAre(scene, 'open'));
  });

  test('and restarts without its data, every client gets a gap and the new log', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const [disconnected] = await scene.connect(1, ['a']);
    disconnected!.leave();
    scene.publishContinuously(['a', 'b']);
    await scene.untilPublished(50);
    await scene.redis.kill9();
    await scene.redis.restart();
    await scene.untilPublished(50);
    disconnected!.resume();
    await scene.verify();
    expect(clients.map((client) => [client.gaps, client.reconnects])).toEqual(
      clients.map(() => [1, 0]),
    );
    expect(disconnected!.gaps).toBe(1);
  });

  test('and restarts with older data, clients get a gap and no id is used twice', async () => {
    await using scene = await Scene.start({ server: { appendonly: true } });
    const { redis } = scene;
    const clients = await scene.connect(6, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    await until('ten events on each client', () =>
      clients.every((client) => client.received === 10),
    );
    const [data, copy] = [join(redis.dir, 'appendonlydir'), join(redis.dir, 'copy')];
    cpSync(data, copy, { recursive: true });
    await scene.ledger.publish(scene.choose()!, 'b', 5);
    await until('15 events on each client', () =>
      clients.every((client) => client.received === 15),
    );
    await redis.kill9();
    rmSync(data, { recursive: true });
    renameSync(copy, data);
    await redis.restart();
    // Other nodes may have events in their cache that Redis lost.
    await scene.verify({ fresh: await scene.addNode() });
    expect(clients.map((client) => client.gaps)).toEqual(clients.map(() => 1));
  });

  test('a node can be stopped', async () => {
    await using scene = await Scene.start({ nodes: 1 });
    const [node] = scene.nodes as [TestNode];
    const clients = await scene.connect(3, ['a']);
    await scene.redis.kill9();
    const published = scene.ledger.publish(node, 'a', 3);
    await node.stop();
    await published;
    expect(clients.every((client) => client.retries > 0)).toBe(true);
    expect(scene.ledger.count('accepted')).toBe(0);
  });

  test('before a node starts, its streams open and start later', async () => {
    await using scene = await Scene.start({ nodes: 1 });
    await scene.connect(1, ['a']);
    await scene.redis.kill9();
    const node = await scene.addNode();
    const connecting = scene.connect(3, ['a'], () => node);
    await until('three open streams', async () => (await node.stats()).streams === 3);
    expect((await node.stats()).channels.broker.state).toBe('connecting');
    await scene.redis.restart();
    await connecting;
    await scene.verify();
  });
});

describe('if Redis does not answer', () => {
  test('for seconds, publishes are refused in time and no client misses an event', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    scene.publishContinuously(['a', 'b'], { keyed: true });
    await scene.untilPublished(50);
    scene.redis.pause();
    await until('six refused publishes', () => scene.ledger.errors.length > 5);
    // The number of waiting publishes is limited, so publishes that were sent later are refused, too.
    const refused = scene.ledger.errors.length;
    await until('more to be refused', () => scene.ledger.errors.length > refused + 100);
    scene.redis.resume();
    await scene.untilPublished(50);
    await scene.stopPublishing();
    await until(
      'all events to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.verify();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([
      0, 0,
    ]);
  });

  test('for longer than a connection may be silent, each node reconnects', async () => {
    await using scene = await Scene.start({ probe: 200, timeout: 300 });
    await scene.connect(4, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    const made = scene.nodes.map((node) => scene.relayOf(node).made);
    scene.redis.pause();
    // A Redis that is stopped takes connections, but says nothing on them.
    await until('each node to connect anew, and once more', () =>
      scene.nodes.every((node, index) => scene.relayOf(node).made >= made[index]! + 2),
    );
    scene.redis.resume();
    for (const node of scene.nodes) await scene.ledger.publishWithRetry(() => node, 'b');
    await scene.verify();
    expect(scene.gaps).toBe(0);
  });

  test('because of CLIENT PAUSE, no client misses an event', async () => {
    await using scene = await Scene.start();
    await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishContinuously(['a', 'b']);
    for (const mode of ['ALL', 'WRITE']) {
      await scene.untilPublished(30);
      await redis.sendCommand(['CLIENT', 'PAUSE', '400', mode]);
    }
    await scene.untilPublished(30);
    await scene.verify();
    expect(scene.gaps).toBe(0);
  });
});

describe('if Redis loses', () => {
  test('all keys by FLUSHALL, every client gets one gap and the new log', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishContinuously(['a', 'b']);
    await scene.untilPublished(50);
    await redis.flushAll();
    await scene.untilPublished(50);
    await scene.verify();
    expect(clients.map((client) => [client.gaps, client.reconnects])).toEqual(
      clients.map(() => [1, 0]),
    );
  });

  test('all keys, clients get a gap also without another publish', async () => {
    await using scene = await Scene.start({ probe: 400 });
    const clients = await scene.connect(4, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    await until('ten events on each client', () =>
      clients.every((client) => client.received === 10),
    );
    await (await scene.redis.client()).flushAll();
    await until('a gap on each client', () => clients.every((client) => client.gaps === 1));
    await scene.verify();
    expect(clients.map((client) => client.gaps)).toEqual([1, 1, 1, 1]);
  });

  test('its scripts by SCRIPT FLUSH, no publish fails', async () => {
    await using scene = await Scene.start();
    await scene.connect(4, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishContinuously(['a', 'b']);
    for (let times = 0; times < 3; times++) {
      await scene.untilPublished(20);
      await redis.scriptFlush();
    }
    await scene.untilPublished(20);
    await scene.verify();
    expect([scene.gaps, scene.ledger.count('accepted')]).toEqual([0, scene.ledger.published]);
  });

  test('a channel by clear(), clients without its events get a gap', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(4, ['a', 'b']);
    const disconnected = await scene.connect(4, ['a', 'b']);
    for (const client of disconnected) client.leave();
    for (const channel of ['a', 'b']) await scene.ledger.publish(scene.choose()!, channel, 10);
    await until('20 events on each connected client', () =>
      clients.every((client) => client.received === 20),
    );
    await scene.nodes[0]!.clear('a');
    for (const client of disconnected) client.resume();
    await scene.verify();
    expect(clients.map((client) => client.gaps)).toEqual([0, 0, 0, 0]);
    expect(disconnected.map((client) => client.gaps)).toEqual([1, 1, 1, 1]);
  });
});

describe('if Redis is full', () => {
  const channels = Array.from({ length: 20 }, (_, index) => `c${index}`);
  const fill = async (scene: Scene) => {
    for (let times = 0; times < 2; times++) {
      for (const channel of channels) {
        await scene.ledger.publish(scene.choose()!, channel, 8, { padding: 20_000 });
      }
    }
  };

  test('and evicts keys, clients get a gap for lost events only', async () => {
    const config = ['maxmemory-policy allkeys-lru'];
    await using scene = await Scene.start({ server: { maxmemory: '4mb', config } });
    const clients = await scene.connect(3, channels);
    for (const client of clients) client.leave();
    await scene.connect(3, channels);
    await fill(scene);
    const redis = await scene.redis.client();
    expect(Number(/evicted_keys:(\d+)/.exec(await redis.info('stats'))![1])).toBeGreaterThan(0);
    // Stop evicting, so that the content of the log does not change any more.
    await redis.configSet('maxmemory', '0');
    for (const client of clients) client.resume();
    await scene.verify({ fresh: await scene.addNode() });
    for (const client of clients) expect(client.gaps).toBeGreaterThanOrEqual(1);
  });

  test('and evicts nothing, publishes are refused and not delivered', async () => {
    await using scene = await Scene.start({ server: { maxmemory: '4mb' } });
    await scene.connect(3, channels);
    await fill(scene);
    expect(scene.ledger.errors[0]).toMatch(/^ERR_SSE_BROKER none: .*OOM/);
    const redis = await scene.redis.client();
    await redis.configSet('maxmemory', '0');
    await scene.verify();
    expect(scene.gaps).toBe(0);
  });
});

describe('if messages from Redis are lost', () => {
  test('because connections are killed repeatedly, each node reads missed events', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishContinuously(['a', 'b'], { keyed: true });
    for (const type of ['pubsub', 'normal', 'pubsub', 'pubsub']) {
      const before = await countHeals(scene);
      await scene.untilPublished(20);
      await redis.sendCommand(['CLIENT', 'KILL', 'TYPE', type, 'SKIPME', 'yes']);
      if (type === 'normal') continue;
      await until('a recovery of each node', async () =>
        (await countHeals(scene)).every((count, index) => count > before[index]!),
      );
    }
    await scene.untilPublished(20);
    await scene.stopPublishing();
    await until(
      'all events to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.verify();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([
      0, 0,
    ]);
  });

  test.each([
    ['an event', ':c:a'],
    ['the header of an event', ':spine'],
  ])('because %s of channel a is lost, no stream passes the event', async (_what, topic) => {
    await using scene = await Scene.start();
    const [faultyNode, other] = scene.nodes as [never, never];
    const clients = await scene.connect(5, ['a', 'b'], () => faultyNode);
    await scene.connect(2, ['b'], () => faultyNode);
    await scene.connect(2, ['a', 'b'], () => other);
    const relay = scene.relayOf(faultyNode);
    for (let times = 1; times <= 5; times++) {
      for (const channel of ['b', 'a']) await scene.ledger.publish(other, channel, 3);
      relay.dropNext((message) => message.topic.includes(topic));
      await scene.ledger.publish(other, 'a');
      await scene.ledger.publish(other, 'b', 3);
      await until('all events on each client', () =>
        clients.every((client) => client.received === 10 * times),
      );
    }
    expect(relay.dropped.length).toBe(5);
    await scene.verify();
    expect(scene.gaps).toBe(0);
  });

  test('and no message follows, the node detects the loss by a probe', async () => {
    await using scene = await Scene.start({ probe: 400, timeout: 400 });
    const [faultyNode, other] = scene.nodes as [never, never];
    const clients = await scene.connect(4, ['a'], () => faultyNode);
    const relay = scene.relayOf(faultyNode);
    const isEvent = ({ topic }: Message) => topic.endsWith(':c:a');
    const isHeader = ({ topic, payload }: Message) =>
      topic.endsWith(':spine') && payload.includes('\n+');
    for (const lost of [[isEvent, isHeader], [isHeader]]) {
      const before = clients[0]!.received;
      for (const isLost of lost) relay.dropNext(isLost);
      await scene.ledger.publish(other, 'a');
      await until('all events on each client', () =>
        clients.every((client) => client.received === before + 1),
      );
    }
    expect(relay.dropped.length).toBe(3);
    await scene.verify();
    expect(scene.gaps).toBe(0);
  });

  test('because a connection is silent, the node reconnects until it works', async () => {
    await using scene = await Scene.start({ probe: 400, timeout: 400 });
    const [faultyNode, other] = scene.nodes as [TestNode, TestNode];
    const clients = await scene.connect(4, ['a', 'b'], () => faultyNode);
    const relay = scene.relayOf(faultyNode);
    const { made } = relay;
    relay.dropAll(() => true);
    for (const channel of ['a', 'b']) await scene.ledger.publish(other, channel, 5);
    await until(
      'the node to detect the failure',
      async () => (await faultyNode.stats()).channels.broker.state === 'broken',
    );
    await until('two more connections', () => relay.made >= made + 2);
    relay.dropNone();
    await until('all events on each client', () =>
      clients.every((client) => client.received === 10),
    );
    await scene.verify();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.reconnects, 0)]).toEqual([
      0, 0,
    ]);
  });

  test('because one node is disconnected, only that node has to catch up', async () => {
    await using scene = await Scene.start();
    const [disconnectedNode, other] = scene.nodes as [never, never];
    const clients = await scene.connect(4, ['a', 'b'], () => disconnectedNode);
    await scene.connect(4, ['a', 'b'], () => other);
    const relay = scene.relayOf(disconnectedNode);
    for (const disconnect of [
      () => relay.sever(),
      () => relay.stall('replies'),
      () => relay.stall('commands'),
    ]) {
      const before = clients[0]!.received;
      disconnect();
      for (let times = 0; times < 10; times++) {
        await scene.ledger.publish(other, times % 2 === 0 ? 'a' : 'b', 5);
      }
      relay.mend();
      relay.flow();
      await until('all events on each client', () =>
        clients.every((client) => client.received === before + 50),
      );
    }
    await scene.verify();
    expect(scene.gaps).toBe(0);
    expect(scene.clients.map((client) => client.reconnects)).toEqual(scene.clients.map(() => 0));
  });
});

test('a client with a newer id than its node waits for the node and gets no gap', async () => {
  await using scene = await Scene.start();
  const [behind, other] = scene.nodes as [TestNode, TestNode];
  let node: TestNode = other;
  const clients = await scene.connect(4, ['a', 'b'], () => node);
  await scene.connect(1, ['a', 'b'], () => behind);
  scene.relayOf(behind).stall('replies');
  for (const channel of ['a', 'b']) await scene.ledger.publish(other, channel, 5);
  await until('all events on each client', () => clients.every((client) => client.received === 10));
  node = behind;
  for (const client of clients) client.drop();
  await until('a reconnect of each client', () =>
    clients.every((client) => client.reconnects === 1),
  );
  await scene.ledger.publish(other, 'a', 5);
  scene.relayOf(behind).flow();
  await until('all events on each client', () => clients.every((client) => client.received === 15));
  await scene.verify();
  expect(scene.gaps).toBe(0);
});

test(
  '500 clients that connect during publishes get every event with few reads from Redis',
  { timeout: 60_000 },
  async () => {
    await using scene = await Scene.start({ nodes: 3 });
    await scene.connect(10, ['a', 'b']);
    scene.publishContinuously(['a', 'b', 'c']);
    await scene.untilPublished(50);
    await Promise.all(
      Array.from({ length: 10 }, (_, index) =>
        scene.connect(50, index % 2 === 0 ? ['a', 'b'] : ['c', 'a']),
      ),
    );
    for (const client of scene.clients) client.drop();
    const haveReturned = (times: number) => () =>
      scene.clients.every((client) => client.reconnects >= times);
    await until('a reconnect of each client', haveReturned(1), 30_000);
    await scene.untilPublished(50);
    await scene.verify();
    expect(scene.gaps).toBe(0);

    const redis = await scene.redis.client();
    const calls = async () =>
      Number(/cmdstat_evalsha:calls=(\d+)/.exec(await redis.info('commandstats'))![1]);
    const before = await calls();
    for (const client of scene.clients) client.drop();
    await until('a second reconnect of each client', haveReturned(2), 30_000);
    await scene.verify();
    // A node reads each channel at most once. In addition there are three publishes and some
    // probes.
    expect((await calls()) - before).toBeLessThan(50);
  },
);
