import { createServer } from 'node:http';
import connect from 'connect';
import express from 'express';
import express4 from 'express4';
import request from 'supertest';
import { describe, expect, test } from 'vitest';
import { createChannels, sse, stream, type EventStream } from '../src/index.ts';
import { read } from './support/reader.ts';
import { serveStreams } from './support/app.ts';
import { dial, listening, requestText, serve } from './support/server.ts';
import { until, within } from './support/wait.ts';

const ASK = { Accept: 'text/event-stream' };

function appWith(
  handler: Parameters<typeof stream>[0],
  options?: Parameters<typeof stream>[1],
): express.Express {
  const app = express();
  app.use(sse());
  app.get('/', stream(handler, options));
  app.use(
    (error: Error, _req: express.Request, res: express.Response, _next: express.NextFunction) => {
      res.status(500).json({ error: error.message });
    },
  );
  return app;
}

describe('stream() answers 406 to a client that does not ask for a stream, and says which header to send', () => {
  test('in JSON if the client accepts JSON', async () => {
    const response = await request(appWith(() => {}))
      .get('/')
      .set('Accept', 'application/json')
      .expect(406);
    expect(response.body).toEqual({
      code: 'ERR_SSE_NOT_ACCEPTABLE',
      message: 'This is an event stream; send the header Accept: text/event-stream',
    });
  });

  test.each(['text/html', 'text/plain', '*/*', 'image/png'])('in text to %s', async (accept) => {
    const response = await request(appWith(() => {}))
      .get('/')
      .set('Accept', accept)
      .expect(406)
      .expect('Content-Type', /text\/plain/);
    expect(response.text).toBe(
      'This is an event stream; send the header Accept: text/event-stream\n',
    );
  });
});

test('without sse() in front stream() and listen() throw ERR_SSE_NO_MIDDLEWARE', async () => {
  const app = express();
  app.get(
    '/stream',
    stream(() => {}),
  );
  app.get('/listen', createChannels().listen('a'));
  app.use(
    (
      error: { code: string },
      _req: express.Request,
      res: express.Response,
      _next: express.NextFunction,
    ) => res.status(500).json(error.code),
  );
  await request(app).get('/stream').set(ASK).expect(500, '"ERR_SSE_NO_MIDDLEWARE"');
  await request(app).get('/listen').set(ASK).expect(500, '"ERR_SSE_NO_MIDDLEWARE"');
});

describe('the stream opens', () => {
  test('when the handler has returned', async () => {
    await using server = await serve(appWith(() => {}));
    using reader = await read(server.url);
    expect(reader.response.status).toBe(200);
    await until('the first comment', () => reader.text === ':\n');
  });

  test('when its promise has resolved, and not before', async () => {
    let seen: EventStream | undefined;
    let go = (): void => {};
    await using server = await serve(
      appWith((given) => {
        seen = given;
        return new Promise<void>((resolve) => (go = resolve));
      }),
    );
    const reading = read(server.url);
    await until('the handler', () => seen !== undefined);
    await new Promise((resolve) => setImmediate(resolve));
    expect(seen?.readyState).toBe(0);
    go();
    using reader = await reading;
    expect(reader.response.status).toBe(200);
  });

  test('not when the handler has sent another response', async () => {
    const app = appWith(async (_stream, _req, res) => {
      (res as express.Response).status(401).json({ no: true });
    });
    await request(app).get('/').set(ASK).expect(401, { no: true });
  });
});

describe('an error of the handler', () => {
  test.each<[string, Parameters<typeof stream>[0]]>([
    [
      'thrown',
      () => {
        throw new Error('early');
      },
    ],
    [
      'rejected',
      async () => {
        throw new Error('early');
      },
    ],
    [
      'of a generator before its first item',
      async function* () {
        throw new Error('early');
      },
    ],
  ])('before the stream opens is an ordinary error, with nothing sent: %s', async (_, handler) => {
    await request(appWith(handler)).get('/').set(ASK).expect(500, { error: 'early' });
  });

  test('reaches next in Connect and Express 4, which do not await handlers', async () => {
    const failing = stream(async () => {
      throw new Error('early');
    });
    const apps = [connect(), express4()] as unknown as express.Express[];
    for (const app of apps) {
      app.use(sse());
      app.use(failing);
      app.use(
        (error: Error, _req: express.Request, res: express.Response, _next: express.NextFunction) =>
          void res.end(error.message),
      );
      await request(app).get('/').set(ASK).expect('early');
    }
  });

  test.each<[string, (given: EventStream) => unknown]>([
    [
      'thrown',
      (given) => {
        given.send('first');
        throw new Error('secret');
      },
    ],
    [
      'rejected',
      async (given) => {
        given.send('first');
        await Promise.resolve();
        throw new Error('secret');
      },
    ],
    [
      'of a generator',
      async function* () {
        yield 'first';
        throw new Error('secret');
      },
    ],
  ])(
    'after the stream has opened ends it with a longer retry, and no text of it: %s',
    async (_, handler) => {
      let nexts = 0;
      let seen: EventStream | undefined;
      const app = express();
      app.use(sse());
      app.get(
        '/',
        stream((given) => handler((seen = given))),
      );
      app.use(
        (
          _error: Error,
          _req: express.Request,
          _res: express.Response,
          _next: express.NextFunction,
        ) => void nexts++,
      );
      await using server = await serve(app);
      using reader = await read(server.url);
      await reader.end();
      expect(reader.text).toMatch(/^:\ndata: first\n\nretry: [1-3]\d{4}\n$/);
      expect(await within('the reason', (seen as unknown as EventStream).closed)).toBe('error');
      expect(nexts).toBe(0);
    },
  );
});

describe('a handler that returns an iterable', () => {
  test('sends its items, and ends the stream with final', async () => {
    await using server = await serve(
      appWith(async function* () {
        yield 'a';
        yield { b: 1 };
      }),
    );
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events).toEqual([
      { event: undefined, id: undefined, data: 'a' },
      { event: undefined, id: undefined, data: '{"b":1}' },
      { event: 'sse:end', id: 'sse:end', data: '{}' },
    ]);
    expect(
      (await fetch(server.url, { headers: { ...ASK, 'Last-Event-ID': 'sse:end' } })).status,
    ).toBe(204);
  });

  test('ends the stream without final, with final: false', async () => {
    await using server = await serve(appWith(() => ['a'], { final: false }));
    using reader = await read(server.url);
    await reader.end();
    expect(reader.text).toBe(':\ndata: a\n\n');
  });

  test('opens the stream after a second without an item', async () => {
    let go = (): void => {};
    const gate = new Promise<void>((resolve) => (go = resolve));
    await using server = await serve(
      appWith(async function* () {
        await gate;
        yield 'a';
      }),
    );
    const begun = performance.now();
    using reader = await read(server.url);
    expect(performance.now() - begun).toBeGreaterThan(900);
    go();
    expect((await reader.next()).data).toBe('a');
  });

  test('is stopped if other code has answered within that second', async () => {
    const begun = performance.now();
    const app = express();
    app.use(sse());
    app.get('/', (_req, res, next) => {
      setTimeout(() => res.status(503).end('too slow'), 100);
      next();
    });
    let go = (): void => {};
    const gate = new Promise<void>((resolve) => (go = resolve));
    app.get(
      '/',
      stream(async function* () {
        await gate;
        yield 'late';
      }),
    );
    await using server = await serve(app);
    using reader = await read(server.url);
    expect(reader.response.status).toBe(503);
    using other = await read(server.url);
    // By then the second of the first one has passed.
    await until('a second', () => performance.now() > begun + 1_200);
    go();
    expect(other.response.status).toBe(503);
  });

  test('has its iterable released when the reader leaves', async () => {
    let finished = false;
    await using server = await serve(
      appWith(async function* (given: EventStream) {
        try {
          yield 'a';
          await given.closed;
        } finally {
          finished = true;
        }
      }),
    );
    const reader = await read(server.url);
    await reader.next();
    reader.close();
    await until('finally', () => finished);
  });
});

test('stream(handler, options) refuses unknown options', () => {
  expect(() => stream(() => {}, { finale: true } as object)).toThrow(
    expect.objectContaining({ code: 'ERR_SSE_OPTION' }),
  );
});

test('on a bare http server stream() works with any next function', async () => {
  const events = sse();
  const route = stream((given) => given.send('bare'));
  await using server = await listening(
    createServer((req, res) =>
      events(req, res, () => route(req, res, (error) => res.destroy(error as Error))),
    ),
  );
  using reader = await read(server.url);
  expect((await reader.next()).data).toBe('bare');
});

describe('a client that has left before its handler', () => {
  test.each(['stream()', 'listen()'])(
    'is not served by %s: nothing is called that would register something for it',
    async (kind) => {
      const app = express();
      const channels = createChannels();
      const events = sse({ channels });
      const waiting: (() => void)[] = [];
      let calls = 0;
      const count = (): string => {
        calls++;
        return 'a';
      };
      app.use(events, (_req, _res, next) => void waiting.push(next));
      app.get(
        '/',
        kind === 'stream()'
          ? stream(count)
          : channels.listen(count, () => ({ filter: () => count() === 'a' })),
      );
      await using server = await serve(app);
      for (let clients = 1; clients <= 5; clients++) {
        const socket = await dial(server.port, requestText('/'));
        await until('the request', () => waiting.length === clients);
        socket.destroy();
      }
      await until('the connections to go', () => server.sockets.size === 0);
      for (const next of waiting) next();
      await new Promise((resolve) => setImmediate(resolve));
      expect([calls, events.stats().opened, channels.stats().subscriptions]).toEqual([0, 0, 0]);
    },
  );

  test('is cleaned up by callbacks of closed, even if the stream ends with the first send', async () => {
    let running = 0;
    await using server = await serveStreams((given) => {
      given.send('first');
      running++;
      void given.closed.then(() => running--);
    });
    const response = await fetch(server.url, { method: 'HEAD', headers: ASK });
    expect([response.status, server.streams.length]).toEqual([200, 1]);
    await until('the clean-up', () => running === 0);
  });
});
