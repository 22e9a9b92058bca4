import type { Socket } from 'node:net';
import express, { type NextFunction, type Request, type Response } from 'express';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  memoryBroker,
  sse,
  type Broker,
  type Channels,
  type EventStream,
  type Subscription,
} from '../../src/index.ts';
import { redisBroker } from '../../src/brokers/redis.ts';
import { DistantBroker } from '../model/distant-broker.ts';
import { randomFrom } from '../model/random.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { brokerWith } from '../support/broker-with.ts';
import { TurnMeter, connectFake } from '../support/crowd.ts';
import { liveHeap } from '../support/heap.ts';
import { read } from '../support/reader.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { dial, requestText, serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

/**
 * A remote broker that answers late or never. Streams open anyway, start in slices, and leave
 * nothing in memory.
 */

/** A remote broker whose `listen` and `position` resolve only when the test calls `answer`. */
function delayedBroker(): {
  broker: Broker;
  calls: () => number;
  answer: (error?: Error) => void;
} {
  const log = memoryBroker();
  let waiting: ((error?: Error) => void)[] = [];
  let isAnswering = false;
  function delay<T>(action: () => T, signal?: AbortSignal): Promise<T> {
    if (isAnswering) return Promise.resolve(action());
    return new Promise((resolve, reject) => {
      signal?.addEventListener('abort', () => reject(signal.reason as Error));
      waiting.push((error) => (error === undefined ? resolve(action()) : reject(error)));
    });
  }
  const broker = brokerWith(log, {
    get state() {
      return isAnswering ? ('open' as const) : ('connecting' as const);
    },
    position: (_atLeast, signal) => delay(() => log.position() as never, signal),
    listen: (channel) => delay(() => void log.listen(channel)),
  });
  return {
    broker,
    calls: () => waiting.length,
    answer(error) {
      isAnswering = error === undefined;
      const callbacks = waiting;
      waiting = [];
      for (const settle of callbacks) settle(error);
    },
  };
}

interface Outcomes {
  subscriptions: Subscription[];
  errors: unknown[];
}

/**
 * Serves streams that follow channel `a` of a Redis, and records the outcome of each `subscribe`.
 */
async function serveRedis(
  redis: RedisServer,
): Promise<StreamServer & Outcomes & { channels: Channels }> {
  const channels = createChannels({
    broker: redisBroker({ url: redis.url, timeout: 300 }),
    history: { events: 10_000 },
  });
  const outcomes = { subscriptions: [] as Subscription[], errors: [] as unknown[] };
  const server = await serveStreams(
    (stream) => {
      void stream.subscribe('a').then(
        (subscription) => outcomes.subscriptions.push(subscription),
        (error: unknown) => outcomes.errors.push(error),
      );
    },
    { channels },
  );
  return Object.assign(server, {
    channels,
    subscriptions: outcomes.subscriptions,
    errors: outcomes.errors,
  });
}

/**
 * Opens a stream and disconnects.
 * @param isOpen whether to wait until the stream has written its head
 */
async function openAndDisconnect(
  server: StreamServer,
  headers: Record<string, string>,
  isOpen: boolean,
): Promise<WeakRef<EventStream>> {
  const count = server.streams.length;
  const socket = await dial(server.port, requestText('/', { Connection: 'close', ...headers }));
  await until('a stream', () => server.streams.length > count);
  const stream = server.streams.pop() as EventStream;
  if (isOpen) await until('the head of the stream', () => stream.readyState === 1);
  socket.destroy();
  await stream.closed;
  return new WeakRef(stream);
}

async function expectCollected(refs: readonly WeakRef<object>[]): Promise<void> {
  await until('the streams to be collected', async () => {
    await liveHeap();
    return refs.every((ref) => ref.deref() === undefined);
  });
}

test('a stream whose response was used for another answer ends without an error', async () => {
  const { broker } = delayedBroker();
  const channels = createChannels({ broker });
  const app = express();
  app.use(sse({ channels }));
  let looks = 0;
  app.get(
    '/',
    (_req, res, next) => {
      setTimeout(() => {
        res.writeHead(503).write('busy');
        // From here on only the timer of the subscription reads `headersSent`.
        Object.defineProperty(res, 'headersSent', { get: () => ++looks > 0 });
      }, 100);
      next();
    },
    channels.listen('a'),
  );
  await using server = await serve(app);
  const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
  expect(response.status).toBe(503);
  await until('the timer of the subscription', () => looks > 0);
  await response.body?.cancel();
  await until('the subscription to end', () => channels.stats().subscriptions === 0);
});

test('a stream that opens late passes an error of res.writeHead to next', async () => {
  const { broker } = delayedBroker();
  const channels = createChannels({ broker });
  const app = express();
  app.use(sse({ channels }));
  app.get(
    '/',
    (_req, res, next) => {
      res.writeHead = () => {
        // The error handler must be able to answer.
        delete (res as Partial<Response>).writeHead;
        throw new Error('writeHead failed');
      };
      next();
    },
    channels.listen('a'),
  );
  app.use(
    (error: Error, _req: Request, res: Response, _next: NextFunction) =>
      void res.status(500).end(error.message),
  );
  await using server = await serve(app);
  const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
  expect([response.status, await response.text()]).toEqual([500, 'writeHead failed']);
  expect(channels.stats().subscriptions).toBe(0);
});

test('readers that are slow when their page arrives do not block other streams', async () => {
  const log = memoryBroker();
  let isDelayed = true;
  const pages: (() => void)[] = [];
  const broker = brokerWith(log, {
    read: (names, after, maxBytes) =>
      new Promise((resolve) => {
        const answer = (): void => resolve(log.read(names, after, maxBytes));
        if (isDelayed) pages.push(answer);
        else setImmediate(answer);
      }),
    listen: (channel) => Promise.resolve(log.listen(channel)),
  });
  const channels = createChannels({ broker });
  await using server = await serveStreams(
    (stream) => void stream.subscribe('a', { since: 'start' }),
    {
      channels,
      maxBuffered: 100_000_000,
    },
  );
  await channels.publish('a', 'x'.repeat(60_000));
  const slow = await Promise.all(
    Array.from({ length: 64 }, () => dial(server.port, requestText('/'))),
  );
  for (const socket of slow) socket.pause();
  await until('64 concurrent reads', () => pages.length === 64);
  // More bytes than the kernel buffers.
  for (const stream of server.streams) stream.send('y'.repeat(8_000_000));
  isDelayed = false;
  for (const answer of pages.splice(0)) answer();
  using other = await read(server.url);
  expect((await other.next()).data).toHaveLength(60_000);
  for (const socket of slow) socket.destroy();
});

describe('while Redis is unreachable', () => {
  test.each<[string, (redis: RedisServer) => unknown]>([
    ['was killed', (redis) => redis.kill9()],
    ['does not answer', (redis) => redis.pause()],
  ])(
    'because it %s, a disconnected client is collected and its subscription ends',
    async (_, stop) => {
      await using redis = await startRedis();
      await using server = await serveRedis(redis);
      const { channels, subscriptions, errors } = server;
      const { id } = await channels.publish('a', 'one');
      await channels.publish('a', 'two');
      await stop(redis);
      const refs: WeakRef<EventStream>[] = [];
      for (let index = 0; index < 20; index++) {
        const headers: Record<string, string> = index % 2 === 0 ? {} : { 'Last-Event-ID': id };
        // Some clients disconnect after the stream has opened.
        refs.push(await openAndDisconnect(server, headers, index % 10 === 0));
      }
      await until('the end of all subscriptions', () => subscriptions.length === refs.length);
      expect(subscriptions[0]).toMatchObject({
        channels: ['a'],
        recovered: false,
        gaps: 0,
        cursor: '',
      });
      expect(errors).toEqual([]);
      expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0, behind: 0 });
      subscriptions.length = 0;
      await expectCollected(refs);
      redis.resume();
      await within('channels.close()', channels.close());
      expect([subscriptions, errors]).toEqual([[], []]);
    },
    60_000,
  );

  test('100 streams that disconnect are collected, and the others continue later', async () => {
    await using redis = await startRedis({ appendonly: true });
    await using server = await serveRedis(redis);
    const { channels, subscriptions, errors } = server;
    using stays = await read(server.url);
    const sockets: Socket[] = [];
    for (let index = 0; index < 100; index++) {
      sockets.push(await dial(server.port, requestText('/', { Connection: 'close' })));
    }
    await until(
      'all streams to be live',
      () => subscriptions.length === 101 && channels.stats().behind === 0,
    );
    await redis.kill9();
    await until('all streams to wait for Redis', () => channels.stats().behind === 101, 20_000);
    const refs = server.streams.splice(1).map((stream) => new WeakRef(stream));
    for (const socket of sockets) socket.destroy();
    await until('the end of 100 streams', () => server.events.streams.size === 1);
    expect(channels.stats()).toMatchObject({
      channels: 1,
      subscriptions: 1,
      behind: 1,
      broker: { state: 'broken' },
    });
    subscriptions.length = 0;
    await expectCollected(refs);
    await redis.restart();
    await until('the broker to be open', () => channels.stats().broker.state === 'open', 20_000);
    await channels.publish('a', 'afterwards');
    expect((await stays.next()).data).toBe('afterwards');
    expect(errors).toEqual([]);
    await within('channels.close()', channels.close());
  }, 60_000);
});

test('thousands of streams that waited for the broker start in slices', async () => {
  const { broker, calls, answer } = delayedBroker();
  const channels = createChannels({ broker });
  const events = sse({ channels, heartbeat: false });
  using meter = new TurnMeter();
  const crowd = Array.from({ length: 3_000 }, () => connectFake(events));
  const subscriptions = crowd.map(async ({ stream }) => {
    await stream.subscribe('a');
    meter.add(1);
  });
  await until(
    'all streams to wait',
    () => calls() > 0 && channels.stats().subscriptions === crowd.length,
  );
  answer();
  await Promise.all(subscriptions);
  expect(meter.total).toBe(crowd.length);
  // The queue admits 100 streams in one turn, and an admitted stream needs at least one step.
  expect(meter.most).toBeLessThanOrEqual(400);
  await until('all streams to be live', () => channels.stats().behind === 0);
  await events.close({ within: 0 });
});

describe('a stream opens', () => {
  test('after it is subscribed: the client gets each event published after the head', async () => {
    for (let round = 0; round < 30; round++) {
      const broker = new DistantBroker(randomFrom(round));
      const ticking = setInterval(() => broker.tick(), 1);
      const channels = createChannels({ broker });
      await using server = await serveStreams(
        (stream) => stream.subscribe(['a', 'b'], { since: 'now' }),
        { channels },
      );
      using reader = await read(server.url);
      for (const each of ['1', '2', '3']) void channels.publish(each === '2' ? 'b' : 'a', each);
      expect((await reader.take(3)).map(({ data }) => data)).toEqual(['1', '2', '3']);
      clearInterval(ticking);
      reader.close();
    }
  });

  test('after it is subscribed, also if another node publishes through Redis', async () => {
    await using redis = await startRedis();
    const node = (): Channels => createChannels({ broker: redisBroker({ url: redis.url }) });
    const [here, there] = [node(), node()];
    await using server = await serveStreams(
      (stream, req) => stream.subscribe(req.query['follow'] as string),
      { channels: here },
    );
    await there.publish('warm', 'up');
    for (let round = 0; round < 30; round++) {
      // A channel that no node has listened to before.
      using reader = await read(`${server.url}?follow=room-${round}`);
      await there.publish(`room-${round}`, 'hello');
      expect((await reader.next()).data).toBe('hello');
    }
    await Promise.all([here.close(), there.close()]);
  });

  test('after one second without an answer, and starts at the head of the answer', async () => {
    const { broker, calls, answer } = delayedBroker();
    const channels = createChannels({ broker });
    const subscriptions: Subscription[] = [];
    await using server = await serveStreams(
      async (stream) => void subscriptions.push(await stream.subscribe('a')),
      { channels },
    );
    using reader = await read(server.url);
    expect([reader.response.status, calls(), subscriptions.length]).toEqual([200, 1, 0]);
    expect(server.streams[0]?.readyState).toBe(1);
    await channels.publish('a', 'before the answer');
    const { id } = await channels.publish('a', 'the head');
    answer();
    await until('the subscription', () => subscriptions.length === 1);
    expect(subscriptions[0]).toMatchObject({ cursor: id, recovered: true, gaps: 0 });
    await channels.publish('a', 'after');
    expect((await reader.next()).data).toBe('after');
  });

  test('for a HEAD request, which gets the head and follows no channel', async () => {
    const { broker, calls, answer } = delayedBroker();
    const channels = createChannels({ broker });
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    const head = fetch(server.url, { method: 'HEAD', headers: { Accept: 'text/event-stream' } });
    await until('a call of the broker', () => calls() === 1);
    answer();
    const response = await within('the response', head);
    expect([response.status, response.headers.get('content-type')]).toEqual([
      200,
      'text/event-stream',
    ]);
    expect(await response.text()).toBe('');
    await until('the end of the subscription', () => channels.stats().subscriptions === 0);
    expect(channels.stats()).toMatchObject({ channels: 0, behind: 0 });
  });

  test('only if the broker does not reject: next gets the error', async () => {
    const { broker, calls, answer } = delayedBroker();
    const channels = createChannels({ broker });
    const app = express();
    const errors: unknown[] = [];
    app.use(sse({ channels }));
    app.get('/', channels.listen('a') as never);
    app.use(
      (error: Error, _req: express.Request, res: express.Response, _next: express.NextFunction) => {
        errors.push(error);
        res.status(503).json({ error: error.message });
      },
    );
    await using server = await serve(app);
    const responsePromise = fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    await until('a call of the broker', () => calls() === 1);
    answer(new Error('no permission'));
    const response = await within('the response', responsePromise);
    expect([response.status, await response.json()]).toEqual([503, { error: 'no permission' }]);
    expect(errors).toEqual([new Error('no permission')]);
    expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0, behind: 0 });
  });
});

test('close({ final: true }) during a recovery writes earlier events before sse:end', async () => {
  await using redis = await startRedis();
  await using server = await serveRedis(redis);
  const { channels } = server;
  using reader = await read(server.url);
  await until('the subscription', () => server.subscriptions.length === 1);
  await channels.publish('a', 'one');
  await reader.next();
  const client = await redis.client();
  await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
  // Wait until the node has noticed the loss of its connection. The recovery takes only some
  // milliseconds.
  while (channels.stats().broker.state === 'open') {
    await new Promise((resolve) => setImmediate(resolve));
  }
  await channels.publish('a', 'last');
  (server.streams[0] as EventStream).close({ final: true });
  await reader.end();
  expect(reader.events.map(({ event, data }) => event ?? data)).toEqual(['one', 'last', 'sse:end']);
});

test('a stream that cannot be read and cannot be opened hands the error to the route', async () => {
  const broker = memoryBroker();
  let isDown = false;
  const channels = createChannels({
    broker: brokerWith(broker, {
      read: (...args) =>
        isDown ? Promise.reject(new Error('the broker is down')) : broker.read(...args),
    }),
  });
  const errors: unknown[] = [];
  const app = express();
  app.use((_req: Request, res: Response, next: NextFunction) => {
    // As a listener of the package on-headers that throws once.
    const writeHead = res.writeHead.bind(res);
    res.writeHead = () => {
      res.writeHead = writeHead;
      throw new Error('no head');
    };
    next();
  });
  app.use(sse({ channels, onError: (error) => errors.push(error) }));
  app.get('/', channels.listen('a'));
  app.use((error: Error, _req: Request, res: Response, _next: NextFunction) => {
    res.status(500).send(error.message);
  });
  await using server = await serve(app);
  const { id } = await channels.publish('a', '1');
  await channels.publish('a', '2');
  isDown = true;
  const response = await within(
    'the answer',
    fetch(server.url, { headers: { Accept: 'text/event-stream', 'Last-Event-ID': id } }),
  );
  expect([response.status, await response.text()]).toEqual([500, 'no head']);
  expect(errors).toMatchObject([{ message: 'the broker is down' }]);
});
