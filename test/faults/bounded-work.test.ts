import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { createChannels, memoryBroker, sse, type EventStream } from '../../src/index.ts';
import type { Receiver } from '../../src/brokers/broker.ts';
import type { LogEntry } from '../../src/log/log-entry.ts';
import { serveStreams } from '../support/app.ts';
import { brokerWith } from '../support/broker-with.ts';
import { TurnMeter, connectFake } from '../support/crowd.ts';
import { read } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';

/**
 * The library does a bounded amount of work in one call and in one turn of the event loop, however
 * many events are pending.
 */

const HIGH_WATER_MARK = 65_536;

// Maximum number of bytes of an event besides its data.
const EVENT_OVERHEAD_BYTES = 100;

test('a comment after each of 2,000 publishes copies each event a few times at most', async () => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  using reader = await read(server.url);
  await until(
    'the stream to be live',
    () => channels.stats().subscriptions === 1 && channels.stats().behind === 0,
  );
  const [stream] = server.streams as [EventStream];
  const published = Array.from({ length: 2_000 }, (_, index) => `${index}`);
  const concat = vi.spyOn(Buffer, 'concat');
  for (const each of published) {
    await channels.publish('a', each);
    stream.comment();
  }
  const joinedBytes = concat.mock.results.reduce(
    (sum, { value }) => sum + (value as Buffer).length,
    0,
  );
  concat.mockRestore();
  expect((await reader.take(published.length)).map((event) => event.data)).toEqual(published);
  expect(joinedBytes).toBeLessThan(10 * published.length * EVENT_OVERHEAD_BYTES);
});

test('send() writes at most 64 KiB of pending events, and the rest follows', async () => {
  const channels = createChannels({ history: { bytes: 67_108_864 } });
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  using reader = await read(server.url);
  await until(
    'the stream to be live',
    () => channels.stats().subscriptions === 1 && channels.stats().behind === 0,
  );
  const [stream] = server.streams as [EventStream];
  const published = Array.from({ length: 300 }, (_, index) => `${index} ${'x'.repeat(50_000)}`);
  for (const each of published) void channels.publish('a', each);
  stream.send('direct', 'direct');
  expect(stream.readyState).toBe(1);
  expect(stream.bufferedAmount).toBeLessThanOrEqual(HIGH_WATER_MARK + 2 * EVENT_OVERHEAD_BYTES);
  const events = await reader.take(published.length + 1);
  expect(events.filter(({ event }) => event === 'direct').map((event) => event.data)).toEqual([
    'direct',
  ]);
  const numbers = events
    .filter(({ event }) => event !== 'direct')
    .map((event) => Number.parseInt(event.data, 10));
  expect(numbers).toEqual(published.map((_, index) => index));
});

test('closeWhere() writes at most 64 KiB of pending events to each stream it ends', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    (stream) => {
      stream.signal.addEventListener(
        'abort',
        () => void channels.publish('a', `left ${'x'.repeat(4_000)}`),
      );
      return stream.subscribe('a', { checkpoints: false });
    },
    { channels },
  );
  const readers = await Promise.all(Array.from({ length: 64 }, () => read(server.url)));
  await until(
    'all streams to be live',
    () => channels.stats().subscriptions === readers.length && channels.stats().behind === 0,
  );
  const sockets = server.streams.map(({ res }) => res.socket!);
  const before = sockets.map(({ bytesWritten }) => bytesWritten);
  server.events.closeWhere(() => true);
  await Promise.all(readers.map((reader) => reader.end()));
  const written = sockets.map(({ bytesWritten }, index) => bytesWritten - before[index]!);
  expect(Math.max(...written)).toBeLessThanOrEqual(HIGH_WATER_MARK + 10 * EVENT_OVERHEAD_BYTES);
});

test('close({ final: true }) ends a stream that never catches up', async () => {
  const channels = createChannels({ history: { events: 20 } });
  const padding = 'x'.repeat(40_000);
  const first = await channels.publish('a', `0 ${padding}`);
  let published = 0;
  function publish(): void {
    void channels.publish('a', `${++published} ${padding}`);
  }
  for (let each = 0; each < 5; each++) publish();
  let publishedBefore = 0;
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('a', {
        // Each page holds one event, and the delivery of the event publishes another event, so the
        // stream stays behind.
        filter: () => {
          if (published < 500) publish();
          return true;
        },
      }),
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': first.id } });
  await until('some events', () => reader.events.length > 3);
  publishedBefore = published;
  (server.streams[0] as EventStream).close({ final: true });
  await within('the end', reader.end());
  expect(await (server.streams[0] as EventStream).closed).toBe('final');
  const numbers = reader.events
    .filter(({ event }) => event === undefined)
    .map((event) => Number.parseInt(event.data, 10));
  expect(numbers).toEqual(numbers.map((_, index) => index + 1));
  expect(numbers.length).toBeGreaterThanOrEqual(publishedBefore);
  // A few more pages may have been in progress.
  expect(numbers.length).toBeLessThan(publishedBefore + 20);
});

// Maximum number of live streams that one turn writes to, and of bytes that one turn reads from the
// log for streams that are behind.
const MAX_STREAMS_PER_TURN = 250;
const MAX_CATCH_UP_BYTES_PER_TURN = 4_194_304;

test('a burst to 1,000 streams is written in slices, also with a heartbeat due', async () => {
  const channels = createChannels({ history: { bytes: 16_777_216 } });
  const events = sse({ channels, heartbeat: 20 });
  using meter = new TurnMeter();
  const crowd = Array.from({ length: 1_000 }, () =>
    connectFake(events, ({ length }) => meter.add(length)),
  );
  await Promise.all(crowd.map(({ stream }) => stream.subscribe('a')));
  const burst = Array.from({ length: 100 }, () => 'x'.repeat(10_000));
  meter.most = 0;
  const before = meter.total;
  for (const each of burst) void channels.publish('a', each);
  // Block the event loop until the heartbeat is due.
  for (const since = performance.now(); performance.now() - since < 30;);
  const published = crowd.length * burst.length * 10_000;
  await until('the burst to be written', () => meter.total - before > published, 30_000);
  // Two slices of the fan-out may fall between two measurements of the meter.
  expect(meter.most).toBeLessThan(
    2 * MAX_STREAMS_PER_TURN * (HIGH_WATER_MARK + 2 * EVENT_OVERHEAD_BYTES),
  );
  await events.close({ within: 0 });
});

test('2,000 streams that resume together get at most 4 MiB per turn and share bytes', async () => {
  const channels = createChannels();
  const events = sse({ channels, heartbeat: false });
  const { id } = await channels.publish('a', 'seen');
  for (let index = 0; index < 60; index++) await channels.publish('a', 'x'.repeat(1_000));
  using meter = new TurnMeter();
  const buffers = new Set<ArrayBufferLike>();
  let writeCount = 0;
  const crowd = Array.from({ length: 2_000 }, () =>
    connectFake(
      events,
      (bytes) => {
        meter.add(bytes.length);
        if (bytes.length < 1_000) return;
        buffers.add(bytes.buffer);
        writeCount++;
      },
      id,
    ),
  );
  for (const { stream } of crowd) void stream.subscribe('a');
  await until(
    'all streams to be live',
    () => channels.stats().behind === 0 && channels.stats().subscriptions === crowd.length,
    30_000,
  );
  expect(meter.total).toBeGreaterThan(crowd.length * 60_000);
  // The step that exceeds the limit is the last of a turn. Two turns of the queue may fall between
  // two measurements of the meter.
  expect(meter.most).toBeLessThan(2 * (MAX_CATCH_UP_BYTES_PER_TURN + HIGH_WATER_MARK));
  expect(writeCount).toBeGreaterThanOrEqual(4 * crowd.length);
  // Garbage collection may remove a frame that no stream uses at the moment. The frame is then
  // joined again.
  expect(buffers.size).toBeLessThan(writeCount / 100);
  await events.close({ within: 0 });
});

test('2,000 streams that resume with a remote broker read at most 64 pages at a time', async () => {
  const log = memoryBroker();
  let readCount = 0;
  let maxReadCount = 0;
  const broker = brokerWith(log, {
    position: async (atLeast) => log.position(atLeast),
    read: async (names, after, maxBytes) => {
      maxReadCount = Math.max(maxReadCount, ++readCount);
      await nextTurn();
      readCount--;
      return log.read(names, after, maxBytes);
    },
    listen: async (channel) => log.listen(channel),
  });
  const channels = createChannels({ broker });
  const events = sse({ channels, heartbeat: false });
  const { id } = await channels.publish('a', 'seen');
  for (let index = 0; index < 60; index++) {
    await channels.publish('a', `${index} ${'x'.repeat(1_000)}`);
  }
  using meter = new TurnMeter();
  const texts: string[] = [];
  const crowd = Array.from({ length: 2_000 }, (_, index) =>
    connectFake(
      events,
      (bytes) => {
        meter.add(bytes.length);
        if (index % 500 === 0) texts[index] = (texts[index] ?? '') + bytes.toString();
      },
      id,
    ),
  );
  for (const { stream } of crowd) void stream.subscribe('a');
  await until(
    'all streams to be live',
    () => channels.stats().behind === 0 && channels.stats().subscriptions === crowd.length,
    30_000,
  );
  expect(meter.total).toBeGreaterThan(crowd.length * 60_000);
  expect(meter.most).toBeLessThan(2 * (MAX_CATCH_UP_BYTES_PER_TURN + HIGH_WATER_MARK));
  expect(maxReadCount).toBeLessThanOrEqual(64);
  for (const index of [0, 500, 1_000, 1_500]) {
    expect(
      Array.from(texts[index]?.matchAll(/^data: (\d+) /gm) ?? [], ([, number]) => Number(number)),
    ).toEqual(Array.from({ length: 60 }, (_, number) => number));
  }
  await events.close({ within: 0 });
});

test('an event of a channel in 20,000 sets of channels reaches 250 streams per turn', async () => {
  const channels = createChannels({ maxChannels: 100_000 });
  const events = sse({ channels, heartbeat: false });
  const texts: string[] = [];
  using meter = new TurnMeter();
  const crowd = Array.from({ length: 20_000 }, (_, index) =>
    connectFake(events, (bytes) => {
      const text = bytes.toString();
      if (!text.includes('data: to all')) return;
      meter.add(1);
      texts[index] = (texts[index] ?? '') + text;
    }),
  );
  await Promise.all(
    crowd.map(({ stream }, index) => stream.subscribe(['global', `user:${index}`])),
  );
  void channels.publish('global', 'to all');
  void channels.publish('user:7', 'to one');
  await until('the event on all streams', () => meter.total >= crowd.length, 30_000);
  expect(meter.total).toBe(crowd.length);
  // Two slices may fall between two measurements of the meter.
  expect(meter.most).toBeLessThanOrEqual(2 * MAX_STREAMS_PER_TURN);
  expect(texts.every((text) => text.split('data: to all').length === 2)).toBe(true);
  await events.close({ within: 0 });
}, 60_000);

test('close() of a registry with 2,000 streams ends at most 250 streams per turn', async () => {
  const channels = createChannels();
  const events = sse({ channels, heartbeat: false });
  const crowd = Array.from({ length: 2_000 }, () => connectFake(events));
  await Promise.all(crowd.map(({ stream }) => stream.subscribe('a')));
  using meter = new TurnMeter();
  for (const { stream } of crowd) stream.signal.addEventListener('abort', () => meter.add(1));
  await channels.close();
  expect(meter.total).toBe(crowd.length);
  expect(meter.most).toBeLessThanOrEqual(2 * 250);
  expect(channels.stats()).toMatchObject({ subscriptions: 0, channels: 0 });
});

test('1,000 revocations that a node has missed end at most 250 streams per turn', async () => {
  const inner = memoryBroker();
  let receiver: Receiver | undefined;
  let isCutOff = true;
  const broker = brokerWith(inner, {
    get head() {
      return isCutOff ? 0 : inner.head;
    },
    open(registry, bounds) {
      receiver = registry;
      const receive = (entry: LogEntry): void => {
        if (!isCutOff) registry.receive(entry);
      };
      const follows = (channel: string): boolean => registry.follows(channel);
      inner.open({ receive, follows, interrupted: () => registry.interrupted() }, bounds);
    },
  });
  const channels = createChannels({ broker });
  const identity = ({ url }: { url?: string }): string | undefined => url?.slice(1);
  const events = sse({ channels, identity, heartbeat: false });
  const names = Array.from({ length: 1_000 }, (_, index) => `user-${index}`);
  const crowd = names.map((name) => connectFake(events, () => {}, '', `/${name}`));
  await Promise.all(crowd.map(({ stream }) => stream.subscribe('a')));
  using meter = new TurnMeter();
  for (const { stream } of crowd) stream.signal.addEventListener('abort', () => meter.add(1));
  for (const name of names) await events.revoke(name);
  expect(meter.total).toBe(0);
  receiver?.interrupted();
  isCutOff = false;
  await until('the end of all streams', () => meter.total === crowd.length);
  expect(meter.most).toBeLessThanOrEqual(2 * 250);
});
