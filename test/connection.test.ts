import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { randomBytes } from 'node:crypto';
import { createServer, type ServerResponse } from 'node:http';
import zlib from 'node:zlib';
import compression from 'compression';
import express, { type Response } from 'express';
import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import {
  createChannels,
  memoryBroker,
  sse,
  stream,
  type Broker,
  type EventStream,
  type SseMiddleware,
} from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { brokerWith } from './support/broker-with.ts';
import { read } from './support/reader.ts';
import { dial, listening, requestText, serve } from './support/server.ts';
import { StrictParser } from './support/strict-parser.ts';
import { until, within } from './support/wait.ts';

const KB = 'x'.repeat(1_024);

/** Opens a stream whose client reads nothing, and fills the buffers of the kernel. */
async function blocked(
  server: Awaited<ReturnType<typeof serveStreams>>,
): Promise<{ stream: EventStream; socket: import('node:net').Socket }> {
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until('the stream', () => server.streams.length > 0);
  const stream = server.streams.at(-1) as EventStream;
  stream.open();
  // An event of any size is accepted while nothing is queued. The bytes that the kernel does not
  // accept stay queued in this process.
  stream.send('x'.repeat(16_000_000));
  let before = -1;
  await until('the kernel to be full', async () => {
    const same = stream.bufferedAmount === before;
    before = stream.bufferedAmount;
    await new Promise((resolve) => setTimeout(resolve, 50));
    return same;
  });
  expect(stream.bufferedAmount).toBeGreaterThan(1_048_576);
  return { stream, socket };
}

describe('a client that stops reading', () => {
  test('is disconnected at maxBuffered, and its memory is released at once', async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      maxBuffered: 100_000,
      stallTimeout: false,
    });
    const socket = await dial(server.port, requestText('/'));
    socket.pause();
    await until('the stream', () => server.streams.length === 1);
    const stream = server.streams[0] as EventStream;
    let most = 0;
    await until('its end', () => {
      // The bytes of one turn each time, so that the kernel can accept them.
      for (let count = 0; count < 50 && stream.readyState === 1; count++) {
        stream.send(KB);
        most = Math.max(most, stream.bufferedAmount);
      }
      return stream.readyState === 2;
    });
    expect(await stream.closed).toBe('slow');
    expect(most).toBeGreaterThan(100_000);
    expect(most).toBeLessThan(100_000 + 2 * KB.length);
    await until('the queue to be empty', () => stream.bufferedAmount === 0);
    expect(server.events.stats()).toMatchObject({
      open: 0,
      closed: { slow: 1 },
      dropped: 1,
      buffered: 0,
    });
    socket.destroy();
  });

  test("with onSlow 'drop' loses counted events, and gets later events when it reads again", async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      onSlow: 'drop',
      stallTimeout: false,
    });
    const slow: unknown[] = [];
    const note = (message: unknown): void => void slow.push(message);
    subscribe('res-sse:slow', note);
    const { stream, socket } = await blocked(server);
    expect(stream.send('dropped')).toBe(false);
    expect(stream.send('dropped')).toBe(false);
    unsubscribe('res-sse:slow', note);
    expect(stream.readyState).toBe(1);
    expect(server.events.stats()).toMatchObject({ sent: 1, dropped: 2 });
    expect(slow).toEqual([
      { stream, bufferedAmount: expect.any(Number), action: 'drop' },
      { stream, bufferedAmount: expect.any(Number), action: 'drop' },
    ]);
    let tail = '';
    socket.on('data', (chunk) => (tail = (tail + chunk.toString('latin1')).slice(-200)));
    socket.resume();
    await within('drained()', stream.drained());
    expect(stream.bufferedAmount).toBeLessThanOrEqual(65_536);
    await until('the queue to be empty', () => stream.bufferedAmount === 0);
    expect(stream.send('after')).toBe(true);
    await until('the event', () => tail.includes('data: after'));
    expect(tail).not.toContain('dropped');
    socket.destroy();
  });

  test('is disconnected after stallTimeout', async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      stallTimeout: 300,
      heartbeat: false,
    });
    const { stream, socket } = await blocked(server);
    expect(await within('the close reason', stream.closed)).toBe('stalled');
    await until('the socket to be closed', () => server.sockets.size === 0);
    socket.destroy();
  });

  test('is disconnected after stallTimeout also if the stream has ended and bytes are queued', async () => {
    await using server = await serveStreams((stream) => stream.open(), { stallTimeout: 300 });
    const { stream, socket } = await blocked(server);
    stream.close();
    expect(await stream.closed).toBe('server');
    await until('the socket to be closed', () => server.sockets.size === 0);
    socket.destroy();
  });
});

test('a large event that makes progress is not a stall, however long it takes', async () => {
  const stallTimeout = 1_000;
  await using server = await serveStreams((stream) => stream.open(), {
    stallTimeout,
    heartbeat: 100,
  });
  const { stream, socket } = await blocked(server);
  let received = 0;
  socket.on('data', (chunk) => {
    received += chunk.length;
    socket.pause();
    // The whole event takes longer than one stallTimeout, but each piece of it takes less.
    setTimeout(() => socket.resume(), 10);
  });
  const begun = Date.now();
  socket.resume();
  await until('the whole event', () => received > 16_000_000, 60_000);
  expect(Date.now() - begun).toBeGreaterThan(stallTimeout);
  expect(stream.readyState).toBe(1);
  socket.destroy();
}, 70_000);

test('one event of any size is accepted by an empty queue and arrives complete', async () => {
  const data = 'é'.repeat(4_000_000);
  await using server = await serveStreams((stream) => expect(stream.send(data)).toBe(false), {
    maxBuffered: 0,
  });
  using reader = await read(server.url);
  expect((await reader.next()).data === data).toBe(true);
});

test('the head does not count for maxBuffered: a first comment is accepted', async () => {
  await using server = await serveStreams((stream) => void stream.comment('hello'), {
    maxBuffered: 0,
  });
  using reader = await read(server.url);
  await until('the first two comments', () => reader.text === ':\n: hello\n');
});

test('a head of more than maxBuffered does not make a client slow', async () => {
  const headers = { 'Content-Security-Policy': 'x'.repeat(2_000) };
  await using server = await serveStreams(
    (stream) => {
      stream.send('one');
      expect(stream.send('two')).toBe(true);
    },
    { maxBuffered: 1_000, headers },
  );
  using reader = await read(server.url);
  expect((await reader.take(2)).map(({ data }) => data)).toEqual(['one', 'two']);
});

test('events sent while a large event is queued come after it, in order', async () => {
  await using server = await serveStreams(
    (stream) => {
      stream.send('a'.repeat(3_000_000));
      for (let index = 0; index < 1_000; index++) stream.send(`${index}`);
      stream.comment('between');
      stream.send('b'.repeat(300_000));
      stream.send('last');
    },
    { maxBuffered: 10_000_000 },
  );
  using reader = await read(server.url);
  const events = await reader.take(1_003);
  expect(events[0]?.data).toHaveLength(3_000_000);
  expect(events.slice(1, 1_001).map((event) => event.data)).toEqual(
    Array.from({ length: 1_000 }, (_, index) => `${index}`),
  );
  expect(events[1_001]?.data).toHaveLength(300_000);
  expect(events[1_002]?.data).toBe('last');
});

test('send returns false beyond 64 KiB, whatever res.write() returns, and true again after drained()', async () => {
  const answers: boolean[] = [];
  await using server = await serveStreams(async (stream) => {
    stream.open();
    // On Node 20, `res.write()` returns false for far fewer bytes.
    answers.push(stream.send('x'.repeat(40_000)));
    answers.push(stream.send('x'.repeat(40_000)));
    await stream.drained();
    answers.push(stream.bufferedAmount <= 65_536, stream.send('end'));
  });
  using reader = await read(server.url);
  await reader.take(3);
  expect(answers).toEqual([true, false, true, true]);
});

test('a pipelined stream waits for its turn, and ends with the connection', async () => {
  await using server = await serveStreams(
    (stream) => stream.send(`stream ${server.streams.length}`),
    { stallTimeout: false },
  );
  const socket = await dial(server.port, requestText('/') + requestText('/'));
  let text = '';
  socket.on('data', (chunk) => (text += chunk.toString()));
  await until('both streams', () => server.streams.length === 2);
  const [first, second] = server.streams as [EventStream, EventStream];
  expect(second.bufferedAmount).toBeGreaterThan(0);
  first.close();
  await until('the second response', () => text.includes('data: stream 2'));
  expect(text.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(2);

  const other = await dial(server.port, requestText('/') + requestText('/'));
  await until('two more streams', () => server.streams.length === 4);
  other.destroy();
  expect(await within('the end of the third', (server.streams[2] as EventStream).closed)).toBe(
    'client',
  );
  expect(await within('the end of the fourth', (server.streams[3] as EventStream).closed)).toBe(
    'client',
  );
  socket.destroy();
  await until('all streams to end', () => server.events.streams.size === 0);
});

test('HTTP/1.0 gets a stream that ends with the connection', async () => {
  await using server = await serveStreams((stream) => {
    stream.send('a');
    stream.close();
  });
  const socket = await dial(server.port, requestText('/').replace('HTTP/1.1', 'HTTP/1.0'));
  let text = '';
  socket.on('data', (chunk) => (text += chunk.toString()));
  await until('the end', () => socket.readableEnded);
  const [head, body] = text.split('\r\n\r\n') as [string, string];
  expect(head).not.toMatch(/transfer-encoding/i);
  expect(new StrictParser().feed(Buffer.from(body)).events.map((event) => event.data)).toEqual([
    'a',
  ]);
});

test('comments before the first event are limited by maxBuffered', async () => {
  await using server = await serveStreams((stream) => stream.open(), {
    maxBuffered: 100_000,
    stallTimeout: false,
  });
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until('the stream', () => server.streams.length === 1);
  const stream = server.streams[0] as EventStream;
  await until('its end', () => {
    for (let count = 0; count < 50 && stream.readyState === 1; count++) stream.comment(KB);
    expect(stream.bufferedAmount).toBeLessThan(100_000 + 2 * KB.length);
    return stream.readyState === 2;
  });
  expect(server.events.stats()).toMatchObject({ closed: { slow: 1 }, dropped: 0 });
  socket.destroy();
});

test('small queued events need no more memory than they count for', async () => {
  if (globalThis.gc === undefined) {
    throw new Error('run node with --expose-gc, as vitest.config.ts does');
  }
  await using server = await serveStreams((stream) => stream.open(), {
    maxBuffered: 20_000_000,
    onSlow: 'drop',
    stallTimeout: false,
  });
  const { stream, socket } = await blocked(server);
  globalThis.gc();
  const before = process.memoryUsage();
  const queued = stream.bufferedAmount;
  while (stream.bufferedAmount < queued + 1_000_000) stream.send('');
  // Released buffers count until a garbage collection has found and freed them.
  await until('what is queued to weigh no more', () => {
    globalThis.gc?.();
    const after = process.memoryUsage();
    return after.heapUsed + after.external - before.heapUsed - before.external < 8_500_000;
  });
  socket.destroy();
});

test('with a highWaterMark above 64 KiB, no client waits for ever', async () => {
  const events = sse({ heartbeat: 200 });
  const streams: EventStream[] = [];
  await using server = await listening(
    createServer({ highWaterMark: 1_048_576 }, (req, res) =>
      events(
        req,
        res,
        () => void streams.push((res as { sse?: EventStream }).sse?.open() as EventStream),
      ),
    ),
  );
  using reader = await read(server.url);
  await until('the stream', () => streams.length === 1);
  const [stream] = streams as [EventStream];
  stream.send('x'.repeat(200_000));
  await within('drained()', stream.drained());
  expect((await reader.next()).data).toHaveLength(200_000);
});

test('with a highWaterMark above 64 KiB, drained() resolves without a timer, however often it is called', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'setInterval'] });
  onTestFinished(() => void vi.useRealTimers());
  const events = sse({ heartbeat: false, stallTimeout: false });
  let waits = 0;
  async function sendAll(stream: EventStream): Promise<void> {
    for (let count = 0; count < 900; count++) {
      stream.send(KB);
      if (stream.bufferedAmount <= 65_536) continue;
      waits++;
      await stream.drained();
      expect(stream.bufferedAmount).toBeLessThanOrEqual(65_536);
    }
    stream.close();
  }
  await using server = await listening(
    createServer({ highWaterMark: 1_048_576 }, (req, res) =>
      events(req, res, () => void sendAll((res as { sse?: EventStream }).sse as EventStream)),
    ),
  );
  using reader = await read(server.url);
  await reader.end();
  expect(reader.events).toHaveLength(900);
  expect(waits).toBeGreaterThan(1);
}, 10_000);

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

test('pipelined requests on one connection leave no listeners on the socket', async () => {
  await using server = await serveStreams((stream) => stream.close({ final: true }));
  const socket = await dial(
    server.port,
    Array.from({ length: 200 }, () => requestText('/')).join(''),
  );
  let text = '';
  socket.on('data', (chunk) => (text += chunk.toString()));
  await until('all answers', () => text.split('sse:end\n').length - 1 >= 200);
  const [connection] = [...server.sockets];
  expect(connection?.listenerCount('close')).toBeLessThan(10);
  socket.destroy();
});

test('queued events arrive when the application ends the response itself', async () => {
  await using server = await serveStreams(
    (stream) => {
      stream.send('x'.repeat(3_000_000));
      stream.send('last');
      stream.res.end();
      expect(stream.readyState).toBe(2);
    },
    { maxBuffered: 10_000_000 },
  );
  using reader = await read(server.url);
  await reader.end();
  expect(reader.events.map((event) => event.data.length)).toEqual([3_000_000, 4]);
  expect(await (server.streams[0] as EventStream).closed).toBe('server');
});

describe('a large event to a client that reads everything at once', () => {
  const SIZE = 60_000_000;

  test('is written in many turns of the event loop, 256 KiB in each', async () => {
    let most = 0;
    let before = 0;
    await using server = await serveStreams(
      (stream) => {
        stream.send('x'.repeat(SIZE));
        stream.send('after');
        const turn = (): void => {
          most = Math.max(most, stream.bytesWritten - before);
          before = stream.bytesWritten;
          if (stream.bufferedAmount > 0) setImmediate(turn);
        };
        turn();
      },
      { maxBuffered: 2 * SIZE },
    );
    using reader = await read(server.url);
    expect((await reader.take(2)).map(({ data }) => data.length)).toEqual([SIZE, 5]);
    // One share for the turn itself, and one for a 'drain'.
    expect(most).toBeLessThanOrEqual(2 * (262_144 + 16_384));
  }, 30_000);

  test.each<[string, (stream: EventStream) => void]>([
    ['is closed', (stream) => void stream.close()],
    ['is ended by the application', (stream) => void stream.res.end()],
    ['is closed by closeWhere', (stream) => void stream.closeFor('revoked')],
  ])(
    'arrives complete, with the events sent after it, if the stream %s in the same turn',
    async (_, end) => {
      await using server = await serveStreams(
        (stream) => {
          stream.send('x'.repeat(5_000_000));
          stream.send('last');
          end(stream);
        },
        { maxBuffered: 2 * SIZE },
      );
      using reader = await read(server.url);
      await reader.end();
      expect(reader.events.map(({ data }) => data.length)).toEqual([5_000_000, 4]);
    },
  );

  test('leaves nothing in memory if the stream is destroyed meanwhile', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('x'.repeat(SIZE));
      void stream.drained().then(() => stream.res.destroy());
      setImmediate(() => stream.destroyFor('revoked'));
    });
    using reader = await read(server.url);
    await reader.end();
    await until('its end', () => server.events.streams.size === 0 && server.sockets.size === 0);
    const { bytes, buffered } = server.events.stats();
    expect([bytes < SIZE, buffered]).toEqual([true, 0]);
  });

  test('does not make the client slow while it waits for further turns, until maxBuffered bytes more are queued', async () => {
    let amounts: readonly number[] = [];
    await using server = await serveStreams((stream) => {
      stream.open();
      setImmediate(() => {
        stream.send('x'.repeat(2_500_000));
        setImmediate(() => {
          amounts = [stream.bufferedAmount, stream.readyState];
          while (stream.readyState === 1) stream.send(KB);
          amounts = [...amounts, stream.eventsWritten * KB.length];
        });
      });
    });
    using reader = await read(server.url);
    await reader.end();
    const [buffered, readyState, sent] = amounts as [number, number, number];
    expect(buffered).toBeGreaterThan(1_048_576);
    expect(readyState).toBe(1);
    expect(sent).toBeGreaterThan(1_000_000);
    expect(sent).toBeLessThan(1_100_000);
  });

  test('drains: events that wait for drained() follow in order', async () => {
    await using server = await serveStreams(async (stream) => {
      for (const each of ['1', '2', '3']) {
        expect(stream.send(each.repeat(400_000))).toBe(false);
        await stream.drained();
      }
    });
    using reader = await read(server.url);
    expect((await reader.take(3)).map(({ data }) => [data[0], data.length])).toEqual([
      ['1', 400_000],
      ['2', 400_000],
      ['3', 400_000],
    ]);
  });
});

test.each<[string, (stream: EventStream) => void]>([
  ['ends the response', (stream) => void stream.res.end()],
  ['writes to the response', (stream) => void stream.res.write('data: late\n\n')],
  ['writes to the response and ends it', (stream) => void stream.res.end('data: late\n\n')],
])(
  'queued events and the end arrive if the application %s after closing the stream',
  async (_, act) => {
    await using server = await serveStreams(
      (stream) => {
        stream.send('x'.repeat(3_000_000));
        stream.send('last');
        stream.close();
        act(stream);
      },
      { maxBuffered: 10_000_000 },
    );
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events.slice(0, 2).map((event) => event.data.length)).toEqual([3_000_000, 4]);
    expect(server.events.stats().closed).toEqual({ server: 1 });
    server.errors.splice(0);
  },
);

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

  test.each([true, false])('by res.write(): no piece is lost, closed: %s', async (closes) => {
    const body = await bodyOf((res) => void res.write('own'), closes);
    // The bytes of the application come first, and the pieces keep their order.
    expect(body.replace('own', '')).toBe(whole);
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

  test("emits 'drain' and answers false each time", async () => {
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
    const began = performance.now();
    for (let count = 0; count < 4; count++) stream?.send(large);
    stream?.close();
    const expected = `:\n${`data: ${large}\n\n`.repeat(4)}`;
    expect(abbreviated(await response.text())).toBe(abbreviated(expected));
    // The timer of the streams looks at them each second.
    expect(performance.now() - began).toBeLessThan(900);
  });
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

test('a stream that compression() encodes goes at the pace of its reader, and leaves no listeners behind', async () => {
  const createGzip = vi.spyOn(zlib, 'createGzip');
  onTestFinished(() => createGzip.mockRestore());
  // Random bytes, which do not become less.
  const sent = Array.from({ length: 15 }, () => randomBytes(75_000).toString('base64'));
  const events = sse({ headers: { 'Cache-Control': 'no-cache' }, warnings: false });
  const app = express();
  app.use(compression({ filter: () => true, threshold: 0 }), events);
  app.get(
    '/',
    stream(async (given) => {
      for (const event of sent) {
        given.send(event);
        await given.drained();
      }
      given.close();
    }),
  );
  await using server = await serve(app);
  using reader = await read(server.url, { headers: { 'Accept-Encoding': 'gzip' } });
  expect(reader.response.headers.get('content-encoding')).toBe('gzip');
  // Without 'drain', the timer of the streams would give it 16 KiB each second.
  await within('the end of the stream', reader.end(), 10_000);
  expect(reader.events.map(({ data }) => data)).toEqual(sent);
  expect(events.stats()).toMatchObject({ closed: { server: 1 }, dropped: 0, sent: 15 });
  const gzip = createGzip.mock.results[0]?.value as zlib.Gzip;
  expect(gzip.listenerCount('drain')).toBe(1);
});

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

describe('a listener for the head, such as on-headers adds,', () => {
  /** Calls the listener once, before the head is written. */
  function onHead(res: ServerResponse, listener: () => void): void {
    const writeHead = res.writeHead.bind(res) as (...args: unknown[]) => ServerResponse;
    let isCalled = false;
    res.writeHead = (...args: unknown[]) => {
      if (!isCalled) {
        isCalled = true;
        listener();
      }
      return writeHead(...args);
    };
  }

  let memory: Broker;
  beforeEach(() => {
    memory = memoryBroker();
  });

  async function serveHeads(
    listener: (stream: EventStream) => void,
    open: (stream: EventStream) => unknown,
  ) {
    const app = express();
    const events = sse({ maxStreams: 1 });
    const streams: EventStream[] = [];
    app.use((_req, res, next) => {
      res.setHeader('Content-Type', 'text/x-before');
      onHead(res, () => listener(res.sse as EventStream));
      next();
    });
    app.use(events);
    app.get(
      '/',
      stream((given) => {
        streams.push(given);
        return open(given);
      }),
    );
    app.use(
      (error: Error, _req: unknown, res: Response, _next: unknown) =>
        void res.status(500).end(error.message),
    );
    return Object.assign(await serve(app), { events, streams });
  }

  test.each<[string, string, (stream: EventStream) => unknown]>([
    ['opens', 'GET', (given) => given.open()],
    ['sends', 'GET', (given) => given.send('x')],
    ['returns', 'GET', () => {}],
    ['returns', 'HEAD', () => {}],
    [
      'returns a generator that waits',
      'GET',
      async function* () {
        await new Promise(() => {});
        yield 1;
      },
    ],
  ])(
    'that throws is an error of a handler that %s on %s, and the stream is not counted',
    async (_, method, open) => {
      await using server = await serveHeads(() => {
        throw new Error('no head today');
      }, open);
      for (let count = 0; count < 2; count++) {
        const response = await fetch(server.url, {
          method,
          headers: { Accept: 'text/event-stream' },
        });
        expect([
          response.status,
          response.headers.get('content-type'),
          await response.text(),
        ]).toEqual([500, 'text/x-before', method === 'HEAD' ? '' : 'no head today']);
        for (const name of ['cache-control', 'x-accel-buffering']) {
          expect(response.headers.get(name)).toBeNull();
        }
      }
      expect(server.events.stats()).toMatchObject({ open: 0, opened: 0, rejected: 0 });
      for (const given of server.streams) {
        expect(await within('its end', given.closed)).toBe('server');
      }
    },
  );

  test('that throws an object without a prototype is an error of a subscribe that waits for its broker', async () => {
    const position = () => new Promise<never>(() => {});
    const channels = createChannels({ broker: brokerWith(memoryBroker(), { position }) });
    await using server = await serveHeads(
      () => {
        throw Object.create(null);
      },
      (given) => channels.subscribe(given, 'a'),
    );
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    expect([response.status, await response.text()]).toEqual([500, 'a value of type object']);
  });

  test.each<[string, Partial<Broker>]>([
    ['at once', {}],
    ['later', { read: async (...args) => memory.read(...args) }],
    ['never', { read: () => new Promise<never>(() => {}) }],
  ])(
    'that throws is an error of a subscribe that resumes, if the log is read %s',
    async (_, members) => {
      const channels = createChannels({ broker: brokerWith(memory, members) });
      const { id } = await channels.publish('a', 'seen');
      const ended: unknown[] = [];
      await using server = await serveHeads(
        () => {
          throw new Error('no head today');
        },
        async (given) => {
          await channels.subscribe(given, 'a');
          ended.push('subscribed');
        },
      );
      const headers = { Accept: 'text/event-stream', 'Last-Event-ID': id };
      const response = await fetch(server.url, { headers });
      expect([response.status, await response.text()]).toEqual([500, 'no head today']);
      expect(server.events.stats()).toMatchObject({ open: 0, opened: 0 });
      expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
      expect(ended).toEqual([]);
    },
  );

  test.each<[string, (stream: EventStream) => void, string]>([
    ['sends', (given) => void given.send('own'), ':\ndata: own\n\ndata: x\n\n'],
    ['closes the stream', (given) => void given.close({ retry: 5 }), ':\nretry: 5\n'],
    ['opens the stream', (given) => void given.open(), ':\ndata: x\n\n'],
  ])('that %s finds a stream that is open, behind its first comment', async (_, act, text) => {
    {
      await using server = await serveHeads(act, (given) => void given.send('x'));
      const response = await fetch(server.url, {
        method: 'HEAD',
        headers: { Accept: 'text/event-stream' },
      });
      expect([response.status, await response.text()]).toEqual([200, '']);
    }
    await using server = await serveHeads(act, (given) => void given.send('x'));
    using reader = await read(server.url);
    await until('the text', () => reader.text.length >= text.length);
    expect(reader.text).toBe(text);
  });
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

test.each([undefined, Number.NaN])(
  'a response whose writableLength is %s (Lambda adapters) has nothing queued',
  async (value) => {
    await using server = await serveStreams(
      async (given) => {
        Object.defineProperty(given.res, 'writableLength', { value });
        for (const each of ['1', '2', '3']) expect(given.send(each)).toBe(true);
        expect(given.bufferedAmount).toBe(0);
        given.send('x'.repeat(100_000));
        await given.drained();
        expect(given.send('4')).toBe(true);
      },
      { heartbeat: 50 },
    );
    using reader = await read(server.url);
    expect((await reader.take(5)).map(({ data }) => data.length)).toEqual([1, 1, 1, 100_000, 1]);
    await until('a heartbeat', () => reader.comments.length > 1);
    expect(server.events.stats().buffered).toBe(0);
  },
);
