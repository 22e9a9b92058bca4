import { once } from 'node:events';
import http2 from 'node:http2';
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { sse, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { start } from '../support/child.ts';
import { dial, listening, requestText } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

describe('stallTimeout counts time in which the process ran:', () => {
  /** Reads 64 KiB at a time, without a pause of its own. */
  function readSlowly(socket: Socket): void {
    socket.on('data', () => {
      socket.pause();
      setTimeout(() => socket.resume(), 20);
    });
  }

  test('a loop that is busy for longer disconnects no reader with queued bytes', async () => {
    const stallTimeout = 1_000;
    await using server = await serveStreams((stream) => void stream.send('x'.repeat(30_000_000)), {
      stallTimeout,
    });
    const sockets = await Promise.all(
      Array.from({ length: 10 }, () => dial(server.port, requestText('/'))),
    );
    for (const socket of sockets) readSlowly(socket);
    await until('the streams', () => server.streams.length === 10);
    for (let pauses = 0; pauses < 3; pauses++) {
      const pieces = server.streams.map(({ bytesFlushed }) => bytesFlushed);
      await until('some progress', () =>
        server.streams.some(({ bytesFlushed }, index) => bytesFlushed > (pieces[index] as number)),
      );
      const begun = performance.now();
      while (performance.now() - begun < 1.5 * stallTimeout);
    }
    const before = server.streams.map(({ bytesFlushed }) => bytesFlushed);
    await until('progress of all', () =>
      server.streams.every(({ bytesFlushed }, index) => bytesFlushed > (before[index] as number)),
    );
    expect(server.events.stats().closed).toEqual({});
    for (const socket of sockets) socket.destroy();
  }, 30_000);

  test('a stopped and continued process disconnects no reader with queued bytes', async () => {
    const program = `
      import { createServer } from 'node:http';
      import { sse } from './src/index.ts';
      const events = sse({ stallTimeout: 1_000 });
      const server = createServer((req, res) => events(req, res, () => {
        res.sse.send('x'.repeat(60_000_000));
        void res.sse.closed.then((reason) => process.send(reason));
      }));
      server.listen(0, '127.0.0.1', () => process.send(server.address().port));`;
    await using child = start(process.execPath, [
      '--import',
      'tsx',
      '--input-type=module',
      '--eval',
      program,
    ]);
    const [port] = (await within('the port', once(child.process, 'message'))) as [number];
    const told: unknown[] = [];
    child.process.on('message', (message) => told.push(message));
    const socket = await dial(port, requestText('/'));
    let received = 0;
    socket.on('data', (chunk: Buffer) => (received += chunk.length));
    readSlowly(socket);
    await until('some of the event', () => received > 4_000_000);
    for (let stops = 0; stops < 3; stops++) {
      child.process.kill('SIGSTOP');
      const stopped = performance.now();
      await until('longer than stallTimeout', () => performance.now() - stopped > 1_500);
      child.process.kill('SIGCONT');
      const before = received;
      await until(
        'more of the event',
        () => received > before + 2_000_000 || told.length > 0 || socket.destroyed,
      );
    }
    expect(told).toEqual([]);
    socket.destroy();
  }, 30_000);
});

describe('stallTimeout of a stream whose application writes events itself', () => {
  const STALL_MS = 1_000;

  /** A server whose stream passes events of another source on, by `pipe(res)`. */
  function servePiped(): ReturnType<typeof serveStreams> {
    const event = `data: ${'x'.repeat(10_000)}\n\n`;
    return serveStreams(
      (stream) => {
        const { res } = stream.open();
        Readable.from(
          (function* () {
            for (;;) yield event;
          })(),
        ).pipe(res);
      },
      { stallTimeout: STALL_MS, heartbeat: false, warnings: false },
    );
  }

  test('disconnects no client that reads steadily', async () => {
    await using server = await servePiped();
    const socket = await dial(server.port, requestText('/'));
    let bytes = 0;
    socket.on('data', (data) => {
      bytes += data.length;
      socket.pause();
      setTimeout(() => socket.resume(), 2);
    });
    // Longer than the time after which a client that reads nothing is cut.
    await delay(3 * STALL_MS);
    expect(bytes).toBeGreaterThan(1_000_000);
    expect(server.events.stats().closed).toEqual({});
    socket.destroy();
  });

  test('disconnects a client that reads nothing', async () => {
    await using server = await servePiped();
    const socket = await dial(server.port, requestText('/'));
    await until('the end', () => server.events.stats().closed.stalled === 1);
    socket.destroy();
  });

  describe('over HTTP/2, and adds as much as was flushed,', () => {
    /** @returns the reason of the end, if there was one, and what the client has read */
    async function readFor(ms: number, bytesPerRead: number) {
      const events = sse({ stallTimeout: STALL_MS, heartbeat: false, warnings: false });
      const server = http2.createServer((req, res) =>
        events(req as never, res as never, () => {
          (res as unknown as { sse: EventStream }).sse.open();
          function write(): void {
            while (!res.stream.destroyed && res.write(`data: ${'x'.repeat(20_000)}\n\n`));
            res.once('drain', write);
          }
          write();
        }),
      );
      await using served = await listening(server as never);
      const session = http2.connect(served.url);
      const request = session.request({ ':path': '/', accept: 'text/event-stream' });
      request.on('error', () => {}).on('readable', () => {});
      let bytes = 0;
      const begun = performance.now();
      while (performance.now() - begun < ms && events.stats().closed.stalled === undefined) {
        await delay(20);
        const size = Math.min(request.readableLength, bytesPerRead);
        const chunk = size > 0 ? (request.read(size) as Buffer | null) : null;
        bytes += chunk?.length ?? 0;
      }
      const { closed } = events.stats();
      session.destroy();
      return { closed, bytes };
    }

    test('a client that reads steadily is not disconnected', async () => {
      const { closed, bytes } = await readFor(4 * STALL_MS, 3_000);
      expect(closed).toEqual({});
      expect(bytes).toBeGreaterThan(200_000);
    });

    test('a client that reads nothing is disconnected', async () => {
      const { closed } = await readFor(15_000, 0);
      expect(closed).toEqual({ stalled: 1 });
    });
  });
});
