import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import { ReadableStream, type ReadableStreamDefaultController } from 'node:stream/web';
import { describe, expect, test } from 'vitest';
import { SseError, type EventStream, type PipeSource } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { dial, requestText } from './support/server.ts';
import { until, within } from './support/wait.ts';

const never = new Promise<never>(() => {});

describe('pipe sends each item of', () => {
  test.each<[string, () => PipeSource<unknown>]>([
    ['an array', () => ['a', 'b', 'c']],
    ['an array of promises', () => [Promise.resolve('a'), 'b', Promise.resolve('c')]],
    ['a set', () => new Set(['a', 'b', 'c'])],
    [
      'a generator',
      () =>
        (function* () {
          yield* ['a', 'b', 'c'];
        })(),
    ],
    [
      'an async generator',
      () =>
        (async function* () {
          yield* ['a', 'b', 'c'];
        })(),
    ],
    ['a web ReadableStream', () => ReadableStream.from(['a', 'b', 'c'])],
    ['a Node Readable', () => Readable.from(['a', 'b', 'c'])],
  ])('%s', async (_, source) => {
    await using server = await serveStreams(async (stream) => {
      await stream.pipe(source());
      expect(stream.readyState).toBe(1);
      stream.close();
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events.map((event) => event.data)).toEqual(['a', 'b', 'c']);
  });

  test('with event, id and data from the item and its index', async () => {
    await using server = await serveStreams(async (stream) => {
      await stream.pipe([{ n: 5 }, { n: 6 }], {
        event: 'tick',
        id: (item, index) => `${index}:${item.n}`,
        map: (item, index) => item.n * 10 + index,
      });
      await stream.pipe(['x', 'y'], { event: (item) => (item === 'x' ? 'ex' : undefined), id: 9 });
      stream.close();
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events).toEqual([
      { event: 'tick', id: '0:5', data: '50' },
      { event: 'tick', id: '1:6', data: '61' },
      { event: 'ex', id: '9', data: 'x' },
      { event: undefined, id: '9', data: 'y' },
    ]);
  });
});

/** Pipes to a client that disconnects when the source is asked for its second item. */
async function leaveDuring(
  makeSource: (asked: () => void) => PipeSource<unknown>,
): Promise<unknown> {
  let asked = false;
  let outcome: unknown;
  await using server = await serveStreams((stream) => {
    stream.pipe(makeSource(() => (asked = true))).then(
      () => (outcome = 'resolved'),
      (error: unknown) => (outcome = error),
    );
  });
  const reader = await read(server.url);
  await reader.next();
  await until('the second pull', () => asked);
  reader.close();
  await until('pipe to settle', () => outcome !== undefined);
  return outcome;
}

describe('when the client disconnects while the next item is awaited, pipe resolves at once and', () => {
  test("calls the iterator's return()", async () => {
    let returned = 0;
    const outcome = await leaveDuring((asked) => {
      let pulls = 0;
      return {
        [Symbol.asyncIterator]: () => ({
          next: () => {
            if (++pulls === 1) return Promise.resolve({ done: false, value: 'a' });
            asked();
            return never;
          },
          return: () => {
            returned++;
            return never;
          },
        }),
      };
    });
    expect(outcome).toBe('resolved');
    expect(returned).toBe(1);
  });

  test('lets a generator that observes the signal run its finally', async () => {
    let cleaned = false;
    await using server = await serveStreams(async (stream) => {
      await stream.pipe(
        (async function* () {
          try {
            yield 'a';
            await new Promise((_, reject) =>
              stream.signal.addEventListener('abort', () => reject(stream.signal.reason as Error)),
            );
          } finally {
            cleaned = true;
          }
        })(),
      );
    });
    const reader = await read(server.url);
    await reader.next();
    reader.close();
    await until('the finally block', () => cleaned);
  });

  test('cancels a web stream', async () => {
    let cancelled = 0;
    const outcome = await leaveDuring((asked) => {
      let pulls = 0;
      return new ReadableStream(
        {
          pull: (controller) => {
            if (++pulls === 1) return controller.enqueue('a');
            asked();
            return never;
          },
          cancel: () => {
            cancelled++;
            throw new Error('too late to matter');
          },
        },
        { highWaterMark: 0 },
      );
    });
    expect(outcome).toBe('resolved');
    expect(cancelled).toBe(1);
  });

  test('destroys a Node stream', async () => {
    let source: Readable | undefined;
    const outcome = await leaveDuring((asked) => {
      let pulls = 0;
      source = new Readable({
        objectMode: true,
        highWaterMark: 1,
        read() {
          if (++pulls === 1) this.push('a');
          else asked();
        },
      });
      return source;
    });
    expect(outcome).toBe('resolved');
    expect(source?.destroyed).toBe(true);
  });

  test('ignores a later rejection of the source', async () => {
    let fail: ((error: Error) => void) | undefined;
    const unhandled: unknown[] = [];
    const note = (error: unknown): void => void unhandled.push(error);
    process.on('unhandledRejection', note);
    const outcome = await leaveDuring((asked) => {
      let pulls = 0;
      return {
        [Symbol.asyncIterator]: () => ({
          next: () => {
            if (++pulls === 1) return Promise.resolve({ done: false, value: 'a' });
            asked();
            return new Promise<never>((_, reject) => (fail = reject));
          },
          return: () => Promise.reject(new Error('return failed, too')),
        }),
      };
    });
    expect(outcome).toBe('resolved');
    fail?.(new Error('late'));
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
    process.off('unhandledRejection', note);
    expect(unhandled).toEqual([]);
  });
});

describe('a source that ends the stream itself while it makes an item', () => {
  const generators: [
    string,
    (end: () => void, note: (what: string) => void) => PipeSource<unknown>,
  ][] = [
    [
      'a generator runs its finally',
      function* (end, note) {
        try {
          for (let item = 0; ; item++) {
            if (item === 2) end();
            yield item;
          }
        } finally {
          note('finally');
        }
      },
    ],
    [
      'a generator of a promise that never settles runs its finally',
      function* (end, note) {
        try {
          end();
          yield never;
        } finally {
          note('finally');
        }
      },
    ],
    [
      'an async generator runs its finally',
      async function* (end, note) {
        try {
          end();
          yield 0;
          await never;
        } finally {
          note('finally');
        }
      },
    ],
    [
      'an iterator is returned once',
      (end, note) => ({
        [Symbol.iterator]: () => ({
          next: () => {
            end();
            return { done: false, value: 0 };
          },
          return: () => {
            note('finally');
            return { done: true, value: undefined };
          },
        }),
      }),
    ],
  ];

  test.each(generators)('%s', async (_, make) => {
    const noted: string[] = [];
    await using server = await serveStreams(async (given) => {
      given.open();
      await given.pipe(
        make(
          () => given.close(),
          (what) => noted.push(what),
        ),
      );
      noted.push('resolved');
    });
    using reader = await read(server.url);
    await reader.end();
    await until('the source to be let go of', () => noted.includes('finally'));
    await until('pipe() to resolve', () => noted.includes('resolved'));
    expect(noted).toHaveLength(2);
  });

  test('an iterator that is done is not returned', async () => {
    const noted: string[] = [];
    await using server = await serveStreams(async (given) => {
      given.open();
      await given.pipe({
        [Symbol.iterator]: () => ({
          next: () => {
            given.close();
            return { done: true, value: undefined };
          },
          return: () => {
            noted.push('returned');
            return { done: true, value: undefined };
          },
        }),
      });
      noted.push('resolved');
    });
    using reader = await read(server.url);
    await reader.end();
    await until('pipe() to resolve', () => noted.includes('resolved'));
    expect(noted).toEqual(['resolved']);
  });
});

test('pipe to a client that has disconnected releases the source without reading from it', async () => {
  let pulled = 0;
  let returned = 0;
  const source = {
    [Symbol.asyncIterator]: () => ({
      next: () => (pulled++, never),
      return: async () => (returned++, { done: true as const, value: undefined }),
    }),
  };
  await using server = await serveStreams((stream) => stream.open());
  const reader = await read(server.url);
  await until('the stream', () => server.streams.length === 1);
  const stream = server.streams[0] as EventStream;
  reader.close();
  await stream.closed;
  await within('pipe', stream.pipe(source));
  expect([pulled, returned]).toEqual([0, 1]);
});

test('an error of a Node stream that is being destroyed is ignored', async () => {
  const uncaught: unknown[] = [];
  const note = (error: unknown): void => void uncaught.push(error);
  process.on('uncaughtException', note);
  await using server = await serveStreams((stream) => stream.open());
  const reader = await read(server.url);
  await until('the stream', () => server.streams.length === 1);
  const stream = server.streams[0] as EventStream;
  reader.close();
  await stream.closed;
  const missing = createReadStream('/there/is/no/such/file');
  await within('pipe', stream.pipe(missing));
  const failing = new Readable({
    read() {},
    destroy: (_error, done) => done(new Error('cannot be destroyed')),
  });
  await within('pipe', stream.pipe(failing));
  await until('both to be destroyed', () => missing.closed && failing.closed);
  process.off('uncaughtException', note);
  expect(uncaught).toEqual([]);
});

test.each(['end', 'destroy'] as const)(
  'pipe stops when the application calls res.%s() itself',
  async (how) => {
    let pulled = 0;
    await using server = await serveStreams((stream) => {
      stream.open();
      void stream.pipe(
        (function* () {
          for (;;) {
            if (++pulled === 10) stream.res[how]();
            yield 'x';
          }
        })(),
      );
    });
    using reader = await read(server.url);
    await reader.end();
    await until('the stream to end', () => server.events.streams.size === 0);
    expect(pulled).toBeLessThan(20);
  },
);

test('an iterable is released if the promise of an item rejects', async () => {
  let finished = false;
  let error: unknown;
  await using server = await serveStreams(async (stream) => {
    const source = (function* () {
      try {
        yield Promise.reject(new Error('broken item'));
        yield 'never';
      } finally {
        finished = true;
      }
    })();
    await stream.pipe(source).catch((reason: unknown) => (error = reason));
  });
  using reader = await read(server.url);
  await until('the head', () => reader.text !== '');
  expect([finished, error]).toEqual([true, new Error('broken item')]);
});

test('pipe rejects unknown options', async () => {
  await using server = await serveStreams((stream) => stream.pipe(['a'], { evnt: 'x' } as object));
  using reader = await read(server.url);
  expect(reader.response.status).toBe(500);
  expect(server.errors.splice(0)).toEqual([expect.objectContaining({ code: 'ERR_SSE_OPTION' })]);
});

test('pipe reads no faster than the client', async () => {
  let pulled = 0;
  await using server = await serveStreams(
    (stream) => {
      void stream.pipe(
        (function* () {
          for (;;) yield `${++pulled}:${'x'.repeat(10_000)}`;
        })(),
      );
    },
    { stallTimeout: false },
  );
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  let before = -1;
  await until('the source to pause', async () => {
    const same = before === pulled;
    before = pulled;
    await new Promise((resolve) => setTimeout(resolve, 100));
    return same && pulled > 0;
  });
  const stream = server.streams[0] as EventStream;
  // At most 64 KiB and one item are queued here. The kernel has accepted all other items.
  expect(stream.bufferedAmount).toBeGreaterThan(65_536 - 20_000);
  expect(stream.bufferedAmount).toBeLessThan(65_536 + 20_000);
  let received = 0;
  socket.on('data', (chunk) => (received += chunk.length));
  socket.resume();
  await until('the source to continue', () => pulled > before + 100 && received > before * 10_000);
  socket.destroy();
  await until('the stream to end', () => server.events.streams.size === 0);
  const last = pulled;
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
  expect(pulled).toBe(last);
});

describe('pipe rejects', () => {
  test.each<[string, () => PipeSource<unknown>]>([
    [
      'a generator',
      () =>
        (function* () {
          yield 'a';
          throw new Error('broken source');
        })(),
    ],
    [
      'an async generator',
      () =>
        (async function* () {
          yield 'a';
          throw new Error('broken source');
        })(),
    ],
    [
      'a web stream',
      () =>
        new ReadableStream<string>(
          {
            pull: (() => {
              let pulls = 0;
              return (controller: ReadableStreamDefaultController<string>) => {
                if (++pulls === 1) controller.enqueue('a');
                else controller.error(new Error('broken source'));
              };
            })(),
          },
          { highWaterMark: 0 },
        ),
    ],
    [
      'a Node stream',
      () =>
        Readable.from(
          (async function* () {
            yield 'a';
            throw new Error('broken source');
          })(),
        ),
    ],
  ])("with the source's own error: %s", async (_, source) => {
    let error: unknown;
    await using server = await serveStreams(async (stream) => {
      await stream.pipe(source()).catch((reason: unknown) => (error = reason));
      stream.send('the stream goes on');
    });
    using reader = await read(server.url);
    expect((await reader.take(2)).map((event) => event.data)).toEqual(['a', 'the stream goes on']);
    expect(error).toEqual(new Error('broken source'));
  });

  test('with an SseError for an item that cannot be sent, and releases the source', async () => {
    let finished = false;
    await using server = await serveStreams(async (stream) => {
      await stream.pipe(
        (function* () {
          try {
            yield 'a';
            yield undefined;
          } finally {
            finished = true;
          }
        })(),
      );
    });
    using reader = await read(server.url);
    await reader.end();
    expect(server.errors.splice(0)).toEqual([expect.objectContaining({ code: 'ERR_SSE_DATA' })]);
    expect(finished).toBe(true);
  });

  test.each([
    ['a string, whose letters nobody means', 'text'],
    ['nothing', undefined],
    ['an object that is no source', {}],
  ])('%s', async (_, source) => {
    await using server = await serveStreams(async (stream) => {
      await stream.pipe(source as never);
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.response.status).toBe(500);
    const [error] = server.errors.splice(0) as [SseError];
    expect(error).toBeInstanceOf(SseError);
    expect(error.code).toBe('ERR_SSE_SOURCE');
  });
});

test('a Node stream of bytes is rejected with a hint, and destroyed', async () => {
  const source = Readable.from([Buffer.from('a')]);
  await using server = await serveStreams((stream) => stream.pipe(source));
  using reader = await read(server.url);
  await reader.end();
  expect(server.errors.splice(0)).toEqual([
    expect.objectContaining({
      code: 'ERR_SSE_DATA',
      message: expect.stringContaining('encode bytes first'),
    }),
  ]);
  await until('the source to be destroyed', () => source.destroyed);
});
