import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { EventEmitter, once } from 'node:events';
import {
  createServer,
  get,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import http2 from 'node:http2';
import type { Readable } from 'node:stream';
import express, { type Response } from 'express';
import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import {
  createChannels,
  memoryBroker,
  sse,
  stream,
  type Broker,
  type EventStream,
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

test('stallTimeout ends a stream whose wrapped write takes bytes and passes none of them on', async () => {
  await using server = await serveStreams(
    (stream) => {
      stream.open();
      stream.res.write = () => false;
      stream.send('x'.repeat(16_000_000));
    },
    { stallTimeout: 300, heartbeat: false },
  );
  using reader = await read(server.url);
  await until('the end', () => server.events.stats().closed.stalled === 1);
  await reader.end();
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

test('drained() resolves when no more than 64 KiB are queued, although the response is not empty yet', async () => {
  await using server = await serveStreams((stream) => stream.open(), { heartbeat: 100 });
  using reader = await read(server.url);
  await until('the first comment', () => reader.text !== '');
  const [stream] = server.streams as [EventStream];
  // A real kernel does not stop at a given number of bytes.
  let queued = 70_000;
  Object.defineProperty(stream.res, 'writableLength', { get: () => queued });
  Object.defineProperty(stream.res, 'writableNeedDrain', { get: () => queued > 0 });
  let isDrained = false;
  const drained = stream.drained().then(() => (isDrained = true));
  await new Promise((resolve) => setImmediate(resolve));
  expect(isDrained).toBe(false);
  queued = 60_000;
  await within('drained()', drained);
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

test.each(['HTTP/1.1', 'HTTP/2'])(
  'what the application writes in the tick in which it closes the stream comes behind the queue, over %s',
  async (transport) => {
    const errors: unknown[] = [];
    const events = sse({ maxBuffered: 10_000_000, onError: (error) => void errors.push(error) });
    const handler: RequestListener = (req, res) =>
      events(req, res, () => {
        const stream = (res as { sse?: EventStream }).sse as EventStream;
        stream.send('x'.repeat(3_000_000));
        stream.close();
        res.write('data: late\n\n');
      });
    await using server = await listening(
      transport === 'HTTP/2'
        ? (http2.createServer(handler as never) as unknown as Server)
        : createServer(handler),
    );
    const session = transport === 'HTTP/2' ? http2.connect(server.url) : undefined;
    const accept = 'text/event-stream';
    const body: Readable =
      session?.request({ ':path': '/', accept }) ??
      ((await once(get(server.url, { headers: { accept } }), 'response')) as [Readable])[0];
    const parser = StrictParser.of(body);
    await within('the end', once(body, 'end'));
    session?.destroy();
    expect(parser.events.map(({ data }) => data.length)).toEqual([3_000_000, 4]);
    expect(errors).toEqual([]);
  },
);

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

describe('a mock of a response, without a socket and without writableLength,', () => {
  /** The members of a response that the mocks of test libraries and adapters have. */
  class MockResponse extends EventEmitter {
    readonly req = Object.assign(new EventEmitter(), {
      method: 'GET',
      url: '/',
      headers: { accept: 'text/event-stream' },
      httpVersionMajor: 1,
      socket: new EventEmitter(),
    });
    readonly #headers = new Map<string, unknown>();
    statusCode = 0;
    headersSent = false;
    writableEnded = false;
    body = '';
    getHeader(name: string): unknown {
      return this.#headers.get(name.toLowerCase());
    }
    getHeaderNames(): string[] {
      return [...this.#headers.keys()];
    }
    getHeaders(): object {
      return Object.fromEntries(this.#headers);
    }
    setHeader(name: string, value: unknown): void {
      this.#headers.set(name.toLowerCase(), value);
    }
    removeHeader(name: string): void {
      this.#headers.delete(name.toLowerCase());
    }
    flushHeaders(): void {
      this.headersSent = true;
    }
    cork(): void {}
    uncork(): void {}
    write(chunk: unknown): boolean {
      this.body += String(chunk);
      return true;
    }
    end(chunk: unknown = ''): void {
      this.body += String(chunk);
      this.writableEnded = true;
      setImmediate(() => this.emit('close'));
    }
  }

  const large = 'x'.repeat(50_000);

  test.each<[string, (stream: EventStream) => void, string]>([
    ['is ended', ({ res }) => void res.end('data: bye\n\n'), 'data: bye\n\n'],
    ['is closed', (stream) => void stream.close(), ''],
    [
      'is ended by a wrapped write',
      (stream) => {
        const { res } = stream;
        const write = res.write.bind(res) as (chunk: unknown) => boolean;
        res.write = ((chunk: unknown) => {
          const answer = write(chunk);
          res.write = write as typeof res.write;
          stream.send('own');
          res.end('data: bye\n\n');
          return answer;
        }) as typeof res.write;
        stream.send('last');
      },
      'data: last\n\ndata: own\n\ndata: bye\n\n',
    ],
  ])('%s with all of its events', async (_, end, last) => {
    const errors: unknown[] = [];
    const events = sse({ onError: (error) => void errors.push(error) });
    const res = new MockResponse();
    let closed: Promise<unknown> | undefined;
    events(res.req as never, res as never, () => {
      const stream = (res as { sse?: EventStream }).sse as EventStream;
      closed = stream.closed;
      stream.send(large);
      end(stream);
    });
    expect(await within('the end', closed as Promise<unknown>)).toBe('server');
    await until('the end of the response', () => res.writableEnded);
    expect(res.body).toBe(`:\ndata: ${large}\n\n${last}`);
    expect(errors).toEqual([]);
  });
});
