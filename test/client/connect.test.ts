import { describe, expect, onTestFinished, test, vi } from 'vitest';
import express, { type Request, type Response } from 'express';
import { createChannels, sse } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { serve, type TestServer } from '../support/server.ts';
import { until } from '../support/wait.ts';
import { record } from './recorded.ts';

/** A server of channels, and the queries of its requests. */
async function serveChannels(history?: { events: number }) {
  const channels = createChannels({ history });
  const queries: URLSearchParams[] = [];
  const app = express();
  let isDown = false;
  app.use((req, _res, next) => {
    if (isDown) {
      req.socket.destroy();
      return;
    }
    queries.push(new URL(req.url, 'http://localhost').searchParams);
    next();
  });
  app.use(sse({ channels, retry: 20, heartbeat: 50 }));
  app.get('/', channels.listen('news'));
  const server = await serve(app);
  return {
    channels,
    queries,
    server,
    url: server.url,
    /** Whether requests are answered by a cut connection. */
    set isDown(value: boolean) {
      isDown = value;
    },
    /** Cuts all connections. */
    cut(): void {
      for (const socket of server.sockets) socket.destroy();
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** Answers each request with the next of the functions, and all others with the last one. */
async function serveInTurn(
  ...answers: ((req: Request, res: Response) => void)[]
): Promise<TestServer & { requests: Request[] }> {
  const requests: Request[] = [];
  const app = express();
  app.get('/', (req, res) => {
    requests.push(req);
    (answers[requests.length - 1] ?? answers.at(-1))?.(req, res);
  });
  return Object.assign(await serve(app), { requests });
}

const streamOf =
  (text: string) =>
  (_req: Request, res: Response): void => {
    res.type('text/event-stream').write(text);
  };
const status =
  (code: number, headers: Record<string, string> = {}) =>
  (_req: Request, res: Response): void => {
    res.status(code).set(headers).end();
  };

describe('events', () => {
  test('reach the listener of their name with parsed data and their id', async () => {
    await using server = await serveStreams((stream) => {
      stream.send({ text: 'größer 🐸' }, { event: 'text', id: 'a' });
      stream.send('not JSON', 'text');
      stream.send('7');
      stream.send('nobody listens', 'toString');
    });
    const shown: unknown[] = [];
    const live = record(server.url, {
      on: {
        text: (data, { id }) => shown.push(['text', data, id]),
        message: (data) => shown.push(['message', data]),
      },
    });
    await until('three events', () => shown.length === 3);
    expect(shown).toEqual([
      ['text', { text: 'größer 🐸' }, 'a'],
      ['text', 'not JSON', undefined],
      ['message', 7],
    ]);
    expect(live.states).toEqual(['connecting', 'open']);
  });

  test('are parsed by the function of the application', async () => {
    await using server = await serveStreams((stream) => stream.send('7', 'text'));
    const live = record(server.url, { parse: (text, { event }) => `${event} ${text}` }, ['text']);
    await until('the event', () => live.received.length > 0);
    expect(live.received).toEqual(['text 7']);
  });

  test('after one whose listener throws are received, and the error is an uncaught one', async () => {
    const uncaught: unknown[] = [];
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (error) => uncaught.push(error));
    onTestFinished(() => {
      process.removeAllListeners('uncaughtException');
      for (const listener of listeners) process.on('uncaughtException', listener);
    });
    await using server = await serveStreams((stream) => {
      stream.send('throws');
      stream.send('next');
    });
    const error = new Error('of the listener');
    const shown: unknown[] = [];
    record(server.url, {
      on: {
        message(data) {
          if (data === 'throws') throw error;
          shown.push(data);
        },
      },
    });
    await until('the next event', () => shown.length > 0);
    expect(shown).toEqual(['next']);
    expect(uncaught).toEqual([error]);
  });

  test('of the library are not shown to listeners', async () => {
    await using server = await serveChannels();
    const live = record(server.url, {}, ['message', 'sse:checkpoint']);
    await until('the stream', () => live.states.includes('open'));
    await server.channels.publish('news', 1);
    await until('the event', () => live.received.length > 0);
    expect(live.received).toEqual([1]);
  });
});

describe('a cut connection', () => {
  test('resumes at the last event, so that none is missing and none comes twice', async () => {
    await using server = await serveChannels();
    const live = record(server.url);
    await until('the stream', () => live.states.includes('open'));
    for (let number = 0; number < 50; number++) {
      await server.channels.publish('news', number);
      if (number % 10 === 9) {
        await until('the event', () => live.received.length > number - 5);
        server.cut();
      }
    }
    await until('all events', () => live.received.length >= 50);
    expect(live.received).toEqual(Array.from({ length: 50 }, (_, number) => number));
    expect(live.states.slice(0, 4)).toEqual(['connecting', 'open', 'reconnecting', 'open']);
  });

  test('resumes at a checkpoint if there was no event', async () => {
    await using server = await serveChannels();
    const live = record(server.url);
    await until('the stream', () => live.states.includes('open'));
    server.isDown = true;
    server.cut();
    await until('the end', () => live.states.includes('reconnecting'));
    await server.channels.publish('news', 'missed');
    server.isDown = false;
    await until('the event', () => live.received.length > 0);
    expect(live.received).toEqual(['missed']);
    expect(server.queries.at(-1)?.get('lastEventId')).toMatch(/\.\d+$/);
  });
});

describe('the start', () => {
  test('is at the cursor of the page', async () => {
    await using server = await serveChannels();
    const lastEventId = await server.channels.cursor();
    await server.channels.publish('news', 'after the page');
    const byOption = record(server.url, { lastEventId });
    const byUrl = record(`${server.url}/?room=1&lastEventId=${lastEventId}`);
    await until('both', () => byOption.received.length + byUrl.received.length === 2);
    expect([byOption.received, byUrl.received]).toEqual([['after the page'], ['after the page']]);
    expect(server.queries.map((query) => query.getAll('lastEventId'))).toEqual([
      [lastEventId],
      [lastEventId],
    ]);
  });

  test('without one is now', async () => {
    await using server = await serveChannels();
    await server.channels.publish('news', 'before');
    const live = record(server.url);
    await until('the stream', () => live.states.includes('open'));
    await server.channels.publish('news', 'after');
    await until('the event', () => live.received.length > 0);
    expect(live.received).toEqual(['after']);
  });

  test('calls no function before connect() has returned', async () => {
    await using server = await serveStreams();
    const states: string[] = [];
    const live = record(server.url, { onState: (state) => states.push(state) });
    expect(states).toEqual([]);
    await until('the stream', () => states.includes('open'));
    live.connection.close();
  });

  test('throws for a URL that is not one', () => {
    expect(() => record('/relative/in/node')).toThrow(TypeError);
  });
});

describe('a gap', () => {
  test('is told with its channels, and newer events follow', async () => {
    await using server = await serveChannels({ events: 2 });
    const lastEventId = await server.channels.cursor();
    for (let number = 0; number < 5; number++) await server.channels.publish('news', number);
    const live = record(server.url, { lastEventId });
    await until('the events', () => live.received.length === 2);
    expect(live.received).toEqual([3, 4]);
    expect(live.gaps).toEqual([
      { channels: ['news'], after: lastEventId, cursor: await server.channels.cursor() },
    ]);
  });

  test('of a 410 is told, and the next request has no id', async () => {
    await using server = await serveInTurn(status(410), streamOf('data: 1\nid: b\n\n'));
    const live = record(server.url, { lastEventId: 'a' });
    await until('the event', () => live.received.length > 0);
    expect(live.gaps).toEqual([{ channels: [], after: 'a', cursor: '' }]);
    expect(server.requests.map(({ query }) => query)).toEqual([{ lastEventId: 'a' }, {}]);
  });

  test('of a 410 for a request without an id is a failure', async () => {
    await using server = await serveInTurn(status(410));
    const live = record(server.url);
    await until('the failure', () => live.states.includes('failed'));
    expect(live.errors.at(-1)?.status).toBe(410);
    expect(server.requests).toHaveLength(1);
  });
});

describe('the end', () => {
  test('of a channel is told once, and no request follows', async () => {
    await using server = await serveChannels();
    const live = record(server.url);
    await until('the stream', () => live.states.includes('open'));
    await server.channels.end('news', 'the last');
    await until('the end', () => live.ends > 0);
    await until('the end of the connection', () => server.server.sockets.size === 0);
    expect(live.received).toEqual(['the last']);
    expect(live.states).toEqual(['connecting', 'open', 'ended']);
    expect(live.ends).toBe(1);
    expect(server.queries).toHaveLength(1);
  });

  test('of a 204 is told', async () => {
    await using server = await serveInTurn(status(204));
    const live = record(server.url);
    await until('the end', () => live.ends > 0);
    expect(live.states).toEqual(['connecting', 'ended']);
    expect(server.requests).toHaveLength(1);
  });
});

describe('a refusal', () => {
  test.each([400, 404, 406])('with %i is a failure, and no request follows', async (code) => {
    await using server = await serveInTurn(status(code));
    const live = record(server.url);
    await until('the failure', () => live.states.includes('failed'));
    expect(live.states).toEqual(['connecting', 'failed']);
    expect(live.errors.at(-1)).toMatchObject({ status: code });
    expect(server.requests).toHaveLength(1);
  });

  test('with a page instead of a stream is a failure that says so', async () => {
    await using server = await serveInTurn((_req, res) => void res.send('<!doctype html>'));
    const live = record(server.url);
    await until('the failure', () => live.states.includes('failed'));
    expect(live.errors.at(-1)?.message).toBe(
      'the response is not an event stream but text/html; charset=utf-8',
    );
  });

  test.each([429, 500, 502, 503])('with %i is followed by another request', async (code) => {
    await using server = await serveInTurn(
      streamOf('retry: 1\ndata: 1\n\n'),
      status(code),
      streamOf('data: 2\n\n'),
    );
    const live = record(server.url);
    await until('the first', () => live.received.length === 1);
    for (const socket of server.sockets) socket.destroy();
    await until('the second', () => live.received.length === 2);
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting', 'open']);
  });

  test.each([401, 403])('with %i asks once for new headers', async (code) => {
    await using server = await serveInTurn(status(code), streamOf('data: 1\n\n'));
    let tokens = 0;
    const live = record(server.url, { headers: async () => ({ Authorization: `${++tokens}` }) });
    await until('the event', () => live.received.length > 0);
    expect(server.requests.map(({ headers }) => headers.authorization)).toEqual(['1', '2']);
    expect(live.states).toEqual(['connecting', 'open']);
  });

  test('with 401 is a failure if the new headers are refused, too', async () => {
    await using server = await serveInTurn(status(401));
    const live = record(server.url, { headers: () => ({ Authorization: 'old' }) });
    await until('the failure', () => live.states.includes('failed'));
    expect(live.errors.at(-1)?.status).toBe(401);
    expect(server.requests).toHaveLength(2);
  });

  test('with 401 is a failure at once without a function for headers', async () => {
    await using server = await serveInTurn(status(401));
    const live = record(server.url);
    await until('the failure', () => live.states.includes('failed'));
    expect(server.requests).toHaveLength(1);
  });

  test('with 401 asks for new headers again after a stream that opened', async () => {
    const cutStream = (_req: Request, res: Response): void => {
      res.type('text/event-stream').end('retry: 1\ndata: 1\n\n');
    };
    await using server = await serveInTurn(
      status(401),
      cutStream,
      status(401),
      streamOf('data: 2\n\n'),
    );
    let tokens = 0;
    const live = record(server.url, { headers: () => ({ Authorization: `${++tokens}` }) });
    await until('both events', () => live.received.length === 2);
    expect(tokens).toBe(4);
  });

  test('of the function for headers is followed by another attempt', async () => {
    await using server = await serveInTurn(streamOf('data: 1\n\n'));
    let calls = 0;
    const live = record(server.url, {
      headers() {
        if (++calls === 1) throw new Error('the token server is away');
        return {};
      },
    });
    await until('the event', () => live.received.length > 0);
    expect(live.states).toEqual(['connecting', 'reconnecting', 'open']);
    expect(live.errors[1]?.message).toBe('the token server is away');
  });
});

describe('after close()', () => {
  test('the connection ends, and no function is called', async () => {
    await using server = await serveChannels();
    const live = record(server.url);
    await until('the stream', () => live.states.includes('open'));
    live.connection.close();
    await server.channels.publish('news', 1);
    await until('the end of the connection', () => server.server.sockets.size === 0);
    live.connection.close();
    expect(live.states).toEqual(['connecting', 'open']);
    expect(live.received).toEqual([]);
  });

  test('in a listener, the next event of the same packet is not shown', async () => {
    await using server = await serveInTurn(streamOf('data: 1\n\ndata: 2\n\n'));
    const shown: unknown[] = [];
    const live = record(server.url, {
      on: {
        message(data) {
          shown.push(data);
          live.connection.close();
        },
      },
    });
    await until('the event', () => shown.length > 0);
    await until('the end of the connection', () => server.sockets.size === 0);
    expect(shown).toEqual([1]);
  });

  test('in the first call of `onState`, no request is made', async () => {
    await using server = await serveInTurn(streamOf(':\n'));
    const live = record(server.url, { onState: () => live.connection.close() });
    const other = record(server.url);
    await until('the other stream', () => other.states.includes('open'));
    other.connection.close();
    await until('the end of the connections', () => server.sockets.size === 0);
    expect(server.requests).toHaveLength(1);
  });

  test('in the turn of connect(), no request is made', async () => {
    await using server = await serveInTurn(streamOf(''));
    const live = record(server.url);
    live.connection.close();
    const other = record(server.url);
    await until('another stream', () => server.requests.length > 0);
    other.connection.close();
    expect(server.requests).toHaveLength(1);
    expect(live.states).toEqual([]);
  });
});

test('without Web Locks, a shared connection is one of its own', async () => {
  // Node.js has them from version 24 on.
  vi.stubGlobal('navigator', {});
  onTestFinished(() => void vi.unstubAllGlobals());
  await using server = await serveChannels();
  const first = record(server.url, { share: true });
  const second = record(server.url, { share: true });
  await until('both streams', () => [first, second].every((live) => live.states.includes('open')));
  await server.channels.publish('news', 1);
  await until('both events', () => first.received.length + second.received.length === 2);
  expect(server.queries).toHaveLength(2);
});
