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
import { chunksWrittenTo } from './support/chunks.ts';
import { dial, listening, requestText, type TestServer } from './support/server.ts';
import { StrictParser } from './support/strict-parser.ts';
import { until, within } from './support/wait.ts';

/**
 * Channel events go straight to the socket, past `res.write`, where nobody can tell the difference. Each test is a row of the
 * table of hazards in PERFORMANCE.md, section 2.
 */

const KB = Buffer.from(`data: ${'x'.repeat(1_016)}\n\n`);

interface DirectServer extends TestServer {
  readonly channels: Channels;
  readonly streams: EventStream[];
}

/** A bare server whose streams follow `a`; `prepare` is the application in front. */
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

/** A raw client that undoes chunked framing strictly, and what comes after the first response. */
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
    const [head, ...after] = text.split('\r\n\r\n');
    let rest = after.join('\r\n\r\n');
    if (!/transfer-encoding: chunked/i.test(head ?? '')) return { body: rest, rest: '' };
    let body = '';
    for (;;) {
      const end = rest.indexOf('\r\n');
      if (end === -1) return { body, rest: '' };
      expect(rest.slice(0, end)).toMatch(/^[0-9a-f]+$/i);
      const length = Number.parseInt(rest.slice(0, end), 16);
      if (rest.length < end + 2 + length + 2) return { body, rest: '' };
      expect(rest.slice(end + 2 + length, end + 4 + length)).toBe('\r\n');
      body += rest.slice(end + 2, end + 2 + length);
      rest = rest.slice(end + 4 + length);
      if (length === 0) return { body, rest };
    }
  }
  return {
    socket,
    text: () => text,
    body: () => split().body,
    rest: () => split().rest,
    parser: () => new StrictParser().feed(Buffer.from(split().body, 'latin1')),
  };
}

/** Whether an event that is published now goes to the socket already framed. */
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

/** Published, and given to the streams. */
async function publish(server: DirectServer, ...all: string[]): Promise<void> {
  for (const each of all) void server.channels.publish('a', each);
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

test('a plain response goes direct, with valid framing and everything in order', async () => {
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

test('what one turn publishes goes direct as one chunk, up to 64 KiB', async () => {
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
  await until('the large one', () => data(client.parser()).length === 32);
  expect(data(client.parser())).toEqual([...many, 'x'.repeat(70_000), 'y']);
  client.socket.destroy();
});

test('HTTP/1.0 does not', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server, requestText('/').replace('HTTP/1.1', 'HTTP/1.0'));
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(false);
  await publish(server, '1');
  await until('the event', () => data(client.parser()).length === 1);
  client.socket.destroy();
});

test('a response that was given a length goes by what Node makes of it', async () => {
  await using server = await serveDirect((res) => res.setHeader('Content-Length', 5));
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  await publish(server, '1'.repeat(100));
  await until('the event', () => data(client.parser()).length === 1);
  expect(client.text()).not.toMatch(/content-length/i);
  client.socket.destroy();
});

test('a response behind another on a pipelined connection waits for its socket', async () => {
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

test('HEAD gets a head and nothing more', async () => {
  await using server = await serveDirect();
  const client = await connectTo(server, requestText('/', {}, 'HEAD') + requestText('/'));
  await until('both requests', () => server.streams.length === 2);
  await publish(server, '1');
  await until('the event', () => client.text().includes('data: 1'));
  expect(client.text().match(/data: /g)).toHaveLength(1);
  expect(client.text().match(/HTTP\/1\.1 200 OK/g)).toHaveLength(2);
  client.socket.destroy();
});

test('HTTP/2, whose socket says that it is one, does not', async () => {
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
  const parser = new StrictParser();
  request.on('data', (chunk: Buffer) => parser.feed(chunk));
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

describe('what wraps or encodes the response sees every byte', () => {
  test('a wrapped write', async () => {
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

  test('a response with a prototype of its own, as an instrumented one', async () => {
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

  test('a wrapped end is called, and the stream goes direct all the same', async () => {
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
  'nothing lands behind the last chunk, where the next response on the connection begins: %s',
  async (how) => {
    await using server = await serveDirect();
    const client = await connectTo(server);
    await until('the stream', () => server.streams.length === 1);
    expect(await goesDirect(server, client)).toBe(true);
    const [stream] = server.streams as [EventStream];
    // In the middle of a turn that owes the stream something.
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

test("the application's own write takes the stream off the direct way for good, in order, within one turn too", async () => {
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
  await until('all', () => data(client.parser()).length === 5);
  expect(data(client.parser())).toEqual(['A', 'B', 'C', 'D', 'E']);
  expect(await goesDirect(server, client)).toBe(false);
  client.socket.destroy();
});

test("the application's own write comes behind a large event that is on its way, not into it", async () => {
  await using server = await serveDirect(() => {}, { maxBuffered: 10_000_000 });
  const client = await connectTo(server);
  await until('the stream', () => server.streams.length === 1);
  expect(await goesDirect(server, client)).toBe(true);
  const [stream] = server.streams as [EventStream];
  stream.send('x'.repeat(2_000_000));
  stream.res.write('data: own\n\n');
  stream.send('after');
  await until('all', () => data(client.parser()).length === 3);
  expect(data(client.parser()).map((each) => each.length)).toEqual([2_000_000, 3, 5]);
  client.socket.destroy();
});

test('a slow reader on the direct way drains by its socket, and comes back', async () => {
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
])(
  'streams that began with %s are given one shared buffer each, once they have drained',
  async (_, begin) => {
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
  },
);

test('a wrapped response is written to by its wrapper after a large event, too', async () => {
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

describe('streams in step, which are given what is published past their own objects', () => {
  /** Two streams that have just been given the same, and a raw client of each. */
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

  test('are counted as if each had been written to', async () => {
    await using inStep = await serveInStep();
    const { server, clients, streams } = inStep;
    const { channels } = server;
    // One is taken out of step on the way, the other is not.
    streams[0].comment('own');
    await publish(server, '3');
    await publish(server, '4', '5');
    await until('all', () => clients.every((client) => data(client.parser()).length === 5));
    for (const [index, { eventsWritten, bytesWritten, bytesFlushed }] of streams.entries()) {
      const { length } = clients[index]!.body();
      expect({ sent: eventsWritten, given: bytesWritten, delivered: bytesFlushed }).toEqual({
        sent: 5,
        given: length,
        delivered: length,
      });
    }
    expect(channels.stats().behind).toBe(0);
  });

  test("have their place between the application's own writes, and its end", async () => {
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

  test('fall out of step with a queue of their own, which stays in front', async () => {
    await using inStep = await serveInStep({ maxBuffered: 10_000_000 });
    const { server, clients, streams } = inStep;
    streams[0].send('x'.repeat(2_000_000));
    await publish(server, '3');
    await publish(server, '4');
    await until('all', () => data(clients[0].parser()).length === 5);
    expect(data(clients[0].parser()).map(({ length }) => length)).toEqual([1, 1, 2_000_000, 1, 1]);
  });

  test('get heartbeats as soon as they are silent, and only then', async () => {
    await using inStep = await serveInStep({ heartbeat: 200 });
    const { server, clients } = inStep;
    let published = 2;
    const began = performance.now();
    while (performance.now() - began < 1_000) {
      await publish(server, String(++published));
      await until('the event', () => data(clients[0].parser()).length === published);
    }
    const comments = (): number => clients[0].body().match(/^:$/gm)!.length;
    expect(comments()).toBe(1);
    const silent = performance.now();
    await until('four heartbeats', () => comments() === 5);
    expect(performance.now() - silent).toBeGreaterThan(4 * 200 - 50);
  });

  test('are not, while they follow channels without history, too: what is written for those is not silence', async () => {
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

  test('know where they are', async () => {
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

describe('a socket whose write an agent has replaced, and which throws, ends its own stream and harms no other', () => {
  /** Three streams on the direct way, and a raw client of each; from now on the socket of the second throws. */
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
        await until('the others', () =>
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

  test('with what is published', async () => {
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
