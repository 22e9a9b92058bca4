import { performance } from 'node:perf_hooks';
import { describe, expect, test, vi } from 'vitest';
import { createChannels, type EventStream } from '../src/index.ts';
import { StreamMonitor, type MonitoredStream } from '../src/stream/stream-monitor.ts';
import { resolveStreamOptions } from '../src/stream/stream-options.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { dial, requestText } from './support/server.ts';
import { until, within } from './support/wait.ts';

describe('an idle stream', () => {
  test('gets a comment each heartbeat, without a blank line', async () => {
    await using server = await serveStreams((stream) => stream.open(), { heartbeat: 40 });
    using reader = await read(server.url);
    await until('three heartbeats', () => reader.comments.length >= 4);
    expect(reader.text).toMatch(/^(:\n)+$/);
    expect(reader.events).toEqual([]);
  });

  test('gets the comment one heartbeat after the last write, not earlier and not much later', async () => {
    await using server = await serveStreams((stream) => stream.open(), { heartbeat: 400 });
    using reader = await read(server.url);
    await until('the first comment', () => reader.comments.length === 2);
    const first = performance.now();
    await until('the second comment', () => reader.comments.length === 3);
    const silence = performance.now() - first;
    expect(silence).toBeGreaterThan(350);
  });

  test('gets an sse:ping event with the interval if the heartbeat is visible', async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      heartbeat: { interval: 20, visible: true },
    });
    using reader = await read(server.url);
    expect(await reader.take(2)).toEqual([
      { event: 'sse:ping', id: undefined, data: '{"interval":20}' },
      { event: 'sse:ping', id: undefined, data: '{"interval":20}' },
    ]);
  });

  test('gets no comment with heartbeat: false', async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      heartbeat: false,
      stallTimeout: 50,
    });
    await using beating = await serveStreams((stream) => stream.open(), { heartbeat: 20 });
    using reader = await read(server.url);
    using other = await read(beating.url);
    await until('ten heartbeats elsewhere', () => other.comments.length > 10);
    expect(reader.text).toBe(':\n');
  });
});

test('an event delays the heartbeat: a busy stream gets none', async () => {
  await using server = await serveStreams((stream) => stream.open(), { heartbeat: 200 });
  using busy = await read(server.url);
  using silent = await read(server.url);
  await until('both streams', () => server.streams.length === 2);
  const [first] = server.streams as [EventStream, EventStream];
  const timer = setInterval(() => first.send('x'), 20);
  await until('three heartbeats of the silent one', () => silent.comments.length > 3);
  clearInterval(timer);
  expect(busy.text).toMatch(/^:\n(data: x\n\n)+$/);
});

test('an attached stream gets a heartbeat one period after its last event, despite sweeps in between', async () => {
  const channels = createChannels();
  const heartbeat = 800;
  await using server = await serveStreams((stream) => stream.subscribe('a'), {
    channels,
    heartbeat,
  });
  using reader = await read(server.url);
  await until('the stream', () => server.streams.length === 1);
  const opened = performance.now();
  for (const each of [1, 2]) {
    await channels.publish('a', each);
    await until('the event', () => reader.events.length === each);
  }
  // A checkpoint may be written once in each interval. The last events come soon after one, so that
  // the next checkpoint would come before the heartbeat.
  await until('one period after the start', () => performance.now() - opened > heartbeat + 150);
  for (const each of [3, 4]) {
    await channels.publish('a', each);
    await until('the event', () => reader.events.length === each);
  }
  const last = performance.now();
  const before = reader.comments.length;
  await until('a heartbeat', () => reader.comments.length > before);
  expect(performance.now() - last).toBeLessThan(heartbeat * 1.5);
});

test('no heartbeat is written to a blocked stream', async () => {
  await using server = await serveStreams((stream) => stream.open(), {
    heartbeat: 20,
    stallTimeout: false,
  });
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until('the stream', () => server.streams.length === 1);
  const stream = server.streams[0] as EventStream;
  stream.send('x'.repeat(30_000_000));
  using other = await read(server.url);
  // The buffers of the kernel are full when the number of queued bytes stays the same.
  let rest = -1;
  await until('the kernel to be full', async () => {
    const same = rest === stream.bufferedAmount;
    rest = stream.bufferedAmount;
    const beats = other.comments.length;
    await until('two heartbeats elsewhere', () => other.comments.length >= beats + 2);
    return same;
  });
  const beats = other.comments.length;
  const { bytes } = server.events.stats();
  await until('ten more heartbeats elsewhere', () => other.comments.length >= beats + 10);
  expect(stream.bufferedAmount).toBe(rest);
  // Only heartbeats of the other stream were written since then, of two bytes each.
  expect(server.events.stats().bytes - bytes).toBeLessThanOrEqual(
    2 * (other.comments.length - beats + 2),
  );
  socket.destroy();
});

test("there is one timer for all streams, unref'd, and cleared with the last stream", async () => {
  const set = vi.spyOn(globalThis, 'setInterval');
  const cleared = vi.spyOn(globalThis, 'clearInterval');
  await using server = await serveStreams((stream) => stream.open(), { heartbeat: 800 });
  const readers = await Promise.all(Array.from({ length: 20 }, () => read(server.url)));
  await until('the streams', () => server.events.streams.size === 20);
  const timers = set.mock.calls.flatMap(([, ms], call) =>
    ms === 50 ? [set.mock.results[call]?.value as NodeJS.Timeout] : [],
  );
  expect(timers).toHaveLength(1);
  expect(timers[0]?.hasRef()).toBe(false);
  for (const reader of readers) reader.close();
  await until('all streams to end', () => server.events.streams.size === 0);
  expect(cleared).toHaveBeenCalledWith(timers[0]);
  vi.restoreAllMocks();
});

test('a stream is closed at maxLifetime ±10 %, so that its client opens a new connection', async () => {
  await using server = await serveStreams((stream) => stream.open(), { maxLifetime: 300 });
  const begun = performance.now();
  using reader = await read(server.url);
  await reader.end();
  expect(performance.now() - begun).toBeGreaterThanOrEqual(265);
  expect(await within('the close reason', (server.streams[0] as EventStream).closed)).toBe('aged');
  expect(server.events.stats().closed).toEqual({ aged: 1 });
});

test('onTick() of a blocked stream is called as soon as nothing is queued, not a heartbeat later', async () => {
  await using server = await serveStreams((stream) => stream.open(), { heartbeat: 400 });
  using first = await read(server.url);
  using second = await read(server.url);
  await until('the first comments', () => first.text !== '' && second.text !== '');
  const [free, blocked] = server.streams as [EventStream, EventStream];
  const [freeTicks, blockedTicks] = [vi.spyOn(free, 'onTick'), vi.spyOn(blocked, 'onTick')];
  // A corked socket passes nothing to the kernel.
  blocked.res.socket?.cork();
  blocked.send('x');
  expect(blocked.bufferedAmount).toBeGreaterThan(0);
  await until('onTick() of the free stream', () => freeTicks.mock.calls.length === 1);
  expect(blockedTicks).not.toHaveBeenCalled();
  blocked.res.socket?.uncork();
  await until('onTick() of the blocked stream', () => blockedTicks.mock.calls.length === 1);
  expect(freeTicks).toHaveBeenCalledOnce();
});

test('a sweep over many streams continues in the next turn, not with the next timer', async () => {
  const unrefs = vi.spyOn(
    Object.getPrototypeOf(setImmediate(() => {})) as NodeJS.Immediate,
    'unref',
  );
  const heartbeat = new StreamMonitor(resolveStreamOptions({ heartbeat: 400 }));
  const many = Array.from({ length: 2_000 }, standIn);
  for (const each of many) heartbeat.add(each as unknown as MonitoredStream);
  await until('onTick() of all streams', () => many.every(({ ticks }) => ticks === 1));
  // While only unref'd immediates are left, the event loop would wait in its poll phase.
  expect(unrefs).not.toHaveBeenCalled();
  for (const each of many) heartbeat.delete(each as unknown as MonitoredStream);
  vi.restoreAllMocks();
});

/** A fake of a stream with nothing queued, as the monitor sees the stream. */
function standIn() {
  return {
    listIndex: -1,
    idleSince: 0,
    readyState: 1,
    bufferedAmount: 0,
    checkDrain: () => {},
    ticks: 0,
    onTick() {
      this.ticks++;
    },
    onIdle() {},
  };
}
