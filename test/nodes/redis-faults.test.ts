/** What becomes of streams and publishes when Redis dies, hangs, forgets, or cannot be heard. */
import { cpSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { Message } from '../support/resp.ts';
import type { TestNode } from './nodes.ts';
import { Scene, until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const states = (scene: Scene) =>
  Promise.all(scene.nodes.map(async (node) => (await node.stats()).channels.broker.state));
const heals = (scene: Scene) =>
  Promise.all(scene.nodes.map(async (node) => (await node.stats()).heals.length));
const allAre = (scene: Scene, state: string) => async () =>
  (await states(scene)).every((one) => one === state);

describe('Redis is killed', () => {
  test('and comes back with its data: streams stay open, refusals are told, and nobody misses anything', async () => {
    await using scene = await Scene.start({ server: { appendonly: true } });
    const clients = await scene.connect(6, ['a', 'b']);
    scene.publishAllTheTime(['a', 'b'], { keyed: true });
    await scene.untilPublished(50);
    await scene.redis.kill9();
    await until('publishes to be refused', () => scene.ledger.errors.length > 5);
    await until('the nodes to say so', allAre(scene, 'broken'));
    const beats = clients.map((client) => client.beats);
    await until('heartbeats all the same', () =>
      clients.every((client, index) => client.beats > beats[index]!),
    );
    await scene.redis.restart();
    await scene.untilPublished(50);
    await scene.quiet();
    // With its key a publish whose fate is unknown can be tried again, on any node.
    await until(
      'all to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.settle();
    expect(scene.ledger.count('accepted')).toBe(scene.ledger.published);
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
    await until('the nodes to be well', allAre(scene, 'open'));
  });

  test('and comes back without its data: everybody is told a gap, and gets all of the new log', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const [away] = await scene.connect(1, ['a']);
    away!.leave();
    scene.publishAllTheTime(['a', 'b']);
    await scene.untilPublished(50);
    await scene.redis.kill9();
    await scene.redis.restart();
    await scene.untilPublished(50);
    away!.resume();
    await scene.settle();
    expect(clients.map((client) => [client.gaps, client.returns])).toEqual(
      clients.map(() => [1, 0]),
    );
    expect(away!.gaps).toBe(1);
  });

  test('and comes back shorter than it was: who has seen what is lost is told, and no id is used twice', async () => {
    await using scene = await Scene.start({ server: { appendonly: true } });
    const { redis } = scene;
    const clients = await scene.connect(6, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    await until('it to be with everybody', () => clients.every((client) => client.received === 10));
    const [data, copy] = [join(redis.dir, 'appendonlydir'), join(redis.dir, 'copy')];
    cpSync(data, copy, { recursive: true });
    await scene.ledger.publish(scene.choose()!, 'b', 5);
    await until('it to be with everybody', () => clients.every((client) => client.received === 15));
    await redis.kill9();
    rmSync(data, { recursive: true });
    renameSync(copy, data);
    await redis.restart();
    // The others may still have in memory what Redis has lost.
    await scene.settle({ fresh: await scene.addNode() });
    expect(clients.map((client) => client.gaps)).toEqual(clients.map(() => 1));
  });

  test('and a node is stopped meanwhile: it ends well', async () => {
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

  test('before a node starts: its streams open and wait, and begin when it is there', async () => {
    await using scene = await Scene.start({ nodes: 1 });
    await scene.connect(1, ['a']);
    await scene.redis.kill9();
    const node = await scene.addNode();
    const connecting = scene.connect(3, ['a'], () => node);
    await until('its streams to be open', async () => (await node.stats()).streams === 3);
    expect((await node.stats()).channels.broker.state).toBe('connecting');
    await scene.redis.restart();
    await connecting;
    await scene.settle();
  });
});

describe('Redis does not answer', () => {
  test('for seconds, stopped: publishes are refused in time, and nobody misses anything', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    scene.publishAllTheTime(['a', 'b'], { keyed: true });
    await scene.untilPublished(50);
    scene.redis.pause();
    await until('publishes to be refused', () => scene.ledger.errors.length > 5);
    // So many wait at most; those that are refused now were published after the first were refused.
    const refused = scene.ledger.errors.length;
    await until('more to be refused', () => scene.ledger.errors.length > refused + 100);
    scene.redis.resume();
    await scene.untilPublished(50);
    await scene.quiet();
    await until(
      'all to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.settle();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
  });

  test('for longer than a connection may be silent: each node connects anew, and goes on by itself', async () => {
    await using scene = await Scene.start({ patience: 200, timeout: 300 });
    await scene.connect(4, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    const made = scene.nodes.map((node) => scene.relayOf(node).made);
    scene.redis.pause();
    // A Redis that is stopped takes connections, but says nothing on them.
    await until('each node to connect anew, and once more', () =>
      scene.nodes.every((node, index) => scene.relayOf(node).made >= made[index]! + 2),
    );
    scene.redis.resume();
    for (const node of scene.nodes) await scene.ledger.publishSurely(() => node, 'b');
    await scene.settle();
    expect(scene.gaps).toBe(0);
  });

  test('for a while, by CLIENT PAUSE: nobody misses anything', async () => {
    await using scene = await Scene.start();
    await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishAllTheTime(['a', 'b']);
    for (const mode of ['ALL', 'WRITE']) {
      await scene.untilPublished(30);
      await redis.sendCommand(['CLIENT', 'PAUSE', '400', mode]);
    }
    await scene.untilPublished(30);
    await scene.settle();
    expect(scene.gaps).toBe(0);
  });
});

describe('Redis forgets', () => {
  test('everything, by FLUSHALL: everybody is told a gap, once, and gets all of the new log', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishAllTheTime(['a', 'b']);
    await scene.untilPublished(50);
    await redis.flushAll();
    await scene.untilPublished(50);
    await scene.settle();
    expect(clients.map((client) => [client.gaps, client.returns])).toEqual(
      clients.map(() => [1, 0]),
    );
  });

  test('everything, and nothing is published any more: everybody is told all the same', async () => {
    await using scene = await Scene.start({ patience: 400 });
    const clients = await scene.connect(4, ['a', 'b']);
    await scene.ledger.publish(scene.choose()!, 'a', 10);
    await until('it to be with everybody', () => clients.every((client) => client.received === 10));
    await (await scene.redis.client()).flushAll();
    await until('everybody to be told', () => clients.every((client) => client.gaps === 1));
    await scene.settle();
    expect(clients.map((client) => client.gaps)).toEqual([1, 1, 1, 1]);
  });

  test('its scripts, by SCRIPT FLUSH: nobody notices', async () => {
    await using scene = await Scene.start();
    await scene.connect(4, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishAllTheTime(['a', 'b']);
    for (let times = 0; times < 3; times++) {
      await scene.untilPublished(20);
      await redis.scriptFlush();
    }
    await scene.untilPublished(20);
    await scene.settle();
    expect([scene.gaps, scene.ledger.count('accepted')]).toEqual([0, scene.ledger.published]);
  });

  test('one channel, cleared on one node: who has not got it yet is told on every node, who has is not', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(4, ['a', 'b']);
    const away = await scene.connect(4, ['a', 'b']);
    for (const client of away) client.leave();
    for (const channel of ['a', 'b']) await scene.ledger.publish(scene.choose()!, channel, 10);
    await until('it to be with everybody who is there', () =>
      clients.every((client) => client.received === 20),
    );
    await scene.nodes[0]!.clear('a');
    for (const client of away) client.resume();
    await scene.settle();
    expect(clients.map((client) => client.gaps)).toEqual([0, 0, 0, 0]);
    expect(away.map((client) => client.gaps)).toEqual([1, 1, 1, 1]);
  });
});

describe('Redis is full', () => {
  const channels = Array.from({ length: 20 }, (_, index) => `c${index}`);
  const fill = async (scene: Scene) => {
    for (let times = 0; times < 2; times++) {
      for (const channel of channels) {
        await scene.ledger.publish(scene.choose()!, channel, 8, { padding: 20_000 });
      }
    }
  };

  test('and evicts: who has lost something is told, and nobody is told of what is there', async () => {
    const config = ['maxmemory-policy allkeys-lru'];
    await using scene = await Scene.start({ server: { maxmemory: '4mb', config } });
    const clients = await scene.connect(3, channels);
    for (const client of clients) client.leave();
    await scene.connect(3, channels);
    await fill(scene);
    const redis = await scene.redis.client();
    expect(Number(/evicted_keys:(\d+)/.exec(await redis.info('stats'))![1])).toBeGreaterThan(0);
    // What is there now stays, so that what the log holds at the end is what it held.
    await redis.configSet('maxmemory', '0');
    for (const client of clients) client.resume();
    await scene.settle({ fresh: await scene.addNode() });
    for (const client of clients) expect(client.gaps).toBeGreaterThanOrEqual(1);
  });

  test('and evicts nothing: publishes are refused, and nobody has got what was', async () => {
    await using scene = await Scene.start({ server: { maxmemory: '4mb' } });
    await scene.connect(3, channels);
    await fill(scene);
    expect(scene.ledger.errors[0]).toMatch(/^ERR_SSE_BROKER none: .*OOM/);
    const redis = await scene.redis.client();
    await redis.configSet('maxmemory', '0');
    await scene.settle();
    expect(scene.gaps).toBe(0);
  });
});

describe('Redis is not heard', () => {
  test('where connections are killed, again and again: each node reads what it missed, and nobody else does', async () => {
    await using scene = await Scene.start();
    const clients = await scene.connect(6, ['a', 'b']);
    const redis = await scene.redis.client();
    scene.publishAllTheTime(['a', 'b'], { keyed: true });
    for (const type of ['pubsub', 'normal', 'pubsub', 'pubsub']) {
      const before = await heals(scene);
      await scene.untilPublished(20);
      await redis.sendCommand(['CLIENT', 'KILL', 'TYPE', type, 'SKIPME', 'yes']);
      if (type === 'normal') continue;
      await until('each node to have read what it missed', async () =>
        (await heals(scene)).every((count, index) => count > before[index]!),
      );
    }
    await scene.untilPublished(20);
    await scene.quiet();
    await until(
      'all to be published',
      async () => (await scene.ledger.retry(scene.choose()!)) === 0,
    );
    await scene.settle();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
  });

  test.each([
    ['an event', ':c:a'],
    ['the word that there is an event', ':spine'],
  ])('where %s of A is lost while those of B arrive: no stream passes it', async (_what, topic) => {
    await using scene = await Scene.start();
    const [deaf, other] = scene.nodes as [never, never];
    const clients = await scene.connect(5, ['a', 'b'], () => deaf);
    await scene.connect(2, ['b'], () => deaf);
    await scene.connect(2, ['a', 'b'], () => other);
    const relay = scene.relayOf(deaf);
    for (let times = 1; times <= 5; times++) {
      for (const channel of ['b', 'a']) await scene.ledger.publish(other, channel, 3);
      relay.dropNext((message) => message.topic.includes(topic));
      await scene.ledger.publish(other, 'a');
      await scene.ledger.publish(other, 'b', 3);
      await until('all of it to be there', () =>
        clients.every((client) => client.received === 10 * times),
      );
    }
    expect(relay.dropped.length).toBe(5);
    await scene.settle();
    expect(scene.gaps).toBe(0);
  });

  test('where the very last events are lost, and nothing comes after them: they are found all the same', async () => {
    await using scene = await Scene.start({ patience: 400, timeout: 400 });
    const [deaf, other] = scene.nodes as [never, never];
    const clients = await scene.connect(4, ['a'], () => deaf);
    const relay = scene.relayOf(deaf);
    const isEvent = ({ topic }: Message) => topic.endsWith(':c:a');
    const isHeader = ({ topic, payload }: Message) =>
      topic.endsWith(':spine') && payload.includes('\n+');
    for (const lost of [[isEvent, isHeader], [isHeader]]) {
      const before = clients[0]!.received;
      for (const isLost of lost) relay.dropNext(isLost);
      await scene.ledger.publish(other, 'a');
      await until('it to be there', () =>
        clients.every((client) => client.received === before + 1),
      );
    }
    expect(relay.dropped.length).toBe(3);
    await scene.settle();
    expect(scene.gaps).toBe(0);
  });

  test('where a connection is up and says nothing any more: it is made anew, until it is heard', async () => {
    await using scene = await Scene.start({ patience: 400, timeout: 400 });
    const [deaf, other] = scene.nodes as [TestNode, TestNode];
    const clients = await scene.connect(4, ['a', 'b'], () => deaf);
    const relay = scene.relayOf(deaf);
    const { made } = relay;
    relay.dropAll(() => true);
    for (const channel of ['a', 'b']) await scene.ledger.publish(other, channel, 5);
    await until(
      'the node to notice',
      async () => (await deaf.stats()).channels.broker.state === 'broken',
    );
    await until('another connection, and another', () => relay.made >= made + 2);
    relay.dropNone();
    await until('it to be there', () => clients.every((client) => client.received === 10));
    await scene.settle();
    expect([scene.gaps, clients.reduce((sum, client) => sum + client.returns, 0)]).toEqual([0, 0]);
  });

  test('where one node is cut off for a while: it catches up, the others do not notice', async () => {
    await using scene = await Scene.start();
    const [cutOff, other] = scene.nodes as [never, never];
    const there = await scene.connect(4, ['a', 'b'], () => cutOff);
    await scene.connect(4, ['a', 'b'], () => other);
    const relay = scene.relayOf(cutOff);
    for (const breakIt of [
      () => relay.sever(),
      () => relay.stall('replies'),
      () => relay.stall('commands'),
    ]) {
      const before = there[0]!.received;
      breakIt();
      for (let times = 0; times < 10; times++) {
        await scene.ledger.publish(other, times % 2 === 0 ? 'a' : 'b', 5);
      }
      relay.mend();
      relay.flow();
      await until('it to be there', () => there.every((client) => client.received === before + 50));
    }
    await scene.settle();
    expect(scene.gaps).toBe(0);
    expect(scene.clients.map((client) => client.returns)).toEqual(scene.clients.map(() => 0));
  });
});

test('a client whose id a node has not heard of yet waits for it there, and is told no gap', async () => {
  await using scene = await Scene.start();
  const [behind, other] = scene.nodes as [TestNode, TestNode];
  let node: TestNode = other;
  const clients = await scene.connect(4, ['a', 'b'], () => node);
  await scene.connect(1, ['a', 'b'], () => behind);
  scene.relayOf(behind).stall('replies');
  for (const channel of ['a', 'b']) await scene.ledger.publish(other, channel, 5);
  await until('it to be there', () => clients.every((client) => client.received === 10));
  node = behind;
  for (const client of clients) client.drop();
  await until('all to be there', () => clients.every((client) => client.returns === 1));
  await scene.ledger.publish(other, 'a', 5);
  scene.relayOf(behind).flow();
  await until('it to be there', () => clients.every((client) => client.received === 15));
  await scene.settle();
  expect(scene.gaps).toBe(0);
});

test(
  '500 clients that come while there is publishing get everything, and cost Redis no read each',
  { timeout: 60_000 },
  async () => {
    await using scene = await Scene.start({ nodes: 3 });
    await scene.connect(10, ['a', 'b']);
    scene.publishAllTheTime(['a', 'b', 'c']);
    await scene.untilPublished(50);
    await Promise.all(
      Array.from({ length: 10 }, (_, index) =>
        scene.connect(50, index % 2 === 0 ? ['a', 'b'] : ['c', 'a']),
      ),
    );
    for (const client of scene.clients) client.drop();
    const haveReturned = (times: number) => () =>
      scene.clients.every((client) => client.returns >= times);
    await until('all to be back', haveReturned(1), 30_000);
    await scene.untilPublished(50);
    await scene.settle();
    expect(scene.gaps).toBe(0);

    const redis = await scene.redis.client();
    const calls = async () =>
      Number(/cmdstat_evalsha:calls=(\d+)/.exec(await redis.info('commandstats'))![1]);
    const before = await calls();
    for (const client of scene.clients) client.drop();
    await until('all to be back once more', haveReturned(2), 30_000);
    await scene.settle();
    // A node that has to ask does so once for each channel; beside that three publishes and some probes.
    expect((await calls()) - before).toBeLessThan(50);
  },
);
