import { createServer, type ServerResponse } from 'node:http';
import http2 from 'node:http2';
import type { Server } from 'node:http';
import { Socket } from 'node:net';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import {
  createChannels,
  sse,
  type Channels,
  type EventStream,
  type SseOptions,
} from '../src/index.ts';
import { ChunkedBody } from './support/chunked-body.ts';
import { chunksWrittenTo } from './support/chunks.ts';
import { dial, listening, requestText, type TestServer } from './support/server.ts';
import { StrictParser } from './support/strict-parser.ts';
import { until, within } from './support/wait.ts';

/**
 * Events of channels are written directly to the socket, past `res.write()`, if nobody can tell the
 * difference. Each test checks one situation in which somebody could.
 */

const KB = Buffer.from(`data: ${'x'.repeat(1_016)}\n\n`);

interface DirectServer extends TestServer {
  readonly channels: Channels;
  readonly streams: EventStream[];
}

/** A bare server whose streams follow channel `a`. @param prepare middleware in front of `sse()` */
async function serveDirect(
  prepare: (res: ServerResponse, url: string) => void = () => {},
  { channels = createChannels(), ...options }: SseOptions & { channels?: Channels } = {},
): Promise<DirectServer> {
  const events = sse({ channels, heartbeat: false, ...options });
  const streams: EventStream[] = [];
  const server = await listening(
    createServer((req, res) => {
      prepare(res, req.url ?? '');
      events(req, res, () => {
        const { sse: stream } = res as ServerResponse & { sse?: EventStream };
        if (stream === undefined) {
          res.end('no stream');
          return;
        }
        streams.push(stream);
        void stream.subscribe('a', { checkpoints: false });
      });
    }),
  );
  return Object.assign(server, { channels, streams });
}

/**
 * A raw client that decodes HTTP chunks strictly. `rest()` returns the bytes after the first
 * response.
 */
async function connectTo(
  server: TestServer,
  request = requestText('/'),
): Promise<{
  socket: Socket;
  text: () => string;
  body: () => string;
  rest: () => string;
  parser: () => StrictParser;
}> {
  const socket = await dial(server.port, request);
  let text = '';
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  function split(): { body: string; rest: string } {
    const [head = ''] = text.split('\r\n\r\n', 1);
    if (!/transfer-encoding: chunked/i.test(head)) {
      return { body: text.slice(head.length + 4), rest: '' };
    }
    let body = '';
    let rest = '';
    const reader = new ChunkedBody(
      (bytes) => (body += bytes.toString('latin1')),
      (bytes) => (rest += bytes.toString('latin1')),
    );
    reader.feed(Buffer.from(text, 'latin1'));
    return { body, rest };
  }
  return {
    socket,
    text: () => text,
    body: () => split().body,
    rest: () => split().rest,
    parser: () => new StrictParser().feed(Buffer.from(split().body, 'latin1')),
  };
}

/** Publishes an event. @returns whether the event was written to the socket as a complete chunk */
async function goesDirect(
  server: DirectServer,
  client: { parser: () => StrictParser },
): Promise<boolean> {
  const before = client.parser().events.length;
  const [socket] = [...server.sockets] as [Socket];
  const chunks = chunksWrittenTo([socket]);
  await server.channels.publish('a', 'probe');
  await until('the event', () => client.parser().events.length > before);
  return chunks.some(
    (chunk) =>
      Buffer.isBuffer(chunk) &&
      /^[0-9a-f]+\r\n[^]*data: probe\nid: .*\n\n\r\n$/.test(chunk.toString()),
  );
}

function data(parser: StrictParser): string[] {
  return parser.events.filter((event) => event.data !== 'probe').map((event) => event.data);
}

/** Publishes events and waits until they were written to the streams. */
async function publish(server: DirectServer, ...all: string[]): Promise<void> {
  for (const each of all) void server.channels.publish('a', each);
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

test('a plain response is written directly to the socket, with valid chunks and events in order', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  const [stream] = server.streams as [EventStream];
  expect(await goesDirect(server, client)).toBe(true);
  await publish(server, '1', '2');
  stream.send('3');
  await publish(server, '4');
  stream.comment('5');
  stream.close({ retry: 77 });
  await until('the end', () => client.text().endsWith('0\r\n\r\n'));
  expect(data(client.parser())).toEqual(['1', '2', '3', '4']);
  expect(client.body()).toMatch(/data: 4\nid: .*\n\n: 5\nretry: 77\n$/);
  client.socket.destroy();
});

test('the events of one turn are written directly as one chunk, up to 64 KiB', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(true);
  const [socket] = [...server.sockets] as [Socket];
  const write = vi.spyOn(socket, 'write');
  const many = Array.from({ length: 30 }, (_, index) => `${index} `.padEnd(2_000, '.'));
  await publish(server, ...many);
  expect(write).toHaveBeenCalledOnce();
  await until('the events', () => data(client.parser()).length === 30);
  await publish(server, 'x'.repeat(70_000), 'y');
  await until('the large event', () => data(client.parser()).length === 32);
  expect(data(client.parser())).toEqual([...many, 'x'.repeat(70_000), 'y']);
  client.socket.destroy();
});

test('HTTP/1.0 is not written directly', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server, requestText('/').replace('HTTP/1.1', 'HTTP/1.0'));
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(false);
  await publish(server, '1');
  await until('the event', () => data(client.parser()).length === 1);
  client.socket.destroy();
});

test('a Content-Length that middleware has set is removed, and the stream works', async () => {
  await using server = await serveDirect((res) => res.setHeader('Content-Length', 5));
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  await publish(server, '1'.repeat(100));
  await until('the event', () => data(client.parser()).length === 1);
  expect(client.text()).not.toMatch(/content-length/i);
  client.socket.destroy();
});

test('a pipelined response waits for its socket', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server, requestText('/first') + requestText('/second'));
  await until('both streams', () => server.streams.length === 2);
  await publish(server, '1');
  const [first, second] = server.streams as [EventStream, EventStream];
  first.close();
  await until('the second response', () => client.rest().includes('data: 1\n'));
  expect(client.rest()).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  await publish(server, '2');
  second.close();
  await until('its end', () => client.rest().endsWith('0\r\n\r\n'));
  expect(client.rest().match(/data: /g)).toHaveLength(2);
  expect(client.body().match(/data: /g)).toHaveLength(1);
  client.socket.destroy();
});

test('HEAD is answered with a head only', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server, requestText('/', {}, 'HEAD') + requestText('/'));
  await until('both requests', () => server.streams.length === 2);
  await publish(server, '1');
  await until('the event', () => client.text().includes('data: 1'));
  expect(client.text().match(/data: /g)).toHaveLength(1);
  expect(client.text().match(/HTTP\/1\.1 200 OK/g)).toHaveLength(2);
  client.socket.destroy();
});

test('HTTP/2 is not written directly, although its socket is an instance of Socket', async () => {
  const channels = createChannels();
  const events = sse({ channels });
  const raw = http2.createServer() as unknown as Server;
  raw.on('request', (req, res) =>
    events(
      req,
      res,
      () => void (res as ServerResponse & { sse?: EventStream }).sse?.subscribe('a'),
    ),
  );
  await using server = await listening(raw);
  const session = http2.connect(server.url);
  const request = session.request({ ':path': '/', accept: 'text/event-stream' });
  const parser = StrictParser.of(request);
  request.on('error', () => {});
  await until('the subscription', () => channels.stats().subscriptions === 1);
  for (let index = 0; index < 3; index++) {
    await channels.publish('a', `${index}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await until(
    'the events',
    () => parser.events.filter((event) => event.type === 'message').length === 3,
  );
  session.destroy();
});

describe('middleware that wraps or encodes the response gets every byte', () => {
  test('a wrapped write()', async () => {
    let seen = '';
    await using server = await serveDirect((res) => {
      const write = res.write.bind(res) as (chunk: unknown, ...rest: unknown[]) => boolean;
      res.write = ((chunk: unknown, ...rest: unknown[]) => {
        seen += String(chunk);
        return write(chunk, ...rest);
      }) as typeof res.write;
    });
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(false);
    await publish(server, '1', '2');
    await until('the events', () => data(client.parser()).length === 2);
    expect(seen).toBe(client.body());
    client.socket.destroy();
  });

  test('a response with another prototype, such as an instrumented one', async () => {
    let writes = 0;
    await using server = await serveDirect((res) => {
      const proto = Object.create(Object.getPrototypeOf(res) as object) as ServerResponse;
      // oxlint-disable-next-line typescript/unbound-method -- applied below
      const { write } = res;
      proto.write = function (this: ServerResponse, ...args: unknown[]) {
        writes++;
        return Reflect.apply(write, this, args) as boolean;
      } as typeof proto.write;
      Object.setPrototypeOf(res, proto);
    });
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(false);
    expect(writes).toBeGreaterThan(1);
    client.socket.destroy();
  });

  test.each<[string, (socket: Socket) => object]>([
    ['a socket with a write of its own', (socket) => socket],
    ['sockets whose prototype has a write of its own', () => Socket.prototype],
  ])('%s, and what it sends comes behind what it was given', async (_, targetOf) => {
    let seen = '';
    await using server = await serveDirect((res) => {
      const target = targetOf(res.socket as Socket) as Pick<Socket, 'write'>;
      // oxlint-disable-next-line typescript/unbound-method -- applied below
      const { write } = target;
      const { socket } = res;
      function watched(this: Socket, ...args: Parameters<typeof write>): boolean {
        if (this === socket) {
          seen += String(args[0]);
          if (String(args[0]).includes('LAST')) server.streams[0]?.close({ retry: 7 });
        }
        return Reflect.apply(write, this, args);
      }
      Object.defineProperty(target, 'write', {
        value: watched,
        configurable: true,
        writable: true,
      });
      onTestFinished(() => void Reflect.deleteProperty(target, 'write'));
    });
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    for (const each of ['1', '2', '3', 'LAST']) await publish(server, each);
    await until('the end', () => client.text().includes('\r\n0\r\n\r\n'));
    expect(data(client.parser())).toEqual(['1', '2', '3', 'LAST']);
    expect(client.text()).toMatch(/retry: 7\n\r\n0\r\n\r\n$/);
    expect(seen).toBe(client.text());
    client.socket.destroy();
  });

  test('a content encoding', async () => {
    await using server = await serveDirect((res) => res.setHeader('Content-Encoding', 'identity'));
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(false);
    client.socket.destroy();
  });

  test('a wrapped end() is called, and the stream is still written directly', async () => {
    let ends = 0;
    await using server = await serveDirect((res) => {
      const end = res.end.bind(res) as (...args: unknown[]) => ServerResponse;
      res.end = ((...args: unknown[]) => (ends++, end(...args))) as typeof res.end;
    });
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(true);
    (server.streams[0] as EventStream).close();
    await until('the end', () => client.text().endsWith('0\r\n\r\n'));
    expect(ends).toBe(1);
    client.socket.destroy();
  });
});

test.each(['close', 'res.end'] as const)(
  'nothing is written after the last chunk, where the next response of the connection begins: %s',
  async (how) => {
    await using server = await serveDirect();
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(true);
    const [stream] = server.streams as [EventStream];
    // In the middle of a turn in which an event is pending for the stream.
    void server.channels.publish('a', 'owed');
    if (how === 'close') stream.close();
    else stream.res.end();
    await publish(server, 'late');
    client.socket.write('GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await until('the next response', () => client.rest().includes('no stream'));
    expect(client.rest()).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(client.text()).not.toContain('late');
    expect(data(client.parser())).toEqual(['owed']);
    client.socket.destroy();
  },
);

test('after a write of the application, bytes go through res.write(), in order, also within one turn', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(true);
  const [stream] = server.streams as [EventStream];
  stream.send('A');
  stream.res.write('data: B\n\n');
  stream.send('C');
  stream.res.write('data: D\n\n');
  void server.channels.publish('a', 'E');
  await until('all events', () => data(client.parser()).length === 5);
  expect(data(client.parser())).toEqual(['A', 'B', 'C', 'D', 'E']);
  expect(await goesDirect(server, client)).toBe(false);
  client.socket.destroy();
});

test('a write of the application comes after a large event that is queued, not inside it', async () => {
  await using server = await serveDirect(() => {}, { maxBuffered: 10_000_000 });
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(true);
  const [stream] = server.streams as [EventStream];
  stream.send('x'.repeat(2_000_000));
  stream.res.write('data: own\n\n');
  stream.send('after');
  await until('all events', () => data(client.parser()).length === 3);
  expect(data(client.parser()).map((each) => each.length)).toEqual([2_000_000, 3, 5]);
  client.socket.destroy();
});

test('a slow client of a direct stream drains with its socket, and is live again', async () => {
  await using server = await serveDirect(() => {}, { stallTimeout: false });
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(true);
  client.socket.pause();
  const [stream] = server.streams as [EventStream];
  let published = 0;
  await until('it to be behind', async () => {
    await publish(
      server,
      ...Array.from({ length: 20 }, () => `${published++}:${'x'.repeat(10_000)}`),
    );
    return server.channels.stats().behind === 1;
  });
  const drained = stream.drained();
  client.socket.resume();
  await drained;
  await until('it to be live', () => server.channels.stats().behind === 0);
  expect(await goesDirect(server, client)).toBe(true);
  client.socket.destroy();
});

test.each<[string, (server: DirectServer) => void]>([
  [
    'a first event of 40 KB',
    ({ streams }) => streams.forEach((stream) => void stream.send('x'.repeat(40_000))),
  ],
  [
    'a resume of more than 16 KB',
    ({ streams }) =>
      streams.forEach((stream) => stream.writeAll(Array.from({ length: 50 }, () => KB))),
  ],
])('after %s, drained streams are written the same shared buffer', async (_, begin) => {
  await using server = await serveDirect();
  const clients = [await connectTo(server), await connectTo(server)] as const;
  await until('both streams', () => server.streams.length === 2);
  begin(server);
  await until('the first bytes', () =>
    server.streams.every((stream) => stream.bufferedAmount === 0),
  );
  const chunks = chunksWrittenTo(server.sockets);
  await publish(server, '1');
  await until('the event', () =>
    clients.every((client) => client.parser().events.at(-1)?.data === '1'),
  );
  expect(chunks).toHaveLength(2);
  expect(chunks[0]).toBe(chunks[1]);
  for (const { socket } of clients) socket.destroy();
});

test('a wrapped response is written through its wrapper also after a large event', async () => {
  const written: string[] = [];
  await using server = await serveDirect((res) => {
    const write = res.write.bind(res);
    res.write = ((...args: Parameters<ServerResponse['write']>) => {
      written.push(String(args[0]));
      return write(...args);
    }) as ServerResponse['write'];
  });
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  const [stream] = server.streams as [EventStream];
  stream.send('x'.repeat(40_000));
  await until('the first bytes', () => stream.bufferedAmount === 0);
  expect(await goesDirect(server, client)).toBe(false);
  expect(written.at(-1)).toContain('data: probe');
  client.socket.destroy();
});

describe('attached streams, whose group writes to their sockets,', () => {
  /** Two attached streams that have just received the same event, and a raw client of each. */
  async function serveInStep(options = {}) {
    const server = await serveDirect(() => {}, options);
    const clients = [await connectTo(server), await connectTo(server)] as const;
    await until('both streams', () => server.streams.length === 2);
    await publish(server, '1');
    await publish(server, '2');
    await until('two events each', () =>
      clients.every((client) => data(client.parser()).length === 2),
    );
    return {
      server,
      clients,
      streams: server.streams as [EventStream, EventStream],
      async [Symbol.asyncDispose]() {
        for (const { socket } of clients) socket.destroy();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  test('have the same totals as if each stream had been written to', async () => {
    await using inStep = await serveInStep();
    const { server, clients, streams } = inStep;
    const { channels } = server;
    // The comment detaches one of the streams. The other one stays attached.
    streams[0].comment('own');
    await publish(server, '3');
    await publish(server, '4', '5');
    await until('all events', () => clients.every((client) => data(client.parser()).length === 5));
    for (const [index, { eventsWritten, bytesWritten, bytesFlushed }] of streams.entries()) {
      const { length } = clients[index]!.body();
      expect({ sent: eventsWritten, given: bytesWritten }).toEqual({ sent: 5, given: length });
      // The head and the frames of the chunks count, too.
      expect(bytesFlushed).toBeGreaterThan(length);
    }
    expect(channels.stats().behind).toBe(0);
  });

  test('are written in order with writes of the application, and before its end', async () => {
    await using inStep = await serveInStep();
    const { server, clients, streams } = inStep;
    const [{ res }] = streams;
    res.cork();
    res.write('data: own\n\n');
    await publish(server, '3');
    res.uncork();
    expect(await goesDirect(server, clients[0])).toBe(false);
    void server.channels.publish('a', '4');
    res.end('data: end\n\n');
    await publish(server, '5');
    await until(
      'the end',
      () => clients[0].text().endsWith('0\r\n\r\n') && data(clients[1].parser()).length === 5,
    );
    expect(data(clients[0].parser())).toEqual(['1', '2', 'own', '3', '4', 'end']);
    expect(data(clients[1].parser())).toEqual(['1', '2', '3', '4', '5']);
  });

  test('are detached when they queue bytes, which stay in front', async () => {
    await using inStep = await serveInStep({ maxBuffered: 10_000_000 });
    const { server, clients, streams } = inStep;
    streams[0].send('x'.repeat(2_000_000));
    await publish(server, '3');
    await publish(server, '4');
    await until('all events', () => data(clients[0].parser()).length === 5);
    expect(data(clients[0].parser()).map(({ length }) => length)).toEqual([1, 1, 2_000_000, 1, 1]);
  });

  test('get heartbeats when they are idle, and only then', async () => {
    await using inStep = await serveInStep({ heartbeat: 200 });
    const { server, clients } = inStep;
    let published = 2;
    const began = performance.now();
    // On a busy machine a turn may take so long that the streams are silent for a heartbeat.
    let longTurns = 0;
    let before = began;
    while (before - began < 1_000) {
      await publish(server, String(++published));
      await until('the event', () => data(clients[0].parser()).length === published);
      const now = performance.now();
      if (now - before > 150) longTurns++;
      before = now;
    }
    const comments = (): number => clients[0].body().match(/^:$/gm)!.length;
    const busy = comments();
    expect(busy).toBeGreaterThanOrEqual(1);
    expect(busy).toBeLessThanOrEqual(1 + longTurns);
    const silent = performance.now();
    await until('four heartbeats', () => comments() === busy + 4);
    expect(performance.now() - silent).toBeGreaterThan(4 * 200 - 50);
  });

  test('are not attached while they follow channels without history, whose events count as writes', async () => {
    const channels = createChannels({
      historyFor: (name) => (name === 'live' ? false : undefined),
    });
    await using server = await serveDirect(() => {}, { heartbeat: 200, channels });
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    await server.streams[0]!.subscribe('live', { checkpoints: false });
    for (const each of ['1', '2']) {
      await channels.publish('a', each);
      await until('the event', () => client.parser().events.at(-1)?.data === each);
    }
    const began = performance.now();
    for (let count = 3; performance.now() - began < 800; count++) {
      await channels.publish('live', String(count));
      await until('the event', () => client.parser().events.at(-1)?.data === String(count));
    }
    expect(client.body().match(/^:$/gm)).toHaveLength(1);
    client.socket.destroy();
  });

  test('have the right cursor', async () => {
    await using inStep = await serveInStep();
    const { server, clients, streams } = inStep;
    const subscription = await streams[0].subscribe('a');
    for (const each of ['3', '4', '5']) {
      const { id } = await server.channels.publish('a', each);
      await until('the event', () => clients[0].parser().lastEventId === id);
      expect(subscription.cursor).toBe(id);
    }
  });
});

describe('a socket whose write() was replaced by an agent and throws ends its own stream and no other', () => {
  /**
   * Three streams that write to their sockets directly, and a raw client of each. From now on the
   * socket of the second stream throws.
   */
  async function serveThrowing() {
    const server = await serveDirect();
    const clients = [
      await connectTo(server),
      await connectTo(server),
      await connectTo(server),
    ] as const;
    await until('the streams', () => server.streams.length === 3);
    for (const each of ['1', '2']) await publish(server, each);
    await until('two events each', () =>
      clients.every((client) => data(client.parser()).length === 2),
    );
    const bad = server.streams.find(
      ({ req }) => req.socket.remotePort === clients[1].socket.localPort,
    ) as EventStream;
    bad.req.socket.write = () => {
      throw new Error('the agent');
    };
    const uncaught: unknown[] = [];
    const note = (error: unknown): void => void uncaught.push(error);
    process.on('uncaughtException', note);
    return {
      server,
      clients,
      bad,
      async others(): Promise<string[][]> {
        await publish(server, '3');
        await publish(server, '4');
        const others = [clients[0], clients[2]];
        await until('the other streams', () =>
          others.every((client) => data(client.parser()).at(-1) === '4'),
        );
        return others.map((client) => data(client.parser()));
      },
      uncaught,
      async [Symbol.asyncDispose]() {
        process.off('uncaughtException', note);
        for (const { socket } of clients) socket.destroy();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  test('with a published event', async () => {
    await using throwing = await serveThrowing();
    const { server, clients, bad, uncaught } = throwing;
    expect(await throwing.others()).toEqual([
      ['1', '2', '3', '4'],
      ['1', '2', '3', '4'],
    ]);
    expect(await within('its end', bad.closed)).toBe('error');
    expect(data(clients[1].parser())).toEqual(['1', '2']);
    expect(server.channels.stats().subscriptions).toBe(2);
    expect(uncaught).toEqual([]);
  });

  test.each<[string, (stream: EventStream) => unknown]>([
    ['an event', (stream) => stream.send('own')],
    ['a comment', (stream) => stream.comment('own')],
    ['a large event', (stream) => stream.send('x'.repeat(200_000))],
  ])('with %s of its own', async (_, send) => {
    await using throwing = await serveThrowing();
    const { server, bad, uncaught } = throwing;
    expect(() => send(bad)).not.toThrow();
    expect(await within('its end', bad.closed)).toBe('error');
    expect(await throwing.others()).toEqual([
      ['1', '2', '3', '4'],
      ['1', '2', '3', '4'],
    ]);
    expect(server.channels.stats().subscriptions).toBe(2);
    expect(uncaught).toEqual([]);
  });
});
