/** Middleware and applications that wrap `write()` and `end()` of a response. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { createServer, type ServerResponse } from 'node:http';
import { connect } from 'node:net';
import { PassThrough } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { sse, type EventStream, type SseMiddleware } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { listening } from './support/server.ts';
import { until, within } from './support/wait.ts';

test('a wrapped end() or destroy() that throws affects no other stream', async () => {
  const events = sse({ heartbeat: 20, maxLifetime: 300 });
  const streams: EventStream[] = [];
  await using server = await listening(
    createServer((req, res) =>
      events(req, res, () => {
        if (req.url === '/bad') {
          res.end = () => {
            throw new Error('wrapped end');
          };
        }
        streams.push((res as { sse?: EventStream }).sse?.open() as EventStream);
      }),
    ),
  );
  using bad = await read(`${server.url}/bad`);
  using good = await read(`${server.url}/good`);
  const [first, second] = streams as [EventStream, EventStream];
  expect(await within('its end', first.closed)).toBe('aged');
  expect(await within('its end', second.closed)).toBe('aged');
  await good.end();
  using later = await read(`${server.url}/good`);
  await until('heartbeats', () => later.comments.length > 2);
  expect(bad.response.status).toBe(200);
});

test('a wrapped write() that sends, closes or ends inside a large event neither loses nor repeats bytes', async () => {
  for (const [act, expected] of [
    [(stream: EventStream) => void stream.send('own'), ['x', 'last', 'own']],
    [(stream: EventStream) => void stream.close(), ['x', 'last']],
    [(stream: EventStream) => void stream.res.end(), ['x', 'last']],
    [(stream: EventStream) => void stream.res.write('data: own\n\n'), ['x', 'last', 'own']],
  ] as const) {
    const events = sse({ maxBuffered: 10_000_000 });
    await using server = await listening(
      createServer((req, res) => {
        const write = res.write.bind(res);
        // The number of writes in one turn depends on the version of Node.
        let writesAfterLast: number | undefined;
        res.write = ((...args: Parameters<typeof write>) => {
          const answer = write(...args);
          if (writesAfterLast !== undefined && ++writesAfterLast === 2) {
            act((res as { sse?: EventStream }).sse as EventStream);
          }
          return answer;
        }) as typeof res.write;
        events(req, res, () => {
          const { sse: stream } = res as { sse?: EventStream };
          stream?.send('x'.repeat(600_000));
          stream?.send('last');
          writesAfterLast = 0;
        });
      }),
    );
    using reader = await read(server.url);
    await until('all events', () => reader.events.length === expected.length || reader.ended);
    expect(reader.events.map(({ data }) => (data.length > 10 ? 'x' : data))).toEqual(expected);
  }
});

describe('a wrapped write that acts before it passes a piece of a large event on', () => {
  /** Sends a large event and `last`; the wrapper acts on the next piece. @returns the body */
  async function bodyOf(act: (res: ServerResponse) => void, closes: boolean): Promise<string> {
    const errors: unknown[] = [];
    const events = sse({ onError: (error) => void errors.push(error) });
    await using server = await listening(
      createServer((req, res) => {
        const write = res.write.bind(res);
        // How many pieces `send` passes on at once depends on the version of Node.
        let isDue = false;
        res.write = ((...args: Parameters<typeof write>) => {
          if (isDue) {
            isDue = false;
            act(res);
          }
          return write(...args);
        }) as typeof res.write;
        events(req, res, () => {
          const { sse: stream } = res as { sse?: EventStream };
          stream?.open();
          setImmediate(() => {
            stream?.send('x'.repeat(200_000));
            stream?.send('last');
            isDue = true;
            if (closes) stream?.close();
            else void stream?.drained().then(() => stream.close());
          });
        });
      }),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    const body = await within('the end of the response', response.text());
    expect(errors).toEqual([]);
    return body;
  }

  const whole = `:\ndata: ${'x'.repeat(200_000)}\n\ndata: last\n\n`;

  test.each([
    [1, true],
    [1, false],
    [2, true],
    [2, false],
  ])('by res.write(), %i times: no piece is lost, closed: %s', async (times, closes) => {
    const body = await bodyOf((res) => {
      for (let count = 0; count < times; count++) res.write('own');
    }, closes);
    // The bytes of the application come first, and the pieces keep their order.
    expect(body.replace('own'.repeat(times), '')).toBe(whole);
  });

  test.each([true, false])('by res.end(): the end comes last, closed: %s', async (closes) => {
    let finished = 0;
    const body = await bodyOf((res) => void res.end('own', () => finished++), closes);
    expect(body).toBe(`${whole}own`);
    expect(finished).toBe(1);
  });
});

describe('a wrapped write that is called back before it passes its bytes on keeps the order when it', () => {
  const large = Array.from({ length: 6 }, (_, index) => `${index}`.repeat(8_000)).join(';');

  /** Each run of a digit as the digit and its length, so that a failure can be read. */
  function abbreviated(text: string): string {
    return text.replaceAll(/(\d)\1{3,}/g, (run, digit: string) => `<${digit} ${run.length} times>`);
  }

  /** @returns the text behind FIRST, if the wrapper acts once, on the bytes that match */
  async function receivedBehindFirst(
    data: string,
    marked: string,
    act: (stream: EventStream, events: SseMiddleware) => void,
  ): Promise<string> {
    const errors: unknown[] = [];
    const events = sse({ onError: (error) => void errors.push(error) });
    let stream: EventStream | undefined;
    await using server = await listening(
      createServer((req, res) => {
        const write = res.write.bind(res);
        let hasActed = false;
        res.write = ((...args: Parameters<typeof write>) => {
          if (!hasActed && String(args[0]).includes(marked)) {
            hasActed = true;
            act(stream as EventStream, events);
          }
          return write(...args);
        }) as typeof res.write;
        events(req, res, () => {
          stream = (res as { sse?: EventStream }).sse;
          stream?.send('FIRST');
        });
      }),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    stream?.send(data);
    stream?.close();
    const text = await within('the end of the response', response.text());
    expect(errors).toEqual([]);
    return text.slice(':\ndata: FIRST\n\n'.length);
  }

  const actions: [string, (stream: EventStream, events: SseMiddleware) => void, string][] = [
    [
      'calls closeWhere()',
      (_, events) => events.closeWhere(() => true, { retry: 7 }),
      'retry: 7\n',
    ],
    [
      'closes the middleware',
      (_, events) => void events.close({ within: 0, retry: 7 }),
      'retry: 7\n',
    ],
    ['closes its stream', (stream) => stream.close({ retry: 7 }), 'retry: 7\n'],
    ['sends', (stream) => stream.send('own'), 'data: own\n\n'],
    ["emits 'drain'", (stream) => stream.res.emit('drain'), ''],
  ];

  test.each(actions)('%s, in a small event', async (_, act, last) => {
    const text = await receivedBehindFirst('SECOND', 'SECOND', act);
    expect(text).toBe(`data: SECOND\n\n${last}`);
  });

  test.each(actions)('%s, in a large event', async (_, act, last) => {
    const text = await receivedBehindFirst(large, '222', act);
    expect(abbreviated(text)).toBe(abbreviated(`data: ${large}\n\n${last}`));
  });

  test.each<[string, (stream: EventStream) => void, string]>([
    [
      'writes to the response',
      (stream) => void stream.res.write(': own\n\n'),
      ': own\n\ndata: SECOND\n\n',
    ],
    [
      'sends, and writes to the response',
      (stream) => void (stream.send('sent'), stream.res.write(': own\n\n')),
      ': own\n\ndata: SECOND\n\ndata: sent\n\n',
    ],
    [
      'ends the response',
      (stream) => void stream.res.end('data: bye\n\n'),
      'data: SECOND\n\ndata: bye\n\n',
    ],
    [
      'sends, and ends the response',
      (stream) => void (stream.send('sent'), stream.res.end('data: bye\n\n')),
      'data: SECOND\n\ndata: sent\n\ndata: bye\n\n',
    ],
  ])('%s, in a small event', async (_, act, expected) => {
    expect(await receivedBehindFirst('SECOND', 'SECOND', act)).toBe(expected);
  });

  test("emits 'drain' and answers false each time", async () => {
    // The monitor of the streams, which would continue with the queue, does not run.
    vi.useFakeTimers({ toFake: ['setInterval'] });
    onTestFinished(() => void vi.useRealTimers());
    const events = sse({ heartbeat: false });
    let stream: EventStream | undefined;
    await using server = await listening(
      createServer((req, res) => {
        const write = res.write.bind(res);
        res.write = ((...args: Parameters<typeof write>) => {
          res.emit('drain');
          write(...args);
          return false;
        }) as typeof res.write;
        events(req, res, () => {
          stream = (res as { sse?: EventStream }).sse;
          stream?.open();
        });
      }),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    for (let count = 0; count < 4; count++) stream?.send(large);
    stream?.close();
    const expected = `:\n${`data: ${large}\n\n`.repeat(4)}`;
    expect(abbreviated(await within('all events', response.text()))).toBe(abbreviated(expected));
  });
});

describe('a wrapped write while the stream is open', () => {
  type Write = (...args: unknown[]) => boolean;

  /** Replaces `res.write()`. @returns the method that was there before */
  function wrap(res: ServerResponse, wrapper: (chunk: unknown, write: Write) => boolean): void {
    // oxlint-disable-next-line typescript/unbound-method -- called with the response as `this`
    const { write } = res;
    const before: Write = (...args) => Reflect.apply(write, res, args) as boolean;
    res.write = ((chunk: unknown) => wrapper(chunk, before)) as typeof res.write;
  }

  /** Serves a stream whose response is prepared before it opens. @returns its body */
  async function bodyOf(
    prepare: (res: ServerResponse) => void,
    act: (stream: EventStream) => void,
  ): Promise<string> {
    const errors: unknown[] = [];
    const events = sse({ onError: (error) => void errors.push(error) });
    await using server = await listening(
      createServer((req, res) => {
        prepare(res);
        events(req, res, () => {
          const stream = (res as { sse?: EventStream }).sse as EventStream;
          stream.open();
          setImmediate(() => {
            act(stream);
            void stream.drained().then(() => stream.close());
          });
        });
      }),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    const body = await within('the end of the response', response.text());
    expect(errors).toEqual([]);
    return body;
  }

  const large = 'x'.repeat(100_000);

  test('that takes itself off is called no more', async () => {
    let calls = 0;
    const body = await bodyOf(
      (res) => {
        const write = res.write.bind(res) as Write;
        res.write = ((chunk: unknown) => {
          calls++;
          res.write = write as typeof res.write;
          return write(chunk);
        }) as typeof res.write;
      },
      (stream) => {
        for (const data of ['1', '2', large, '3']) stream.send(data);
      },
    );
    expect(body).toBe(`:\ndata: 1\n\ndata: 2\n\ndata: ${large}\n\ndata: 3\n\n`);
    expect(calls).toBe(1);
  });

  test.each<[string, (res: ServerResponse) => void]>([
    ['', () => {}],
    [', and the application ends the response', (res) => void res.end()],
  ])('that adds to each piece loses none if the stream is closed%s', async (_, end) => {
    let isDue = false;
    const body = await bodyOf(
      (res) =>
        wrap(res, (chunk, write) => {
          const answer = write(chunk);
          if (isDue) {
            isDue = false;
            res.write(': own\n\n');
            isDue = true;
          }
          return answer;
        }),
      (stream) => {
        stream.send(large);
        stream.close();
        isDue = true;
        end(stream.res);
      },
    );
    expect(body.replaceAll(': own\n\n', '')).toBe(`:\ndata: ${large}\n\n`);
    expect(body.endsWith(': own\n\n')).toBe(true);
  });

  test('that closes the stream while the application writes puts the end behind that write', async () => {
    const body = await bodyOf(
      (res) =>
        wrap(res, (chunk, write) => {
          const answer = write(chunk);
          if (String(chunk).endsWith('x\n\n')) (res as { sse?: EventStream }).sse?.close();
          return answer;
        }),
      (stream) => {
        stream.send(large);
        stream.res.write('data: own\n\n');
      },
    );
    expect(body).toBe(`:\ndata: ${large}\n\ndata: own\n\n`);
  });

  test.each(['', 'wrapped before, '])(
    'that is put on later gets what is sent from then on, %sand keeps its order',
    async (isWrapped) => {
      let seen = '';
      const body = await bodyOf(
        (res) => {
          if (isWrapped !== '') wrap(res, (chunk, write) => write(chunk));
        },
        (stream) => {
          stream.send(large);
          stream.send('1');
          let hasActed = false;
          wrap(stream.res, (chunk, write) => {
            seen += String(chunk);
            if (!hasActed) {
              hasActed = true;
              stream.send('sent');
              write(': own\n\n');
            }
            return write(chunk);
          });
          stream.send('2');
        },
      );
      const whole = `:\ndata: ${large}\n\ndata: 1\n\ndata: 2\n\ndata: sent\n\n`;
      // The bytes of the application come first, and the pieces keep their order.
      expect(body.replace(': own\n\n', '')).toBe(whole);
      expect(body).toContain(': own');
      expect(seen.length).toBeGreaterThan(0);
      expect(whole.endsWith(seen)).toBe(true);
    },
  );
});

test.each([2, 3_000])(
  'middleware in front that ends the response from its write ends it once, with %i pieces queued',
  async (pieces) => {
    const errors: unknown[] = [];
    const events = sse({ maxBuffered: 100_000_000, onError: (error) => void errors.push(error) });
    let stream: EventStream | undefined;
    let writes = 0;
    await using server = await listening(
      createServer((req, res) => {
        const write = res.write.bind(res);
        let length = 0;
        // A quota for the bytes of a response.
        res.write = ((...args: Parameters<typeof write>) => {
          length += (args[0] as Buffer).length;
          if (length <= 40_000) return write(...args);
          writes++;
          res.end(': over quota\n');
          return false;
        }) as typeof res.write;
        events(req, res, () => {
          stream = (res as { sse?: EventStream }).sse;
          stream?.open();
        });
      }),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    stream?.send('x'.repeat(32_768 + pieces * 16_384));
    const text = await within('the end of the response', response.text());
    expect(text).toBe(`:\ndata: ${'x'.repeat(32_768 - 'data: '.length)}: over quota\n`);
    expect(await within('the end', (stream as unknown as EventStream).closed)).toBe('server');
    expect(errors).toEqual([]);
    // The wrapper has kept the first bytes that it got, so it gets no more.
    expect(writes).toBe(1);
  },
);

test('an error of a wrapped response ends its stream, is published on res-sse:error, and affects no other', async () => {
  const failures: unknown[] = [];
  const note = (message: unknown): void =>
    void failures.push((message as { error: unknown }).error);
  subscribe('res-sse:error', note);
  const events = sse();
  let stream: EventStream | undefined;
  await using server = await listening(
    createServer((req, res) => {
      events(req, res, () => {
        stream = (res as { sse?: EventStream }).sse;
        stream?.send('before');
        if (req.url === '/bad') {
          res.write = () => {
            throw new Error('wrapped badly');
          };
        }
      });
    }),
  );
  using bystander = await read(`${server.url}/good`);
  const good = stream as unknown as EventStream;
  using reader = await read(`${server.url}/bad`);
  const bad = stream as unknown as EventStream;
  await reader.next();
  expect(bad.send('after')).toBe(false);
  expect(await bad.closed).toBe('error');
  expect(failures).toEqual([new Error('wrapped badly')]);
  good.send('still here');
  expect((await bystander.take(2)).map((event) => event.data)).toEqual(['before', 'still here']);
  bad.res.emit('error', new Error('late'));
  unsubscribe('res-sse:error', note);
});

test('a wrapped write that ends the response after each piece cuts no large event', async () => {
  await using server = await serveStreams((given) => {
    given.open();
    const { res } = given;
    const write = res.write.bind(res) as (chunk: unknown) => boolean;
    res.write = (chunk: unknown) => {
      const hasRoom = write(chunk);
      res.end('data: bye\n\n');
      return hasRoom;
    };
    given.send('x'.repeat(100_000));
  });
  using reader = await read(server.url);
  await reader.end();
  expect(reader.events.map(({ data }) => data.length)).toEqual([100_000, 3]);
});

test.each<[string, (chunk: Uint8Array) => unknown]>([
  ['bytes', (chunk) => Buffer.from(chunk)],
  ['text', (chunk) => Buffer.from(chunk).toString()],
])('a wrapped write that passes on a copy, as %s, and ends, cuts no event', async (_, copy) => {
  await using server = await serveStreams(async (given) => {
    given.open();
    const { res } = given;
    // The response is intercepted before it is wrapped.
    given.send('y'.repeat(20_000));
    await nextTurn();
    const write = res.write.bind(res) as (chunk: unknown) => boolean;
    let isFirst = true;
    res.write = (chunk: unknown) => {
      const hasRoom = write(copy(chunk as Uint8Array));
      if (isFirst) res.end('data: bye\n\n');
      isFirst = false;
      return hasRoom;
    };
    given.send('x'.repeat(50_000));
  });
  using reader = await read(server.url);
  await reader.end();
  expect(reader.events.map(({ data }) => data.length)).toEqual([20_000, 50_000, 3]);
});

test('a wrapper with a buffer of its own holds no more than the stream may, if the client reads nothing', async () => {
  const buffer = new PassThrough();
  let stream: EventStream | undefined;
  const events = sse({ warnings: false });
  await using server = await listening(
    createServer((req, res) => {
      const write = res.write.bind(res) as (chunk: unknown) => boolean;
      buffer.on('data', (chunk: unknown) => {
        if (!write(chunk)) buffer.pause();
      });
      res.on('drain', () => buffer.resume());
      res.write = (chunk: unknown) => buffer.write(chunk);
      events(req, res, () => ({ sse: stream } = res as { sse?: EventStream }));
    }),
  );
  const client = connect(Number(new URL(server.url).port));
  client.write('GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n');
  client.pause();
  await until('the stream', () => stream !== undefined);
  await until('the end of the stream', async () => {
    for (let n = 0; n < 20; n++) stream?.send('x'.repeat(5_000));
    await nextTurn();
    expect(buffer.writableLength).toBeLessThan(1_000_000);
    return stream?.readyState === 2;
  });
  expect(await stream?.closed).toBe('slow');
  client.destroy();
});

/**
 * Wraps `write()` and `end()` of a response: passes on a limited number of bytes per ms, answers
 * `false` while 16 KiB are held, and emits `'drain'` when nothing is held any more.
 * @returns the number of held bytes, now and at most
 */
function throttle(res: ServerResponse, bytesPerMs: number): { held: number; most: number } {
  const write = res.write.bind(res) as (chunk: Uint8Array) => boolean;
  const count = { held: 0, most: 0 };
  const chunks: Uint8Array[] = [];
  function passOn(): void {
    const chunk = chunks.shift() as Uint8Array;
    count.held -= chunk.length;
    write(chunk);
    if (chunks[0] === undefined) res.emit('drain');
    else setTimeout(passOn, chunks[0].length / bytesPerMs);
  }
  res.write = (chunk: unknown) => {
    const bytes = Buffer.from(chunk as Uint8Array);
    if (chunks.push(bytes) === 1) setTimeout(passOn, bytes.length / bytesPerMs);
    count.held += bytes.length;
    count.most = Math.max(count.most, count.held);
    return count.held < 16_384;
  };
  return count;
}

test.each([
  ['small events', 1_000, 250],
  ['large events', 50_000, 5],
])(
  'a wrapper that throttles %s holds few bytes, and the sender waits for it',
  async (_what, size, events) => {
    let stream: EventStream | undefined;
    let count = { held: 0, most: 0 };
    const middleware = sse({ warnings: false });
    await using server = await listening(
      createServer((req, res) => {
        count = throttle(res, 100);
        middleware(req, res, () => {
          ({ sse: stream } = res as { sse?: EventStream });
          stream?.open();
        });
      }),
    );
    using reader = await read(server.url);
    const data = Array.from({ length: events }, (_event, index) => `${index} ${'x'.repeat(size)}`);
    let longest = 0;
    for (const each of data) {
      stream?.send(each);
      longest = Math.max(longest, stream?.bufferedAmount ?? 0);
      await stream?.drained();
    }
    await until('all events', () => reader.events.length === events);
    expect(reader.events.map((event) => event.data)).toEqual(data);
    // 64 KiB, what the wrapper has accepted before, and what may be written at a time.
    expect(count.most).toBeLessThanOrEqual(65_536 + 4 * 16_384);
    expect(longest).toBeGreaterThan(16_384);
  },
);
