/** How much memory the limits of admission take. */
import express, { type Request, type Response as ExpressResponse } from 'express';
import { expect, test } from 'vitest';
import { Admission } from '../../src/http/admission.ts';
import { sse, stream } from '../../src/index.ts';
import { hasRoom } from '../support/has-room.ts';
import { liveHeap } from '../support/heap.ts';
import { read } from '../support/reader.ts';
import { dial, requestText, serve } from '../support/server.ts';
import { until } from '../support/wait.ts';

test.each<[string, (n: number) => string]>([
  ['long', (n) => `${n}:${'x'.repeat(14_000)}`],
  ['cut out of something long', (n) => `${'x'.repeat(14_000)}:${n + 1e12}`.slice(-14)],
])(
  'maxStreamsPer remembers ten thousand keys that are %s in little memory, and tells them apart',
  async (_, keyOf) => {
    const admission = new Admission({
      maxStreamsPer: { key: (req) => req.url, limit: 1, perMinute: 1 },
    });
    const before = await liveHeap();
    for (let n = 0; n < 10_000; n++) {
      // Flat, as the strings are that come out of a parser.
      const res = { req: { url: Buffer.from(keyOf(n)).toString() } };
      if (n % 2 === 0) res.req.url = keyOf(n);
      expect(admission.reservePlace(res as never)).toBeUndefined();
      admission.releasePlace(res as never);
    }
    expect((await liveHeap()) - before).toBeLessThan(8_000_000);
    expect(admission.reservePlace({ req: { url: keyOf(5) } } as never)).toBe('maxStreamsPer');
    expect(admission.reservePlace({ req: { url: keyOf(10_001) } } as never)).toBeUndefined();
  },
);

test('after 1,000 cycles of admitted and refused streams the heap has not grown and every place is free', async () => {
  const app = express();
  const outer = sse({
    maxStreams: 40,
    maxStreamsPer: { key: (req) => req.query['user'] as string, limit: 3, perMinute: 1_000_000 },
  });
  const inner = sse({ maxStreams: 30 });
  app.use(outer);
  app.get(
    '/',
    inner,
    stream((given, req: Request) => {
      if (req.query['kind'] === '0') throw new Error('for the test');
      given.open();
    }),
  );
  app.use(
    (_error: unknown, _req: Request, res: ExpressResponse, _next: unknown) =>
      void res.status(500).end(),
  );
  await using server = await serve(app);

  async function cycles(count: number): Promise<void> {
    for (let done = 0; done < count; done += 50) {
      const sockets = await Promise.all(
        Array.from({ length: 50 }, async (_, n) => {
          const socket = await dial(
            server.port,
            requestText(`/?user=${(done + n) % 17}&kind=${n % 5}`),
          );
          await new Promise((resolve) => socket.once('data', resolve).once('close', resolve));
          return socket;
        }),
      );
      for (const socket of sockets) socket.destroy();
      await until('them to leave', () => outer.streams.size === 0 && server.sockets.size === 0);
    }
  }

  // Node 22 needs so many until its heap is at rest, with plain Express, too.
  await cycles(6_000);
  const before = await liveHeap();
  await cycles(1_000);
  const growth = (await liveHeap()) - before;
  expect(growth / 1_000).toBeLessThan(300);
  const { opened, rejected, closed } = outer.stats();
  expect(rejected).toBeGreaterThan(100);
  expect(opened).toBeGreaterThan(1_000);
  expect(closed).toEqual({ client: opened });
  // Thirty at once, as ever.
  const readers = await Promise.all(
    Array.from({ length: 30 }, (_, n) => read(`${server.url}/?user=last-${n}`)),
  );
  await until('all', () => inner.streams.size === 30);
  expect(await hasRoom(`${server.url}/?user=one-more`)).toBe(false);
  for (const reader of readers) reader.close();
  console.log(
    `1,000 cycles through limits: the heap grew by ${Math.round(growth / 1_000)} bytes each; ${JSON.stringify({ opened, rejected })}`,
  );
}, 60_000);
