import { createChannels, type EventStream } from '../../src/index.ts';
import { expect, test } from 'vitest';
import { serveStreams } from '../support/app.ts';
import { liveHeap } from '../support/heap.ts';
import { dial, requestText } from '../support/server.ts';
import { until } from '../support/wait.ts';

const CYCLES = 1_000;
const AT_ONCE = 50;

test('after 1,000 connects and disconnects of all kinds no stream, timer, listener or socket is left, and the heap is what it was', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    async (stream, req) => {
      // Half of them ask for everything that is made only when asked for.
      if (req.query['lazy'] === undefined) {
        stream.signal.addEventListener('abort', () => {});
        void stream.closed;
        void stream.drained();
        void stream.pipe(
          (async function* () {
            yield 'piped';
            await new Promise(() => {});
          })(),
        );
      }
      await stream.subscribe(['a', 'b', `own-${req.query['n'] as string}`]);
    },
    { channels, heartbeat: 50, stallTimeout: 60_000, maxLifetime: 60_000 },
  );

  async function cycle(n: number): Promise<void> {
    const kind = n % 5;
    const path = `/?n=${n}${n % 2 === 0 ? '&lazy' : ''}`;
    const socket = await dial(
      server.port,
      requestText(path, kind === 4 ? { Connection: 'close' } : {}),
    );
    // Before the head is there, an abrupt reset in the middle of the request's life.
    if (kind === 0) return void socket.resetAndDestroy();
    await new Promise((resolve) => socket.once('data', resolve));
    if (kind === 1) socket.end();
    else if (kind === 2) socket.resetAndDestroy();
    else if (kind === 3) socket.destroy();
    else server.events.closeWhere((stream) => stream.req.url === path);
  }

  async function cycles(from: number, count: number): Promise<void> {
    for (let n = from; n < from + count; n += AT_ONCE) {
      await Promise.all(Array.from({ length: AT_ONCE }, (_, index) => cycle(n + index)));
      await channels.publish('a', 'x'.repeat(1_000));
    }
    await until('the streams to end', () => server.events.streams.size === 0);
    await until('the sockets to go', () => server.sockets.size === 0);
    server.streams.length = 0;
  }

  // Once to warm up: caches, pools, compiled code.
  await cycles(0, 2 * CYCLES);
  const before = await liveHeap();
  await cycles(2 * CYCLES, CYCLES);
  const after = await liveHeap();

  expect(server.events.streams.size).toBe(0);
  expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
  expect(channels.names()).toEqual([]);
  const { opened, closed, buffered } = server.events.stats();
  expect(opened).toBeGreaterThan(CYCLES / 2);
  expect(Object.values(closed).reduce((sum, count) => sum + count, 0)).toBe(opened);
  expect(Object.keys(closed).toSorted()).toEqual(['client', 'revoked']);
  expect(buffered).toBe(0);
  // One leaked stream weighs about 10 kB, a leaked listener some hundred bytes.
  expect((after - before) / CYCLES).toBeLessThan(300);
  expect(server.errors).toEqual([]);
}, 60_000);

test('a stream that has ended is let go of: nothing keeps it in memory', async () => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), {
    channels,
    heartbeat: 50,
  });
  const refs: WeakRef<EventStream>[] = [];
  for (let n = 0; n < 20; n++) {
    const socket = await dial(server.port, requestText('/'));
    await new Promise((resolve) => socket.once('data', resolve));
    refs.push(new WeakRef(server.streams.pop() as EventStream));
    socket.destroy();
  }
  await until(
    'the streams to end',
    () => server.events.streams.size === 0 && server.sockets.size === 0,
  );
  await until('the garbage to be collected', async () => {
    await liveHeap();
    return refs.every((ref) => ref.deref() === undefined);
  });
});
