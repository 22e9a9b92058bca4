/** The promises about reading channels in the process, for each broker. */
import { getEventListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { ChannelEvent, Channels, EventStream, SnapshotRequest } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';
import type { MakeNodes, Nodes } from './nodes.ts';

/** Publishes one event for each text. @returns the ids */
async function publish(channels: Channels, name: string, ...texts: string[]): Promise<string[]> {
  const ids: string[] = [];
  for (const text of texts) ids.push((await channels.publish(name, text)).id);
  return ids;
}

function dataOf(events: readonly { data: string }[]): string[] {
  return events.map(({ data }) => data);
}

/** Takes a number of events from an iterator. */
async function take(
  events: AsyncIterator<ChannelEvent, undefined>,
  count: number,
): Promise<string[]> {
  const taken: string[] = [];
  while (taken.length < count) {
    const { value } = await within(`event ${taken.length + 1}`, events.next());
    if (value === undefined) break;
    taken.push(value.data);
  }
  return taken;
}

/** Takes all events, to the end of the iteration. */
async function takeAll(events: AsyncIterable<ChannelEvent>): Promise<string[]> {
  const taken: string[] = [];
  for await (const { data } of events) taken.push(data);
  return taken;
}

/** Tests the promises of DESIGN 5.4. */
export function testReading(make: MakeNodes): void {
  testFollow(make);
  testRead(make);
  testLast(make);
  testMeta(make);
  testSnapshot(make);
  testStreamMembers(make);
}

function testFollow(make: MakeNodes): void {
  describe('channels.follow()', () => {
    test('receives what is published after the call, in order, to the end of all channels', async () => {
      await using nodes = make();
      await publish(nodes.publisher, 'a', 'before');
      const events = nodes.reader.follow(['a', 'b']);
      await nodes.reader.cursor();
      await publish(nodes.publisher, 'a', '1');
      await publish(nodes.publisher, 'b', '2');
      await nodes.publisher.end('a', '3');
      const first = await take(events, 3);
      await nodes.publisher.end('b', '4');
      expect([...first, ...(await within('the end', takeAll(events)))]).toEqual([
        '1',
        '2',
        '3',
        '4',
      ]);
      expect(nodes.reader.names()).toEqual([]);
    });

    test("starts at 'start', at a cursor, and at the newest events", async () => {
      await using nodes = make();
      const [first] = await publish(nodes.publisher, 'a', '1', '2', '3');
      await nodes.publisher.end('a');
      expect(await takeAll(nodes.reader.follow('a', { since: 'start' }))).toEqual(['1', '2', '3']);
      expect(await takeAll(nodes.reader.follow('a', { since: first! }))).toEqual(['2', '3']);
      expect(await takeAll(nodes.reader.follow('a', { since: { last: 1 } }))).toEqual(['3']);
      expect(await takeAll(nodes.reader.follow('a'))).toEqual([]);
    });

    test('has the fields of the event, and counts as no stream', async () => {
      await using nodes = make();
      const events = nodes.reader.follow('a', { since: 'start' });
      const { id } = await nodes.publisher.publish(
        'a',
        { n: 1 },
        { event: 'tick', meta: { by: 7 } },
      );
      const { value } = await events.next();
      expect(value).toMatchObject({ channel: 'a', id, event: 'tick', data: '{"n":1}' });
      expect([value?.json(), value?.meta]).toEqual([{ n: 1 }, { by: 7 }]);
      expect(nodes.reader.channel('a').size).toBe(0);
      expect(nodes.reader.stats().subscriptions).toBe(0);
      await events.return?.();
      expect(nodes.reader.names()).toEqual([]);
    });

    test('a slow consumer needs only a cursor: it receives everything later', async () => {
      await using nodes = make({ history: { events: 10_000, bytes: 100_000_000 } });
      const events = nodes.reader.follow('a');
      const [first] = await Promise.all([take(events, 1), publishLater(nodes, '0')]);
      const texts = Array.from({ length: 300 }, (_, n) => `${n + 1} ${'x'.repeat(1_000)}`);
      await publish(nodes.publisher, 'a', ...texts);
      expect([...first, ...(await take(events, 300))]).toEqual(['0', ...texts]);
      await publish(nodes.publisher, 'a', 'live');
      expect(await take(events, 1)).toEqual(['live']);
      await events.return?.();
    });

    test('filters, and throws the error of a filter', async () => {
      await using nodes = make();
      await publish(nodes.publisher, 'a', '1', '2', '3');
      const even = nodes.reader.follow('a', {
        since: 'start',
        filter: ({ data }) => Number(data) % 2 === 0,
      });
      expect(await take(even, 1)).toEqual(['2']);
      await even.return?.();
      const broken = nodes.reader.follow('a', {
        since: 'start',
        filter: () => Promise.reject(new Error('async')) as never,
      });
      await expect(broken.next()).rejects.toMatchObject({ code: 'ERR_SSE_FILTER' });
      expect(await broken.next()).toEqual({ done: true, value: undefined });
      expect(nodes.reader.names()).toEqual([]);
    });

    test('a gap throws ERR_SSE_GAP', async () => {
      await using nodes = make({ history: { events: 1 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', '1', '2', '3');
      for (const cursor of [since, 'elsewhere.7', 'no cursor']) {
        const events = nodes.reader.follow('a', { since: cursor });
        await expect(events.next()).rejects.toMatchObject({ code: 'ERR_SSE_GAP' });
      }
    });

    test('a gap calls onGap, and the consumer continues after the cursor that it returns', async () => {
      await using nodes = make({ history: { events: 2 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', '1', '2', '3');
      const gaps: unknown[] = [];
      const held = nodes.reader.follow('a', { since, onGap: (gap) => void gaps.push(gap) });
      expect(await take(held, 2)).toEqual(['2', '3']);
      expect(gaps).toEqual([
        { channels: ['a'], lastEventId: since, cursor: await nodes.publisher.cursor() },
      ]);
      const behind = nodes.reader.follow('a', { since, onGap: ({ cursor }) => cursor });
      const next = take(behind, 1);
      await delay(20);
      await publish(nodes.publisher, 'a', '4');
      expect(await next).toEqual(['4']);
      const wrong = nodes.reader.follow('a', { since, onGap: () => 'elsewhere.1' });
      await expect(wrong.next()).rejects.toMatchObject({ code: 'ERR_SSE_CURSOR' });
      await Promise.all([held.return?.(), behind.return?.()]);
    });

    test('receives what is published while onGap runs, also beyond the history', async () => {
      await using nodes = make({ history: { events: 2 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', '1', '2', '3');
      let calls = 0;
      const events = nodes.reader.follow('a', {
        since,
        onGap: async ({ cursor }) => {
          calls++;
          await publish(nodes.publisher, 'a', '4', '5', '6', '7', '8');
          return cursor;
        },
      });
      expect(await take(events, 5)).toEqual(['4', '5', '6', '7', '8']);
      expect(calls).toBe(1);
      await events.return?.();
    });

    test.each([
      ['one channel', ['a']],
      ['a channel without a gap beside it', ['a', 'quiet']],
    ])(
      'receives events of %s, although each onGap is overtaken by more than a page',
      async (_, followed) => {
        await using nodes = make({ history: { events: 3 } });
        await publish(nodes.publisher, 'quiet', 'old');
        const since = await nodes.publisher.cursor();
        const large = Array.from({ length: 4 }, (__, n) => `${n} ${'x'.repeat(40_000)}`);
        await publish(nodes.publisher, 'a', ...large);
        await publish(nodes.publisher, 'quiet', 'new');
        const events = nodes.reader.follow(followed, {
          since,
          onGap: async ({ cursor }) => {
            await publish(nodes.publisher, 'a', ...large);
            return cursor;
          },
        });
        const received = await within('the events', take(events, followed.length + 1));
        const start = followed.length === 1 ? [] : ['new'];
        expect(received.map((data) => data.slice(0, 3))).toEqual([...start, '0 x', '1 x']);
        await events.return?.();
      },
    );

    test('ends, although the channel ended while a busy page was read', async () => {
      await using nodes = make({ history: { events: 3 } });
      const since = await nodes.publisher.cursor();
      const large = Array.from({ length: 4 }, (_, n) => `${n} ${'x'.repeat(40_000)}`);
      await publish(nodes.publisher, 'a', ...large);
      const events = nodes.reader.follow('a', {
        since,
        onGap: async ({ cursor }) => {
          await nodes.publisher.end('a');
          return cursor;
        },
      });
      expect(await within('the end', events.next())).toEqual({ done: true, value: undefined });
    });

    test.each(['the signal', 'return()', 'close()'])(
      'ends by %s also while onGap does not answer',
      async (means) => {
        await using nodes = make({ history: { events: 1 } });
        const since = await nodes.publisher.cursor();
        await publish(nodes.publisher, 'a', '1', '2', '3');
        const stop = new AbortController();
        const { signal } = stop;
        let isAsked = false;
        const onGap = (): Promise<void> => {
          isAsked = true;
          return new Promise(() => {});
        };
        const events = nodes.reader.follow('a', { since, signal, onGap });
        const next = events.next();
        await until('the question', () => isAsked);
        if (means === 'the signal') stop.abort();
        else if (means === 'return()') await events.return?.();
        else await nodes.reader.close();
        expect(await within('the end', next)).toEqual({ done: true, value: undefined });
      },
    );

    test('onGap cannot continue beyond the end of the log', async () => {
      await using nodes = make({ history: { events: 1 } });
      const since = await nodes.publisher.cursor();
      const [id] = await publish(nodes.publisher, 'a', '1', '2', '3');
      const onGap = (): string => id!.replace(/\d+$/, '1000');
      const next = nodes.reader.follow('a', { since, onGap }).next();
      await expect(next).rejects.toMatchObject({ code: 'ERR_SSE_CURSOR' });
    });

    test('ends when the signal is aborted, also while it waits', async () => {
      await using nodes = make();
      const stop = new AbortController();
      const events = nodes.reader.follow('a', { signal: stop.signal });
      const next = events.next();
      await until('the channel', () => nodes.reader.names().length === 1);
      stop.abort();
      expect(await within('the end', next)).toEqual({ done: true, value: undefined });
      expect(nodes.reader.names()).toEqual([]);
      const late = nodes.reader.follow('a', { signal: stop.signal });
      expect(await late.next()).toEqual({ done: true, value: undefined });
    });

    test('an onGap may throw anything', async () => {
      await using nodes = make({ history: { events: 1 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', '1', '2', '3');
      const onGap = (): never => {
        // oxlint-disable-next-line typescript/only-throw-error -- as an application may
        throw 'a text';
      };
      await expect(nodes.reader.follow('a', { since, onGap }).next()).rejects.toBe('a text');
    });

    test('many iterators have one listener on a signal that they share', async () => {
      await using nodes = make();
      const stop = new AbortController();
      const iterators = Array.from({ length: 20 }, () =>
        nodes.reader.follow('a', { signal: stop.signal }),
      );
      const results = iterators.map((events) => events.next());
      await until('the channel', () => nodes.reader.names().length === 1);
      expect(getEventListeners(stop.signal, 'abort')).toHaveLength(1);
      await iterators[0]?.return?.();
      stop.abort();
      for (const result of results) expect((await within('the end', result)).done).toBe(true);
      expect(getEventListeners(stop.signal, 'abort')).toEqual([]);
    });

    test('needs no place on the signal unless it is iterated', async () => {
      await using nodes = make();
      const stop = new AbortController();
      for (let n = 0; n < 20; n++) nodes.reader.follow('a', { signal: stop.signal });
      expect(getEventListeners(stop.signal, 'abort')).toEqual([]);
      const events = nodes.reader.follow('a', { signal: stop.signal });
      const next = events.next();
      await until('the channel', () => nodes.reader.names().length === 1);
      await events.return?.();
      await next;
      expect(getEventListeners(stop.signal, 'abort')).toEqual([]);
    });

    test('ends when the registry is closed', async () => {
      await using nodes = make();
      const events = nodes.reader.follow('a');
      const late = nodes.reader.follow('a');
      const next = events.next();
      await until('the channel', () => nodes.reader.names().length === 1);
      await nodes.reader.close();
      expect(await within('the end', next)).toEqual({ done: true, value: undefined });
      expect(await within('the end', late.next())).toEqual({ done: true, value: undefined });
      expect(() => nodes.reader.follow('a')).toThrow(
        expect.objectContaining({ code: 'ERR_SSE_CLOSED' }),
      );
    });

    test('return() resolves a next() that waits, and releases the channels', async () => {
      await using nodes = make();
      const events = nodes.reader.follow('a');
      const next = events.next();
      await until('the channel', () => nodes.reader.names().length === 1);
      await events.return?.();
      expect(await within('the end', next)).toEqual({ done: true, value: undefined });
      expect(nodes.reader.names()).toEqual([]);
    });

    test('several calls of next() at the same time are answered in order', async () => {
      await using nodes = make();
      const events = nodes.reader.follow('a', { since: 'start' });
      const all = Promise.all([events.next(), events.next(), events.next()]);
      await publish(nodes.publisher, 'a', '1', '2', '3');
      expect((await within('three events', all)).map(({ value }) => value?.data)).toEqual([
        '1',
        '2',
        '3',
      ]);
      await events.return?.();
    });

    test('can be piped to a stream, and is released when the reader leaves', async () => {
      await using nodes = make();
      await using server = await serveStreams((stream) =>
        stream.pipe(nodes.reader.follow('a', { since: 'start' }), { map: ({ data }) => data }),
      );
      await publish(nodes.publisher, 'a', '1');
      using reader = await read(server.url);
      expect((await reader.next()).data).toBe('1');
      reader.close();
      await until('the release', () => nodes.reader.names().length === 0);
    });

    test('refuses channels without history, and wrong options', async () => {
      await using nodes = make({ history: false });
      const option = expect.objectContaining({ code: 'ERR_SSE_OPTION' });
      expect(() => nodes.reader.follow('a')).toThrow(option);
      expect(() => nodes.reader.follow('a', { since: { last: 0 } })).toThrow(option);
      expect(() => nodes.reader.follow([])).toThrow(
        expect.objectContaining({ code: 'ERR_SSE_CHANNEL_NAME' }),
      );
    });
  });
}

async function publishLater(nodes: Nodes, text: string): Promise<void> {
  await until('the channel', () => nodes.reader.names().length === 1);
  await delay(20);
  await publish(nodes.publisher, 'a', text);
}

function testRead(make: MakeNodes): void {
  describe('channels.read()', () => {
    test('reads page by page, oldest first, of several channels in one order', async () => {
      await using nodes = make();
      for (let n = 0; n < 10; n++) await publish(nodes.publisher, n % 2 === 0 ? 'a' : 'b', `${n}`);
      const pages: string[][] = [];
      let after: string | undefined;
      for (let more = true; more;) {
        const page = await nodes.reader.read(['a', 'b'], { after, limit: 4 });
        pages.push(dataOf(page.events));
        expect(page.gap).toEqual([]);
        ({ cursor: after, more } = page);
      }
      expect(pages).toEqual([
        ['0', '1', '2', '3'],
        ['4', '5', '6', '7'],
        ['8', '9'],
      ]);
      expect(after).toBe(await nodes.publisher.cursor());
    });

    test('reads 100 events without a limit, and says whether there are more', async () => {
      await using nodes = make();
      await Promise.all(Array.from({ length: 101 }, () => publish(nodes.publisher, 'a', 'x')));
      const page = await nodes.reader.read('a');
      expect([page.events.length, page.more]).toEqual([100, true]);
      const rest = await nodes.reader.read('a', { after: page.cursor });
      expect([rest.events.length, rest.more]).toEqual([1, false]);
    });

    test('reads the newest events of each channel', async () => {
      await using nodes = make();
      await publish(nodes.publisher, 'a', 'a1', 'a2', 'a3');
      await publish(nodes.publisher, 'b', 'b1');
      await nodes.publisher.end('a');
      const page = await nodes.reader.read(['a', 'b'], { last: 2 });
      expect([dataOf(page.events), page.more, page.gap]).toEqual([['a2', 'a3', 'b1'], false, []]);
    });

    test('names the channels that have lost events, and all channels for a cursor of another log', async () => {
      await using nodes = make({ history: { events: 1 } });
      const after = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', '1', '2');
      await publish(nodes.publisher, 'b', '3');
      expect((await nodes.reader.read(['a', 'b'], { after })).gap).toEqual(['a']);
      for (const foreign of ['elsewhere.3', 'no cursor']) {
        const page = await nodes.reader.read(['a', 'b'], { after: foreign });
        expect([page.gap, dataOf(page.events)]).toEqual([
          ['a', 'b'],
          ['2', '3'],
        ]);
      }
      expect((await nodes.reader.read(['a', 'b'])).gap).toEqual([]);
    });

    test('a stream can continue from its cursor', async () => {
      await using nodes = make();
      await publish(nodes.publisher, 'a', '1');
      const { cursor } = await nodes.reader.read('a');
      await publish(nodes.publisher, 'a', '2');
      await using server = await serveStreams((stream) => stream.subscribe('a'), {
        channels: nodes.reader,
      });
      using reader = await read(`${server.url}?lastEventId=${cursor}`);
      expect((await reader.next()).data).toBe('2');
    });

    test.each([
      ['last with after', 'a', { last: 1, after: 'x.1' }, 'ERR_SSE_OPTION'],
      ['a limit of 0', 'a', { limit: 0 }, 'ERR_SSE_OPTION'],
      ['no channel', [], {}, 'ERR_SSE_CHANNEL_NAME'],
    ])('refuses %s', async (_what, names, options, code) => {
      await using nodes = make();
      await expect(nodes.reader.read(names, options)).rejects.toMatchObject({ code });
    });
  });
}

/** A server whose route `/` follows `a` and `b` with the given options. */
async function serveBoth(
  nodes: Nodes,
  options: Parameters<EventStream['subscribe']>[1],
): Promise<StreamServer> {
  return serveStreams((stream) => stream.subscribe(['a', 'b'], options), {
    channels: nodes.reader,
  });
}

function testLast(make: MakeNodes): void {
  describe('a reader with since: { last }', () => {
    test('starts with the newest events of each channel, then live, without a gap', async () => {
      await using nodes = make({ history: { events: 3 } });
      await publish(nodes.publisher, 'a', 'a1', 'a2', 'a3', 'a4');
      await publish(nodes.publisher, 'b', 'b1');
      await using server = await serveBoth(nodes, { since: { last: 2 } });
      using reader = await read(server.url);
      expect(dataOf(await reader.take(3))).toEqual(['a3', 'a4', 'b1']);
      await publish(nodes.publisher, 'a', 'a5');
      expect((await reader.next()).data).toBe('a5');
    });

    test('also beside a channel without history', async () => {
      await using nodes = make({ historyFor: (name) => (name === 'live' ? false : undefined) });
      await publish(nodes.publisher, 'a', '1', '2', '3');
      await using server = await serveStreams(
        (stream) => stream.subscribe(['live', 'a'], { since: { last: 1 } }),
        { channels: nodes.reader },
      );
      using reader = await read(server.url);
      await until('the events', () => dataOf(reader.events).includes('3'));
      await publish(nodes.publisher, 'live', '4');
      await until('the live event', () => dataOf(reader.events).includes('4'));
      const own = reader.events.filter(({ event }) => event === undefined);
      expect(dataOf(own)).toEqual(['3', '4']);
    });

    test('receives all kept events if there are fewer', async () => {
      await using nodes = make({ history: { events: 2 } });
      await publish(nodes.publisher, 'a', 'a1', 'a2', 'a3');
      await using server = await serveBoth(nodes, { since: { last: 1_000 } });
      using reader = await read(server.url);
      expect(dataOf(await reader.take(2))).toEqual(['a2', 'a3']);
    });

    test('resumes from its id if it sends one', async () => {
      await using nodes = make();
      const ids = await publish(nodes.publisher, 'a', 'a1', 'a2', 'a3');
      await using server = await serveBoth(nodes, { since: { last: 1 } });
      using reader = await read(`${server.url}?lastEventId=${ids[0]!}`);
      expect(dataOf(await reader.take(2))).toEqual(['a2', 'a3']);
    });
  });
}

function testMeta(make: MakeNodes): void {
  describe('meta of a publish', () => {
    test('is read by filters and never sent to clients', async () => {
      await using nodes = make();
      await using server = await serveBoth(nodes, {
        filter: ({ meta }) => (meta as { to?: string } | undefined)?.to !== 'others',
      });
      using reader = await read(server.url);
      await until('the stream', () => nodes.reader.stats().subscriptions === 2);
      await nodes.publisher.publish('a', '1', { meta: { to: 'others' } });
      await nodes.publisher.publish('a', '2', { meta: { to: 'all', secret: 'hidden\nline' } });
      await publish(nodes.publisher, 'a', '3');
      expect(dataOf(await reader.take(2))).toEqual(['2', '3']);
      expect(reader.text).not.toContain('hidden');
    });

    test.each([
      ['a function', () => {}],
      ['a promise', Promise.resolve(1)],
      ['a bigint', 1n],
      ['more than 4 KiB', 'x'.repeat(4_096)],
    ])('refuses %s', async (_what, meta) => {
      await using nodes = make();
      const published = nodes.publisher.publish('a', '1', { meta });
      await expect(published).rejects.toMatchObject({ code: 'ERR_SSE_OPTION' });
    });

    test('may contain the line separators of Unicode', async () => {
      await using nodes = make();
      const events = nodes.reader.follow('a', { since: 'start' });
      const meta = { name: 'A\u2028B\u2029C' };
      await nodes.publisher.publish('a', '1', { meta });
      const { value } = await within('the event', events.next());
      expect(value?.meta).toEqual(meta);
      await events.return?.();
    });

    test('counts in the history', async () => {
      await using nodes = make({ history: { bytes: 2_000 } });
      const meta = 'x'.repeat(1_200);
      for (const text of ['1', '2']) await nodes.publisher.publish('a', text, { meta });
      expect(dataOf((await nodes.reader.read('a')).events)).toEqual(['2']);
    });
  });
}

function testSnapshot(make: MakeNodes): void {
  /** Serves a snapshot that publishes while it runs. */
  async function serveSnapshots(nodes: Nodes): Promise<{
    server: StreamServer;
    requests: SnapshotRequest[];
  }> {
    const requests: SnapshotRequest[] = [];
    const server = await serveBoth(nodes, {
      snapshot: async (stream, request) => {
        requests.push(request);
        await publish(nodes.publisher, 'a', 'during');
        stream.send('state', 'snapshot');
      },
    });
    return { server, requests };
  }

  async function dataTo(reader: Reader, last: string): Promise<string[]> {
    while (dataOf(reader.events).at(-1) !== last) await reader.next();
    return dataOf(reader.events);
  }

  describe('a snapshot', () => {
    test('is sent to a reader without an id before every event, and nothing is missed', async () => {
      await using nodes = make();
      await publish(nodes.publisher, 'a', 'before');
      const { server, requests } = await serveSnapshots(nodes);
      await using disposed = server;
      using reader = await read(disposed.url);
      await until('the snapshot', () => reader.events.length > 0);
      await publish(nodes.publisher, 'b', 'after');
      expect(await dataTo(reader, 'after')).toEqual(['state', 'during', 'after']);
      expect(requests).toMatchObject([{ reason: 'start', channels: ['a', 'b'], lastEventId: '' }]);
      expect(nodes.reader.stats().gaps).toBe(0);
    });

    test('is sent after a gap, in place of onGap', async () => {
      await using nodes = make({ history: { events: 1 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', 'lost', 'held');
      const { server, requests } = await serveSnapshots(nodes);
      await using disposed = server;
      using reader = await read(`${disposed.url}?lastEventId=${since}`);
      expect(await dataTo(reader, 'during')).toEqual(['state', 'during']);
      expect(requests).toMatchObject([{ reason: 'gap', channels: ['a'], lastEventId: since }]);
      expect(reader.text).not.toContain('sse:gap');
    });

    test('at the start is sent once, also if the cursor of since has lost something', async () => {
      await using nodes = make({ history: { events: 1 } });
      const since = await nodes.publisher.cursor();
      await publish(nodes.publisher, 'a', 'lost', 'held');
      const reasons: string[] = [];
      await using server = await serveBoth(nodes, {
        since,
        snapshot: (stream, { reason }) => {
          reasons.push(reason);
          stream.send('state', 'snapshot');
        },
      });
      using reader = await read(server.url);
      await until('the snapshot', () => reader.events.length > 0);
      await publish(nodes.publisher, 'a', 'after');
      expect(await dataTo(reader, 'after')).toEqual(['state', 'after']);
      expect(reasons).toEqual(['start']);
      expect(reader.text).not.toContain('sse:gap');
    });

    test('is not sent to a reader that resumes without a loss', async () => {
      await using nodes = make();
      const [first] = await publish(nodes.publisher, 'a', '1', '2');
      const { server, requests } = await serveSnapshots(nodes);
      await using disposed = server;
      using reader = await read(`${disposed.url}?lastEventId=${first!}`);
      expect((await reader.next()).data).toBe('2');
      expect(requests).toEqual([]);
    });

    test('that throws ends the stream', async () => {
      await using nodes = make();
      const failure = new Error('the database is away');
      await using server = await serveBoth(nodes, { snapshot: () => Promise.reject(failure) });
      const reader = await read(server.url);
      await reader.end();
      expect(server.events.stats().closed).toEqual({ error: 1 });
      expect(server.errors.splice(0)).toEqual([failure]);
    });

    test('is refused together with onGap, and for channels without history', async () => {
      await using nodes = make({ historyFor: (name) => (name === 'x' ? false : undefined) });
      const errors: unknown[] = [];
      const snapshot = (): void => {};
      await using server = await serveStreams(
        async (stream) => {
          for (const [name, options] of [
            ['a', { snapshot, onGap: () => {} }],
            ['x', { snapshot }],
          ] as const) {
            await stream.subscribe(name, options).catch((error: unknown) => errors.push(error));
          }
        },
        { channels: nodes.reader },
      );
      using reader = await read(server.url);
      expect(reader.response.status).toBe(200);
      expect(errors).toMatchObject([{ code: 'ERR_SSE_OPTION' }, { code: 'ERR_SSE_OPTION' }]);
    });
  });
}

function testStreamMembers(make: MakeNodes): void {
  test('a subscription made by the first write of a stream starts where it asked to', async () => {
    await using nodes = make();
    const [id] = await publish(nodes.publisher, 'a', '1');
    await publish(nodes.publisher, 'b', '2');
    await using server = await serveStreams(
      async (stream) => {
        const { res } = stream;
        const write = res.write.bind(res) as (bytes: Uint8Array) => boolean;
        let isFirst = true;
        res.write = ((bytes: Uint8Array): boolean => {
          if (isFirst) {
            isFirst = false;
            void stream.subscribe('b', { since: 'start', resume: false });
          }
          return write(bytes);
        }) as typeof res.write;
        await stream.subscribe('a');
      },
      { channels: nodes.reader },
    );
    using reader = await read(`${server.url}?lastEventId=${id!}`);
    expect((await reader.next()).data).toBe('2');
  });

  test('a stream has an id, the time at which it opened, its channels, its cursor and its lag', async () => {
    await using nodes = make();
    const before = Date.now();
    await using server = await serveBoth(nodes, {});
    using reader = await read(server.url);
    const stream = server.streams[0]!;
    await until('the cursor', () => stream.cursor !== '');
    const [id] = await publish(nodes.publisher, 'a', '1');
    await reader.next();
    expect(stream.id).toMatch(/^[0-9a-f-]{36}$/);
    expect(stream.id).toBe(stream.id);
    expect(stream.openedAt!.getTime()).toBeGreaterThanOrEqual(before - 1_000);
    expect(stream.openedAt!.getTime()).toBeLessThanOrEqual(Date.now() + 1_000);
    expect([stream.channels, stream.cursor, stream.lag]).toEqual([['a', 'b'], id, 0]);
    expect([...server.events.streams].map((one) => one.id)).toEqual([stream.id]);
  });

  test('lag counts the events that a slow stream has not received', async () => {
    await using nodes = make({ history: { events: 100, bytes: 100_000_000 } });
    await using server = await serveBoth(nodes, {});
    using reader = await read(server.url);
    const stream = server.streams[0]!;
    await until('the stream', () => nodes.reader.stats().subscriptions === 2);
    // The client reads nothing until the test lets it.
    const socket = [...server.sockets][0]!;
    socket.cork();
    stream.send('x'.repeat(100_000));
    await publish(nodes.publisher, 'a', '1', '2', '3');
    await until('the lag', () => stream.lag === 3);
    socket.uncork();
    await reader.take(4);
    expect(stream.lag).toBe(0);
  });
}
