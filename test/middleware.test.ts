import { OutgoingMessage } from 'node:http';
import express, { type Request, type Response } from 'express';
import request from 'supertest';
import { describe, expect, test, vi } from 'vitest';
import { EventStream, createChannels, sse, stream, type SseOptions } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { dial, requestText, serve } from './support/server.ts';
import { until, within } from './support/wait.ts';

const ASK = { Accept: 'text/event-stream' };

/** An app that tells whether it was given a stream. */
function teller(...options: SseOptions[]): express.Express {
  const app = express();
  for (const each of options) app.use(sse(each));
  app.use((_req, res) => void res.json(res.sse instanceof EventStream));
  return app;
}

describe('res.sse', () => {
  test('exists for a request that asks for an event stream', async () => {
    await request(teller({})).get('/').set(ASK).expect(200, 'true');
  });

  test('is undefined for other requests, whose responses do not change', async () => {
    const plain = express();
    plain.use((_req, res) => void res.json(res.sse instanceof EventStream));
    for (const accept of ['*/*', 'text/html', 'application/json', 'text/event-stream;q=0']) {
      const before = await request(plain).get('/').set('Accept', accept).expect(200, 'false');
      const after = await request(teller({})).get('/').set('Accept', accept).expect(200, 'false');
      expect({ ...after.headers, date: '' }).toEqual({ ...before.headers, date: '' });
    }
  });

  test("with accept: 'any' exists for all requests that do not refuse an event stream", async () => {
    const app = teller({ accept: 'any' });
    for (const accept of [
      '*/*',
      'application/json',
      'text/event-stream',
      'text/event-stream;q=0.1',
    ]) {
      await request(app).get('/').set('Accept', accept).expect(200, 'true');
    }
    await request(app).post('/').set('Accept', 'application/json').expect(200, 'true');
    await request(app)
      .get('/')
      .set('Accept', 'application/json, text/event-stream;q=0')
      .expect(200, 'false');
  });

  test('writes nothing by itself: the handler may answer 401, redirect, or call next()', async () => {
    const app = express();
    app.use(sse());
    app.get('/denied', (_req, res) => void res.status(401).json({ no: true }));
    app.get('/moved', (_req, res) => res.redirect('/denied'));
    app.get('/next', (_req, _res, next) => next());
    await request(app)
      .get('/denied')
      .set(ASK)
      .expect(401, { no: true })
      .expect('Content-Type', /json/);
    await request(app).get('/moved').set(ASK).expect(302);
    await request(app).get('/next').set(ASK).expect(404);
  });
});

test('the options of a route override the inherited options of the app', async () => {
  const app = express();
  const outer = sse({
    retry: 1_111,
    headers: { 'X-From': 'app' },
    maxBuffered: 5,
    heartbeat: 60_000,
  });
  const inner = sse({ retry: 2_222, heartbeat: undefined });
  app.use(outer);
  app.get(
    '/',
    inner,
    stream((given) => given.open()),
  );
  app.get(
    '/outer',
    stream((given) => given.open()),
  );
  await using server = await serve(app);
  using reader = await read(server.url);
  using other = await read(`${server.url}/outer`);
  await until('both', () => reader.text !== '' && other.text !== '');
  expect(reader.retries).toEqual([2_222]);
  expect(reader.response.headers.get('x-from')).toBe('app');
  expect(other.retries).toEqual([1_111]);
  // The inner stream is the outer's, too; the other one is not the inner's.
  expect([outer.streams.size, inner.streams.size]).toEqual([2, 1]);
  expect(outer.stats()).toMatchObject({ open: 2, opened: 2 });
  expect(inner.stats()).toMatchObject({ open: 1, opened: 1 });
  expect(await outer.close()).toEqual({ closed: 2, destroyed: 0 });
  await Promise.all([reader.end(), other.end()]);
  expect(inner.stats()).toMatchObject({ open: 0, closed: { shutdown: 1 } });
});

test("an inner accept: 'any' still belongs to the outer one, which did not attach a stream", async () => {
  const app = express();
  const outer = sse({ retry: 1_111 });
  app.use(outer);
  app.post(
    '/',
    sse({ accept: 'any' }),
    stream((given) => given.open()),
  );
  await using server = await serve(app);
  using reader = await read(server.url, {
    method: 'POST',
    headers: { Accept: 'application/json' },
  });
  await until('the head', () => reader.retries.length === 1);
  expect(reader.retries).toEqual([1_111]);
  expect(outer.streams.size).toBe(1);
});

test('mounted twice it counts a stream once', async () => {
  const app = express();
  const events = sse();
  app.use(events, events);
  app.get(
    '/',
    stream((given) => given.open()),
  );
  await using server = await serve(app);
  using reader = await read(server.url);
  expect(reader.response.status).toBe(200);
  expect(events.stats()).toMatchObject({ open: 1, opened: 1 });
});

describe('after a final end', () => {
  test('a client that sends the final id is answered 204 on any route, in the header or the query', async () => {
    const app = teller({});
    await request(app)
      .get('/anything')
      .set({ ...ASK, 'Last-Event-ID': 'sse:end' })
      .expect(204, '')
      .expect('Cache-Control', 'no-store');
    await request(app).get('/anything?lastEventId=sse:end').set(ASK).expect(204);
  });

  test('no other client is answered 204', async () => {
    const app = teller({ accept: 'any' });
    await request(app)
      .get('/')
      .set({ Accept: 'application/json', 'Last-Event-ID': 'sse:end' })
      .expect(200);
    await request(app)
      .post('/')
      .set({ ...ASK, 'Last-Event-ID': 'sse:end' })
      .expect(200);
    await request(app)
      .get('/')
      .set({ ...ASK, 'Last-Event-ID': 'sse:end2' })
      .expect(200);
  });
});

test('streams has the open streams, and stats() counts all streams', async () => {
  await using server = await serveStreams((given) => given.send('x'));
  const { events } = server;
  using first = await read(server.url);
  const second = await read(server.url);
  await until('both', () => events.streams.size === 2);
  expect([...events.streams]).toEqual(server.streams);
  second.close();
  await until('one to leave', () => events.streams.size === 1);
  (server.streams[0] as EventStream).close();
  await first.end();
  const bytes = Buffer.byteLength(first.text);
  expect(events.stats()).toEqual({
    open: 0,
    opened: 2,
    rejected: 0,
    closed: { client: 1, server: 1 },
    sent: 2,
    dropped: 0,
    bytes: 2 * bytes,
    buffered: 0,
  });
});

test('closeWhere ends the streams for which the test is true, and no others', async () => {
  await using server = await serveStreams((given) => given.open());
  using kept = await read(`${server.url}?user=ann`);
  using revoked = await read(`${server.url}?user=bob`);
  await until('both', () => server.events.streams.size === 2);
  expect(
    server.events.closeWhere(({ req }) => (req as Request).query['user'] === 'bob', {
      final: true,
    }),
  ).toBe(1);
  await revoked.end();
  expect(revoked.events).toEqual([{ id: 'sse:end', event: 'sse:end', data: '{}' }]);
  expect(kept.ended).toBe(false);
  expect(server.events.stats().closed).toEqual({ revoked: 1 });
  for (const retry of [-1, 2 ** 31]) {
    expect(() => server.events.closeWhere(() => true, { retry })).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_OPTION' }),
    );
  }
});

test('closeWhere and close() read each option once', async () => {
  for (const end of ['closeWhere', 'close'] as const) {
    await using server = await serveStreams((given) => given.open());
    using reader = await read(server.url);
    await until('the stream', () => server.events.streams.size === 1);
    let reads = 0;
    const options = {
      get retry() {
        return reads++ === 0 ? 7 : ('8\n\ndata: forged' as never);
      },
    };
    if (end === 'close') await server.events.close(options);
    else server.events.closeWhere(() => true, options);
    await reader.end();
    expect([reader.text, reads]).toEqual([':\nretry: 7\n', 1]);
  }
});

test('closeWhere refuses an async test, which would end all streams', async () => {
  await using server = await serveStreams((given) => given.open());
  using reader = await read(server.url);
  await until('the stream', () => server.events.streams.size === 1);
  expect(() => server.events.closeWhere((async () => false) as never)).toThrow(
    expect.objectContaining({ code: 'ERR_SSE_OPTION' }),
  );
  expect(server.events.closeWhere((() => undefined) as never)).toBe(0);
  expect(reader.ended).toBe(false);
});

test("accept: 'event-stream' on a route after 'any' in the app removes the stream of requests that do not ask for one", async () => {
  const app = express();
  app.use(sse({ accept: 'any' }));
  app.get(
    '/',
    sse({ accept: 'event-stream' }),
    (_req, res) => void res.json(res.sse instanceof EventStream),
  );
  await request(app).get('/').set('Accept', 'application/json').expect(200, 'false');
});

describe('close', () => {
  test('ends the open streams and refuses new ones, each with a reconnection time', async () => {
    await using server = await serveStreams((given) => given.open());
    const readers = await Promise.all(Array.from({ length: 5 }, () => read(server.url)));
    await until('the streams', () => server.events.streams.size === 5);
    expect(await server.events.close({ retry: { min: 100, max: 10_000 } })).toEqual({
      closed: 5,
      destroyed: 0,
    });
    for (const reader of readers) {
      await reader.end();
      expect(reader.retries).toHaveLength(1);
    }
    using late = await read(server.url);
    await late.end();
    expect(late.response.status).toBe(200);
    expect(late.text).toMatch(/^retry: \d+\n$/);
    const post = await fetch(server.url, { method: 'POST', headers: ASK });
    expect(post.status).toBe(503);
    expect(Number(post.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    expect(server.events.stats()).toMatchObject({ rejected: 2, closed: { shutdown: 5 } });
  });

  test('destroys streams that have not ended in time, and is idempotent', async () => {
    await using server = await serveStreams((given) => given.open(), { stallTimeout: false });
    const socket = await dial(server.port, requestText('/'));
    socket.pause();
    await until('the stream', () => server.streams.length === 1);
    (server.streams[0] as EventStream).send('x'.repeat(30_000_000));
    const closing = server.events.close({ within: 100 });
    expect(server.events.close()).toBe(closing);
    expect(await within('close', closing)).toEqual({ closed: 0, destroyed: 1 });
    await until('the socket to go', () => server.sockets.size === 0);
    socket.destroy();
  });

  test('ends a stream as soon as it opens, if its request came before close()', async () => {
    let go = (): void => {};
    await using server = await serveStreams((given) =>
      new Promise<void>((resolve) => (go = resolve)).then(() => void given.open()),
    );
    const reading = read(server.url);
    await until('the request', () => server.streams.length === 1);
    expect(await server.events.close()).toEqual({ closed: 0, destroyed: 0 });
    go();
    using reader = await reading;
    await reader.end();
    expect(reader.retries).toHaveLength(1);
  });

  test('does not affect other requests', async () => {
    const app = express();
    const events = sse({ accept: 'any' });
    app.use(events);
    app.get('/page', (_req: Request, res: Response) => void res.send('page'));
    await events.close();
    await request(app).get('/page').set('Accept', 'text/html').expect(200, 'page');
  });

  test('leaves the channels open', async () => {
    const channels = createChannels();
    const events = sse({ channels });
    await events.close();
    expect(channels.stats().broker.state).toBe('open');
    await channels.publish('a', 1);
  });
});

describe('closeWhere on many streams', () => {
  /** Raw clients of streams that follow `a`. */
  async function serveMany(count: number) {
    const channels = createChannels();
    const server = await serveStreams((given) => given.subscribe('a', { checkpoints: false }), {
      channels,
    });
    const texts: string[] = [];
    const sockets = await Promise.all(
      Array.from({ length: count }, async (_, index) => {
        const socket = await dial(server.port, requestText('/'));
        texts[index] = '';
        socket.on('data', (chunk: Buffer) => (texts[index] += chunk.toString('latin1')));
        return socket;
      }),
    );
    await until('the streams', () => channels.stats().subscriptions === count);
    return {
      ...server,
      channels,
      texts,
      areEnded: () => texts.every((text) => text.endsWith('0\r\n\r\n')),
      async [Symbol.asyncDispose]() {
        for (const socket of sockets) socket.destroy();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  test('takes effect at once, ends at most 250 responses in a turn, and delivers earlier events to each stream', async () => {
    await using server = await serveMany(700);
    await server.channels.publish('a', '1');
    await until('the first event', () => server.texts.every((text) => text.includes('data: 1\n')));
    let ends = 0;
    let most = 0;
    const end = vi.spyOn(OutgoingMessage.prototype, 'end');
    const turn = (): void => {
      most = Math.max(most, end.mock.calls.length - ends);
      ends = end.mock.calls.length;
      if (ends < 700) setImmediate(turn);
    };
    void server.channels.publish('a', 'before');
    expect(server.events.closeWhere(() => true, { retry: 77 })).toBe(700);
    void server.channels.publish('a', 'after');
    expect(
      server.streams.every(({ readyState, signal }) => readyState === 2 && signal.aborted),
    ).toBe(true);
    expect(server.events.stats()).toMatchObject({ open: 0, closed: { revoked: 700 } });
    expect([...server.events.streams]).toEqual([]);
    expect(server.channels.stats().subscriptions).toBe(0);
    expect(server.streams[699]?.send('late')).toBe(false);
    turn();
    await until('the ends', server.areEnded);
    end.mockRestore();
    expect(most).toBeLessThanOrEqual(250);
    for (const text of server.texts) {
      expect(text).toMatch(/data: 1\n[^]*data: before\n[^]*retry: 77\n[^]*0\r\n\r\n$/);
    }
    for (const text of server.texts) expect(text).not.toMatch(/after|late/);
    await until('nothing to be left', () => server.events.stats().buffered === 0);
  });

  test('delivers to none of them events that listeners for their ends publish', async () => {
    await using server = await serveMany(300);
    for (const { signal } of server.streams) {
      signal.addEventListener('abort', () => void server.channels.publish('a', 'left'));
    }
    expect(server.events.closeWhere(() => true)).toBe(300);
    await until('the ends', server.areEnded);
    expect(server.texts.filter((text) => text.includes('left'))).toEqual([]);
    expect(server.channels.stats().published).toBe(300);
  });

  test('called from a wrapped end() while other streams are being ended, ends its streams, too, and releases their places', async () => {
    let nested: number | undefined;
    await using server = await serveStreams(
      (given, req) => {
        const end = given.res.end.bind(given.res) as (...args: unknown[]) => Response;
        given.res.end = ((...args: unknown[]) => {
          const ended = end(...args);
          if (req.url === '/?a') {
            nested ??= server.events.closeWhere((other) => other.req.url === '/?b');
          }
          return ended;
        }) as typeof given.res.end;
        given.open();
      },
      { maxStreams: 6 },
    );
    const readers = await Promise.all(
      ['a', 'a', 'a', 'b', 'b', 'b'].map((group) => read(`${server.url}?${group}`)),
    );
    expect(server.events.closeWhere(({ req }) => req.url === '/?a')).toBe(3);
    for (const reader of readers) await reader.end();
    expect(nested).toBe(3);
    expect(server.events.stats()).toMatchObject({ open: 0, closed: { revoked: 6 } });
    await until('nothing to be left', () => server.streams.every(({ res }) => res.closed));
    const next = await Promise.all(Array.from({ length: 6 }, () => read(`${server.url}?c`)));
    expect(next.map(({ response }) => response.status)).toEqual([200, 200, 200, 200, 200, 200]);
    expect(await server.events.close()).toEqual({ closed: 6, destroyed: 0 });
  });

  test('leaves no stream in a list if the application ends responses, or readers leave, meanwhile', async () => {
    await using server = await serveMany(600);
    void server.channels.publish('a', 'before');
    server.events.closeWhere(() => true);
    server.streams[598]?.res.end();
    server.streams[599]?.res.destroy();
    await until(
      'the ends',
      () => server.texts.filter((text) => /before[^]*0\r\n\r\n$/.test(text)).length === 599,
    );
    await until(
      'nothing to be left',
      () => server.sockets.size === 599 && server.events.stats().buffered === 0,
    );
    expect(await server.events.close()).toEqual({ closed: 0, destroyed: 0 });
  });
});

describe('a res.sse of another library', () => {
  /** An app in which something else has put its own `res.sse` in front of, or behind, `sse()`. */
  function occupied(value: unknown, place: 'before' | 'after'): express.Express {
    const app = express();
    const occupy: express.RequestHandler = (_req, res, next) => {
      (res as { sse?: unknown }).sse = value;
      next();
    };
    if (place === 'before') app.use(occupy, sse());
    else app.use(sse(), occupy);
    app.get(
      '/',
      stream((given) => void given.send('x')),
    );
    app.get('/listen', createChannels().listen('a'));
    app.get('/page', (_req, res) => void res.send('page'));
    app.use(
      (error: { code: string; message: string }, _req: Request, res: Response, _next: unknown) =>
        res.status(500).json([error.code, error.message]),
    );
    return app;
  }

  test.each([
    ['an object', { data() {} }],
    ['an object with a host', { host: {}, readyState: 0 }],
    ['a function', () => {}],
  ])('%s, is refused with an error that names the conflict', async (_, value) => {
    for (const place of ['before', 'after'] as const) {
      for (const path of ['/', '/listen']) {
        const { body } = await request(occupied(value, place)).get(path).set(ASK).expect(500);
        expect(body).toEqual(['ERR_SSE_CONFLICT', expect.stringContaining('res.sse')]);
      }
    }
  });

  test('stays if the request does not ask for a stream, and stream() and listen() answer 406', async () => {
    const value = { data() {} };
    await request(occupied(value, 'before')).get('/page').set('Accept', '*/*').expect(200, 'page');
    for (const path of ['/', '/listen']) {
      await request(occupied(value, 'before')).get(path).set('Accept', '*/*').expect(406);
    }
  });

  test('null counts as no res.sse', async () => {
    await using server = await serve(occupied(null, 'before'));
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('x');
    await request(occupied(null, 'before')).get('/').set('Accept', '*/*').expect(406);
  });
});
