import connect from 'connect';
import express from 'express';
import express4 from 'express4';
import { execFile } from 'node:child_process';
import { createServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { promisify } from 'node:util';
import { describe, expect, test, vi } from 'vitest';
import { createChannels, sse, stream, type EventStream, type SseOptions } from '../../src/index.ts';
import { readEvents, type EventReader } from '../../src/testing/index.ts';
import { events, expectHello, hello, listener } from '../support/hello.ts';
import { read } from '../support/reader.ts';
import { serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

/** An app that is not listening, with a stream at `/`. */
function appOf(
  handler: (stream: EventStream) => unknown,
  options: SseOptions = {},
): express.Express {
  const app = express();
  app.use(sse(options));
  app.all('/', stream(handler));
  return app;
}

async function messageOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'the promise did not reject',
    (error: Error) => error.message,
  );
}

describe('readEvents', () => {
  test('reads events of an app that is not listening', async () => {
    const app = appOf((stream) => {
      stream.comment('hello\nworld');
      stream.send('plain');
      stream.send('two\nlines', { event: 'tick', id: 7, retry: 30 });
      stream.send({ json: 'größer' }, { id: '' });
    });
    await using reader = await readEvents(app);
    expect(await reader.take(3)).toStrictEqual([
      { event: 'message', data: 'plain' },
      { event: 'tick', data: 'two\nlines', id: '7' },
      { event: 'message', data: '{"json":"größer"}', id: '' },
    ]);
    expect([reader.status, reader.headers['content-type']]).toEqual([200, 'text/event-stream']);
    expect(reader.comments).toEqual(['', 'hello', 'world']);
    expect([reader.retry, reader.lastEventId]).toEqual([30, '']);
    expect(reader.text).toMatch(/^:\n: hello\n: world\ndata: plain\n\n/);
  });

  test('reads ahead and returns each event once, in the order of the calls', async () => {
    const app = appOf(async (stream) => {
      stream.send('1');
      await turn();
      for (const data of ['2', '3', '4']) stream.send(data);
    });
    await using reader = await readEvents(app);
    await until('the last event', () => reader.text.includes('data: 4'));
    const results = await Promise.all([reader.next(), reader.next(), reader.take(2)]);
    expect(results.flat().map(({ data }) => data)).toEqual(['1', '2', '3', '4']);
    const later = [reader.next(), reader.next()];
    await using other = await readEvents(app);
    expect((await other.next()).data).toBe('1');
    await reader.close();
    for (const each of later) await expect(each).rejects.toThrow('closed by this reader');
  });

  test('returns an async iterable that ends with the stream', async () => {
    await using reader = await readEvents(
      appOf((stream) => stream.pipe(['a', 'b', 'c']).then(() => stream.close())),
    );
    const data: string[] = [];
    for await (const event of reader) {
      data.push(event.data);
      if (data.length === 2) break;
    }
    expect(data).toEqual(['a', 'b']);
    // Leaving the loop does not close the reader.
    expect(await reader.rest()).toEqual([{ event: 'message', data: 'c' }]);
    expect(await reader.end()).toBe('complete');
    expect(await reader.rest()).toEqual([]);
  });

  test('sends method, body, headers and the last event ID', async () => {
    const requests: unknown[] = [];
    const app = express();
    app.use(sse({ accept: 'any' }), express.json(), express.text({ type: 'text/plain' }));
    app.all(
      '/ask/:what',
      stream((stream, req) => {
        requests.push([
          req.method,
          req.originalUrl,
          req.get('accept'),
          req.get('x-key'),
          stream.lastEventId,
          req.body as unknown,
        ]);
        stream.close();
      }),
    );
    const path = '/ask/this?now=1';
    for (const options of [
      { path, lastEventId: 'größer', headers: { 'X-Key': 'secret' } },
      { path, body: { prompt: 'hi' }, headers: { accept: 'application/json' } },
      { path, body: 'text', method: 'PUT', headers: { 'content-type': 'text/plain' } },
      { path, method: 'DELETE', lastEventId: '' },
    ]) {
      await using reader = await readEvents(app, options);
      expect(await reader.rest()).toEqual([]);
    }
    expect(requests).toEqual([
      ['GET', path, 'text/event-stream', 'secret', 'größer', undefined],
      ['POST', path, 'application/json', undefined, '', { prompt: 'hi' }],
      ['PUT', path, 'text/event-stream', undefined, '', 'text'],
      ['DELETE', path, 'text/event-stream', undefined, '', undefined],
    ]);
  });

  test('resumes with lastEventId, and returns checkpoints only with the option', async () => {
    const channels = createChannels();
    const app = express();
    app.use(sse({ channels }));
    app.get('/listen', channels.listen('a'));
    const first = await readEvents(app, { path: '/listen' });
    await until('a checkpoint', () => first.lastEventId !== '');
    const { id } = await channels.publish('a', '1');
    expect(await first.next()).toEqual({ event: 'message', data: '1', id });
    expect(first.lastEventId).toBe(id);
    await first.close();
    await channels.publish('a', '2');
    await using second = await readEvents(app, { path: '/listen', lastEventId: first.lastEventId });
    expect((await second.next()).data).toBe('2');
    await using third = await readEvents(app, { path: '/listen', checkpoints: true });
    expect((await third.next()).event).toBe('sse:checkpoint');
  });

  test('returns all events after pause() and resume(), and is slow meanwhile', async () => {
    let serverStream: EventStream | undefined;
    const app = appOf((stream) => {
      serverStream = stream;
      stream.open();
    });
    await using reader = await readEvents(app);
    const slow = serverStream as EventStream;
    reader.pause();
    let sent = 0;
    await until('full buffers of the kernel', async () => {
      if (slow.bufferedAmount > 0) return true;
      for (let index = 0; index < 16; index++) slow.send('x'.repeat(65_536), { id: sent++ });
      return false;
    });
    const text = reader.text.length;
    await turn();
    expect(reader.text.length).toBe(text);
    reader.resume();
    expect((await reader.take(sent)).map(({ id }) => Number(id))).toEqual(
      Array.from({ length: sent }, (_, index) => index),
    );
    await within('the drain of the stream', slow.drained());
  });

  test('closes the connection when the reader closes', async () => {
    let serverStream: EventStream | undefined;
    const app = appOf((stream) => {
      serverStream = stream;
      stream.send('x');
    });
    await using server = await serve(app);
    const reader = await readEvents(server.url);
    await reader.next();
    await reader.close();
    await reader.close();
    expect(await within('the close reason', (serverStream as EventStream).closed, 2_000)).toBe(
      'client',
    );
    await using another = await readEvents(new URL(server.url), { path: '/?again' });
    expect(another.status).toBe(200);
  });

  test('ends the stream of its app with reason client when the reader closes', async () => {
    let serverStream: EventStream | undefined;
    const app = appOf((stream) => {
      serverStream = stream.open();
    });
    for (const leave of [
      (reader: EventReader) => reader,
      (reader: EventReader) => reader.pause(),
    ]) {
      await leave(await readEvents(app)).close();
      expect(await within('the close reason', (serverStream as EventStream).closed)).toBe('client');
    }
  });

  test('closes a server that it started although another client is connected', async () => {
    const server = createServer(appOf((stream) => stream.open()));
    const reader = await readEvents(server);
    const { port } = server.address() as AddressInfo;
    const other = await read(`http://127.0.0.1:${port}`);
    await within('reader.close()', reader.close());
    await other.end();
    expect(server.listening).toBe(false);
  });
});

describe('readEvents takes', () => {
  test('a request listener, an Express 5, Express 4 or Connect app', async () => {
    await expectHello(listener);
    for (const app of [express(), express4(), connect() as unknown as express.Express]) {
      app.use(events);
      app.use(hello);
      await expectHello(app);
    }
  });

  test('a server that is not listening, and stops it with the last reader', async () => {
    const server = createServer(listener);
    const readers = await Promise.all([readEvents(server), readEvents(server)]);
    expect(server.listening).toBe(true);
    await readers[0].close();
    expect((await readers[1].next()).data).toBe('hello');
    await expectHello(server);
    expect(server.listening).toBe(true);
    await readers[1].close();
    expect(server.listening).toBe(false);
    await expectHello(server);
    expect(server.listening).toBe(false);
  });

  test('a server that is listening, and does not stop it', async () => {
    await using server = await serve(listener);
    await expectHello(server.server);
    expect(server.server.listening).toBe(true);
    await expectHello(server.url);
  });
});

describe('a timeout error describes what was expected and what was received:', () => {
  const timeout = 400;

  test('no response head', async () => {
    const app = express();
    app.get('/never', () => {});
    expect(await messageOf(readEvents(app, { path: '/never?x', timeout }))).toBe(
      'timed out after 400 ms waiting for the response headers of GET /never?x; the handler sends them with the first send(), comment(), open() or subscribe()',
    );
  });

  test('no server, or no response', async () => {
    expect(await messageOf(readEvents('http://127.0.0.1:1/listen'))).toMatch(
      /^GET \/listen got no response: connect ECONNREFUSED/,
    );
    expect(await messageOf(readEvents((req) => void req.socket.destroy()))).toBe(
      'GET / got no response: socket hang up',
    );
  });

  test('one event less than expected, and the reader continues', async () => {
    let serverStream: EventStream | undefined;
    const app = appOf((stream) => {
      serverStream = stream;
      stream.send('a');
      stream.send('b', { event: 'tick', id: 1 });
    });
    await using reader = await readEvents(app, { timeout });
    expect(await messageOf(reader.take(3))).toBe(
      'timed out after 400 ms waiting for event 3 of 3 of GET /: stream open, 2 events received (last: {"event":"tick","data":"b","id":"1"}), 1 comment',
    );
    expect(await messageOf(reader.end())).toContain(
      'timed out after 400 ms waiting for the end of GET /: stream open',
    );
    serverStream?.send('c');
    expect((await reader.next()).data).toBe('c');
    reader.pause();
    expect(await messageOf(reader.next())).toContain(
      'timed out after 400 ms waiting for event 4 of GET /: stream paused, 3 events received',
    );
  });

  test('an answer that is not an event stream', async () => {
    const app = appOf(() => {});
    await using reader = await readEvents(app, { headers: { accept: 'text/html' } });
    expect(await reader.end()).toBe('complete');
    expect([reader.status, reader.text]).toEqual([
      406,
      'This is an event stream; send the header Accept: text/event-stream\n',
    ]);
    const expected =
      'no event 1 of GET /: the response is not an event stream but 406, text/plain; charset=utf-8: This is an event stream; send the header Accept: text/event-stream\n';
    expect(await messageOf(reader.next())).toBe(expected);
    expect(await messageOf(reader.rest())).toContain(
      'no event 1 or the end of GET /: the response is not an event stream but 406',
    );
    await using missing = await readEvents(app, { path: '/missing', timeout });
    expect(await messageOf(missing.next())).toContain('not an event stream but 404, text/html');
  });

  test('an end before the event, and a broken connection', async () => {
    await using ended = await readEvents(appOf((stream) => stream.close()));
    expect(await messageOf(ended.next())).toBe(
      'no event 1 of GET /: stream ended, 0 events received, 1 comment',
    );
    const app = appOf((stream) => {
      stream.send('x');
      setImmediate(() => stream.res.destroy());
    });
    await using cut = await readEvents(app);
    expect(await cut.end()).toBe('cut');
    expect(await messageOf(cut.rest())).toContain(
      'no event 2 or the end of GET /: stream cut off, 1 event received',
    );
  });

  test('a very long event, truncated', async () => {
    await using reader = await readEvents(
      appOf((stream) => stream.send('x'.repeat(1_000_000))),
      { timeout },
    );
    await reader.next();
    expect((await messageOf(reader.next())).length).toBeLessThan(400);
  });

  test('the stack contains the call', async () => {
    await using reader = await readEvents(
      appOf((stream) => stream.open()),
      { timeout },
    );
    async function callingFunction(): Promise<void> {
      await reader.next();
    }
    await expect(callingFunction()).rejects.toMatchObject({
      stack: expect.stringContaining('callingFunction') as string,
    });
  });

  test('also with fake timers', async () => {
    vi.useFakeTimers();
    try {
      await using reader = await readEvents(
        appOf((stream) => stream.send('x')),
        { timeout },
      );
      await reader.next();
      expect(await messageOf(reader.next())).toContain('timed out after 400 ms');
    } finally {
      vi.useRealTimers();
    }
  });
});

test('readEvents refuses an option that is unknown or out of range', async () => {
  for (const options of [
    { lastEventID: '7' },
    { lastEventId: 7 },
    { timeout: 0 },
    { headers: 'x' },
  ]) {
    const [name = ''] = Object.keys(options);
    const reading = readEvents('http://127.0.0.1:1', options as object);
    await expect(reading).rejects.toMatchObject({
      code: 'ERR_SSE_OPTION',
      message: expect.stringContaining(`\`${name}\``) as string,
    });
  }
});

describe('readEvents refuses an invalid target at once and suggests a fix:', () => {
  const app = express();
  class Feed {
    readonly app = app;
    readonly events = sse();
  }
  test.each<[string, unknown, string]>([
    [
      'an object with the app in it',
      new Feed(),
      'got an object with the properties app, events; pass its `app`',
    ],
    ['an empty object', {}, 'got an object without properties'],
    ['a promise of an app', Promise.resolve(app), 'got a promise; await it'],
    [
      'an https server',
      createHttpsServer(),
      'got a server of another kind; call its listen(), and pass its URL',
    ],
    ['undefined', undefined, 'got undefined'],
    [
      'a path',
      '/listen?x=1',
      'got the path "/listen?x=1"; pass the app, and { path: "/listen?x=1" }',
    ],
    [
      'a host without a protocol',
      'localhost:4444/listen',
      'got "localhost:4444/listen"; write "http://localhost:4444/listen"',
    ],
    ['a word', 'listen', 'got "listen"; write "http://listen"'],
    ['a URL of another protocol', new URL('ws://localhost/listen'), 'got "ws://localhost/listen"'],
  ])('%s', async (_, target, fix) => {
    await expect(readEvents(target as string, { timeout: 600_000 })).rejects.toMatchObject({
      name: 'SseError',
      code: 'ERR_SSE_OPTION',
      message: expect.stringMatching(/^expected the target of readEvents\(\) to be /) as string,
    });
    await expect(readEvents(target as string)).rejects.toThrow(fix);
  });

  test('an invalid path', async () => {
    await expect(readEvents('http://127.0.0.1:1', { path: 'http://' })).rejects.toMatchObject({
      code: 'ERR_SSE_OPTION',
    });
    await expect(readEvents(app, { path: 'http://' })).rejects.toMatchObject({
      code: 'ERR_SSE_OPTION',
    });
  });
});

describe('under node --test', () => {
  const program = new URL('../support/unclosed-reader.mjs', import.meta.url).pathname;

  async function resultOf(name: string): Promise<string> {
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const args = ['--test', '--test-reporter', 'tap', '--test-name-pattern', `^${name}$`, program];
    const { stdout } = await within(
      `the exit of node --test "${name}"`,
      promisify(execFile)(process.execPath, args, { env, timeout: 15_000 }),
      20_000,
    );
    return stdout;
  }

  test('a reader that is not closed does not keep the process alive', async () => {
    expect(await resultOf('leaves a reader open')).toMatch(/^# pass 1$/m);
  });

  test('a test that waits for its server is not aborted', async () => {
    expect(await resultOf('waits for the server')).toMatch(/^# pass 1$/m);
  });

  test('a server that a reader started keeps the process alive after another start', async () => {
    expect(await resultOf('serves again')).toMatch(/^# pass 1$/m);
  });
});

test('reader.comments contains heartbeats', async () => {
  await using reader = await readEvents(appOf((stream) => stream.open(), { heartbeat: 20 }));
  await until('two heartbeats', () => reader.comments.length >= 3);
  expect(new Set(reader.comments)).toEqual(new Set(['']));
});
