/** `channels.pipe()`, on nodes that share a log in Redis. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels, type Channels, type SnapshotRequest } from '../../src/index.ts';
import { testPipe } from '../promises/pipe.ts';
import { RedisNodes } from '../promises/nodes.ts';
import { serveStreams } from '../support/app.ts';
import { start } from '../support/child.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { read, type Reader } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testPipe(nodes.make);

const LEASE_MS = 600;
const TIMING = { timeout: 2_000, probe: 500, linger: 10_000, wait: { min: 5, max: 100 } };

function makeNode(url: string): Channels {
  const connection = ownConnection(url, 500, () => {});
  const timing = { ...TIMING, lease: LEASE_MS };
  return createChannels({ broker: new RedisBroker(connection, 'lease', timing) });
}

/** A source of numbers that a test ends. */
function numbers(): { items: AsyncGenerator<string>; given: number; isOver: boolean } {
  const source = { items: generate(), given: 0, isOver: false };
  async function* generate(): AsyncGenerator<string> {
    while (!source.isOver) {
      yield `${source.given++}`;
      await delay(5);
    }
  }
  return source;
}

/** Checks that the reader has received consecutive numbers from 0, and the end. */
function expectComplete({ events }: Reader, count: number): void {
  const data = events.map((event) => event.data);
  expect(data).toEqual([...Array.from({ length: count }, (_, n) => `${n}`), '{}']);
}

/** The time in ms at which the lease of the channel runs out; 0 if it has none. */
async function expiryOf(channel: string, redis: RedisServer): Promise<number> {
  return (await (await redis.client()).zScore('{lease}:leases', channel)) ?? 0;
}

describe('a producer that dies', () => {
  test('does not leave its readers waiting: one other node ends the channel, once', async () => {
    await using redis = await startRedis();
    const readers = [makeNode(redis.url), makeNode(redis.url)];
    const messages: unknown[] = [];
    const note = (message: unknown): void => void messages.push(message);
    subscribe('res-sse:end', note);
    const servers = await Promise.all(
      readers.map((channels) => serveStreams((stream) => stream.subscribe('run'), { channels })),
    );
    const streams = await Promise.all(servers.map(({ url }) => read(url)));
    const program = fileURLToPath(new URL('endless-pipe.ts', import.meta.url));
    const args = ['--import', 'tsx', program, redis.url, 'lease', `${LEASE_MS}`];
    await using child = start(process.execPath, args);
    await Promise.all(streams.map((stream) => stream.take(20)));
    // The lease is renewed while the producer lives.
    const begun = Date.now();
    await until('renewals', async () => (await expiryOf('run', redis)) > begun + 4 * LEASE_MS);
    expect(streams.map(({ ended }) => ended)).toEqual([false, false]);
    expect(messages).toEqual([]);
    await child.stop('SIGKILL');
    await Promise.all(streams.map((stream) => stream.end()));
    for (const stream of streams) expectComplete(stream, stream.events.length - 1);
    expect(streams[0]?.events).toEqual(streams[1]?.events);
    await until('the message', () => messages.length > 0);
    expect(messages).toEqual([{ channel: 'run', id: expect.any(String), reason: 'abandoned' }]);
    unsubscribe('res-sse:end', note);
    for (const server of servers) await server[Symbol.asyncDispose]();
    await Promise.all(readers.map((channels) => channels.close()));
  });

  test.each([
    ['', false],
    [', also if Redis restarts meanwhile', true],
  ])('ends consumers, and streams with a snapshot or { last }%s', async (_also, restarts) => {
    await using redis = await startRedis({ appendonly: true });
    const channels = makeNode(redis.url);
    const snapshots: SnapshotRequest[] = [];
    const snapshot = (_stream: unknown, request: SnapshotRequest): void =>
      void snapshots.push(request);
    await using server = await serveStreams(
      (stream, { query }) =>
        stream.subscribe('run', query['last'] === '1' ? { since: { last: 5 } } : { snapshot }),
      { channels },
    );
    const consumed = (async () => {
      const data: string[] = [];
      for await (const event of channels.follow('run', { since: 'start' })) data.push(event.data);
      return data;
    })();
    const program = fileURLToPath(new URL('endless-pipe.ts', import.meta.url));
    const args = ['--import', 'tsx', program, redis.url, 'lease', `${LEASE_MS}`];
    await using child = start(process.execPath, args);
    await until('events of the producer', async () => {
      return (await channels.read('run', { limit: 20 })).events.length === 20;
    });
    const streams = await Promise.all([read(`${server.url}?last=1`), read(server.url)]);
    await Promise.all(streams.map((stream) => stream.take(20)));
    await child.stop('SIGKILL');
    if (restarts) {
      await redis.kill9();
      await redis.restart();
    }
    const all = await within('the end of the consumer', consumed);
    expect(all).toEqual(all.map((_, n) => `${n}`));
    for (const stream of streams) {
      await stream.end();
      const data = stream.events.map((event) => event.data);
      expect(data).toEqual([...all.slice(1 - data.length), '{}']);
    }
    expect(snapshots.map(({ reason }) => reason)).toEqual(['start']);
    await channels.close();
  });

  test('in order ends its channels at once', async () => {
    await using redis = await startRedis();
    // Without the end, the readers would wait for this lease.
    const timing = { ...TIMING, lease: 60_000 };
    const connection = ownConnection(redis.url, 500, () => {});
    const producer = createChannels({ broker: new RedisBroker(connection, 'lease', timing) });
    const channels = makeNode(redis.url);
    await using server = await serveStreams((stream) => stream.subscribe('run'), { channels });
    using reader = await read(server.url);
    const piped = producer.pipe('run', numbers().items);
    piped.catch(() => {});
    await reader.take(5);
    await producer.close();
    await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
    await reader.end();
    expectComplete(reader, reader.events.length - 1);
    await channels.close();
  });

  test('before its first item does not leave its readers waiting', async () => {
    await using redis = await startRedis();
    const [producer, channels] = [makeNode(redis.url), makeNode(redis.url)];
    await using server = await serveStreams((stream) => stream.subscribe('run'), { channels });
    using reader = await read(server.url);
    const silent = (async function* () {
      yield await new Promise<string>(() => {});
    })();
    producer.pipe('run', silent).catch(() => {});
    await until('the lease', async () => {
      const client = await redis.client();
      return (await client.zCard('{lease}:leases')) === 1;
    });
    await producer.close();
    await reader.end();
    expectComplete(reader, 0);
    expect(await channels.state('run')).toBe('ended');
    await channels.close();
  });
});

describe('a pipe over faults of Redis', () => {
  test.each([
    ['Redis restarts with its data', { appendonly: true, appendfsync: 'always' as const }],
    ['Redis restarts without its data', {}],
  ])('rejects or publishes everything when %s', async (_what, options) => {
    await using redis = await startRedis(options);
    const [producer, channels] = [makeNode(redis.url), makeNode(redis.url)];
    await using server = await serveStreams((stream) => stream.subscribe('run'), { channels });
    using reader = await read(server.url);
    const source = numbers();
    const piped = producer.pipe('run', source.items).then(
      ({ events }) => events,
      () => 'rejected',
    );
    await reader.take(10);
    await redis.restart();
    await until('both nodes', () =>
      [producer, channels].every((node) => node.stats().broker.state === 'open'),
    );
    source.isOver = true;
    const result = await piped;
    // The channel ends in both cases: by the pipe, or when its lease has run out.
    await reader.end();
    const told = reader.events.filter(({ event }) => event === undefined).map(({ data }) => data);
    expect(reader.events.at(-1)).toMatchObject({ event: 'sse:end' });
    const hasGap = reader.events.some(({ event }) => event === 'sse:gap');
    if (result !== 'rejected' && !hasGap) expectComplete(reader, result as number);
    // Nothing is repeated or out of order.
    expect(told.map(Number)).toEqual([...new Set(told.map(Number))].toSorted((a, b) => a - b));
    await Promise.all([producer.close(), channels.close()]);
  });

  test('goes on in the new log after FLUSHALL, and its readers are told of a gap', async () => {
    await using redis = await startRedis();
    const [producer, channels] = [makeNode(redis.url), makeNode(redis.url)];
    await using server = await serveStreams((stream) => stream.subscribe('run'), { channels });
    using reader = await read(server.url);
    const source = numbers();
    const piped = producer.pipe('run', source.items);
    await reader.take(10);
    const client = await redis.client();
    await client.sendCommand(['FLUSHALL']);
    await until('the gap', () => reader.events.some(({ event }) => event === 'sse:gap'));
    // The lease was lost with the log, and is there again.
    await until('the lease', async () => {
      return (await client.zCard('{lease}:leases')) === 1;
    });
    const before = reader.events.length;
    await until('events after the gap', () => reader.events.length > before + 10);
    source.isOver = true;
    await piped;
    await reader.end();
    expect(reader.events.at(-1)).toMatchObject({ event: 'sse:end' });
    await Promise.all([producer.close(), channels.close()]);
  });

  test('Redis that is away for longer than a lease does not end the channel', async () => {
    await using redis = await startRedis({ appendonly: true, appendfsync: 'always' });
    const [producer, channels] = [makeNode(redis.url), makeNode(redis.url)];
    await using server = await serveStreams((stream) => stream.subscribe('run'), { channels });
    using reader = await read(server.url);
    let give: ((text: string) => void) | undefined;
    const source = (async function* () {
      yield 'first';
      yield await new Promise<string>((resolve) => (give = resolve));
    })();
    const piped = producer.pipe('run', source);
    await reader.take(1);
    // No publish is pending while Redis is away.
    const expiry = await expiryOf('run', redis);
    redis.pause();
    await until('the lease to run out', () => Date.now() > expiry + LEASE_MS);
    redis.resume();
    const resumed = Date.now();
    await until('renewals, or the end', async () => {
      return reader.ended || (await expiryOf('run', redis)) > resumed + 4 * LEASE_MS;
    });
    expect(reader.ended).toBe(false);
    give?.('second');
    expect(await piped).toMatchObject({ events: 2 });
    await reader.end();
    expect(reader.events.map(({ data }) => data)).toEqual(['first', 'second', '{}']);
    await Promise.all([producer.close(), channels.close()]);
  });
});
