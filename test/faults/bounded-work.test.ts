import { expect, test, vi } from 'vitest';
import { createChannels, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
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
  await until('the subscription', () => channels.stats().subscriptions === 1 && channels.stats().behind === 0);
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
  await until('the subscription', () => channels.stats().subscriptions === 1 && channels.stats().behind === 0);
  const [stream] = server.streams as [EventStream];
  const published = Array.from({ length: 300 }, (_, index) => `${index} ${'x'.repeat(50_000)}`);
  for (const each of published) void channels.publish('a', each);
  stream.send('direct', 'direct');
  expect(stream.readyState).toBe(1);
  expect(stream.bufferedAmount).toBeLessThanOrEqual(WRITE_MARK + 2 * EVENT_OVERHEAD);
  const events = await reader.take(published.length + 1);
  expect(events.filter(({ event }) => event === 'direct').map((event) => event.data)).toEqual(['direct']);
  const numbers = events.filter(({ event }) => event !== 'direct').map((event) => Number.parseInt(event.data, 10));
  expect(numbers).toEqual(published.map((_, index) => index));
});

test('of streams that publish when closeWhere ends them, each is written at most 64 KiB of what the others have published', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    (stream) => {
      stream.signal.addEventListener('abort', () => void channels.publish('a', `left ${'x'.repeat(4_000)}`));
      return stream.subscribe('a', { checkpoints: false });
    },
    { channels },
  );
  const readers = await Promise.all(Array.from({ length: 64 }, () => read(server.url)));
  await until('the streams', () => channels.stats().subscriptions === readers.length && channels.stats().behind === 0);
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
  const numbers = reader.events.filter(({ event }) => event === undefined).map((event) => Number.parseInt(event.data, 10));
  expect(numbers).toEqual(numbers.map((_, index) => index + 1));
  expect(numbers.length).toBeGreaterThanOrEqual(publishedBefore);
  // A page or two more may have been on their way.
  expect(numbers.length).toBeLessThan(publishedBefore + 20);
});
