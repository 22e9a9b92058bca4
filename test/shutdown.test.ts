import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import http2 from 'node:http2';
import type { Server } from 'node:http';
import { EventSource } from 'eventsource';
import express from 'express';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  EventStream,
  createChannels,
  sse,
  stream,
  type Broker,
  type SseMiddleware,
} from '../src/index.ts';
import { type StreamHost } from '../src/stream/event-stream.ts';
import { StreamMonitor } from '../src/stream/stream-monitor.ts';
import { resolveStreamOptions } from '../src/stream/stream-options.ts';
import { StreamTracker } from '../src/http/stream-tracker.ts';
import { FakeResponse } from './model/fake-response.ts';
import { serveStreams } from './support/app.ts';
import { startProgram } from './support/child.ts';
import { read, type Reader } from './support/reader.ts';
import { dial, listening, requestText, serve, type TestServer } from './support/server.ts';
import { until, within } from './support/wait.ts';

async function readMany(url: string, count: number, events: SseMiddleware): Promise<Reader[]> {
  const readers = await Promise.all(Array.from({ length: count }, () => read(url)));
  await until('the streams', () => events.streams.size === count);
  return readers;
}

describe('the open streams', () => {
  test('end in waves of ten or more over the time, each client with a random reconnection time', async () => {
    await using server = await serveStreams((given) => given.open());
    const readers = await readMany(server.url, 40, server.events);
    const sizes = new Set<number>();
    const closing = server.events.close({ within: 1_000, retry: { min: 1_000, max: 1_000_000 } });
    sizes.add(server.events.streams.size);
    await until('the last wave', () => {
      sizes.add(server.events.streams.size);
      return server.events.streams.size === 0;
    });
    expect([...sizes]).toEqual([30, 20, 10, 0]);
    expect(await closing).toEqual({ closed: 40, destroyed: 0 });
    await Promise.all(readers.map((reader) => reader.end()));
    const retries = readers.map((reader) => reader.retries[0] as number);
    expect(new Set(retries).size).toBeGreaterThan(35);
    for (const retry of retries) expect(retry >= 1_000 && retry <= 1_000_000).toBe(true);
  });

  test('that wait for their wave still get events', async () => {
    await using server = await serveStreams((given) => given.open());
    const readers = await readMany(server.url, 20, server.events);
    const closing = server.events.close({ within: 2_000 });
    for (const given of server.events.streams) given.send('still here');
    expect(await within('close', closing)).toEqual({ closed: 20, destroyed: 0 });
    await Promise.all(readers.map((reader) => reader.end()));
    expect(readers.filter((reader) => reader.events.length === 1)).toHaveLength(10);
  });

  test('that end by themselves do not delay close()', async () => {
    await using server = await serveStreams((given) => given.open());
    const readers = await readMany(server.url, 30, server.events);
    const closing = server.events.close({ within: 600_000 });
    for (const reader of readers) reader.close();
    expect(await within('close', closing)).toEqual({ closed: 30, destroyed: 0 });
  });

  test('get the pending events of their channels first', async () => {
    const channels = createChannels();
    await using server = await serveStreams((given) => given.subscribe('news'), { channels });
    const readers = await readMany(server.url, 5, server.events);
    // The event is not delivered to any stream in the turn in which it is published.
    void channels.publish('news', 'the last');
    expect(await server.events.close()).toEqual({ closed: 5, destroyed: 0 });
    for (const reader of readers) {
      await reader.end();
      expect(reader.events.map(({ data }) => data)).toEqual(['the last']);
      expect(reader.text).toMatch(/retry: \d+\n$/);
    }
  });

  test('are destroyed at the end of the time if they read nothing, and the others are not', async () => {
    await using server = await serveStreams((given) => given.open(), { stallTimeout: false });
    const readers = await readMany(server.url, 12, server.events);
    const socket = await dial(server.port, requestText('/'));
    socket.pause();
    await until('the stream', () => server.streams.length === 13);
    (server.streams[12] as EventStream).send('x'.repeat(30_000_000));
    expect(await within('close', server.events.close({ within: 300 }))).toEqual({
      closed: 12,
      destroyed: 1,
    });
    await Promise.all(readers.map((reader) => reader.end()));
    expect(server.events.stats()).toMatchObject({ open: 0, buffered: 0, closed: { shutdown: 13 } });
    socket.destroy();
  });

  test('are destroyed with their connection if they wait for another response on it', async () => {
    const app = express();
    const events = sse();
    const seen: EventStream[] = [];
    app.use(events);
    app.get('/long', (_req, res) => void res.write('never ends'));
    app.get(
      '/',
      stream((given) => {
        seen.push(given);
        given.send('x');
      }),
    );
    await using server = await serve(app);
    const socket = await dial(server.port, requestText('/long') + requestText('/').repeat(3));
    await until('the streams', () => seen.length === 3);
    expect(await within('close', events.close({ within: 100 }))).toEqual({
      closed: 0,
      destroyed: 3,
    });
    await until('the socket to go', () => server.sockets.size === 0);
    socket.destroy();
  });

  test('of an inner sse() that open in the shutdown of the outer one are removed from both', async () => {
    const app = express();
    const outer = sse();
    const inner = sse({ heartbeat: 1_000 });
    let go: (() => void) | undefined;
    app.use(outer);
    app.get(
      '/',
      inner,
      stream((given) =>
        new Promise<void>((resolve) => {
          go = resolve;
        }).then(() => void given.open()),
      ),
    );
    await using server = await serve(app);
    const reading = read(server.url);
    await until('the request', () => go !== undefined);
    await outer.close();
    go?.();
    using reader = await reading;
    await reader.end();
    for (const each of [outer, inner]) {
      await until('it to be gone', () => each.streams.size === 0);
      expect(each.stats()).toMatchObject({ open: 0, opened: 1, closed: { shutdown: 1 } });
    }
  });
});

describe('new requests', () => {
  test('are refused, and their connection is closed, so that the clients reconnect to another process', async () => {
    await using server = await serveStreams((given) => given.open());
    const readers = await readMany(server.url, 20, server.events);
    const closing = server.events.close({ within: 2_000, retry: 77 });
    using late = await read(server.url);
    await late.end();
    expect([late.response.status, late.text, late.response.headers.get('connection')]).toEqual([
      200,
      'retry: 77\n',
      'close',
    ]);
    for (const reader of readers) reader.close();
    await closing;
    expect(server.streams).toHaveLength(20);
  });

  test('reach another node: an EventSource loses no event, and gets no event twice', async () => {
    const channels = createChannels();
    await using old = await serveStreams((given) => given.subscribe('news'), { channels });
    await using next = await serveStreams((given) => given.subscribe('news'), { channels });
    const got: string[] = [];
    // Like a load balancer that notices the end of the old node.
    const source = new EventSource(old.url, {
      fetch: (_url, init) =>
        fetch(old.events.stats().closed.shutdown === undefined ? old.url : next.url, init),
    });
    source.addEventListener('message', ({ data }) => got.push(data as string));
    await until('the stream', () => channels.stats().subscriptions === 1);
    await channels.publish('news', '1');
    await until('the first', () => got.length === 1);
    void channels.publish('news', '2');
    await old.events.close({ retry: 20 });
    await channels.publish('news', '3');
    await until('it to be back', () => next.events.streams.size === 1);
    await channels.publish('news', '4');
    await until('the last', () => got.includes('4'));
    expect(got).toEqual(['1', '2', '3', '4']);
    source.close();
  });
});

test('with maxLifetime, streams that opened together do not end together, and their clients miss no event', async () => {
  const channels = createChannels();
  await using server = await serveStreams((given) => given.subscribe('news'), {
    channels,
    maxLifetime: 1_000,
    retry: 10,
  });
  const got: number[][] = [];
  const sources = Array.from({ length: 20 }, () => {
    const source = new EventSource(server.url);
    const mine: number[] = [];
    got.push(mine);
    source.addEventListener('message', ({ data }) => mine.push(Number(data)));
    return source;
  });
  await until('the streams', () => channels.stats().subscriptions === 20);
  const sizes = new Set<number>();
  let published = 0;
  await until('all to have been made anew', async () => {
    sizes.add(server.events.stats().closed.aged ?? 0);
    await channels.publish('news', published++);
    return (server.events.stats().closed.aged ?? 0) >= 20;
  });
  await until('the last event', () => got.every((mine) => mine.includes(published - 1)));
  for (const source of sources) source.close();
  // The timer ticks sixteen times in a lifetime this short, so the fifth over which ends are spread has three or four groups.
  expect([...sizes].some((aged) => aged > 0 && aged < 20)).toBe(true);
  for (const mine of got) {
    expect(mine).toEqual(Array.from({ length: published }, (_, index) => index));
  }
});

describe('close()', () => {
  test('is idempotent, resolves without streams, and never rejects', async () => {
    const events = sse();
    const closing = events.close({ within: 0 });
    expect(events.close()).toBe(closing);
    expect(await closing).toEqual({ closed: 0, destroyed: 0 });
  });

  test('with within: 0 ends and destroys at once', async () => {
    await using server = await serveStreams((given) => given.open(), { stallTimeout: false });
    const readers = await readMany(server.url, 30, server.events);
    const { closed, destroyed } = await within('close', server.events.close({ within: 0 }));
    expect(closed + destroyed).toBe(30);
    await Promise.all(readers.map((reader) => reader.end()));
  });

  test('resolves at its deadline, even if responses have not emitted their end', async () => {
    await using server = await serveStreams((given) => {
      given.open();
      given.res.end = () => given.res;
      given.res.destroy = () => given.res;
    });
    using reader = await read(server.url);
    await until('the stream', () => server.events.streams.size === 1);
    expect(await within('close', server.events.close({ within: 50 }))).toEqual({
      closed: 0,
      destroyed: 1,
    });
    reader.close();
  });

  test('returns the same promise to a listener that calls it at the end of a stream', async () => {
    const promises = new Set<Promise<unknown>>();
    await using server = await serveStreams((given) => {
      given.open();
      given.signal.addEventListener('abort', () =>
        promises.add(server.events.close({ within: 50 })),
      );
    });
    const readers = await readMany(server.url, 3, server.events);
    promises.add(server.events.close({ within: 50 }));
    expect(await within('close', [...promises][0]!)).toEqual({ closed: 3, destroyed: 0 });
    expect(promises.size).toBe(1);
    await Promise.all(readers.map((reader) => reader.end()));
  });

  test.each([
    ['over its time', 100],
    ['at its deadline', 0],
  ])(
    'ends no more than 250 streams in one turn of the event loop %s',
    async (_, time) => {
      const tracker = new StreamTracker({});
      const heartbeat = new StreamMonitor(resolveStreamOptions({}));
      const host: StreamHost = {
        settings: resolveStreamOptions({}),
        monitor: heartbeat,
        subscribe: undefined,
        onOpened: (given) => tracker.addStream(given),
        onEnded: (reason) => tracker.countEnd(reason),
        onClosed: (given, wasOpen) => {
          tracker.releasePlace(given.res);
          if (wasOpen) tracker.removeStream(given);
        },
      };
      const streams = Array.from({ length: 60_000 }, () => {
        const req = { method: 'GET', url: '/', headers: {}, httpVersionMajor: 2, socket: {} };
        return new EventStream(new FakeResponse(req, true, () => {}).asResponse, host).open();
      });
      let thisTurn = 0;
      let most = 0;
      let isCounting = true;
      (function turn(): void {
        thisTurn = 0;
        if (isCounting) setImmediate(turn);
      })();
      for (const given of streams) {
        given.signal.addEventListener('abort', () => (most = Math.max(most, ++thisTurn)));
      }
      const closing = tracker.shutDown(time, { min: 1, max: 1 });
      await until('some ends', () => tracker.size < 60_000);
      const { open, closed } = tracker.stats();
      expect([open, open + (closed.shutdown ?? 0), [...tracker].length]).toEqual([
        tracker.size,
        60_000,
        tracker.size,
      ]);
      const { closed: ended, destroyed } = await within('close', closing, 30_000);
      isCounting = false;
      expect(ended + destroyed).toBe(60_000);
      expect(most).toBeLessThanOrEqual(250);
    },
    40_000,
  );

  test('lets a server.close() that was called before it return when the streams are closed', async () => {
    const app = express();
    const events = sse();
    app.use(
      events,
      stream((given) => given.open()),
    );
    const server = createHttpServer({ keepAliveTimeout: 600_000 }, app);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const sockets = await Promise.all(
      Array.from({ length: 5 }, () => dial(port, requestText('/'))),
    );
    for (const socket of sockets) socket.resume();
    await until('the streams', () => events.streams.size === 5);
    const closed = once(server, 'close');
    server.close();
    expect(await events.close({ within: 100 })).toEqual({ closed: 5, destroyed: 0 });
    await within('the server to close', closed);
    for (const socket of sockets) socket.destroy();
  });

  test('leaves no timer, and no connection that keeps the server open', async () => {
    const timers = (): number =>
      process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const before = timers();
    const app = express();
    const events = sse({ heartbeat: 1_000, maxLifetime: 600_000, maxStreams: 100 });
    app.use(
      events,
      stream((given) => given.open()),
    );
    const server = createHttpServer(app);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const readers = await readMany(`http://127.0.0.1:${port}`, 25, events);
    await events.close({ within: 500 });
    const closed = once(server, 'close');
    server.close();
    // Well under the five seconds for which Node keeps an idle connection.
    await within('the server to close', closed, 3_000);
    await Promise.all(readers.map((reader) => reader.end()));
    await until('the timers to go', () => timers() <= before);
  });

  test('does not wait for a broker that does not answer any more', async () => {
    const never = new Promise<never>(() => {});
    const deaf: Broker = {
      state: 'broken',
      head: 0,
      held: { events: 0, bytes: 0 },
      open: () => {},
      append: () => Promise.reject(new Error('the broker is gone')),
      listen: () => never,
      unlisten: () => {},
      position: () => never,
      read: () => never,
      countHeld: () => 0,
      startsOfNewest: () => never,
      channelState: () => never,
      clear: () => never,
      close: () => never,
    };
    const channels = createChannels({ broker: deaf });
    await using server = await serveStreams((given) => given.subscribe('news'), { channels });
    const readers = await readMany(server.url, 5, server.events);
    await expect(channels.publish('news', 1)).rejects.toThrow('the broker is gone');
    void channels.close();
    expect(await within('close', server.events.close())).toEqual({ closed: 5, destroyed: 0 });
    await Promise.all(readers.map((reader) => reader.end()));
  });
});

test('over HTTP/2 streams end in waves, and the remaining streams are destroyed', async () => {
  const raw = http2.createServer() as unknown as Server;
  const events = sse({ maxBuffered: 100_000_000, stallTimeout: false });
  const seen: EventStream[] = [];
  const handler = stream((given) => {
    seen.push(given);
    given.open();
  });
  raw.on('request', (req, res) =>
    events(req, res, () => handler(req as never, res as never, () => {})),
  );
  await using server = await listening(raw);
  const session = http2.connect(server.url);
  const requests = Array.from({ length: 21 }, () =>
    session.request({ ':path': '/', accept: 'text/event-stream' }),
  );
  let ended = 0;
  for (const [index, request] of requests.entries()) {
    request.on('error', () => {});
    if (index > 0) request.resume();
    request.on('end', () => ended++);
  }
  await until('the streams', () => events.streams.size === 21);
  for (const given of seen) {
    if (given.req.url === '/') given.send('x'.repeat(given === seen[0] ? 20_000_000 : 10));
  }
  const closing = events.close({ within: 500 });
  expect(events.streams.size).toBe(11);
  expect(await within('close', closing)).toEqual({ closed: 20, destroyed: 1 });
  await until('the ends', () => ended >= 20);
  expect(session.destroyed).toBe(false);
  // The unread bytes of the stream count against the window of its session.
  requests[0]?.destroy();
  const closed = once(raw, 'close');
  raw.close();
  await within('the server to close', closed, 3_000);
});

describe('over HTTP/2, while the middleware is being closed', () => {
  /** A bare server with event streams at `/`, and at `/plain` an answer that the test completes. */
  async function serveHttp2() {
    const raw = http2.createServer() as unknown as Server;
    const events = sse();
    const streams: EventStream[] = [];
    const plain: ServerResponse[] = [];
    raw.on('request', (req, res) => {
      events(req, res, () => {
        const { sse: given } = res as ServerResponse & { sse?: EventStream };
        if (given !== undefined) streams.push(given.open());
        else plain.push(res.writeHead(200));
      });
    });
    const server = await listening(raw);
    onTestFinished(() => server[Symbol.asyncDispose]());
    return { server, events, streams, plain };
  }

  /** A client that keeps its session open as long as the server does. */
  function connectTo({ url }: TestServer) {
    const session = http2.connect(url);
    onTestFinished(() => session.destroy());
    const closed = once(session, 'close');
    function get(path: string, accept = 'text/event-stream') {
      const request = session.request({ ':path': path, accept });
      const received = { request, status: 0, text: '', ended: once(request, 'end') };
      request.on('response', (headers) => (received.status = headers[':status'] ?? 0));
      request.setEncoding('utf8').on('data', (part: string) => (received.text += part));
      request.on('error', () => {});
      return received;
    }
    return { get, closed };
  }

  test.each(['before', 'after'])(
    'server.close() returns when it was called %s close()',
    async (when) => {
      const { server, events } = await serveHttp2();
      const client = connectTo(server);
      const streams = [client.get('/'), client.get('/')];
      await until('the streams', () => events.streams.size === 2);
      const closed = once(server.server, 'close');
      if (when === 'before') server.server.close();
      expect(await within('close', events.close({ within: 100, retry: 7 }))).toMatchObject({
        destroyed: 0,
      });
      if (when === 'after') server.server.close();
      await within('the server to close', closed, 3_000);
      await client.closed;
      expect(streams.map(({ text }) => text)).toEqual([':\nretry: 7\n', ':\nretry: 7\n']);
    },
  );

  test('a session ends when its last event stream and its other requests have ended', async () => {
    const { server, events, streams, plain } = await serveHttp2();
    const client = connectTo(server);
    client.get('/');
    await until('the stream', () => events.streams.size === 1);
    const other = client.get('/plain', '*/*');
    await until('the other request', () => plain.length === 1);
    const closing = events.close({ within: 100 });
    await streams[0]?.closed;
    await within('close', closing);
    const closed = once(server.server, 'close');
    server.server.close();
    plain[0]?.end('complete');
    await within('the other answer', other.ended);
    expect(other.text).toBe('complete');
    await within('the session', client.closed, 3_000);
    await within('the server to close', closed, 3_000);
  });

  test('a session ends when its client has closed its event stream', async () => {
    const { server, events } = await serveHttp2();
    const others = connectTo(server);
    const client = connectTo(server);
    // The first ten streams are ended at once, this one is ended last.
    for (let count = 0; count < 10; count++) others.get('/');
    await until('the first streams', () => events.streams.size === 10);
    const left = client.get('/');
    await until('the streams', () => events.streams.size === 11);
    const closing = events.close({ within: 5_000 });
    expect(events.streams.size).toBe(1);
    left.request.close(http2.constants.NGHTTP2_CANCEL);
    await within('the session', client.closed, 3_000);
    expect((await within('close', closing)).closed).toBe(11);
  });

  test('a request is refused, and its session ends', async () => {
    const { server, events } = await serveHttp2();
    const others = connectTo(server);
    for (let count = 0; count < 11; count++) others.get('/');
    await until('the streams', () => events.streams.size === 11);
    const closing = events.close({ within: 5_000, retry: 77 });
    const client = connectTo(server);
    const late = client.get('/');
    await within('the session', client.closed, 3_000);
    expect([late.status, late.text]).toEqual([200, 'retry: 77\n']);
    await within('close', closing, 8_000);
  });
});

test('the recipe of docs/reference.md ends a process at SIGTERM with exit code 0, and its clients get a reconnection time', async () => {
  const reference = await readFile(new URL('../docs/reference.md', import.meta.url), 'utf8');
  const [, recipe = ''] = /```js\n(process\.once\('SIGTERM'[^]*?)```/.exec(reference) ?? [];
  const program = `
    import express from 'express';
    import { createChannels, sse } from './src/index.ts';
    const app = express();
    const channels = createChannels();
    const events = sse({ channels });
    app.use(events);
    app.get('/listen', channels.listen('haiku'));
    const server = app.listen(0, '127.0.0.1', () => process.send(server.address().port));
    ${recipe.replace('10_000', '1_000')}
    process.once('SIGTERM', () => process.disconnect());`;
  await using child = startProgram(program);
  const [port] = (await within('the port', once(child.process, 'message'))) as [number];
  const url = `http://127.0.0.1:${port}/listen`;
  const readers = await Promise.all(Array.from({ length: 25 }, () => read(url)));
  await until('the streams', () => readers.every((reader) => reader.checkpoints.length > 0));
  child.process.kill('SIGTERM');
  await Promise.race(readers.map((reader) => reader.end()));
  // Between the first wave and the last.
  using early = await read(url);
  await early.end();
  expect([early.response.status, early.retries.length]).toEqual([200, 1]);
  await Promise.all(readers.map((reader) => reader.end()));
  for (const reader of readers) expect(reader.retries).toHaveLength(1);
  await within('the end', child.ended);
  expect([child.process.exitCode, child.output]).toEqual([0, '']);
});
