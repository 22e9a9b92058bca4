import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  type Channels,
  type ChannelsOptions,
  type EventStream,
  type Gap,
  type SseOptions,
  type SubscribeOptions,
  type Subscription,
} from '../src/index.ts';
import { serveStreams, type StreamServer } from './support/app.ts';
import { chunksWrittenTo } from './support/chunks.ts';
import { read, type Reader } from './support/reader.ts';
import { dial, packetsOf, requestText } from './support/server.ts';
import { StrictParser } from './support/strict-parser.ts';
import { until, within } from './support/wait.ts';

interface Setup {
  follow?: string | string[];
  options?: SubscribeOptions;
  sse?: SseOptions;
}

interface ChannelServer extends StreamServer {
  readonly channels: Channels;
  readonly subscriptions: Subscription[];
}

/** A server whose streams at `/` follow channels. Records each subscription that resolves. */
async function serveChannels(
  registry: ChannelsOptions = {},
  { follow = 'a', options = {}, sse = {} }: Setup = {},
): Promise<ChannelServer> {
  const channels = createChannels(registry);
  const subscriptions: Subscription[] = [];
  const server = await serveStreams(
    async (stream) => void subscriptions.push(await stream.subscribe(follow, options)),
    {
      channels,
      ...sse,
    },
  );
  return Object.assign(server, { channels, subscriptions });
}

/** Publishes one event for each item. Returns the ids. */
async function publish(channels: Channels, name: string, ...all: unknown[]): Promise<string[]> {
  const ids: string[] = [];
  for (const each of all) ids.push((await channels.publish(name, String(each))).id);
  return ids;
}

function resume(url: string, lastEventId: string): Promise<Reader> {
  return read(url, { headers: { 'Last-Event-ID': lastEventId } });
}

function data(events: { data: string }[]): string[] {
  return events.map((event) => event.data);
}

function gapOf(event: { event?: string | undefined; data: string } | undefined): unknown {
  expect(event?.event).toBe('sse:gap');
  return JSON.parse(event?.data ?? '');
}

describe('a client that reconnects', () => {
  test('gets the missed events once and in order, and then live events', async () => {
    await using server = await serveChannels();
    const ids = await publish(server.channels, 'a', 1, 2, 3, 4);
    using reader = await resume(server.url, ids[1] as string);
    expect(data(await reader.take(2))).toEqual(['3', '4']);
    await publish(server.channels, 'a', 5);
    expect((await reader.next()).data).toBe('5');
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0 });
    expect(reader.events.map((event) => event.id)).toEqual([...ids.slice(2), expect.any(String)]);
  });

  test('may send its id in the query; the header takes precedence', async () => {
    await using server = await serveChannels();
    const ids = await publish(server.channels, 'a', 1, 2, 3);
    using byQuery = await read(`${server.url}?lastEventId=${ids[0] as string}`);
    expect(data(await byQuery.take(2))).toEqual(['2', '3']);
    using byHeader = await resume(
      `${server.url}?lastEventId=${ids[0] as string}`,
      ids[1] as string,
    );
    expect(data(await byHeader.take(1))).toEqual(['3']);
  });

  test('with the newest id gets no missed events', async () => {
    await using server = await serveChannels();
    const ids = await publish(server.channels, 'a', 1, 2);
    using reader = await resume(server.url, ids[1] as string);
    await until('the subscription', () => server.subscriptions.length === 1);
    await publish(server.channels, 'a', 3);
    expect((await reader.next()).data).toBe('3');
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0 });
  });

  test('with resume: false starts at since', async () => {
    await using server = await serveChannels({}, { options: { resume: false } });
    const ids = await publish(server.channels, 'a', 1, 2);
    using reader = await resume(server.url, ids[0] as string);
    await until('the subscription', () => server.subscriptions.length === 1);
    await publish(server.channels, 'a', 3);
    expect((await reader.next()).data).toBe('3');
  });

  test('gets a history that is larger than maxBuffered completely', async () => {
    await using server = await serveChannels(
      { history: { events: 5_000, bytes: 50_000_000 } },
      { sse: { maxBuffered: 1_000 } },
    );
    const payload = 'x'.repeat(5_000);
    const [first] = await publish(server.channels, 'a', 'first');
    for (let index = 0; index < 2_000; index++) {
      void server.channels.publish('a', `${index}:${payload}`);
    }
    using reader = await resume(server.url, first as string);
    const events = await reader.take(2_000);
    expect(events.map((event) => Number.parseInt(event.data, 10))).toEqual(
      Array.from({ length: 2_000 }, (_, index) => index),
    );
    await publish(server.channels, 'a', 'live');
    expect((await reader.next()).data).toBe('live');
  });

  test('to a busy channel catches up with it', async () => {
    await using server = await serveChannels({ history: { events: 100_000, bytes: 100_000_000 } });
    const [first] = await publish(server.channels, 'a', 'first');
    let published = 0;
    const timer = setInterval(() => {
      for (let count = 0; count < 20; count++) {
        void server.channels.publish('a', `${published++}:${'x'.repeat(500)}`);
      }
    }, 1);
    await until('a backlog', () => published > 5_000);
    using reader = await resume(server.url, first as string);
    await until(
      'the stream to be live',
      () => server.subscriptions.length === 1 && server.channels.stats().behind === 0,
    );
    clearInterval(timer);
    const events = await reader.take(published);
    expect(events.every((event, index) => Number.parseInt(event.data, 10) === index)).toBe(true);
  });

  test('gets the events of several channels in the order of publishing', async () => {
    await using server = await serveChannels({}, { follow: ['a', 'b', 'c'] });
    const [first] = await publish(server.channels, 'a', 'first');
    for (const [index, name] of ['b', 'a', 'c', 'other', 'b', 'a', 'a', 'c'].entries()) {
      await publish(server.channels, name, `${name}${index}`);
    }
    using reader = await resume(server.url, first as string);
    expect(data(await reader.take(7))).toEqual(['b0', 'a1', 'c2', 'b4', 'a5', 'a6', 'c7']);
  });
});

describe('clients that reconnect together', () => {
  test('get head, checkpoint and missed events in one packet each, from shared bytes', async () => {
    await using server = await serveChannels();
    const [first, ...missed] = await publish(server.channels, 'a', 'one', 'two', 'three', 'four');
    const packets = packetsOf(server);
    const readers = await Promise.all(
      Array.from({ length: 20 }, () => resume(server.url, first as string)),
    );
    await Promise.all(readers.map((reader) => reader.take(3)));
    expect(packets).toHaveLength(20);
    // One buffer for all streams, not twenty equal buffers.
    expect(new Set(packets.flat().filter((part) => part.includes('data: three\n'))).size).toBe(1);
    for (const reader of readers) {
      expect(reader.text).toBe(readers[0]?.text);
      expect(reader.checkpoints).toEqual([first]);
      expect(reader.events.map((event) => event.id)).toEqual(missed);
      reader.close();
    }
    await publish(server.channels, 'a', 'five');
  });

  test('share the bytes of later events, however many events they had missed', async () => {
    await using server = await serveChannels();
    const [first] = await publish(
      server.channels,
      'a',
      'one',
      ...Array.from({ length: 60 }, () => 'x'.repeat(1_000)),
    );
    const readers = await Promise.all(
      Array.from({ length: 10 }, () => resume(server.url, first as string)),
    );
    await Promise.all(readers.map((reader) => reader.take(60)));
    await until('all streams to be live', () => server.channels.stats().behind === 0);
    await until('all queues to be empty', () =>
      server.streams.every((stream) => stream.bufferedAmount === 0),
    );
    const chunks = chunksWrittenTo(server.sockets);
    await publish(server.channels, 'a', 'live');
    for (const reader of readers) {
      expect((await reader.next()).data).toBe('live');
      reader.close();
    }
    // Written to the socket directly, as one HTTP chunk that all streams share.
    expect(chunks).toHaveLength(readers.length);
    expect(new Set(chunks).size).toBe(1);
  });

  test('get later events', async () => {
    await using server = await serveChannels();
    const [first] = await publish(server.channels, 'a', 'one', 'two', 'three');
    using before = await resume(server.url, first as string);
    expect(data(await before.take(2))).toEqual(['two', 'three']);
    void server.channels.publish('a', 'four');
    using after = await resume(server.url, first as string);
    expect(data(await after.take(3))).toEqual(['two', 'three', 'four']);
  });

  test('get no event of a channel that was cleared after the first client', async () => {
    await using server = await serveChannels({}, { follow: ['a', 'b'] });
    const cursor = await server.channels.cursor();
    await publish(server.channels, 'a', 'a1');
    await publish(server.channels, 'b', 'b2');
    using before = await resume(server.url, cursor);
    expect(data(await before.take(2))).toEqual(['a1', 'b2']);
    await server.channels.clear('a');
    using after = await resume(server.url, cursor);
    expect(gapOf(await after.next())).toMatchObject({ channels: ['a'] });
    expect((await after.next()).data).toBe('b2');
    expect(after.text).not.toContain('a1');
  });

  test('get no event that has become too old since the first client', async () => {
    const historyFor = (name: string) => (name === 'a' ? { events: 1_000, age: 300 } : undefined);
    await using server = await serveChannels({ historyFor }, { follow: ['a', 'b'] });
    const cursor = await server.channels.cursor();
    await publish(server.channels, 'a', 'a1');
    await publish(server.channels, 'b', 'b2');
    using before = await resume(server.url, cursor);
    expect(data(await before.take(2))).toEqual(['a1', 'b2']);
    let after: Reader | undefined;
    await until('a1 to be too old', async () => {
      after?.close();
      after = await resume(server.url, cursor);
      return (await after.next()).event === 'sse:gap';
    });
    expect((await after?.next())?.data).toBe('b2');
    expect(after?.text).not.toContain('a1');
    after?.close();
  });

  test('get the events that their own filters accept', async () => {
    const hidden: string[] = [];
    const options = { filter: ({ data: text }: { data: string }) => !hidden.includes(text) };
    await using server = await serveChannels({}, { options });
    const [first] = await publish(server.channels, 'a', 1, 2, 3, 4);
    for (const [each, ...expected] of [
      ['', '2', '3', '4'],
      ['2', '3', '4'],
      ['3', '2', '4'],
      ['', '2', '3', '4'],
    ]) {
      hidden[0] = each as string;
      using reader = await resume(server.url, first as string);
      expect(data(await reader.take(expected.length))).toEqual(expected);
    }
  });
});

describe('a stream without an id starts', () => {
  test('now', async () => {
    await using server = await serveChannels();
    await publish(server.channels, 'a', 1);
    using reader = await read(server.url);
    await until('the subscription', () => server.subscriptions.length === 1);
    await publish(server.channels, 'a', 2);
    expect((await reader.next()).data).toBe('2');
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0 });
  });

  test("with since: 'start' at all events that the history keeps, which is not a gap", async () => {
    await using server = await serveChannels(
      { history: { events: 2 } },
      { options: { since: 'start' } },
    );
    await publish(server.channels, 'a', 1, 2, 3, 4);
    using reader = await read(server.url);
    expect(data(await reader.take(2))).toEqual(['3', '4']);
    await publish(server.channels, 'a', 5);
    expect((await reader.next()).data).toBe('5');
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0 });
  });

  test('with since: a cursor, as if the client had sent the cursor', async () => {
    const channels = createChannels({ history: { events: 2 } });
    const ids = await publish(channels, 'a', 1, 2, 3, 4);
    await using server = await serveStreams(
      (stream) =>
        stream.subscribe('a', {
          since: ids[
            Number(
              stream.lastEventId ||
                new URL(stream.req.url ?? '', 'http://x').searchParams.get('at'),
            )
          ] as string,
          resume: false,
        }),
      { channels },
    );
    using kept = await read(`${server.url}?at=2`);
    expect(data(await kept.take(1))).toEqual(['4']);
    using lost = await read(`${server.url}?at=0`);
    const [gap, ...events] = await lost.take(3);
    expect(gapOf(gap)).toEqual({ channels: ['a'], after: ids[0], cursor: ids[3] });
    expect(data(events)).toEqual(['3', '4']);
  });

  test("and never where a client says 'start' or 'now' as its id", async () => {
    await using server = await serveChannels();
    await publish(server.channels, 'a', 1);
    for (const id of ['start', 'now']) {
      using reader = await resume(server.url, id);
      expect(gapOf(await reader.next())).toMatchObject({ channels: ['a'], after: '' });
    }
  });
});

describe('a gap', () => {
  test('is reported with channels, cursor and end of the log, before the events that are left', async () => {
    await using server = await serveChannels({ history: { events: 2 } });
    const ids = await publish(server.channels, 'a', 1, 2, 3, 4);
    using reader = await resume(server.url, ids[0] as string);
    const [gap, ...rest] = await reader.take(3);
    expect(gapOf(gap)).toEqual({ channels: ['a'], after: ids[0], cursor: ids[3] });
    expect(gap?.id).toBe(undefined);
    expect(data(rest)).toEqual(['3', '4']);
    await until('the subscription', () => server.subscriptions.length === 1);
    expect(server.subscriptions[0]).toMatchObject({ recovered: false, gaps: 1 });
    expect(server.channels.stats().gaps).toBe(1);
    // A checkpoint follows, below the next event.
    expect(reader.checkpoints).toEqual([ids[1]]);
    expect(reader.text.indexOf('sse:gap')).toBeLessThan(reader.text.indexOf('sse:checkpoint'));
    expect(reader.text.indexOf('sse:checkpoint')).toBeLessThan(reader.text.indexOf('data: 3'));
  });

  test('is exact: with A1 and A3 of A1 B2 A3 B4 A5 trimmed, cursor 2 has a gap, 3 and 4 have none', async () => {
    const channels = createChannels({
      historyFor: (name) => (name === 'a' ? { events: 1 } : undefined),
    });
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    const ids: string[] = [];
    for (const name of ['a', 'b', 'a', 'b', 'a']) {
      ids.push(...(await publish(channels, name, name)));
    }
    for (const [index, lost] of [
      [0, true],
      [1, true],
      [2, false],
      [3, false],
    ] as const) {
      using reader = await resume(server.url, ids[index] as string);
      const first = await reader.next();
      expect([index, first.event === 'sse:gap']).toEqual([index, lost]);
      expect((lost ? await reader.next() : first).data).toBe('a');
    }
    using atHead = await resume(server.url, ids[4] as string);
    await until('a checkpoint', () => atHead.checkpoints.length === 1);
    expect(atHead.events).toEqual([]);
  });

  test('names only the channels that have lost events', async () => {
    const channels = createChannels({
      historyFor: (name) => (name === 'a' ? { events: 1 } : undefined),
    });
    await using server = await serveStreams((stream) => stream.subscribe(['a', 'b']), { channels });
    const [first] = await publish(channels, 'b', 'b0');
    await publish(channels, 'a', 'a1', 'a2');
    await publish(channels, 'b', 'b3');
    using reader = await resume(server.url, first as string);
    const [gap, ...rest] = await reader.take(3);
    expect(gapOf(gap)).toMatchObject({ channels: ['a'], after: first });
    expect(data(rest)).toEqual(['a2', 'b3']);
  });

  test('of an empty channel is found by its trimmed offset', async () => {
    await using server = await serveChannels();
    const ids = await publish(server.channels, 'a', 1, 2);
    await server.channels.clear('a');
    using lost = await resume(server.url, ids[0] as string);
    expect(gapOf(await lost.next())).toEqual({ channels: ['a'], after: ids[0], cursor: ids[1] });
    await until('the checkpoint after the gap', () => lost.checkpoints.length === 1);
    expect(lost.checkpoints).toEqual([ids[1]]);
    using nothing = await resume(server.url, ids[1] as string);
    await until('a checkpoint', () => nothing.checkpoints.length === 1);
    expect(nothing.events).toEqual([]);
  });

  test('of a forgotten channel is found by the floor of all forgotten channels', async () => {
    await using server = await serveChannels({ maxChannels: 1 });
    const [first] = await publish(server.channels, 'a', 1, 2);
    await publish(server.channels, 'b', 1);
    using reader = await resume(server.url, first as string);
    expect(gapOf(await reader.next())).toMatchObject({ channels: ['a'] });
  });

  test.each([
    ['another epoch', (id: string) => `other.${id.split('.')[1] as string}`],
    ['beyond the head', (id: string) => `${id.split('.')[0] as string}.999999`],
    ['garbage', () => 'x'.repeat(5_000)],
    ['negative', (id: string) => `${id.split('.')[0] as string}.-1`],
    ['an id of another kind', () => '42'],
  ])(
    'is reported for a cursor that is not in the log: %s; all held events follow',
    async (_, forge) => {
      await using server = await serveChannels();
      const ids = await publish(server.channels, 'a', 1, 2);
      using reader = await resume(server.url, forge(ids[0] as string));
      const [gap, ...rest] = await reader.take(3);
      expect(gapOf(gap)).toEqual({ channels: ['a'], after: '', cursor: ids[1] });
      expect(data(rest)).toEqual(['1', '2']);
      await until('the subscription', () => server.subscriptions.length === 1);
      expect(server.subscriptions[0]).toMatchObject({ recovered: false, gaps: 1 });
    },
  );

  test('after a restart is reported before the first event is published', async () => {
    await using before = await serveChannels();
    const [id] = await publish(before.channels, 'a', 1);
    await using after = await serveChannels();
    using reader = await resume(after.url, id as string);
    const gap = gapOf(await reader.next()) as { channels: string[]; after: string; cursor: string };
    expect(gap).toMatchObject({ channels: ['a'], after: '' });
    await until('the checkpoint after the gap', () => reader.checkpoints.length === 1);
    expect(reader.checkpoints).toEqual([gap.cursor]);
    expect(gap.cursor).toBe(await after.channels.cursor());
  });

  test('is not reported again to a client that has received a later id', async () => {
    await using server = await serveChannels({ history: { events: 2 } });
    const ids = await publish(server.channels, 'a', 1, 2, 3, 4);
    using told = await resume(server.url, ids[0] as string);
    await until('the checkpoint after the gap', () => told.checkpoints.length === 1);
    using again = await resume(server.url, told.checkpoints[0] as string);
    expect(data(await again.take(2))).toEqual(['3', '4']);
    expect(again.events.map((event) => event.event)).toEqual([undefined, undefined]);
  });

  test('is published on the diagnostics channel res-sse:gap', async () => {
    const messages: unknown[] = [];
    const note = (message: unknown): void => void messages.push(message);
    subscribe('res-sse:gap', note);
    await using server = await serveChannels({ history: { events: 1 } });
    const ids = await publish(server.channels, 'a', 1, 2, 3);
    using reader = await resume(server.url, ids[0] as string);
    await reader.take(2);
    unsubscribe('res-sse:gap', note);
    expect(messages).toEqual([
      { stream: server.streams[0], channels: ['a'], lastEventId: ids[0], cursor: ids[2] },
    ]);
  });
});

describe('onGap', () => {
  /** A server whose history holds two events, and the ids of five published events. */
  async function serveGaps(
    onGap: (stream: EventStream, gap: Gap, server: ChannelServer) => unknown,
  ): Promise<ChannelServer & { ids: string[] }> {
    const server: ChannelServer = await serveChannels(
      { history: { events: 2 } },
      { options: { onGap: (stream, gap) => onGap(stream, gap, server) as string } },
    );
    return Object.assign(server, { ids: await publish(server.channels, 'a', 1, 2, 3, 4, 5) });
  }

  test('is awaited before any event; events continue behind the cursor that it returns', async () => {
    const gaps: Gap[] = [];
    await using server = await serveGaps(async (stream, gap, { channels }) => {
      gaps.push(gap);
      await publish(channels, 'a', 6);
      stream.send('snapshot');
      return gap.cursor;
    });
    using reader = await resume(server.url, server.ids[0] as string);
    expect(data(await reader.take(2))).toEqual(['snapshot', '6']);
    expect(gaps).toEqual([{ channels: ['a'], lastEventId: server.ids[0], cursor: server.ids[4] }]);
    expect(reader.checkpoints).toEqual([server.ids[4]]);
    expect(reader.text.indexOf('snapshot')).toBeLessThan(reader.text.indexOf('sse:checkpoint'));
    expect(reader.text).not.toContain('sse:gap');
    await until('the subscription', () => server.subscriptions.length === 1);
    expect(server.subscriptions[0]).toMatchObject({ recovered: false, gaps: 1 });
  });

  test('that returns nothing is followed by the events that are still held', async () => {
    await using server = await serveGaps(async (stream) => void stream.send('sorry'));
    using reader = await resume(server.url, server.ids[0] as string);
    expect(data(await reader.take(3))).toEqual(['sorry', '4', '5']);
    expect(reader.checkpoints).toEqual([server.ids[2]]);
  });

  test.each<[string, (gap: Gap) => unknown]>([
    ['a cursor of another log', () => 'other.5'],
    ['garbage', () => 'garbage'],
    ['a number', () => 5],
    [
      'a cursor beyond the head',
      (gap) => gap.cursor.replace(/\d+$/, (offset) => `${Number(offset) + 1}`),
    ],
    ["a cursor below the stream's own", (gap) => `${gap.cursor.split('.')[0] as string}.0`],
    [
      'a throw',
      () => {
        throw new Error('no database');
      },
    ],
    ['a rejection', () => Promise.reject(new Error('no database'))],
  ])(
    'that returns %s ends its stream with error, and other streams continue',
    async (_, answer) => {
      await using server = await serveGaps((_stream, gap) => answer(gap));
      using bystander = await read(server.url);
      await until('the subscription', () => server.subscriptions.length === 1);
      using reader = await resume(server.url, server.ids[0] as string);
      await reader.end();
      expect(data(reader.events)).toEqual([]);
      expect(reader.checkpoints).toEqual([]);
      expect(await (server.streams[1] as EventStream).closed).toBe('error');
      expect(server.errors.splice(0)).toHaveLength(1);
      await publish(server.channels, 'a', 'still here');
      expect((await bystander.next()).data).toBe('still here');
    },
  );

  test('that returns a cursor beyond the end of the log fails with ERR_SSE_CURSOR', async () => {
    const answers: ((gap: Gap, newer: string) => string)[] = [
      (_gap, newer) => newer,
      (_gap, newer) => newer.replace(/\d+$/, (offset) => `${Number(offset) + 1}`),
    ];
    await using server = await serveGaps(async (_stream, gap, { channels }) => {
      const [newer] = await publish(channels, 'a', 'part of the snapshot');
      return answers.shift()?.(gap, newer as string);
    });
    const [oldest] = server.ids as [string];
    using taken = await resume(server.url, oldest);
    await until('the subscription', () => server.subscriptions.length === 1);
    await publish(server.channels, 'a', 'after it');
    expect((await taken.next()).data).toBe('after it');
    using refused = await resume(server.url, oldest);
    await refused.end();
    expect(await (server.streams[1] as EventStream).closed).toBe('error');
    expect(server.errors.splice(0)).toEqual([expect.objectContaining({ code: 'ERR_SSE_CURSOR' })]);
  });

  test('is called once: a loss during a slow handler is reported by sse:gap', async () => {
    let calls = 0;
    await using server = await serveGaps(async (_stream, gap, { channels }) => {
      calls++;
      await publish(channels, 'a', 6, 7, 8, 9);
      return gap.cursor;
    });
    using reader = await resume(server.url, server.ids[0] as string);
    const [gap, ...rest] = await reader.take(3);
    expect(gapOf(gap)).toMatchObject({ channels: ['a'], after: server.ids[4] });
    expect(data(rest)).toEqual(['8', '9']);
    expect(calls).toBe(1);
  });

  test('of a stream that ends meanwhile leaves no subscription', async () => {
    let go = (): void => {};
    let called = false;
    await using server = await serveGaps((_stream, gap) => {
      called = true;
      return new Promise((resolve) => (go = () => resolve(gap.cursor)));
    });
    const reader = await resume(server.url, server.ids[0] as string);
    await until('onGap to be called', () => called);
    reader.close();
    await until('the subscription to end', () => server.subscriptions.length === 1);
    expect(server.channels.stats()).toMatchObject({ channels: 0, subscriptions: 0, behind: 0 });
    go();
    await new Promise((resolve) => setImmediate(resolve));
    expect(server.channels.stats()).toMatchObject({ channels: 0, subscriptions: 0, behind: 0 });
  });
});

describe('checkpoints', () => {
  test('let a client resume that has received no event', async () => {
    await using server = await serveChannels();
    await publish(server.channels, 'a', 1);
    const reader = await read(server.url);
    await until('a checkpoint', () => reader.checkpoints.length === 1);
    expect(reader.text).toContain(
      `event: sse:checkpoint\ndata: {"cursor":"${reader.checkpoints[0] as string}"}\nid: ${reader.checkpoints[0] as string}\n\n`,
    );
    reader.close();
    await until('the stream to end', () => server.events.streams.size === 0);
    await publish(server.channels, 'a', 2, 3);
    using again = await resume(server.url, reader.checkpoints[0] as string);
    expect(data(await again.take(2))).toEqual(['2', '3']);
  });

  test('come with heartbeats on a quiet stream, so that it resumes without a gap', async () => {
    await using server = await serveChannels(
      { historyFor: (name) => (name === 'a' ? undefined : { events: 1 }) },
      { sse: { heartbeat: 30 } },
    );
    using reader = await read(server.url);
    await until('the first checkpoint', () => reader.checkpoints.length === 1);
    const ids = await publish(server.channels, 'busy', 1, 2, 3);
    await until('the second checkpoint', () => reader.checkpoints.length === 2);
    expect(reader.checkpoints[1]).toBe(ids[2]);
    // Without a new event there is no checkpoint, but heartbeats.
    const { length } = reader.comments;
    await until('heartbeats', () => reader.comments.length > length + 3);
    expect(reader.checkpoints).toHaveLength(2);
  });

  test('come also if all events were filtered out', async () => {
    await using server = await serveChannels(
      {},
      { sse: { heartbeat: 30 }, options: { filter: (event) => event.data !== 'hidden' } },
    );
    using reader = await read(server.url);
    await until('the subscription', () => server.subscriptions.length === 1);
    const ids = await publish(server.channels, 'a', 'shown', 'hidden');
    await until('a checkpoint at the newest event', () => reader.checkpoints.at(-1) === ids[1]);
    expect(data(reader.events)).toEqual(['shown']);
  });

  test('come also while the application sends events', async () => {
    await using server = await serveChannels({}, { sse: { heartbeat: 50 } });
    using reader = await read(server.url);
    await until('the first checkpoint', () => reader.checkpoints.length === 1);
    const stream = server.streams[0] as EventStream;
    const timer = setInterval(() => stream.send('direct'), 5);
    const [id] = await publish(server.channels, 'busy', 1);
    await until('the second checkpoint', () => reader.checkpoints.at(-1) === id);
    clearInterval(timer);
  });

  test('are off with checkpoints: false, except after a gap', async () => {
    await using server = await serveChannels(
      { history: { events: 1 } },
      { options: { checkpoints: false }, sse: { heartbeat: 20 } },
    );
    const ids = await publish(server.channels, 'a', 1, 2, 3);
    using reader = await read(server.url);
    await publish(server.channels, 'busy', 1);
    await until('heartbeats', () => reader.comments.length > 5);
    expect(reader.checkpoints).toEqual([]);
    using lost = await resume(server.url, ids[0] as string);
    await until('the checkpoint after the gap', () => lost.checkpoints.length === 1);
  });

  test('are never written before a gap is reported', async () => {
    let go = (): void => {};
    await using server = await serveChannels(
      { history: { events: 1 } },
      {
        sse: { heartbeat: 20 },
        options: {
          onGap: (_stream, gap) =>
            new Promise<string>((resolve) => (go = () => resolve(gap.cursor))),
        },
      },
    );
    const ids = await publish(server.channels, 'a', 1, 2, 3);
    using reader = await resume(server.url, ids[0] as string);
    await until('heartbeats', () => reader.comments.length > 4);
    expect(reader.checkpoints).toEqual([]);
    go();
    await until('the checkpoint', () => reader.checkpoints.length === 1);
    expect(reader.checkpoints).toEqual([ids[2]]);
  });
});

describe('a channel without history', () => {
  test('has no id, no checkpoint, no resume, no gap', async () => {
    await using server = await serveChannels({ history: false }, { sse: { heartbeat: 30 } });
    expect(await server.channels.publish('a', 'unseen')).toEqual({ id: '' });
    using reader = await resume(server.url, 'whatever');
    await until('the subscription', () => server.subscriptions.length === 1);
    await server.channels.publish('a', 'live', { event: 'tick' });
    expect(await reader.next()).toEqual({ id: undefined, event: 'tick', data: 'live' });
    await until('heartbeats', () => reader.comments.length > 3);
    expect(reader.checkpoints).toEqual([]);
    expect(reader.events).toHaveLength(1);
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0, cursor: '' });
  });

  test('delivers events while the stream catches up with another channel', async () => {
    let go = (): void => {};
    await using server = await serveChannels(
      { historyFor: (name) => (name === 'live' ? false : { events: 1 }) },
      {
        follow: ['a', 'live'],
        options: {
          onGap: (_stream, gap) =>
            new Promise<string>((resolve) => (go = () => resolve(gap.cursor))),
        },
      },
    );
    const ids = await publish(server.channels, 'a', 1, 2, 3);
    using reader = await resume(server.url, ids[0] as string);
    await until('the stream to be behind', () => server.channels.stats().behind === 1);
    await server.channels.publish('live', 'now');
    expect((await reader.next()).data).toBe('now');
    go();
    await until('the stream to be live', () => server.channels.stats().behind === 0);
    await publish(server.channels, 'a', 4);
    expect((await reader.next()).data).toBe('4');
  });
});

test('a slow reader of a newest-only channel skips to the newest event without a gap', async () => {
  await using server = await serveChannels({ history: { events: 1, latest: true } });
  const ids = await publish(server.channels, 'a', 1, 2, 3);
  using reader = await resume(server.url, ids[0] as string);
  expect(data(await reader.take(1))).toEqual(['3']);
  await until('the subscription', () => server.subscriptions.length === 1);
  expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 0 });
});

function numbersOf(parser: StrictParser): number[] {
  return parser.events
    .filter((event) => event.type === 'message')
    .map((event) => Number.parseInt(event.data, 10));
}

describe('a slow reader', () => {
  /** A raw reader that has stopped reading; its stream follows `a` and has fallen behind. */
  async function fallBehind(
    server: ChannelServer,
  ): Promise<{ socket: Socket; parser: StrictParser; published: number }> {
    const socket = await dial(server.port, requestText('/').replace('HTTP/1.1', 'HTTP/1.0'));
    socket.pause();
    const parser = StrictParser.behindHead(socket);
    await until('the subscription', () => server.subscriptions.length === 1);
    let published = 0;
    await until('the stream to fall behind', async () => {
      for (let count = 0; count < 20; count++) {
        await server.channels.publish('a', `${published++}:${'x'.repeat(10_000)}`);
      }
      await new Promise((resolve) => setImmediate(resolve));
      return server.channels.stats().behind === 1;
    });
    return { socket, parser, published };
  }

  test('has a cursor instead of a queue: it falls behind, and later gets all events', async () => {
    await using server = await serveChannels(
      { history: { events: 100_000, bytes: 200_000_000 }, maxHistory: 200_000_000 },
      { sse: { stallTimeout: false } },
    );
    const { socket, parser, published } = await fallBehind(server);
    const stream = server.streams[0] as EventStream;
    const queued = stream.bufferedAmount;
    let more = published;
    for (; more < published + 1_000; more++) {
      await server.channels.publish('a', `${more}:${'x'.repeat(10_000)}`);
    }
    await new Promise((resolve) => setImmediate(resolve));
    // After 10 MB of further events, no more bytes are queued for the stream.
    expect(stream.bufferedAmount).toBe(queued);
    socket.resume();
    await until('the stream to be live again', () => server.channels.stats().behind === 0);
    await server.channels.publish('a', `${more}:live`);
    await until('all events', () => numbersOf(parser).length === more + 1);
    expect(numbersOf(parser)).toEqual(Array.from({ length: more + 1 }, (_, index) => index));
    expect(server.subscriptions[0]).toMatchObject({ gaps: 0 });
    expect(stream.readyState).toBe(1);
    socket.destroy();
  });

  test('that is overtaken by trimming gets a gap; recovered concerns the start only', async () => {
    await using server = await serveChannels(
      { history: { events: 10 } },
      { sse: { stallTimeout: false } },
    );
    const { socket, parser, published } = await fallBehind(server);
    let more = published;
    for (; more < published + 100; more++) await server.channels.publish('a', `${more}:x`);
    socket.resume();
    await until('the stream to be live again', () => server.channels.stats().behind === 0);
    await until('the newest event', () => numbersOf(parser).at(-1) === more - 1);
    const gap = parser.events.find((event) => event.type === 'sse:gap');
    expect(JSON.parse(gap?.data ?? '')).toEqual({
      channels: ['a'],
      after: expect.any(String),
      cursor: expect.any(String),
    });
    expect(server.subscriptions[0]).toMatchObject({ recovered: true, gaps: 1 });
    // No event is missing before the gap, and none after it.
    const got = numbersOf(parser);
    const hole = got.findIndex((number, index) => number !== index);
    expect(got.slice(hole)).toEqual(
      Array.from({ length: got.length - hole }, (_, index) => (got[hole] as number) + index),
    );
    expect(parser.events.filter((event) => event.type === 'sse:gap')).toHaveLength(1);
    socket.destroy();
  });

  test('gets an sse:gap for a subscription that ends while another one is asked', async () => {
    await using server = await serveChannels(
      { history: { events: 10 } },
      { sse: { stallTimeout: false } },
    );
    const { socket, parser } = await fallBehind(server);
    const stream = server.streams[0] as EventStream;
    const asked: string[][] = [];
    let answer = (): void => {};
    void stream.subscribe('a', {
      onGap: (_stream, { channels }) => {
        asked.push([...channels]);
        return new Promise((resolve) => (answer = () => resolve(undefined)));
      },
    });
    void stream.subscribe('b');
    let leave = (): void => {};
    const third = stream.subscribe('b', {
      onGap: (_stream, { channels }) => void asked.push([...channels]),
    });
    void third.then((subscription) => (leave = () => subscription.unsubscribe()));
    for (let count = 0; count < 50; count++) {
      await server.channels.publish('a', 'x');
      await server.channels.publish('b', 'x');
    }
    socket.resume();
    await until('the first onGap', () => asked.length > 0);
    leave();
    answer();
    await until('the stream to be live again', () => server.channels.stats().behind === 0);
    const told = parser.events
      .filter((event) => event.type === 'sse:gap')
      .map((event) => (JSON.parse(event.data) as Gap).channels);
    expect([...asked, ...told].flat().toSorted()).toEqual(['a', 'b']);
    socket.destroy();
  });

  test('that disconnects while catching up leaves no subscription', async () => {
    await using server = await serveChannels({}, { sse: { stallTimeout: false } });
    const { socket } = await fallBehind(server);
    socket.destroy();
    await until('the stream to end', () => server.events.streams.size === 0);
    expect(server.channels.stats()).toMatchObject({ behind: 0, subscriptions: 0, channels: 0 });
  });
});

describe('a second subscribe on a stream', () => {
  test('catches up: ids step back once, and no event is lost or repeated', async () => {
    const channels = createChannels();
    const ids = [
      ...(await publish(channels, 'a', 'a1')),
      ...(await publish(channels, 'b', 'b2')),
      ...(await publish(channels, 'a', 'a3')),
    ];
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a');
        await stream.subscribe('b');
      },
      { channels },
    );
    using reader = await resume(server.url, ids[0] as string);
    expect(data(await reader.take(2))).toEqual(['a3', 'b2']);
    for (const name of ['b', 'a']) await publish(channels, name, `${name} live`);
    expect(data(await reader.take(2))).toEqual(['b live', 'a live']);
    expect(reader.events).toHaveLength(4);
  });

  test('with since starts there for its own channels only', async () => {
    const channels = createChannels();
    await publish(channels, 'a', 'a1');
    await publish(channels, 'b', 'b2');
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a');
        await stream.subscribe('b', { since: 'start' });
      },
      { channels },
    );
    using reader = await read(server.url);
    expect(data(await reader.take(1))).toEqual(['b2']);
    await publish(channels, 'a', 'a3');
    expect(data(await reader.take(1))).toEqual(['a3']);
  });

  test('reports a gap of its own channels', async () => {
    const channels = createChannels({ history: { events: 1 } });
    const subscriptions: Subscription[] = [];
    const ids = await publish(channels, 'b', 1, 2, 3);
    await using server = await serveStreams(
      async (stream) => {
        subscriptions.push(await stream.subscribe('a'), await stream.subscribe('b'));
      },
      { channels },
    );
    using reader = await resume(server.url, ids[0] as string);
    const [gap, event] = await reader.take(2);
    expect(gapOf(gap)).toMatchObject({ channels: ['b'] });
    expect(event?.data).toBe('3');
    await until('both subscriptions', () => subscriptions.length === 2);
    expect(subscriptions.map(({ recovered, gaps }) => [recovered, gaps])).toEqual([
      [true, 0],
      [false, 1],
    ]);
  });
});

describe('a stream with maxSubscriptions subscriptions', () => {
  test.each<[string, SseOptions, number]>([
    ['100 by default', {}, 100],
    ['3', { maxSubscriptions: 3 }, 3],
  ])(
    '(%s) gets ERR_SSE_OPTION for another one, until a subscription ends',
    async (_, options, most) => {
      const channels = createChannels();
      await using server = await serveStreams((stream) => stream.subscribe('a'), {
        channels,
        ...options,
      });
      using reader = await read(server.url);
      await until('the first subscription', () => channels.stats().subscriptions === 1);
      const [stream] = server.streams as [EventStream];
      const subscriptions: Subscription[] = [];
      for (let count = 1; count < most; count++) {
        subscriptions.push(await stream.subscribe(['a', `own-${count}`]));
      }
      const before = channels.stats();
      const names = channels.names();
      for (const refused of ['a', 'b', ['c', 'own-1']]) {
        await expect(stream.subscribe(refused)).rejects.toMatchObject({
          code: 'ERR_SSE_OPTION',
          message: expect.stringContaining('maxSubscriptions'),
        });
      }
      expect(channels.stats()).toEqual(before);
      expect(channels.names()).toEqual(names);
      await publish(channels, 'a', 'to all');
      await publish(channels, 'b', 'to nobody');
      await publish(channels, 'own-1', 'to one');
      expect(data(await reader.take(2))).toEqual(['to all', 'to one']);
      subscriptions.at(-1)?.unsubscribe();
      await stream.subscribe('b');
      await expect(stream.subscribe('c')).rejects.toMatchObject({ code: 'ERR_SSE_OPTION' });
      await publish(channels, 'b', 'to it now');
      expect((await reader.next()).data).toBe('to it now');
    },
  );

  test('counts subscriptions that wait for their start', async () => {
    const channels = createChannels();
    const outcomes: string[] = [];
    await using server = await serveStreams(
      async (stream) => {
        const all = Array.from({ length: 5 }, (_, index) =>
          stream.subscribe(`${index}`, { since: 'start' }),
        );
        for (const { status } of await Promise.allSettled(all)) outcomes.push(status);
      },
      { channels, maxSubscriptions: 3 },
    );
    using reader = await read(server.url);
    await until('all results', () => outcomes.length === 5);
    expect(outcomes).toEqual(['fulfilled', 'fulfilled', 'fulfilled', 'rejected', 'rejected']);
    expect(channels.names().toSorted()).toEqual(['0', '1', '2']);
    expect(reader.ended).toBe(false);
  });
});

describe('two streams with identical subscriptions', () => {
  test('end their subscriptions one by one; ending one twice ends no other', async () => {
    const channels = createChannels();
    const subscriptions: Subscription[] = [];
    await using server = await serveStreams(
      async (stream) => {
        subscriptions.push(await stream.subscribe('a'), await stream.subscribe('a'));
      },
      { channels },
    );
    using first = await read(server.url);
    using second = await read(server.url);
    await until('all subscriptions', () => subscriptions.length === 4);
    const [one, two, three] = subscriptions as [Subscription, Subscription, Subscription];
    one.unsubscribe();
    one.unsubscribe();
    three.unsubscribe();
    await publish(channels, 'a', 1);
    expect([data(await first.take(1)), data(await second.take(1))]).toEqual([['1'], ['1']]);
    two.unsubscribe();
    await publish(channels, 'a', 2);
    expect(data(await second.take(1))).toEqual(['2']);
    expect(channels.channel('a').size).toBe(1);
    expect(channels.stats().subscriptions).toBe(1);
  });

  test('keep the options of the call, also if the options object changes later', async () => {
    const options: SubscribeOptions = {};
    await using server = await serveChannels({}, { options });
    using first = await read(server.url);
    options.filter = ({ data: text }) => text !== 'secret';
    using second = await read(server.url);
    await publish(server.channels, 'a', 'secret', 'open');
    expect(data(await first.take(2))).toEqual(['secret', 'open']);
    expect(data(await second.take(1))).toEqual(['open']);
  });

  test('count gaps separately, and not after their end', async () => {
    await using server = await serveChannels({ history: { events: 1 } });
    const { channels, subscriptions } = server;
    using live = await read(server.url);
    await until('the first subscription', () => subscriptions.length === 1);
    const ids = await publish(channels, 'a', 1, 2, 3);
    using late = await resume(server.url, ids[0] as string);
    expect(data(await live.take(3))).toEqual(['1', '2', '3']);
    expect(gapOf((await late.take(1))[0])).toMatchObject({ channels: ['a'] });
    await until('the second subscription', () => subscriptions.length === 2);
    subscriptions[1]?.unsubscribe();
    expect(subscriptions.map(({ recovered, gaps }) => [recovered, gaps])).toEqual([
      [true, 0],
      [false, 1],
    ]);
  });
});

describe('a final close', () => {
  const last = { type: 'sse:end', data: '{}' };

  test('comes behind all events that were published before, also on a slow stream', async () => {
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a', { since: 'start' });
        stream.close({ final: true });
        expect(stream.send('too late')).toBe(false);
        expect(stream.signal.aborted).toBe(true);
      },
      { channels: await filled(200) },
    );
    const parser = await readToEnd(server.port);
    expect(numbersOf(parser)).toEqual(Array.from({ length: 200 }, (_, index) => index));
    expect(parser.events.at(-1)).toMatchObject(last);
  });

  async function filled(events: number): Promise<Channels> {
    const channels = createChannels();
    for (let number = 0; number < events; number++) {
      await channels.publish('a', `${number}:${'x'.repeat(3_000)}`);
    }
    return channels;
  }

  async function readToEnd(port: number): Promise<StrictParser> {
    const response = await fetch(`http://127.0.0.1:${port}/`, {
      headers: { Accept: 'text/event-stream' },
    });
    return new StrictParser().feed(Buffer.from(await response.arrayBuffer()));
  }
});

test('cursor() connects a page and its stream without a lost event', async () => {
  await using server = await serveChannels();
  const empty = await server.channels.cursor();
  using fromEmpty = await read(`${server.url}?lastEventId=${empty}`);
  await publish(server.channels, 'a', 1);
  expect((await fromEmpty.next()).data).toBe('1');
  const cursor = await server.channels.cursor();
  await publish(server.channels, 'a', 'between');
  using reader = await read(`${server.url}?lastEventId=${cursor}`);
  await publish(server.channels, 'a', 'after');
  expect(data(await reader.take(2))).toEqual(['between', 'after']);
});

test('a subscription has the cursor of its stream', async () => {
  await using server = await serveChannels();
  using reader = await read(server.url);
  await until('the subscription', () => server.subscriptions.length === 1);
  const [id] = await publish(server.channels, 'a', 1);
  await reader.next();
  expect(server.subscriptions[0]).toMatchObject({ channels: ['a'], cursor: id });
});

test('publish with a key publishes once, also if it is repeated', async () => {
  await using server = await serveChannels();
  using reader = await read(server.url);
  await until('the subscription', () => server.subscriptions.length === 1);
  const first = await server.channels.publish('a', 'once', { key: 'order-17' });
  const retries = await Promise.all(
    [1, 2, 3].map(() => server.channels.publish('a', 'again', { key: 'order-17' })),
  );
  expect(retries).toEqual([first, first, first]);
  await server.channels.publish('a', 'next', { key: 'order-18' });
  expect(data(await reader.take(2))).toEqual(['once', 'next']);
  await expect(server.channels.publish('a', 'x', { key: '' })).rejects.toMatchObject({
    code: 'ERR_SSE_OPTION',
  });
  await expect(server.channels.publish('a', 'x', { key: 'x'.repeat(257) })).rejects.toMatchObject({
    code: 'ERR_SSE_OPTION',
  });
});

test('a filter that throws while catching up ends the stream', async () => {
  await using server = await serveChannels(
    {},
    {
      options: {
        filter: (event) => {
          if (event.data === '2') throw new Error('broken');
          return true;
        },
      },
    },
  );
  const ids = await publish(server.channels, 'a', 0, 1, 2);
  using reader = await resume(server.url, ids[0] as string);
  await reader.end();
  expect(reader.text).not.toContain('data: 2');
  expect(await within('the reason', (server.streams[0] as EventStream).closed)).toBe('error');
  expect(server.errors.splice(0)).toEqual([new Error('broken')]);
});

describe('createChannels refuses', () => {
  test.each<[object, string]>([
    [{ history: true }, 'expected `history`'],
    [{ history: { events: 0 } }, 'expected `events`'],
    [{ history: { age: -1 } }, 'expected `age`'],
    [{ history: { size: 5 } }, 'unknown option `size`'],
    [{ history: { events: 5, latest: true } }, 'a newest-only channel holds one event'],
    [{ historyFor: {} }, 'expected `historyFor`'],
    [{ maxHistory: -1 }, 'expected `maxHistory`'],
    [{ maxChannels: 0 }, 'expected `maxChannels`'],
    [{ broker: 'redis' }, 'expected `broker`'],
    [{ brokr: undefined }, 'unknown option `brokr`'],
  ])('%j', (options, message) => {
    expect(() => createChannels(options)).toThrow(
      expect.objectContaining({
        code: 'ERR_SSE_OPTION',
        message: expect.stringContaining(message),
      }),
    );
  });

  test('an invalid result of historyFor', async () => {
    const channels = createChannels({ historyFor: () => ({ events: 0 }) });
    await expect(channels.publish('a', 1)).rejects.toMatchObject({ code: 'ERR_SSE_OPTION' });
  });
});
