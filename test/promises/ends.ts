/** The promises about channels that end, for each broker. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { describe, expect, test } from 'vitest';
import type { Subscription } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { read, readMany, type Reader } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import type { MakeNodes, Nodes } from './nodes.ts';

const END = { event: 'sse:end', data: '{}', id: 'sse:end' };

/** A server whose route `/` follows the channels `a` and `b`, or those of the query. */
async function serveNodes({ reader }: Nodes): Promise<StreamServer> {
  const server = await serveStreams(() => {}, { channels: reader });
  server.app.get(
    '/listen',
    reader.listen((req) => {
      const { names, id } = req.query as { names?: string; id?: string };
      if (id === 'forbidden') return null;
      return names?.split(',');
    }),
  );
  return server;
}

function listen(server: StreamServer, names: string, lastEventId = ''): Promise<Reader> {
  const headers: Record<string, string> =
    lastEventId === '' ? {} : { 'Last-Event-ID': lastEventId };
  return read(`${server.url}/listen?names=${names}`, { headers });
}

function texts(reader: Reader): string[] {
  return reader.events.map(({ data }) => data);
}

/** Resolves when the stream has ended. */
async function readToEnd(reader: Reader): Promise<Reader> {
  await reader.end();
  return reader;
}

/** Tests the promises of DESIGN 5.2. */
export function testEnds(make: MakeNodes): void {
  describe('a stream of a channel that ends', () => {
    test('receives the last event and sse:end, and is closed with final', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      using reader = await listen(server, 'a');
      await nodes.publisher.publish('a', 'first');
      await nodes.publisher.end('a', 'last', { event: 'done' });
      await reader.end();
      expect(reader.events).toMatchObject([
        { data: 'first' },
        { event: 'done', data: 'last' },
        END,
      ]);
      expect(server.events.stats().closed.final).toBe(1);
    });

    test('that comes later receives the history and sse:end', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      const { id } = await nodes.publisher.publish('a', 'first');
      await nodes.publisher.publish('a', 'second');
      await nodes.publisher.end('a');
      const reader = await readToEnd(await listen(server, 'a', id));
      expect(texts(reader)).toEqual(['second', '{}']);
    });

    test("that starts at 'now' receives 200 and sse:end", async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      await nodes.publisher.end('a', 'last');
      const reader = await readToEnd(await listen(server, 'a'));
      expect(reader.response.status).toBe(200);
      expect(reader.events).toMatchObject([END]);
    });

    test('stays open until all of its channels have ended', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      using reader = await listen(server, 'a,b');
      await nodes.publisher.end('a', 'last of a');
      await nodes.publisher.publish('b', 'first of b');
      await reader.take(2);
      expect(reader.ended).toBe(false);
      await nodes.publisher.end('b', 'last of b');
      await reader.end();
      expect(texts(reader)).toEqual(['last of a', 'first of b', 'last of b', '{}']);
    });

    test('ends when it unsubscribes from the only channel that has not ended', async () => {
      await using nodes = make();
      let open: Subscription | undefined;
      await using server = await serveStreams(
        async (stream) => {
          await stream.subscribe('b');
          open = await stream.subscribe('a');
        },
        { channels: nodes.reader },
      );
      using reader = await read(server.url);
      await until('both subscriptions', () => open !== undefined);
      await nodes.publisher.end('b', 'last of b');
      await reader.take(1);
      expect(reader.ended).toBe(false);
      open?.unsubscribe();
      await reader.end();
      expect(texts(reader)).toEqual(['last of b', '{}']);
    });

    test('gets a gap for the events that the history has lost before its end', async () => {
      await using nodes = make({ history: { events: 1 } });
      await using server = await serveNodes(nodes);
      const { id } = await nodes.publisher.publish('a', 'first');
      await nodes.publisher.publish('a', 'second');
      await nodes.publisher.end('a');
      const reader = await readToEnd(await listen(server, 'a', id));
      expect(reader.events).toMatchObject([{ event: 'sse:gap' }, END]);
    });

    test('receives the newest event of a newest-only channel', async () => {
      await using nodes = make({ history: { latest: true } });
      await using server = await serveNodes(nodes);
      const { id } = await nodes.publisher.publish('a', 'first');
      await nodes.publisher.publish('a', 'second');
      await nodes.publisher.end('a');
      const reader = await readToEnd(await listen(server, 'a', id));
      expect(texts(reader)).toEqual(['second', '{}']);
    });

    test('a thousand streams of one channel receive its last event and its end', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      const readers = await readMany(1_000, () => listen(server, 'a'));
      await nodes.publisher.end('a', 'last');
      await Promise.all(readers.map((reader) => reader.end()));
      for (const reader of readers) expect(texts(reader)).toEqual(['last', '{}']);
      expect(server.events.stats().closed).toEqual({ final: 1_000 });
    });
  });

  describe('a request to a channel that has ended', () => {
    test('is answered 204 if only the end follows its id', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      const { id } = await nodes.publisher.publish('a', 'last');
      const end = await nodes.publisher.end('a');
      for (const lastEventId of [id, end.id]) {
        const reader = await listen(server, 'a', lastEventId);
        expect(reader.response.status).toBe(204);
      }
      expect(server.events.stats()).toMatchObject({ open: 0, opened: 0 });
    });

    test('is answered 204 only if all of its channels have ended', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      await nodes.publisher.publish('b', 'first of b');
      const { id } = await nodes.publisher.end('a');
      using reader = await listen(server, 'a,b', id);
      expect(reader.response.status).toBe(200);
      await nodes.publisher.end('b');
      // The node of the readers has received the end of `b`.
      await reader.end();
      expect((await listen(server, 'a,b', id)).response.status).toBe(204);
    });

    test('is answered 204 by res.sse.subscribe, too', async () => {
      await using nodes = make();
      await using server = await serveStreams((stream) => stream.subscribe('a'), {
        channels: nodes.reader,
      });
      const { id } = await nodes.publisher.end('a');
      const response = await fetch(server.url, {
        headers: { Accept: 'text/event-stream', 'Last-Event-ID': id },
      });
      expect(response.status).toBe(204);
      expect(nodes.reader.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
    });

    test('is answered 204, and the handler may still use the stream', async () => {
      await using nodes = make();
      const results: unknown[] = [];
      await using server = await serveStreams(
        async (stream) => {
          await stream.subscribe('a');
          const { cursor } = await stream.subscribe('b');
          results.push(stream.readyState, cursor, stream.send('late'), await stream.closed);
        },
        { channels: nodes.reader },
      );
      const { id } = await nodes.publisher.end('a');
      using reader = await read(server.url, { headers: { 'Last-Event-ID': id } });
      expect(reader.response.status).toBe(204);
      await until('the results', () => results.length > 0);
      expect(results).toEqual([2, '', false, 'final']);
    });

    test('receives a gap and sse:end if its id is of another log', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      await nodes.publisher.end('a', 'last');
      const reader = await readToEnd(await listen(server, 'a', 'elsewhere.7'));
      expect(reader.events).toMatchObject([{ event: 'sse:gap' }, { data: 'last' }, END]);
    });
  });

  describe('a channel that has ended', () => {
    test('refuses every publish, and the stream that follows it receives nothing more', async () => {
      await using nodes = make();
      await nodes.publisher.publish('a', 'first', { key: 'k' });
      const { id } = await nodes.publisher.end('a');
      for (const node of [nodes.publisher, nodes.reader]) {
        await expect(node.publish('a', 'more')).rejects.toMatchObject({
          code: 'ERR_SSE_ENDED',
          delivery: 'none',
        });
        await expect(node.end('a', 'more')).rejects.toMatchObject({ code: 'ERR_SSE_ENDED' });
        expect(await node.end('a')).toEqual({ id });
      }
    });

    test('resolves a publish whose key was published before with the first id', async () => {
      await using nodes = make();
      const published = await nodes.publisher.publish('a', 'first', { key: 'k' });
      const ended = await nodes.publisher.end('a', 'last', { key: 'end' });
      expect(await nodes.reader.publish('a', 'first', { key: 'k' })).toEqual(published);
      expect(await nodes.reader.end('a', 'last', { key: 'end' })).toEqual(ended);
    });

    test('can be used again after clear()', async () => {
      await using nodes = make();
      await using server = await serveNodes(nodes);
      await nodes.publisher.end('a', 'last');
      await nodes.publisher.clear('a');
      using reader = await listen(server, 'a');
      await nodes.publisher.publish('a', 'again');
      expect((await reader.next()).data).toBe('again');
      expect(reader.ended).toBe(false);
    });

    test('is unknown and can be used again when its end exceeds its age', async () => {
      await using nodes = make({ history: { age: 50 } });
      await nodes.publisher.end('a', 'last');
      await until('the state', async () => (await nodes.reader.state('a')) === 'unknown');
      await nodes.publisher.publish('a', 'again');
      expect(await nodes.reader.state('a')).toBe('open');
    });

    test('is unknown when the registry has forgotten it', async () => {
      await using nodes = make({ maxChannels: 1 });
      await nodes.publisher.end('a', 'last');
      await nodes.publisher.publish('b', 'first');
      expect(await nodes.reader.state('a')).toBe('unknown');
    });
  });

  test('state() is the same on every node', async () => {
    await using nodes = make();
    const states = async (): Promise<string[]> =>
      Promise.all([nodes.publisher, nodes.reader].map((node) => node.state('a')));
    expect(await states()).toEqual(['unknown', 'unknown']);
    await nodes.publisher.publish('a', 'first');
    expect(await states()).toEqual(['open', 'open']);
    await nodes.publisher.end('a');
    expect(await states()).toEqual(['ended', 'ended']);
    await nodes.publisher.clear('a');
    expect(await states()).toEqual(['unknown', 'unknown']);
  });

  test('events of one process and the end are appended in the order of the calls', async () => {
    await using nodes = make();
    const [first, end, late] = await Promise.allSettled([
      nodes.publisher.publish('a', 'first'),
      nodes.publisher.end('a', 'last'),
      nodes.publisher.publish('a', 'late'),
    ]);
    expect([first.status, end.status, late.status]).toEqual(['fulfilled', 'fulfilled', 'rejected']);
  });

  test.each([
    ['a channel without history', { history: false as const }, 'x', {}, 'ERR_SSE_OPTION'],
    ['an event name without data', {}, undefined, { event: 'done' }, 'ERR_SSE_DATA'],
    ['a reserved event name', {}, 'x', { event: 'sse:end' }, 'ERR_SSE_EVENT'],
    ['an unknown option', {}, 'x', { retry: 5 }, 'ERR_SSE_OPTION'],
    ['a promise as data', {}, Promise.resolve(1), {}, 'ERR_SSE_DATA'],
  ])('end() refuses %s', async (_what, options, data, endOptions, code) => {
    await using nodes = make(options);
    const ended = nodes.publisher.end('a', data as string, endOptions as { event: string });
    await expect(ended).rejects.toMatchObject({ code });
    expect(await nodes.publisher.state('a')).toBe('unknown');
  });

  test('listen() answers 404 if its function returns undefined, and 403 for null', async () => {
    await using nodes = make();
    await using server = await serveNodes(nodes);
    const headers = { Accept: 'text/event-stream, application/json;q=0.9' };
    const unknown = await fetch(`${server.url}/listen`, { headers: { ...headers } });
    expect(unknown.status).toBe(404);
    const forbidden = await fetch(`${server.url}/listen?id=forbidden`, { headers });
    expect(forbidden.status).toBe(403);
  });

  test('res-sse:end publishes the channel, the id and the reason', async () => {
    await using nodes = make();
    const messages: unknown[] = [];
    const note = (message: unknown): void => void messages.push(message);
    subscribe('res-sse:end', note);
    const { id } = await nodes.publisher.end('a', 'last');
    unsubscribe('res-sse:end', note);
    expect(messages).toEqual([{ channel: 'a', id, reason: 'ended' }]);
  });
}
