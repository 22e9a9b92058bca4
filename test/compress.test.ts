/** `sse({ compress: true })`: streams that this library compresses. */
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { Agent, get, type IncomingMessage, type ServerResponse } from 'node:http';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { createGunzip } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { createChannels, sse, type EventStream } from '../src/index.ts';
import { dataOf, open, serve, tick, type Body } from './support/compressed.ts';
import { until } from './support/wait.ts';

describe('the head', () => {
  test.each([
    ['gzip', 'gzip'],
    ['gzip, deflate, br', 'gzip'],
    ['br;q=1, gzip;q=0.5', 'gzip'],
    ['*', 'gzip'],
    ['gzip;q=0', undefined],
    ['br', undefined],
    ['identity;q=1, gzip;q=0.5', undefined],
    ['', undefined],
  ])('of a request with Accept-Encoding: %s', async (accepted, encoding) => {
    await using server = await serve((stream) => stream.send('1').valueOf());
    const body = await open(server.url, accepted);
    expect(body.response.headers['content-encoding']).toBe(encoding);
    expect(body.response.headers.vary).toBe('Accept-Encoding');
    await until('the event', () => dataOf(body).length === 1);
  });

  test('has neither header without `compress`', async () => {
    await using server = await serve((stream) => stream.send('1'), { compress: false });
    const { response } = await open(server.url);
    expect(response.headers['content-encoding']).toBeUndefined();
    expect(response.headers.vary).toBeUndefined();
  });

  test('is the same for HEAD as for GET', async () => {
    await using server = await serve((stream) => stream.open());
    const answer = await fetch(server.url, {
      method: 'HEAD',
      headers: { Accept: 'text/event-stream', 'Accept-Encoding': 'gzip' },
    });
    expect(answer.headers.get('content-encoding')).toBe('gzip');
    expect(answer.headers.get('vary')).toBe('Accept-Encoding');
  });

  test('keeps a Vary of the application', async () => {
    await using server = await serve(
      (stream) => stream.res.setHeader('Vary', ['Origin', 'Cookie']) && stream.open(),
    );
    const { response } = await open(server.url);
    expect(response.headers.vary).toBe('Origin, Cookie, Accept-Encoding');
  });
});

describe('the body', () => {
  test('delivers each event at once, and ends as gzip requires', async () => {
    let stream: EventStream | undefined;
    await using server = await serve((opened) => (stream = opened.open()));
    const body = await open(server.url);
    for (const text of ['1', '2', 'x'.repeat(5_000), '4']) {
      stream?.send(text);
      await until('the event', () => dataOf(body).at(-1) === text);
    }
    stream?.comment('bye');
    stream?.close({ retry: 10 });
    await until('the end', () => body.end !== undefined);
    expect(body.end).toBe(true);
    expect(body.text).toContain(': bye\nretry: 10\n');
  });

  test('contains what the application writes to the response itself', async () => {
    await using server = await serve((stream) => {
      stream.send('1');
      stream.res.write('data: 2\n\n');
      stream.res.write(Buffer.from('data: 3\n\n').toString('hex'), 'hex');
      stream.res.end('data: 4\n\n');
    });
    const body = await open(server.url);
    await until('the end', () => body.end !== undefined);
    expect(body.end).toBe(true);
    expect(dataOf(body)).toEqual(['1', '2', '3', '4']);
  });
});

describe('the compression', () => {
  test('never refers to what was sent before: of two equal sends both have the same size', async () => {
    let stream: EventStream | undefined;
    await using server = await serve((opened) => (stream = opened.open()));
    const body = await open(server.url);
    const secret = Array.from({ length: 150 }, (_, index) => `secret${index * 7_919}`).join();
    const sizes: number[] = [];
    stream?.send('first');
    await until('the first event', () => dataOf(body).length === 1);
    for (const count of [2, 3, 4]) {
      const before = body.bytes;
      stream?.send(secret);
      await until('the event', () => dataOf(body).length === count);
      sizes.push(body.bytes - before);
    }
    expect(sizes[0]).toBeLessThan(secret.length);
    expect(new Set(sizes).size).toBe(1);
  });

  test('of published events never refers to what was sent to one stream', async () => {
    const channels = createChannels();
    const streams: EventStream[] = [];
    await using server = await serve(
      (stream) => {
        streams.push(stream);
        return stream.subscribe('a');
      },
      { channels },
    );
    const bodies = await Promise.all(Array.from({ length: 20 }, () => open(server.url)));
    const publish = async (text: string): Promise<number[]> => {
      const before = bodies.map(({ bytes }) => bytes);
      await channels.publish('a', text);
      await until('the event', () => bodies.every((body) => dataOf(body).at(-1) === text));
      return bodies.map(({ bytes }, index) => bytes - (before[index] as number));
    };
    for (let seq = 0; seq < 50; seq++) await publish(tick(seq));
    const secret = Array.from({ length: 10 }, (_, index) => `s${index * 7_919}`).join();
    streams[3]?.send(secret);
    await until('the send', () => dataOf(bodies[3] as Body).at(-1) === secret);
    const sizes = await publish(secret);
    // The third stream is outside of the window, and its block is not smaller than the others.
    expect(sizes[3]).toBeGreaterThanOrEqual(Math.max(...sizes.filter((_, index) => index !== 3)));
  });

  test('is counted: stats().bytes is the number of bytes of the bodies', async () => {
    const channels = createChannels();
    await using server = await serve((stream) => stream.subscribe('a'), { channels });
    const bodies = await Promise.all(Array.from({ length: 20 }, () => open(server.url)));
    for (let seq = 0; seq < 30; seq++) {
      await channels.publish('a', tick(seq));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until('the events', () => bodies.every((body) => dataOf(body).length === 30));
    const sum = bodies.reduce((total, { bytes }) => total + bytes, 0);
    expect(server.events.stats().bytes).toBe(sum);
  });
});

describe('a compressed stream', () => {
  test('over HTTP/2 receives the events in a valid body', async () => {
    const channels = createChannels();
    const events = sse({ channels, compress: true });
    const http2Server = http2.createServer((req, res) => {
      events(req, res, () => void (res as unknown as { sse: EventStream }).sse.subscribe('a'));
    });
    http2Server.listen(0);
    await once(http2Server, 'listening');
    const session = http2.connect(
      `http://localhost:${(http2Server.address() as AddressInfo).port}`,
    );
    onTestFinished(() => {
      session.destroy();
      http2Server.close();
    });
    const texts = Array.from({ length: 20 }, () => {
      const request = session.request({ accept: 'text/event-stream', 'accept-encoding': 'gzip' });
      const received = { text: '', bytes: 0, hasEnded: false };
      request.on('data', (chunk: Buffer) => (received.bytes += chunk.length));
      const decoded = request.pipe(createGunzip());
      decoded.on('data', (chunk: Buffer) => (received.text += chunk.toString()));
      decoded.on('end', () => (received.hasEnded = true));
      return received;
    });
    await until('the streams', () => events.stats().opened === 20);
    for (let seq = 0; seq < 100; seq++) {
      await channels.publish('a', tick(seq));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await channels.end('a');
    await until('the ends', () => texts.every(({ hasEnded }) => hasEnded));
    for (const { text, bytes } of texts) {
      const received = [...text.matchAll(/"seq":(\d+)/g)].map(([, seq]) => Number(seq));
      expect(received).toEqual(Array.from({ length: 100 }, (_, seq) => seq));
      expect(bytes).toBeLessThan(text.length * 0.4);
    }
  });

  test.each(['before', 'after'])(
    'with middleware that has wrapped res.write %s the stream opened has a valid body',
    async (when) => {
      const channels = createChannels();
      const seen: string[] = [];
      const wrap = (res: ServerResponse): void => {
        const write = res.write.bind(res) as (...args: unknown[]) => boolean;
        res.write = ((...args: unknown[]) => {
          seen.push(Buffer.from(args[0] as Buffer).toString('latin1'));
          return write(...args);
        }) as typeof res.write;
      };
      await using server = await serve(
        async (stream) => {
          if (when === 'before') wrap(stream.res);
          await stream.subscribe('a');
          if (when === 'after') wrap(stream.res);
        },
        { channels },
      );
      const body = await open(server.url);
      await until('the stream', () => server.events.stats().opened === 1);
      for (let seq = 0; seq < 5; seq++) await channels.publish('a', tick(seq));
      await channels.end('a');
      await until('the end', () => body.end !== undefined);
      expect(body.end).toBe(true);
      expect(dataOf(body)).toEqual([0, 1, 2, 3, 4].map(tick));
      // Every wrapper sees what is sent.
      expect(seen.length).toBeGreaterThan(0);
      expect(seen.some((chunk) => chunk.includes('"seq":3'))).toBe(false);
    },
  );

  test('that the client reads slowly receives everything', async () => {
    const channels = createChannels({ history: { events: 1_000 } });
    await using server = await serve((stream) => stream.subscribe('a'), { channels });
    const body = await open(server.url);
    await until('the stream', () => server.events.stats().opened === 1);
    body.response.pause();
    const random = (): string => randomBytes(20_000).toString('base64');
    const sent = Array.from({ length: 200 }, random);
    for (const text of sent) {
      await channels.publish('a', text);
      await new Promise((resolve) => setImmediate(resolve));
    }
    body.response.resume();
    await until('all events', () => dataOf(body).length === sent.length);
    expect(dataOf(body)).toEqual(sent);
  });

  test('ends so that the next request can use its connection', async () => {
    await using server = await serve((stream) => {
      stream.send('1');
      stream.close();
    });
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    onTestFinished(() => agent.destroy());
    const ports = new Set<number | undefined>();
    for (const _ of [1, 2]) {
      const request = get(server.url, {
        agent,
        headers: { Accept: 'text/event-stream', 'Accept-Encoding': 'gzip' },
      });
      const [response] = (await once(request, 'response')) as [IncomingMessage];
      ports.add(response.socket.localPort);
      expect((await buffer(response.pipe(createGunzip()))).toString()).toContain('data: 1\n');
    }
    expect(ports.size).toBe(1);
  });
});

describe('streams of one channel', () => {
  test('that receive the same get less than a third of the bytes, from the first events after they joined on', async () => {
    const channels = createChannels();
    await using server = await serve((stream) => stream.subscribe('a'), { channels });
    const ticks = Array.from({ length: 300 }, (_, seq) => tick(seq));
    const bodies: Body[] = [];
    const measure = async (from: number, upTo: number): Promise<number> => {
      const before = bodies.map(({ bytes, text }) => ({ bytes, chars: text.length }));
      for (const text of ticks.slice(from, upTo)) {
        await channels.publish('a', text);
        await new Promise((resolve) => setImmediate(resolve));
      }
      await until('the events', () =>
        bodies.every(({ text }) => text.includes(ticks[upTo - 1] as string)),
      );
      const share = bodies.map(({ bytes, text }, index) => {
        const { bytes: bytesBefore, chars } = before[index] as { bytes: number; chars: number };
        return (bytes - bytesBefore) / (text.length - chars);
      });
      return Math.max(...share);
    };
    bodies.push(...(await Promise.all(Array.from({ length: 20 }, () => open(server.url)))));
    expect(await measure(0, 100)).toBeLessThan(0.33);
    bodies.push(...(await Promise.all(Array.from({ length: 3 }, () => open(server.url)))));
    await measure(100, 200);
    expect(await measure(200, 300)).toBeLessThan(0.33);
  });

  test('all receive each event once, in order and in a valid body, whatever else each of them is sent', async () => {
    const step = fc.oneof(
      {
        weight: 6,
        arbitrary: fc.record({
          kind: fc.constant('publish'),
          size: fc.integer({ min: 0, max: 3_000 }),
        }),
      },
      {
        weight: 1,
        arbitrary: fc.record({
          kind: fc.constant('burst'),
          size: fc.integer({ min: 1, max: 40_000 }),
        }),
      },
      {
        weight: 2,
        arbitrary: fc.record({ kind: fc.constant('send'), size: fc.integer({ min: 0, max: 99 }) }),
      },
      {
        weight: 1,
        arbitrary: fc.record({ kind: fc.constant('write'), size: fc.integer({ min: 0, max: 99 }) }),
      },
      {
        weight: 1,
        arbitrary: fc.record({ kind: fc.constant('leave'), size: fc.integer({ min: 0, max: 99 }) }),
      },
      {
        weight: 1,
        arbitrary: fc.record({ kind: fc.constant('join'), size: fc.integer({ min: 1, max: 20 }) }),
      },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant('turn'), size: fc.constant(0) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60 }), async (steps) => {
        const channels = createChannels();
        const streams: EventStream[] = [];
        await using server = await serve(
          async (stream) => {
            streams.push(stream);
            await stream.subscribe('a', { since: 'start' });
          },
          { channels },
        );
        const bodies: Body[] = [];
        const join = async (count: number): Promise<void> => {
          const isGzip = (index: number): boolean => (bodies.length + index) % 5 !== 4;
          const joined = await Promise.all(
            Array.from({ length: count }, (_, index) =>
              open(server.url, isGzip(index) ? 'gzip' : 'identity'),
            ),
          );
          bodies.push(...joined);
        };
        await join(20);
        let published = 0;
        const publish = (size: number): void => {
          void channels.publish('a', `${published++} ${'{"price":123.45}'.repeat(size / 16)}`);
        };
        let own = 0;
        for (const { kind, size } of steps) {
          const stream = streams[size % streams.length] as EventStream;
          if (kind === 'publish') publish(size);
          if (kind === 'burst') for (let sent = 0; sent < size; sent += 2_000) publish(2_000);
          if (kind === 'send') stream.send(`own ${own++} ${'y'.repeat(size * 20)}`);
          if (kind === 'write' && stream.readyState === 1) {
            stream.res.write(`: comment ${size}\n\n`);
          }
          if (kind === 'leave') stream.close();
          if (kind === 'join') await join(size);
          if (kind !== 'send' && kind !== 'publish') {
            await new Promise((resolve) => setImmediate(resolve));
          }
        }
        publish(10);
        const expected = Array.from({ length: published }, (_, index) => `${index}`);
        const receivedBy = (body: Body): string[] =>
          dataOf(body)
            .filter((data) => !data.startsWith('own'))
            .map((data) => data.split(' ')[0] as string);
        await until('all events', () =>
          bodies.every((body) => body.end !== undefined || receivedBy(body).length >= published),
        );
        for (const body of bodies) {
          expect(receivedBy(body)).toEqual(expected.slice(0, receivedBy(body).length));
          if (body.end === undefined) expect(receivedBy(body)).toEqual(expected);
        }
        for (const stream of streams) stream.close();
        await until('all ends', () => bodies.every((body) => body.end !== undefined));
        expect(bodies.map((body) => body.end)).toEqual(bodies.map(() => true));
      }),
      { numRuns: 12 },
    );
  }, 60_000);
});
