/** Streams that `compression()` in front encodes, although it leaves them alone by default. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, get, type RequestListener, type Server } from 'node:http';
import http2 from 'node:http2';
import type { Readable } from 'node:stream';
import zlib from 'node:zlib';
import compression from 'compression';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { createChannels, sse, type EventStream, type SseOptions } from '../src/index.ts';
import { read } from './support/reader.ts';
import { listening } from './support/server.ts';
import { StrictParser } from './support/strict-parser.ts';
import { until, within } from './support/wait.ts';

type Transport = 'HTTP/1.1' | 'HTTP/2';

/** Data that does not become less when it is compressed. */
function randomText(bytes: number): string {
  return randomBytes(Math.ceil((bytes * 3) / 4)).toString('base64');
}

/** Yields in each turn of the event loop, so that the test notices what its stream does. */
async function* endless(bytes: number): AsyncGenerator<string> {
  for (;;) {
    yield randomText(bytes);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Whether a compressor holds no more than it asks for, and one piece of an event. */
function hasRoom(gzip: zlib.Gzip | undefined): boolean {
  return gzip !== undefined && gzip.writableLength <= gzip.writableHighWaterMark + 16_384;
}

/** A server whose streams are encoded, and the compressors of these. */
async function serveCompressed(
  handler: (stream: EventStream) => unknown,
  options: SseOptions = {},
  transport: Transport = 'HTTP/1.1',
) {
  const createGzip = vi.spyOn(zlib, 'createGzip');
  onTestFinished(() => createGzip.mockRestore());
  const compress = compression({ filter: () => true, threshold: 0 });
  const events = sse({ headers: { 'Cache-Control': 'no-cache' }, warnings: false, ...options });
  const listener = ((req, res) =>
    compress(req as never, res as never, () =>
      events(req, res, () => void handler((res as { sse?: EventStream }).sse as EventStream)),
    )) as RequestListener;
  const raw =
    transport === 'HTTP/2'
      ? (http2.createServer(listener as never) as unknown as Server)
      : createServer(listener);
  const gzips = (): zlib.Gzip[] => createGzip.mock.results.map(({ value }) => value as zlib.Gzip);
  return Object.assign(await listening(raw), { events, gzips });
}

/** A request for an encoded stream, whose body is read only as the test wants. */
async function requestCompressed(
  url: string,
  transport: Transport = 'HTTP/1.1',
): Promise<Readable & Disposable> {
  const headers = { accept: 'text/event-stream', 'accept-encoding': 'gzip' };
  if (transport === 'HTTP/1.1') {
    const [body] = (await once(get(url, { headers }), 'response')) as [Readable];
    body.on('error', () => {});
    return Object.assign(body, { [Symbol.dispose]: () => void body.destroy() });
  }
  const session = http2.connect(url);
  const body = session.request({ ':path': '/', ...headers });
  body.on('error', () => {});
  await once(body, 'response');
  return Object.assign(body, { [Symbol.dispose]: () => session.destroy() });
}

test('a compressed stream goes at the pace of its reader, and leaves no listeners behind', async () => {
  const sent = Array.from({ length: 15 }, () => randomText(100_000));
  await using server = await serveCompressed(async (stream) => {
    for (const event of sent) {
      stream.send(event);
      await stream.drained();
    }
    stream.close();
  });
  using reader = await read(server.url, { headers: { 'Accept-Encoding': 'gzip' } });
  expect(reader.response.headers.get('content-encoding')).toBe('gzip');
  // Without 'drain', the timer of the streams would give it 16 KiB each second.
  await within('the end of the stream', reader.end(), 10_000);
  expect(reader.events.map(({ data }) => data)).toEqual(sent);
  expect(server.events.stats()).toMatchObject({ closed: { server: 1 }, dropped: 0, sent: 15 });
  expect(server.gzips()[0]?.listenerCount('drain')).toBe(1);
});

describe.each<Transport>(['HTTP/1.1', 'HTTP/2'])(
  'stallTimeout of a compressed stream over %s',
  (on) => {
    const STALL_MS = 1_000;
    const options: SseOptions = { stallTimeout: STALL_MS, heartbeat: false };

    test.each([3_000, 100_000])(
      'cuts a client that reads nothing, events of %i bytes',
      async (bytes) => {
        await using server = await serveCompressed(
          (stream) => stream.pipe(endless(bytes)),
          options,
          on,
        );
        using body = await requestCompressed(server.url, on);
        body.pause();
        await until('the end', () => server.events.stats().closed.stalled === 1);
        // The checks of the stream have given the compressor no more.
        expect(hasRoom(server.gzips()[0])).toBe(true);
      },
    );

    test('cuts no client that reads steadily', async () => {
      await using server = await serveCompressed(
        (stream) => stream.pipe(endless(100_000)),
        options,
        on,
      );
      using body = await requestCompressed(server.url, on);
      let received = 0;
      body.on('data', (chunk: Buffer) => {
        received += chunk.length;
        body.pause();
        setTimeout(() => body.resume(), 1);
      });
      const begun = performance.now();
      await until('several stall timeouts', () => performance.now() - begun > 3 * STALL_MS);
      expect(server.events.stats().closed).toEqual({});
      expect(received).toBeGreaterThan(1_000_000);
    });
  },
);

describe.each<Transport>(['HTTP/1.1', 'HTTP/2'])('small events over %s', (on) => {
  test('wait in the stream, not in the compressor, if the client reads nothing', async () => {
    const streams: EventStream[] = [];
    await using server = await serveCompressed(
      (stream) => {
        streams.push(stream);
        void stream.pipe(endless(3_000));
      },
      { stallTimeout: false },
      on,
    );
    using body = await requestCompressed(server.url, on);
    body.pause();
    await until('pipe() to wait', () => streams[0]?.mustWait === true);
    expect(hasRoom(server.gzips()[0])).toBe(true);
    const { bytesWritten } = streams[0] as EventStream;
    expect(streams[0]?.send('one more')).toBe(false);
    expect(streams[0]?.bytesWritten).toBe(bytesWritten);
  });

  test.each(['send()', 'publish()'])(
    'of one turn by %s arrive in order, and the end behind them',
    async (how) => {
      const sent = Array.from({ length: 250 }, () => randomText(3_000));
      const channels = createChannels();
      const closed: unknown[] = [];
      await using server = await serveCompressed(
        async (stream) => {
          stream.open();
          if (how === 'send()') for (const event of sent) stream.send(event);
          else {
            await stream.subscribe('a');
            for (const event of sent) void channels.publish('a', event);
          }
          stream.close();
          closed.push(await stream.closed);
        },
        { channels },
        on,
      );
      using body = await requestCompressed(server.url, on);
      const text = body.pipe(zlib.createGunzip());
      const parser = StrictParser.of(text);
      await within('the end', once(text, 'end'));
      const received = parser.events.filter(({ type }) => type === 'message');
      expect(received.map(({ data }) => data.slice(0, 20))).toEqual(
        sent.map((data) => data.slice(0, 20)),
      );
      expect(received.every(({ data }, index) => data === sent[index])).toBe(true);
      expect(server.events.stats()).toMatchObject({ dropped: 0, sent: 250 });
      expect(closed).toEqual(['server']);
    },
  );
});

test.each<[string, (stream: EventStream) => void, string[]]>([
  ['ends the response', () => {}, []],
  ['sends and ends the response', (stream) => void stream.send('own'), ['own']],
])('a wrapped write around the compressor that %s loses no event', async (_, act, own) => {
  const errors: unknown[] = [];
  const large = randomText(100_000);
  await using server = await serveCompressed(
    (stream) => {
      const { res } = stream;
      const write = res.write.bind(res) as (chunk: unknown) => boolean;
      let isDue = false;
      res.write = ((chunk: unknown) => {
        const answer = write(chunk);
        if (isDue) {
          isDue = false;
          act(stream);
          res.end('data: bye\n\n');
        }
        return answer;
      }) as typeof res.write;
      stream.send('first');
      isDue = true;
      stream.send(large);
      stream.send('last');
    },
    { onError: (error) => void errors.push(error) },
  );
  using reader = await read(server.url, { headers: { 'Accept-Encoding': 'gzip' } });
  await reader.end();
  const sent = ['first', large, ...own, 'bye'];
  expect(reader.events.map(({ data }) => data.length)).toEqual(sent.map(({ length }) => length));
  expect(errors).toEqual([]);
});

// Without 'drain', the timer of the streams would give the compressor 16 KiB each second.
test.each<[string, (stream: EventStream | undefined) => unknown, number]>([
  [
    'small events',
    (stream) => stream?.pipe(Array.from({ length: 100 }, () => randomText(8_000))),
    100,
  ],
  ['a large event', (stream) => stream?.send(randomText(400_000)), 1],
])('a compressor that passes no drain on does not slow down %s', async (_what, send, count) => {
  let closed: string | undefined;
  const events = sse({ warnings: false });
  await using server = await listening(
    createServer((req, res) => {
      const gzip = zlib.createGzip({ flush: zlib.constants.Z_SYNC_FLUSH });
      const write = res.write.bind(res) as (chunk: unknown) => boolean;
      const end = res.end.bind(res);
      gzip.on('data', (chunk: unknown) => {
        if (!write(chunk)) gzip.pause();
      });
      gzip.on('end', () => end());
      res.on('drain', () => gzip.resume());
      res.setHeader('Content-Encoding', 'gzip');
      res.write = (chunk: unknown) => gzip.write(chunk);
      res.end = () => {
        gzip.end();
        return res;
      };
      events(req, res, () => {
        const { sse: stream } = res as { sse?: EventStream };
        void stream?.closed.then((reason) => (closed = reason));
        void send(stream);
      });
    }),
  );
  using reader = await read(server.url);
  await until('all events', () => reader.events.length === count);
  expect(closed).toBeUndefined();
});
