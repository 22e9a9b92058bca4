import { once } from 'node:events';
import express from 'express';
import { describe, expect, test } from 'vitest';
import type { CloseReason, EventStream } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { codeOf } from './support/code-of.ts';
import { read } from './support/reader.ts';
import { dial, packetsOf, requestText } from './support/server.ts';
import { until, within } from './support/wait.ts';

test('a stream has none of the methods of a response, so that a mix-up is noticed at once', async () => {
  await using server = await serveStreams((stream) => {
    for (const name of ['write', 'end', 'destroy', 'setHeader', 'flushHeaders']) {
      expect(name in stream).toBe(false);
    }
    stream.send('x');
  });
  using reader = await read(server.url);
  expect((await reader.next()).data).toBe('x');
});

describe('send', () => {
  test('writes one event, with its fields as an object or in order', async () => {
    await using server = await serveStreams((stream) => {
      stream.send({ a: 1 }, { event: 'object', id: 'x', retry: 5 });
      stream.send('text', 'positional', 7n, 6);
      stream.send('only data');
    });
    using reader = await read(server.url);
    expect(await reader.take(3)).toEqual([
      { event: 'object', id: 'x', data: '{"a":1}' },
      { event: 'positional', id: '7', data: 'text' },
      { event: undefined, id: undefined, data: 'only data' },
    ]);
    expect(reader.retries).toEqual([5, 6]);
  });

  test('opens the stream', async () => {
    await using server = await serveStreams((stream) => {
      expect(stream.readyState).toBe(0);
      expect(stream.send('x')).toBe(true);
      expect(stream.readyState).toBe(1);
    });
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('x');
  });

  test('uses the serialize option', async () => {
    await using server = await serveStreams((stream) => stream.send({ a: 1 }), {
      serialize: (data) => `<${String(data)}>`,
    });
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('<[object Object]>');
  });

  test('reads each field once, so that a getter cannot return another value after the check', async () => {
    const reads = { event: 0, id: 0, retry: 0 };
    const fields = {
      get event() {
        return reads.event++ === 0 ? 'fine' : 'a\n\ndata: forged';
      },
      get id() {
        return reads.id++ === 0 ? '1' : '2\n\ndata: forged';
      },
      get retry() {
        return reads.retry++ === 0 ? 5 : ('6\n\ndata: forged' as never);
      },
    };
    await using server = await serveStreams((stream) => {
      stream.send('x', fields);
      let retries = 0;
      stream.close({
        get retry() {
          return retries++ === 0 ? 7 : ('8\n\ndata: forged' as never);
        },
      });
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.text).toBe(':\nevent: fine\nretry: 5\ndata: x\nid: 1\n\nretry: 7\n');
    expect(reads).toEqual({ event: 1, id: 1, retry: 1 });
  });

  test('rejects wrong use with a code, and writes nothing', async () => {
    await using server = await serveStreams((stream) => {
      stream.open();
      expect(codeOf(() => stream.send('x', 'a\nb'))).toBe('ERR_SSE_EVENT');
      expect(codeOf(() => stream.send('x', { id: '1\r' }))).toBe('ERR_SSE_ID');
      expect(codeOf(() => stream.send('x', { id: 'a\0' }))).toBe('ERR_SSE_ID');
      expect(codeOf(() => stream.send('x', 'e', 1, -1))).toBe('ERR_SSE_RETRY');
      expect(codeOf(() => stream.send(undefined))).toBe('ERR_SSE_DATA');
      expect(codeOf(() => stream.send(() => 1))).toBe('ERR_SSE_DATA');
      expect(codeOf(() => stream.send(Symbol('x')))).toBe('ERR_SSE_DATA');
      expect(codeOf(() => stream.send(Buffer.from('x')))).toBe('ERR_SSE_DATA');
      expect(codeOf(() => stream.send('x', { event: 'sse:mine' }))).toBe('ERR_SSE_EVENT');
      expect(codeOf(() => stream.comment(1 as unknown as string))).toBe('ERR_SSE_COMMENT');
      expect(codeOf(() => stream.close({ retry: 1.5 }))).toBe('ERR_SSE_OPTION');
      expect(codeOf(() => stream.close({ retry: 2 ** 31 }))).toBe('ERR_SSE_OPTION');
      expect(codeOf(() => stream.close({ finall: true } as object))).toBe('ERR_SSE_OPTION');
      stream.close();
    });
    using reader = await read(server.url);
    await reader.end();
    expect(server.streams).toHaveLength(1);
    expect(reader.text).toBe(':\n');
  });

  test('wrong use leaves an idle stream idle, so that the handler can still answer otherwise', async () => {
    await using server = await serveStreams((stream) => {
      expect(codeOf(() => stream.send(undefined))).toBe('ERR_SSE_DATA');
      expect(stream.readyState).toBe(0);
      stream.res.statusCode = 422;
      stream.res.end('unprocessable');
    });
    using reader = await read(server.url);
    expect(reader.response.status).toBe(422);
  });

  test('returns false and does not throw after the client has disconnected', async () => {
    await using server = await serveStreams((stream) => stream.send('x'));
    const reader = await read(server.url);
    await reader.next();
    const stream = server.streams[0] as EventStream;
    reader.close();
    expect(await within('the close reason', stream.closed)).toBe('client');
    expect(stream.send('y')).toBe(false);
    expect(stream.comment('y')).toBe(false);
    expect(stream.open().readyState).toBe(2);
    expect(stream.close()).toBe(stream);
    await stream.drained();
  });

  test('returns false in the turn in which the application has ended the response itself', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('x');
      stream.res.end();
      expect(stream.send('y')).toBe(false);
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events.map((event) => event.data)).toEqual(['x']);
    expect(await within('the close reason', (server.streams[0] as EventStream).closed)).toBe(
      'server',
    );
  });

  test('throws ERR_SSE_HEADERS_SENT if the response has begun as something else', async () => {
    let code = '';
    await using server = await serveStreams((stream) => {
      stream.res.end('plain');
      code = codeOf(() => stream.send('x'));
    });
    using reader = await read(server.url);
    await reader.end();
    expect(code).toBe('ERR_SSE_HEADERS_SENT');
    expect(reader.text).toBe('plain');
  });
});

describe('open', () => {
  test('sends the status, the headers and a first comment in one packet', async () => {
    await using server = await serveStreams((stream) => stream.open(), {
      headers: { 'X-Extra': 'yes', 'Set-Cookie': ['a=1', 'b=2'] },
    });
    const socket = await dial(server.port, requestText('/'));
    const [first] = (await within('the first packet', once(socket, 'data'))) as [Buffer];
    socket.destroy();
    const [head, body] = first.toString().split('\r\n\r\n') as [string, string];
    expect(head).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(head).toContain('\r\nContent-Type: text/event-stream\r\n');
    expect(head).toContain('\r\nCache-Control: no-cache, no-transform\r\n');
    expect(head).toContain('\r\nX-Accel-Buffering: no\r\n');
    expect(head).toContain('\r\nX-Extra: yes\r\n');
    expect(head).toContain('\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n');
    expect(body).toBe('2\r\n:\n\r\n');
  });

  test('sends everything that is written in its tick in the same packet, and nothing else', async () => {
    await using server = await serveStreams((stream) => {
      stream.open();
      stream.comment('one');
      stream.send(2);
      stream.send('three');
      setImmediate(() => stream.send('later'));
    });
    const packets = packetsOf(server);
    using reader = await read(server.url);
    expect(await reader.take(3)).toMatchObject([
      { data: '2' },
      { data: 'three' },
      { data: 'later' },
    ]);
    expect(reader.text).toMatch(/^:\n: one\ndata: 2\n\n/);
    expect(packets.map((parts) => parts.join('').match(/HTTP|one|data: .*/g))).toEqual([
      ['HTTP', 'one', 'data: 2', 'data: three'],
      ['data: later'],
    ]);
  });

  test.each([
    ['close()', (stream: EventStream) => void stream.close()],
    ['res.end()', (stream: EventStream) => void stream.res.end()],
  ])('and %s in its turn are one packet, too', async (_, end) => {
    await using server = await serveStreams((stream) => {
      stream.send('x');
      end(stream);
    });
    const packets = packetsOf(server);
    using reader = await read(server.url);
    await reader.end();
    expect(reader.text).toBe(':\ndata: x\n\n');
    expect(packets).toHaveLength(1);
    // The next request on the connection is answered normally.
    using next = await read(server.url);
    await next.end();
    expect(next.text).toBe(reader.text);
  });

  test('and destroy() in the same turn do not throw', async () => {
    await using server = await serveStreams(
      (stream) =>
        void (server.streams.length === 1 ? stream.open().res.destroy() : stream.send('x')),
    );
    await expect(read(server.url)).rejects.toThrow('fetch failed');
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('x');
  });

  test('sends a reconnection time, drawn from the range for each client', async () => {
    await using server = await serveStreams((stream) => stream.close(), {
      retry: { min: 1_000, max: 1_000_000 },
    });
    const retries = new Set<number>();
    for (let client = 0; client < 5; client++) {
      using reader = await read(server.url);
      await reader.end();
      expect(reader.text).toMatch(/^retry: \d+\n:\n$/);
      for (const retry of reader.retries) retries.add(retry);
    }
    expect(retries.size).toBeGreaterThan(1);
    expect(Math.min(...retries)).toBeGreaterThanOrEqual(1_000);
    expect(Math.max(...retries)).toBeLessThanOrEqual(1_000_000);
  });

  test('resets a length and a status that were set for another answer', async () => {
    await using server = await serveStreams((stream) => {
      stream.res.statusCode = 404;
      stream.res.setHeader('Content-Length', 3);
      stream.send('x'.repeat(100));
    });
    using reader = await read(server.url);
    expect(reader.response.status).toBe(200);
    expect((await reader.next()).data).toHaveLength(100);
  });

  test('for a HEAD request sends the head and ends', async () => {
    const reasons: CloseReason[] = [];
    await using server = await serveStreams((stream) => {
      expect(stream.send('x')).toBe(false);
      void stream.closed.then((reason) => reasons.push(reason));
    });
    using reader = await read(server.url, { method: 'HEAD' });
    await reader.end();
    expect(reader.response.status).toBe(200);
    expect(reader.response.headers.get('content-type')).toBe('text/event-stream');
    expect(reader.text).toBe('');
    expect(reasons).toEqual(['server']);
    expect(server.events.stats()).toMatchObject({ open: 0, opened: 0 });
  });
});

test('a comment is written line by line, without a blank line after it', async () => {
  await using server = await serveStreams((stream) => {
    expect(stream.comment('a\nb')).toBe(true);
    stream.comment();
    stream.close();
  });
  using reader = await read(server.url);
  await reader.end();
  expect(reader.text).toBe(':\n: a\n: b\n:\n');
});

describe('a disconnect', () => {
  test('is noticed from the response, also after the body of a POST was parsed', async () => {
    await using server = await serveStreams();
    let stream: EventStream | undefined;
    server.app.post('/ask', express.json(), async (req, res) => {
      stream = res.sse as EventStream;
      await new Promise((resolve) => setImmediate(resolve));
      stream.send(req.body);
    });
    const reader = await read(`${server.url}/ask`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ prompt: 'x'.repeat(50_000) }),
    });
    expect(JSON.parse((await reader.next()).data).prompt).toHaveLength(50_000);
    expect(stream?.readyState).toBe(1);
    reader.close();
    expect(await within('the close reason', (stream as EventStream).closed)).toBe('client');
  });

  test('before the handler opens the stream is noticed', async () => {
    let answer: boolean | undefined;
    await using server = await serveStreams(async (stream) => {
      await stream.closed;
      answer = stream.send('x');
    });
    const socket = await dial(server.port, requestText('/'));
    await until('the stream', () => server.streams.length === 1);
    socket.resetAndDestroy();
    await until('the answer', () => answer !== undefined);
    expect(answer).toBe(false);
    expect(server.events.stats()).toMatchObject({ open: 0, opened: 0, closed: {} });
  });

  test('while earlier middleware is running is noticed', async () => {
    const { sse } = await import('../src/index.ts');
    const { serve } = await import('./support/server.ts');
    const events = sse();
    let entered = false;
    let state = -1;
    await using server = await serve(
      (req: never, res: import('node:http').ServerResponse & { sse?: EventStream }) => {
        entered = true;
        res.on('close', () =>
          setImmediate(() => events(req, res, () => (state = res.sse?.readyState ?? -2))),
        );
      },
    );
    const socket = await dial(server.port, requestText('/'));
    await until('the request', () => entered);
    socket.resetAndDestroy();
    await until('the middleware', () => state !== -1);
    expect(state).toBe(2);
  });

  test('aborts signal and resolves closed, whenever they are first read', async () => {
    await using server = await serveStreams((stream) => stream.open());
    const reader = await read(server.url);
    await until('the stream', () => server.streams.length === 1);
    const stream = server.streams[0] as EventStream;
    const { signal, closed } = stream;
    expect(signal.aborted).toBe(false);
    expect(stream.signal).toBe(signal);
    expect(stream.closed).toBe(closed);
    reader.close();
    expect(await within('the close reason', closed)).toBe('client');
    expect(signal.aborted).toBe(true);

    const other = await read(server.url);
    await until('the second stream', () => server.streams.length === 2);
    other.close();
    const late = server.streams[1] as EventStream;
    await until('its end', () => late.readyState === 2);
    expect(late.signal.aborted).toBe(true);
    expect(await late.closed).toBe('client');
  });
});

test('drained() of a stream that is not open resolves, also if the response is pipelined', async () => {
  let resolved = 0;
  await using server = await serveStreams(async (stream) => {
    if (server.streams.length === 1) {
      stream.send('first');
      return;
    }
    await stream.drained();
    resolved++;
    stream.send('second');
  });
  const socket = await dial(server.port, requestText('/') + requestText('/'));
  let text = '';
  socket.on('data', (chunk) => (text += chunk.toString()));
  await until('both streams', () => server.streams.length === 2);
  await until('drained()', () => resolved === 1);
  (server.streams[0] as EventStream).close();
  await until('the second event', () => text.includes('data: second'));
  socket.destroy();
});

describe('close', () => {
  test('ends the stream after the events that were sent, once, with the reason server', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('x');
      expect(stream.close()).toBe(stream);
      expect(stream.readyState).toBe(2);
      expect(stream.signal.aborted).toBe(true);
      stream.close({ final: true });
      expect(stream.send('y')).toBe(false);
    });
    using reader = await read(server.url);
    await reader.end();
    expect(reader.text).toBe(':\ndata: x\n\n');
    expect(await (server.streams[0] as EventStream).closed).toBe('server');
  });

  test('opens an idle stream first, because a client that gets no 200 never reconnects', async () => {
    await using server = await serveStreams((stream) => stream.close({ retry: 1_234 }));
    using reader = await read(server.url);
    await reader.end();
    expect(reader.response.status).toBe(200);
    expect(reader.text).toBe(':\nretry: 1234\n');
  });

  test('delivers all queued events first', async () => {
    await using server = await serveStreams(
      (stream) => {
        for (let index = 0; index < 20; index++) stream.send(`${index}:${'x'.repeat(100_000)}`);
        stream.close({ final: true });
      },
      { maxBuffered: 10_000_000 },
    );
    using reader = await read(server.url);
    await reader.end();
    expect(reader.events).toHaveLength(21);
    expect(reader.events[19]?.data).toMatch(/^19:x{100000}$/);
    expect(reader.events[20]).toEqual({ id: 'sse:end', event: 'sse:end', data: '{}' });
  });
});

test('req and res are the request and the response', async () => {
  await using server = await serveStreams((stream, req) => {
    expect(stream.req).toBe(req);
    expect(stream.res).toBe(req.res);
    expect(stream.lastEventId).toBe('e.7');
    stream.close();
  });
  using reader = await read(`${server.url}?lastEventId=e.7`);
  await reader.end();
  expect(server.streams).toHaveLength(1);
});
