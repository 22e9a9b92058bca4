import { once } from 'node:events';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { createServer } from 'node:http';
import { connect as dialRaw, type Socket } from 'node:net';
import { EventSource } from 'eventsource';
import express, { type Request, type Response as ExpressResponse } from 'express';
import { describe, expect, test } from 'vitest';
import { Admission } from '../src/http/admission.ts';
import { sse, stream, type EventStream, type SseOptions } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { hasRoom } from './support/has-room.ts';
import { dial, listening, requestText, serve } from './support/server.ts';
import { until, within } from './support/wait.ts';

const ASK = { Accept: 'text/event-stream' };

const byUser = {
  key: (req: { query: Request['query'] }) => req.query['user'] as string | undefined,
  limit: 2,
};

describe('a request beyond the limit', () => {
  test('reconnects later if it is an EventSource, and its handler is not called', async () => {
    await using server = await serveStreams((given) => given.open(), { maxStreams: 2 });
    using first = await read(server.url);
    using second = await read(server.url);
    using third = await read(server.url);
    await third.end();
    expect(third.response.status).toBe(200);
    expect(third.response.headers.get('content-type')).toBe('text/event-stream');
    expect(third.text).toMatch(/^retry: \d+\n$/);
    expect(third.retries[0]).toBeGreaterThanOrEqual(1_000);
    expect(server.streams).toHaveLength(2);
    expect([first.ended, second.ended]).toEqual([false, false]);
    expect(server.events.stats()).toMatchObject({ open: 2, opened: 2, rejected: 1, closed: {} });
  });

  test('gets a random reconnection time', async () => {
    await using server = await serveStreams((given) => given.open(), { maxStreams: 0 });
    const told = new Set<number>();
    for (let n = 0; n < 20; n++) {
      using reader = await read(server.url);
      await reader.end();
      told.add(reader.retries[0] as number);
    }
    expect(told.size).toBeGreaterThan(5);
  });

  test.each<[string, RequestInit, SseOptions]>([
    ['a POST', { method: 'POST', headers: ASK }, {}],
    [
      "who gets a stream by accept: 'any'",
      { headers: { Accept: 'application/json' } },
      { accept: 'any' },
    ],
    ["everybody with whenFull: 'reject'", { headers: ASK }, { whenFull: 'reject' }],
  ])('is 503 with Retry-After for %s', async (_, init, options) => {
    await using server = await serveStreams((given) => given.open(), { maxStreams: 0, ...options });
    const response = await fetch(server.url, init);
    expect(response.status).toBe(503);
    expect(Number(response.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    expect(await response.text()).toContain('try again later');
    expect(server.streams).toHaveLength(0);
    expect(server.events.stats().rejected).toBe(1);
  });

  test("leaves a real EventSource connecting, and closed for good with whenFull: 'reject'", async () => {
    for (const [whenFull, readyState] of [
      ['retry', EventSource.CONNECTING],
      ['reject', EventSource.CLOSED],
    ] as const) {
      await using server = await serveStreams((given) => given.open(), { maxStreams: 0, whenFull });
      const source = new EventSource(server.url);
      await once(source, 'error');
      expect(source.readyState).toBe(readyState);
      source.close();
    }
  });

  test('is published on res-sse:reject, with the reason', async () => {
    const told: unknown[] = [];
    const note = (message: unknown): void => {
      const { req, reason } = message as { req: Request; reason: string };
      told.push([req.url, reason]);
    };
    subscribe('res-sse:reject', note);
    await using server = await serveStreams((given) => given.open(), {
      maxStreams: 3,
      maxStreamsPer: byUser,
    });
    using a = await read(`${server.url}/?user=ann`);
    using b = await read(`${server.url}/?user=ann`);
    using c = await read(`${server.url}/?user=ann`);
    using d = await read(`${server.url}/?user=bob`);
    using e = await read(`${server.url}/?user=bob`);
    await Promise.all([c.end(), e.end()]);
    const closing = server.events.close();
    using f = await read(`${server.url}/?user=bob`);
    await Promise.all([a.end(), b.end(), d.end(), f.end(), closing]);
    unsubscribe('res-sse:reject', note);
    expect(told).toEqual([
      ['/?user=ann', 'maxStreamsPer'],
      ['/?user=bob', 'maxStreams'],
      ['/?user=bob', 'shutdown'],
    ]);
  });
});

test.each(['maxStreams', 'maxStreamsPer'])(
  'a place of %s is given back when something else answers, however long that takes',
  async (limit) => {
    const app = express();
    const events = sse(
      limit === 'maxStreams'
        ? { maxStreams: 1 }
        : { maxStreamsPer: { key: () => 'all', limit: 1 } },
    );
    app.use(events);
    // As MCP's own transport does, whose requests all name text/event-stream.
    let ended = 0;
    app.post('/mcp', (_req, res) => {
      res.on('close', () => ended++);
      res.writeHead(200, { 'Content-Type': 'text/event-stream' }).write(':\n');
    });
    app.get(
      '/',
      stream((given) => void given.open()),
    );
    await using server = await serve(app);
    const others = await Promise.all(
      Array.from({ length: 3 }, () => read(`${server.url}/mcp`, { method: 'POST' })),
    );
    using first = await read(server.url);
    expect(first.response.headers.get('retry-after')).toBeNull();
    await until('the stream', () => events.streams.size === 1);
    expect(await hasRoom(server.url)).toBe(false);
    expect(events.stats().rejected).toBe(1);
    for (const other of others) {
      expect([other.response.status, other.ended]).toEqual([200, false]);
      other.close();
    }
    await until('their connections to go', () => ended === 3);
    // Clients that leave later release no place a second time.
    expect(await hasRoom(server.url)).toBe(false);
  },
);

test('a place is free as soon as its stream has ended, for any reason', async () => {
  await using server = await serveStreams((given) => given.open(), { maxStreams: 1 });
  for (const end of [
    (_: EventStream, leave: () => void) => leave(),
    (given: EventStream) => void given.close(),
    (given: EventStream) => void server.events.closeWhere((each) => each === given),
    (given: EventStream) => void given.res.end(),
    (given: EventStream) => void given.res.destroy(),
  ]) {
    using reader = await read(server.url);
    await until('the stream', () => server.events.streams.size === 1);
    expect(await hasRoom(server.url)).toBe(false);
    end(server.streams.at(-1) as EventStream, () => reader.close());
    await until('room', () => hasRoom(server.url));
    await until('it to leave', () => server.events.streams.size === 0);
  }
});

describe('a place is released', () => {
  interface Story {
    handler?: (req: Request, res: ExpressResponse) => unknown;
    client?: (port: number) => Promise<unknown>;
  }

  async function leaves(port: number): Promise<void> {
    const socket = await dial(port, requestText('/story'));
    await until('the request', () => arrived);
    socket.destroy();
  }

  async function asks(port: number): Promise<void> {
    const socket = await dial(port, requestText('/story'));
    await new Promise((resolve) => socket.once('data', resolve).once('close', resolve));
    socket.destroy();
  }

  let arrived = false;

  test.each<[string, Story]>([
    [
      'when the handler answers something else',
      { handler: (_req, res) => res.status(401).json({ no: true }) },
    ],
    ['when the handler throws', { handler: () => Promise.reject(new Error('for the test')) }],
    [
      'when the handler ends the response after opening',
      {
        handler: (_req, res) => {
          res.sse?.open();
          res.end();
        },
      },
    ],
    [
      'when the handler begins something else, and the stream throws',
      {
        handler: (_req, res) => {
          res.write('something else');
          res.sse?.send('x');
        },
      },
    ],
    [
      'when the client leaves before the handler opens',
      { handler: () => new Promise(() => {}), client: leaves },
    ],
    [
      'when the client leaves before the handler opens, and it opens then',
      {
        handler: (_req, res) =>
          new Promise<void>((resolve) => {
            res.on('close', () => {
              res.sse?.send('late');
              resolve();
            });
          }),
        client: leaves,
      },
    ],
    [
      'when the client asks for the head only',
      {
        handler: (_req, res) => res.sse?.open(),
        client: (port) => fetch(`http://127.0.0.1:${port}/story`, { method: 'HEAD', headers: ASK }),
      },
    ],
    [
      'when the connection is reset while the head is on its way',
      {
        handler: (_req, res) => res.sse?.open(),
        client: async (port) => {
          const socket = await dial(port, requestText('/story'));
          socket.resetAndDestroy();
        },
      },
    ],
    [
      'when many ask on one connection, one behind the other, and it breaks',
      {
        handler: (_req, res) => res.sse?.send('x'),
        client: async (port) => {
          const socket = await dial(port, requestText('/story').repeat(5));
          await once(socket, 'data');
          socket.destroy();
        },
      },
    ],
  ])('%s', async (_, { handler, client }) => {
    arrived = false;
    const app = express();
    const events = sse({ maxStreams: 1, maxStreamsPer: { key: () => 'all', limit: 1 } });
    app.use(events);
    app.all('/story', (req, res) => {
      arrived = true;
      return handler?.(req, res);
    });
    app.get(
      '/',
      stream((given) => given.open()),
    );
    app.use((_error: unknown, _req: Request, res: ExpressResponse, _next: unknown) => {
      if (res.headersSent) res.destroy();
      else res.status(500).end();
    });
    await using server = await serve(app);
    for (let round = 0; round < 3; round++) {
      arrived = false;
      if (client === undefined) await asks(server.port);
      else await client(server.port);
      await until('room', () => hasRoom(server.url));
      await until('it to leave', () => events.streams.size === 0);
    }
    await until('the sockets to go', () => server.sockets.size <= 1);
    using reader = await read(server.url);
    await until('the stream', () => events.streams.size === 1);
    expect(await hasRoom(server.url)).toBe(false);
    expect(reader.ended).toBe(false);
  });

  test('when the client has left while middleware in front was running', async () => {
    const app = express();
    const events = sse({ maxStreams: 1 });
    let waiting: (() => void) | undefined;
    app.use((req, _res, next) => {
      if (req.url === '/slow') waiting = next;
      else next();
    });
    app.use(events);
    app.use(stream((given) => given.open()));
    await using server = await serve(app);
    const socket = await dial(server.port, requestText('/slow'));
    await until('the request', () => waiting !== undefined);
    socket.destroy();
    await until('the socket to go', () => server.sockets.size === 0);
    waiting?.();
    expect(await hasRoom(server.url)).toBe(true);
  });

  test('after a burst: never more streams than the limit are open, and all places are released', async () => {
    let most = 0;
    await using server = await serveStreams(
      (given) => {
        given.open();
        most = Math.max(most, server.events.streams.size);
      },
      { maxStreams: 20, maxStreamsPer: { key: () => 'all', limit: 20 } },
    );
    for (let round = 0; round < 5; round++) {
      const sockets = await Promise.all(
        Array.from({ length: 100 }, () => dial(server.port, requestText('/'))),
      );
      await Promise.all(sockets.map((socket) => once(socket, 'data')));
      expect(server.events.streams.size).toBe(20);
      for (const [index, socket] of sockets.entries()) {
        if (index % 2 === 0) socket.destroy();
        else socket.resetAndDestroy();
      }
      await until(
        'all to leave',
        () => server.events.streams.size === 0 && server.sockets.size === 0,
      );
    }
    expect(most).toBe(20);
    expect(server.events.stats()).toMatchObject({ opened: 100, rejected: 400 });
  });
});

describe('maxStreamsPer', () => {
  test('counts each key separately, and does not limit requests without a key', async () => {
    await using server = await serveStreams((given) => given.open(), { maxStreamsPer: byUser });
    const readers = await Promise.all(
      ['ann', 'ann', 'bob'].map((user) => read(`${server.url}/?user=${user}`)),
    );
    const without = await Promise.all(Array.from({ length: 5 }, () => read(server.url)));
    await until('the streams', () => server.events.streams.size === 8);
    expect(await hasRoom(`${server.url}/?user=ann`)).toBe(false);
    expect(await hasRoom(`${server.url}/?user=bob`)).toBe(true);
    readers[0]?.close();
    await until('room for one', () => hasRoom(`${server.url}/?user=ann`));
    for (const reader of [...readers, ...without]) reader.close();
  });

  test('limits the streams that one key may open in a minute, so that a full history is not requested again and again', async () => {
    const options = { maxStreamsPer: { ...byUser, perMinute: 3 } };
    await using server = await serveStreams((given) => given.close(), options);
    for (let n = 0; n < 10; n++) {
      using reader = await read(`${server.url}/?user=ann`);
      await reader.end();
    }
    using other = await read(`${server.url}/?user=bob`);
    await other.end();
    expect(server.events.stats()).toMatchObject({ opened: 4, rejected: 7 });
  });

  test('forgets the starts when the minute is over, and remembers at most ten thousand keys', () => {
    const clock = { now: 0 };
    const admission = new Admission(
      { maxStreamsPer: { key: (req) => req.url, limit: 1, perMinute: 1 } },
      () => clock.now,
    );
    const take = (url: string): unknown => {
      const res = { req: { url } } as never;
      const refusal = admission.reservePlace(res);
      admission.releasePlace(res);
      return refusal;
    };
    expect([take('/a'), take('/a')]).toEqual([undefined, 'maxStreamsPer']);
    clock.now = 59_999;
    expect(take('/a')).toBe('maxStreamsPer');
    clock.now = 60_000;
    expect([take('/a'), take('/a')]).toEqual([undefined, 'maxStreamsPer']);
    for (let n = 0; n < 10_000; n++) expect(take(`/${n}`)).toBeUndefined();
    expect([take('/9999'), take('/a')]).toEqual(['maxStreamsPer', undefined]);
  });

  test.each<[string, () => unknown, string]>([
    [
      'throws',
      () => {
        throw new Error('no session');
      },
      'no session',
    ],
    ['is async', () => Promise.resolve('ann'), 'it cannot be async'],
  ])(
    'hands the error to next where its key function %s, and no place is lost',
    async (_, key, message) => {
      const app = express();
      const events = sse({
        maxStreams: 1,
        maxStreamsPer: {
          key: ((req: Request) => (req.url === '/' ? 'ok' : key())) as () => string,
          limit: 1,
        },
      });
      app.use(events);
      app.use(stream((given) => given.open()));
      app.use(
        (error: Error, _req: Request, res: ExpressResponse, _next: unknown) =>
          void res.status(500).send(error.message),
      );
      await using server = await serve(app);
      for (let n = 0; n < 3; n++) {
        const response = await fetch(`${server.url}/bad`, { headers: ASK });
        expect([response.status, await response.text()]).toEqual([
          500,
          expect.stringContaining(message),
        ]);
      }
      expect(await hasRoom(server.url)).toBe(true);
    },
  );
});

describe('the limits of an inner and an outer sse()', () => {
  async function nested(outerOptions: SseOptions, innerOptions: SseOptions) {
    const app = express();
    const outer = sse(outerOptions);
    const inner = sse(innerOptions);
    app.use(outer);
    app.get(
      '/inner',
      inner,
      stream((given) => given.open()),
    );
    app.get(
      '/',
      stream((given) => given.open()),
    );
    return { ...(await serve(app)), outer, inner };
  }

  test('both apply', async () => {
    await using server = await nested({ maxStreams: 3 }, { maxStreams: 1 });
    const { outer, inner } = server;
    using first = await read(`${server.url}/inner`);
    expect(await hasRoom(`${server.url}/inner`)).toBe(false);
    using second = await read(server.url);
    using third = await read(server.url);
    await until('all', () => outer.streams.size === 3);
    expect(await hasRoom(server.url)).toBe(false);
    expect([inner.stats().rejected, outer.stats().rejected]).toEqual([1, 2]);
    first.close();
    await until('room', () => hasRoom(`${server.url}/inner`));
    expect([second.ended, third.ended]).toEqual([false, false]);
  });

  test('a refusal by the inner one releases the place of the outer one', async () => {
    await using server = await nested({ maxStreams: 1 }, { maxStreams: 0 });
    for (let n = 0; n < 3; n++) expect(await hasRoom(`${server.url}/inner`)).toBe(false);
    await until('room', () => hasRoom(server.url));
  });

  test('an inner one without limits does not count for the limits of the outer one twice', async () => {
    await using server = await nested({ maxStreams: 2 }, { heartbeat: 1_000 });
    using first = await read(`${server.url}/inner`);
    expect(await hasRoom(`${server.url}/inner`)).toBe(true);
    expect(first.ended).toBe(false);
  });
});

test('a final id is answered 204 when the limit is reached, and in a shutdown', async () => {
  await using server = await serveStreams((given) => given.open(), { maxStreams: 0 });
  const ask = (): Promise<Response> =>
    fetch(server.url, { headers: { ...ASK, 'Last-Event-ID': 'sse:end' } });
  expect((await ask()).status).toBe(204);
  await server.events.close();
  expect((await ask()).status).toBe(204);
  expect(server.events.stats().rejected).toBe(0);
});

describe("with accept: 'any'", () => {
  test('a request that gets no stream is never refused, and needs no place', async () => {
    const app = express();
    const events = sse({ accept: 'any', maxStreams: 1 });
    app.use(events);
    app.post('/speak', (_req, res) => void res.status(202).send('spoken'));
    app.post('/wait', () => {});
    app.get(
      '/',
      stream((given) => given.open()),
    );
    await using server = await serve(app);
    const waiting = new AbortController();
    const abandoned = fetch(`${server.url}/wait`, { method: 'POST', signal: waiting.signal }).catch(
      () => {},
    );
    await until('the request', () => server.sockets.size === 1);
    using reader = await read(server.url);
    await until('the stream', () => events.streams.size === 1);
    expect((await fetch(`${server.url}/speak`, { method: 'POST' })).status).toBe(202);
    expect(events.stats().rejected).toBe(0);
    expect(reader.ended).toBe(false);
    waiting.abort();
    await abandoned;
  });

  test('a handler that opens a stream beyond the limit gets a closed stream, and its client a 503', async () => {
    const app = express();
    const events = sse({ accept: 'any', maxStreams: 1 });
    const answers: unknown[] = [];
    app.use(events);
    app.use((_req, res) => {
      answers.push(
        res.sse?.send('x'),
        res.sse?.send('y'),
        res.sse?.readyState,
        res.sse?.signal.aborted,
      );
    });
    await using server = await serve(app);
    using reader = await read(server.url, { headers: { Accept: 'application/json' } });
    expect((await reader.take(2)).map(({ data }) => data)).toEqual(['x', 'y']);
    const refused = await fetch(server.url, { headers: { Accept: 'application/json' } });
    expect([refused.status, await refused.json()]).toEqual([
      503,
      { code: 'ERR_SSE_UNAVAILABLE', message: expect.any(String) },
    ]);
    expect(answers).toEqual([true, true, 1, false, false, false, 2, true]);
    reader.close();
    await until('room', async () => {
      const again = await fetch(server.url, { headers: { Accept: 'application/json' } });
      await again.body?.cancel();
      return again.status === 200;
    });
  });
});

test('on a bare server an error of the key function is passed to next()', async () => {
  const events = sse({
    maxStreamsPer: {
      key: () => {
        throw new Error('no key');
      },
      limit: 1,
    },
  });
  await using server = await listening(
    createServer((req, res) =>
      events(req, res, (error?: unknown) => {
        res.statusCode = 500;
        res.end(String(error));
      }),
    ),
  );
  const response = await fetch(server.url, { headers: ASK });
  expect([response.status, await response.text()]).toEqual([500, 'Error: no key']);
});

test('two hundred requests that are pipelined after a stream have places until their connection ends', async () => {
  await using server = await serveStreams((given) => given.open(), {
    maxStreams: 100,
    heartbeat: 50,
  });
  const socket: Socket = dialRaw(server.port, '127.0.0.1');
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.write(requestText('/').repeat(200));
  await until('the refusals', () => server.events.stats().rejected > 0);
  // Node reads no more from a connection with so many answers waiting: that it has gone shows at the next heartbeat.
  socket.destroy();
  await until('all to leave', () => server.events.streams.size === 0 && server.sockets.size === 0);
  const { opened, closed } = server.events.stats();
  expect(closed).toEqual({ client: opened });
  expect(await hasRoom(server.url)).toBe(true);
});

test.each<[string, (req: Request, res: ExpressResponse) => unknown]>([
  ['opens its stream', (_req, res) => res.sse?.open()],
  ['answers 401', (_req, res) => res.status(401).end()],
])(
  'pipelined requests whose connection ends before their handler %s give their places back',
  async (_, handler) => {
    const app = express();
    const events = sse({ maxStreams: 5 });
    const waiting: (() => void)[] = [];
    app.use(
      (req, _res, next) => void (req.headers['x-wait'] === undefined ? next() : waiting.push(next)),
    );
    app.get('/slow', () => {});
    app.use(events);
    app.get('/', handler);
    await using server = await serve(app);
    for (let count = 0; count < 5; count++) {
      const headers = { 'X-Wait': '1' };
      const socket = await dial(
        server.port,
        requestText('/slow', headers) + requestText('/', headers),
      );
      await until('both requests', () => waiting.length === 2);
      socket.destroy();
      await until('the end of their connection', () => server.sockets.size === 0);
      for (const next of waiting.splice(0)) next();
    }
    expect(events.stats()).toMatchObject({ open: 0, rejected: 0 });
    const response = await fetch(server.url, { headers: ASK });
    expect([events.stats().rejected, response.headers.get('retry-after')]).toEqual([0, null]);
    await response.body?.cancel();
    expect(await within('close()', events.close({ within: 1_000 }))).toMatchObject({
      destroyed: 0,
    });
  },
);
