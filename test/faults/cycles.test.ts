import { createChannels, type EventStream } from '../../src/index.ts';
import { expect, test } from 'vitest';
import { serveStreams } from '../support/app.ts';
import { liveHeap } from '../support/heap.ts';
import { dial, requestText } from '../support/server.ts';
import { until } from '../support/wait.ts';

const CYCLES = 1_000;
const CONCURRENT_CYCLES = 50;

test('1,000 connects and disconnects leave no stream or socket and no memory', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    async (stream, req) => {
      // Half of the streams use everything that is created on demand.
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

  async function runCycle(n: number): Promise<void> {
    const kind = n % 5;
    const path = `/?n=${n}${n % 2 === 0 ? '&lazy' : ''}`;
    const socket = await dial(
      server.port,
      requestText(path, kind === 4 ? { Connection: 'close' } : {}),
    );
    // Kind 0: reset the connection before the head has arrived.
    if (kind === 0) return void socket.resetAndDestroy();
    await new Promise((resolve) => socket.once('data', resolve));
    if (kind === 1) socket.end();
    else if (kind === 2) socket.resetAndDestroy();
    else if (kind === 3) socket.destroy();
    else server.events.closeWhere((stream) => stream.req.url === path);
  }

  async function runCycles(from: number, count: number): Promise<void> {
    for (let n = from; n < from + count; n += CONCURRENT_CYCLES) {
      await Promise.all(
        Array.from({ length: CONCURRENT_CYCLES }, (_, index) => runCycle(n + index)),
      );
      await channels.publish('a', 'x'.repeat(1_000));
    }
    await until('the end of all streams', () => server.events.streams.size === 0);
    await until('all sockets to close', () => server.sockets.size === 0);
    server.streams.length = 0;
  }

  // Warm up caches, pools and compiled code.
  await runCycles(0, 2 * CYCLES);
  const before = await liveHeap();
  await runCycles(2 * CYCLES, CYCLES);
  const after = await liveHeap();

  expect(server.events.streams.size).toBe(0);
  expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
  expect(channels.names()).toEqual([]);
  const { opened, closed, buffered } = server.events.stats();
  expect(opened).toBeGreaterThan(CYCLES / 2);
  expect(Object.values(closed).reduce((sum, count) => sum + count, 0)).toBe(opened);
  expect(Object.keys(closed).toSorted()).toEqual(['client', 'revoked']);
  expect(buffered).toBe(0);
  // One leaked stream has about 10 kB, one leaked listener some hundred bytes.
  expect((after - before) / CYCLES).toBeLessThan(300);
  expect(server.errors).toEqual([]);
}, 60_000);

test('an ended stream is garbage-collected', async () => {
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
    'the end of all streams',
    () => server.events.streams.size === 0 && server.sockets.size === 0,
  );
  await until('the streams to be collected', async () => {
    await liveHeap();
    return refs.every((ref) => ref.deref() === undefined);
  });
});
