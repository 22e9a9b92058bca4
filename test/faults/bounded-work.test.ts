import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { createChannels, memoryBroker, sse, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { brokerWith } from '../support/broker-with.ts';
import { TurnMeter, connectFake } from '../support/crowd.ts';
import { read } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';

/** The library does a bounded amount of work for one call, whatever has been published and not been delivered yet. */

const WRITE_MARK = 65_536;

// The lines of an event around its data, with a generous id.
const EVENT_OVERHEAD = 100;

test('a comment behind each of 2,000 publishes in one turn joins each event a bounded number of times', async () => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  using reader = await read(server.url);
  await until(
    'the subscription',
    () => channels.stats().subscriptions === 1 && channels.stats().behind === 0,
  );
  const [stream] = server.streams as [EventStream];
  const published = Array.from({ length: 2_000 }, (_, index) => `${index}`);
  const concat = vi.spyOn(Buffer, 'concat');
  for (const each of published) {
    await channels.publish('a', each);
    stream.comment();
  }
  const joined = concat.mock.results.reduce((sum, { value }) => sum + (value as Buffer).length, 0);
  concat.mockRestore();
  expect((await reader.take(published.length)).map((event) => event.data)).toEqual(published);
  expect(joined).toBeLessThan(10 * published.length * EVENT_OVERHEAD);
});

test('a direct send writes at most 64 KiB of what was published in its turn, and a healthy reader gets all of it', async () => {
  const channels = createChannels({ history: { bytes: 67_108_864 } });
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  using reader = await read(server.url);
  await until(
    'the subscription',
    () => channels.stats().subscriptions === 1 && channels.stats().behind === 0,
  );
  const [stream] = server.streams as [EventStream];
  const published = Array.from({ length: 300 }, (_, index) => `${index} ${'x'.repeat(50_000)}`);
  for (const each of published) void channels.publish('a', each);
  stream.send('direct', 'direct');
  expect(stream.readyState).toBe(1);
  expect(stream.bufferedAmount).toBeLessThanOrEqual(WRITE_MARK + 2 * EVENT_OVERHEAD);
  const events = await reader.take(published.length + 1);
  expect(events.filter(({ event }) => event === 'direct').map((event) => event.data)).toEqual([
    'direct',
  ]);
  const numbers = events
    .filter(({ event }) => event !== 'direct')
    .map((event) => Number.parseInt(event.data, 10));
  expect(numbers).toEqual(published.map((_, index) => index));
});

test('of streams that publish when closeWhere ends them, each is written at most 64 KiB of what the others have published', async () => {
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
    'the streams',
    () => channels.stats().subscriptions === readers.length && channels.stats().behind === 0,
  );
  const sockets = server.streams.map(({ res }) => res.socket!);
  const before = sockets.map(({ bytesWritten }) => bytesWritten);
  server.events.closeWhere(() => true);
  await Promise.all(readers.map((reader) => reader.end()));
  const written = sockets.map(({ bytesWritten }, index) => bytesWritten - before[index]!);
  expect(Math.max(...written)).toBeLessThanOrEqual(WRITE_MARK + 10 * EVENT_OVERHEAD);
});

test('a stream that never catches up ends with close({ final: true }) when it has what was published before the call', async () => {
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
        // Each page holds one event, and while it is delivered another is published: the stream stays behind.
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
  // A page or two more may have been on their way.
  expect(numbers.length).toBeLessThan(publishedBefore + 20);
});

// Live streams that one turn gives to, and bytes that one turn reads from the log for streams that are behind.
const STREAMS_PER_TURN = 250;
const CATCH_UP_BYTES_PER_TURN = 4_194_304;

test('a burst of 1 MB to 1,000 streams whose heartbeat is due in the same turn is written in slices', async () => {
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
  // Blocks until the heartbeat of this turn is due.
  for (const since = performance.now(); performance.now() - since < 30;);
  const published = crowd.length * burst.length * 10_000;
  await until('the burst to be written', () => meter.total - before > published, 30_000);
  // A fan-out slice may come twice between two looks of the meter.
  expect(meter.most).toBeLessThan(2 * STREAMS_PER_TURN * (WRITE_MARK + 2 * EVENT_OVERHEAD));
  await events.close({ within: 0 });
});

test('2,000 streams that come back together, each owed 60 KB, are given at most 4 MiB in one turn, and share the bytes of it', async () => {
  const channels = createChannels();
  const events = sse({ channels, heartbeat: false });
  const { id } = await channels.publish('a', 'seen');
  for (let index = 0; index < 60; index++) await channels.publish('a', 'x'.repeat(1_000));
  using meter = new TurnMeter();
  const buffers = new Set<ArrayBufferLike>();
  let given = 0;
  const crowd = Array.from({ length: 2_000 }, () =>
    connectFake(
      events,
      (bytes) => {
        meter.add(bytes.length);
        if (bytes.length < 1_000) return;
        buffers.add(bytes.buffer);
        given++;
      },
      id,
    ),
  );
  for (const { stream } of crowd) void stream.subscribe('a');
  await until(
    'all to be live',
    () => channels.stats().behind === 0 && channels.stats().subscriptions === crowd.length,
    30_000,
  );
  expect(meter.total).toBeGreaterThan(crowd.length * 60_000);
  // The step that goes beyond the bound is the last; two runs may come between two looks of the meter.
  expect(meter.most).toBeLessThan(2 * (CATCH_UP_BYTES_PER_TURN + WRITE_MARK));
  expect(given).toBeGreaterThanOrEqual(4 * crowd.length);
  // Garbage collection may take a frame that nobody is being given right now; then it is joined anew.
  expect(buffers.size).toBeLessThan(given / 100);
  await events.close({ within: 0 });
});

test('2,000 streams that come back together to a broker elsewhere have at most 64 pages read at a time, and are given at most 4 MiB in one turn', async () => {
  const log = memoryBroker();
  let reading = 0;
  let mostReading = 0;
  const broker = brokerWith(log, {
    position: async (atLeast) => log.position(atLeast),
    read: async (names, after, maxBytes) => {
      mostReading = Math.max(mostReading, ++reading);
      await nextTurn();
      reading--;
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
    'all to be live',
    () => channels.stats().behind === 0 && channels.stats().subscriptions === crowd.length,
    30_000,
  );
  expect(meter.total).toBeGreaterThan(crowd.length * 60_000);
  expect(meter.most).toBeLessThan(2 * (CATCH_UP_BYTES_PER_TURN + WRITE_MARK));
  expect(mostReading).toBeLessThanOrEqual(64);
  for (const index of [0, 500, 1_000, 1_500]) {
    expect(
      Array.from(texts[index]?.matchAll(/^data: (\d+) /gm) ?? [], ([, number]) => Number(number)),
    ).toEqual(Array.from({ length: 60 }, (_, number) => number));
  }
  await events.close({ within: 0 });
});

test('of 20,000 sets of channels that share one channel, each turn gives its event to at most 250, and each stream gets it once', async () => {
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
  await until('all to have it', () => meter.total >= crowd.length, 30_000);
  expect(meter.total).toBe(crowd.length);
  // A slice may come twice between two looks of the meter.
  expect(meter.most).toBeLessThanOrEqual(2 * STREAMS_PER_TURN);
  expect(texts.every((text) => text.split('data: to all').length === 2)).toBe(true);
  await events.close({ within: 0 });
}, 60_000);

test('close() of channels that 2,000 streams follow ends at most 250 of them in one turn', async () => {
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
