/** The promises about `channels.pipe()`, for each broker. */
import { EventEmitter, once } from 'node:events';
import { Readable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { serveStreams } from '../support/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';
import type { MakeNodes, Nodes } from './nodes.ts';

/** Reads what the history of the channel holds, to the end of the stream. */
async function readAll(nodes: Nodes, name: string): Promise<Reader> {
  await using server = await serveStreams((stream) => stream.subscribe(name, { since: 'start' }), {
    channels: nodes.reader,
  });
  const reader = await read(server.url);
  await reader.end();
  return reader;
}

async function received(nodes: Nodes, name: string): Promise<[string | undefined, string][]> {
  const { events } = await readAll(nodes, name);
  return events.map(({ event, data }) => [event, data]);
}

/** A source whose items a test gives, and that notes its release. */
class Source implements AsyncIterable<string> {
  isReleased = false;
  reads = 0;
  readonly #items = new EventEmitter();
  #next: (string | Error | undefined)[] = [];

  give(...items: (string | Error | undefined)[]): void {
    this.#next.push(...items);
    this.#items.emit('items');
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void> {
    try {
      for (;;) {
        this.reads++;
        while (this.#next.length === 0) await once(this.#items, 'items');
        const item = this.#next.shift();
        if (item instanceof Error) throw item;
        if (item === undefined) return;
        yield item;
      }
    } finally {
      this.isReleased = true;
    }
  }
}

/** An async generator of numbered items that notes its release. */
function counting(count = Infinity): {
  items: AsyncGenerator<number>;
  isReleased: boolean;
  given: number;
} {
  const source = { items: generate(), isReleased: false, given: 0 };
  async function* generate(): AsyncGenerator<number> {
    try {
      for (let n = 0; n < count; n++) {
        await nextTurn();
        source.given++;
        yield n;
      }
    } finally {
      source.isReleased = true;
    }
  }
  return source;
}

const BOOM = new Error('the source has failed');

/** Tests the promises of DESIGN 5.3 that hold with every broker. */
export function testPipe(make: MakeNodes): void {
  describe('channels.pipe()', () => {
    test.each([
      ['an array', () => ['1', '2']],
      ['a generator', () => ['1', '2'].values()],
      ['an async generator', () => Readable.from(['1', '2'])[Symbol.asyncIterator]()],
      ['a Node stream', () => Readable.from(['1', '2'])],
      ['a web stream', () => Readable.toWeb(Readable.from(['1', '2']))],
    ])('publishes the items of %s and ends the channel', async (_what, makeSource) => {
      await using nodes = make();
      const { id, events } = await nodes.publisher.pipe('a', makeSource() as Iterable<string>);
      expect(events).toBe(2);
      const reader = await readAll(nodes, 'a');
      expect(reader.events.map(({ data }) => data)).toEqual(['1', '2', '{}']);
      expect(reader.events[1]?.id).toBe(id);
      expect(await nodes.reader.state('a')).toBe('ended');
    });

    test('maps each item, and names each event', async () => {
      await using nodes = make();
      await nodes.publisher.pipe('a', [1, 2], {
        map: (item, index) => ({ item, index }),
        event: (item, index) => `e${item}${index}`,
      });
      expect((await received(nodes, 'a')).slice(0, 2)).toEqual([
        ['e10', '{"item":1,"index":0}'],
        ['e21', '{"item":2,"index":1}'],
      ]);
    });

    test('an empty source ends the channel and has no id', async () => {
      await using nodes = make();
      expect(await nodes.publisher.pipe('a', [])).toEqual({ id: '', events: 0 });
      expect(await nodes.reader.state('a')).toBe('ended');
    });

    test('with end: false the channel stays open', async () => {
      await using nodes = make();
      await nodes.publisher.pipe('a', ['1'], { end: false });
      expect(await nodes.reader.state('a')).toBe('open');
      await nodes.publisher.publish('a', '2');
    });

    test('the function end returns the last event, whose id and number are in the result', async () => {
      await using nodes = make();
      const result = await nodes.publisher.pipe('a', ['1'], {
        end: (error) => ({ event: error === undefined ? 'done' : 'failed', data: { ok: true } }),
      });
      const { events } = await readAll(nodes, 'a');
      expect(events).toMatchObject([{ data: '1' }, { event: 'done', data: '{"ok":true}' }, {}]);
      expect(result).toEqual({ id: events[1]?.id, events: 2 });
    });

    test('an error of the source ends the channel, and pipe rejects with the error', async () => {
      await using nodes = make();
      const source = new Source();
      const piped = nodes.publisher.pipe('a', source);
      source.give('1', BOOM);
      await expect(piped).rejects.toBe(BOOM);
      expect(await received(nodes, 'a')).toEqual([
        [undefined, '1'],
        ['sse:end', '{}'],
      ]);
    });

    test('also if the source rejects with undefined, the function end gets an error', async () => {
      await using nodes = make();
      const errors: unknown[] = [];
      const source = {
        [Symbol.asyncIterator]: () => ({
          // oxlint-disable-next-line typescript/prefer-promise-reject-errors -- what is tested
          next: () => Promise.reject<IteratorResult<string>>(undefined),
        }),
      };
      const piped = nodes.publisher.pipe('a', source, { end: (error) => void errors.push(error) });
      await expect(piped).rejects.toBe(undefined);
      expect(errors).toEqual([expect.any(Error)]);
    });

    test('after an error the function end gets the error', async () => {
      await using nodes = make();
      const source = new Source();
      const piped = nodes.publisher.pipe('a', source, {
        end: (error) => ({ event: 'failed', data: (error as Error).message }),
      });
      source.give('1', BOOM);
      await expect(piped).rejects.toBe(BOOM);
      expect((await received(nodes, 'a'))[1]).toEqual(['failed', BOOM.message]);
    });

    test.each([
      ['map', { map: () => raise() }],
      ['event', { event: () => raise() }],
      ['join', { every: 1, join: () => raise() }],
    ])('an error of %s releases the source and ends the channel', async (_what, options) => {
      await using nodes = make();
      const source = counting();
      await expect(nodes.publisher.pipe('a', source.items, options)).rejects.toBe(BOOM);
      await until('the release of the source', () => source.isReleased);
      expect(await nodes.reader.state('a')).toBe('ended');
    });

    test('an item that cannot be sent releases the source and ends the channel', async () => {
      await using nodes = make();
      const source = counting();
      const piped = nodes.publisher.pipe('a', source.items, {
        map: (n) => (n === 2 ? undefined : n),
      });
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_DATA' });
      await until('the release of the source', () => source.isReleased);
      expect((await received(nodes, 'a')).map(([, data]) => data)).toEqual(['0', '1', '{}']);
    });

    test('every joins the strings of a time, and what is left at the end', async () => {
      await using nodes = make();
      const source = new Source();
      const piped = nodes.publisher.pipe('a', source, { every: 30 });
      source.give('a', 'b');
      await until('the first event', async () => (await nodes.reader.state('a')) === 'open');
      source.give('c', 'd', undefined);
      expect(await piped).toMatchObject({ events: 2 });
      expect((await received(nodes, 'a')).map(([, data]) => data)).toEqual(['ab', 'cd', '{}']);
    });

    test('every publishes other items as one array, or as join returns them', async () => {
      await using nodes = make();
      await nodes.publisher.pipe('a', [1, 2], { every: 1_000 });
      await nodes.publisher.pipe('b', [1, 2], {
        every: 1_000,
        map: (n) => n * 10,
        join: (items) => ({ sum: items.reduce((sum, n) => sum + n, 0) }),
      });
      expect((await received(nodes, 'a'))[0]?.[1]).toBe('[1,2]');
      expect((await received(nodes, 'b'))[0]?.[1]).toBe('{"sum":30}');
    });

    test('signal stops the source while it waits, ends the channel and rejects', async () => {
      await using nodes = make();
      const source = new Source();
      const stop = new AbortController();
      const reason = new Error('stopped');
      const piped = nodes.publisher.pipe('a', source, { signal: stop.signal });
      source.give('1');
      await until('the first event', async () => (await nodes.reader.state('a')) === 'open');
      stop.abort(reason);
      await expect(within('pipe', piped)).rejects.toBe(reason);
      expect(await nodes.reader.state('a')).toBe('ended');
      source.give('2');
      await until('the release of the source', () => source.isReleased);
      expect((await received(nodes, 'a')).map(([, data]) => data)).toEqual(['1', '{}']);
    });

    test('signal with end: false leaves the channel open', async () => {
      await using nodes = make();
      const stop = AbortSignal.abort(BOOM);
      const piped = nodes.publisher.pipe('a', ['1'], { signal: stop, end: false });
      await expect(piped).rejects.toBe(BOOM);
      expect(await nodes.reader.state('a')).toBe('unknown');
    });

    test('an end on another node stops the source, and pipe rejects', async () => {
      await using nodes = make();
      const source = counting();
      const piped = nodes.publisher.pipe('a', source.items);
      await until('the first event', async () => (await nodes.reader.state('a')) === 'open');
      await nodes.reader.end('a', 'stopped');
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_ENDED' });
      await until('the release of the source', () => source.isReleased);
      expect((await received(nodes, 'a')).at(-2)?.[1]).toBe('stopped');
    });

    test.each<[string, () => unknown]>([
      ['throws', raise],
      ['returns an event without data', () => ({ event: 'done' })],
      ['returns a promise', async () => raise()],
    ])('a function end that %s ends the channel, and pipe rejects', async (_, end) => {
      await using nodes = make();
      await expect(nodes.publisher.pipe('a', ['1'], { end: end as never })).rejects.toBeInstanceOf(
        Error,
      );
      expect(await nodes.reader.state('a')).toBe('ended');
      expect((await received(nodes, 'a')).map(([event]) => event)).toEqual([undefined, 'sse:end']);
    });

    test('an error of the source ends the channel, also if it is one of another broker', async () => {
      await using nodes = make();
      await nodes.publisher.end('other');
      async function* source(): AsyncGenerator<string> {
        yield '1';
        await nodes.publisher.publish('other', 'late');
      }
      const piped = nodes.publisher.pipe('a', source());
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_ENDED' });
      expect(await nodes.reader.state('a')).toBe('ended');
    });

    test('functions that return a promise are refused, and its rejection is handled', async () => {
      await using nodes = make();
      const functions = { map: async () => raise(), every: 10 };
      await expect(nodes.publisher.pipe('a', ['1'], functions)).rejects.toMatchObject({
        code: 'ERR_SSE_DATA',
      });
      const event = (async () => raise()) as never;
      await expect(nodes.publisher.pipe('b', ['1'], { event })).rejects.toMatchObject({
        code: expect.stringMatching(/^ERR_SSE_(EVENT|OPTION)$/),
      });
    });

    test('a source that never waits leaves turns to other work', async () => {
      await using nodes = make();
      function* endless(): Generator<string> {
        for (;;) yield 'x';
      }
      const signal = AbortSignal.timeout(50);
      for (const every of [undefined, 10]) {
        const piped = nodes.publisher.pipe('a', endless(), { signal, every, end: false });
        await expect(piped).rejects.toHaveProperty('name', 'TimeoutError');
      }
    });

    test('a registry that closes releases the source, and pipe rejects', async () => {
      await using nodes = make();
      const source = counting();
      const piped = nodes.publisher.pipe('a', source.items);
      void piped.catch(() => {});
      await until('the first event', async () => (await nodes.reader.state('a')) === 'open');
      await nodes.publisher.close();
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
      await until('the release of the source', () => source.isReleased);
    });

    test('a registry that closes ends the channel with the last event that `end` returns', async () => {
      await using nodes = make();
      const source = counting();
      const errors: unknown[] = [];
      const piped = nodes.publisher.pipe('a', source.items, {
        end: (error) => {
          errors.push(error);
          return { event: 'failed', data: 'bye' };
        },
      });
      void piped.catch(() => {});
      await using server = await serveStreams((stream) => stream.subscribe('a'), {
        channels: nodes.reader,
      });
      using reader = await read(server.url);
      await until('the first event', () => reader.events.length > 1);
      await nodes.publisher.close();
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
      expect(errors).toMatchObject([{ code: 'ERR_SSE_CLOSED' }]);
      await within('the end of the stream', reader.end());
      // A registry ends its own streams as soon as they have received the last event.
      const last = reader.events.findLast(({ event }) => event !== 'sse:end');
      expect(last).toMatchObject({ event: 'failed', data: 'bye' });
      await until('the release of the source', () => source.isReleased);
      await expect(nodes.publisher.publish('a', 'late')).rejects.toMatchObject({
        code: 'ERR_SSE_CLOSED',
      });
    });

    test('a channel without history is refused, unless end is false', async () => {
      await using nodes = make({ history: false });
      await expect(nodes.publisher.pipe('a', ['1'])).rejects.toMatchObject({
        code: 'ERR_SSE_OPTION',
      });
      const piped = nodes.publisher.pipe('a', ['1'], { end: false });
      expect(await piped).toEqual({ id: '', events: 1 });
    });

    test('a value that is not a source is refused, and the channel does not change', async () => {
      await using nodes = make();
      const piped = nodes.publisher.pipe('a', 7 as never);
      await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_SOURCE' });
      expect(await nodes.reader.state('a')).toBe('unknown');
    });
  });
}

function raise(): never {
  throw BOOM;
}
