import express, { type Request } from 'express';
import session from 'express-session';
import { describe, expect, test } from 'vitest';
import { sse, stream, type EventStream, type SseMiddleware } from '../src/index.ts';
import { read } from './support/reader.ts';
import { serve } from './support/server.ts';
import { until } from './support/wait.ts';

/**
 * A stream may end hours after its request began. The session of the request is as old, and must
 * not overwrite a newer session.
 */

interface Data {
  user?: string;
  cart?: string;
  visits?: number;
}

function dataOf({ session: data }: Request): Data {
  return data;
}

async function serveSessions(
  options: { resave: boolean; rolling?: boolean; unset?: 'destroy' | 'keep' },
  touches: boolean,
) {
  const app = express();
  const events = sse();
  const streams: EventStream[] = [];
  app.use(session({ secret: 'for this test', saveUninitialized: false, ...options }));
  if (touches) {
    app.use((req, _res, next) => {
      dataOf(req).visits = (dataOf(req).visits ?? 0) + 1;
      next();
    });
  }
  app.get('/login', (req, res) => {
    dataOf(req).user = 'ann';
    res.end('in');
  });
  app.get('/logout', (req, res) => void req.session.destroy(() => res.end('out')));
  app.get('/cart/:cart', (req, res) => {
    dataOf(req).cart = req.params.cart;
    res.end('put');
  });
  app.get('/me', (req, res) => void res.json([dataOf(req).user ?? null, dataOf(req).cart ?? null]));
  app.use(events);
  app.get(
    '/listen',
    stream((given) => void streams.push(given.open())),
  );
  const server = await serve(app);
  const { headers } = await fetch(`${server.url}/login`);
  const cookie = (headers.get('set-cookie') ?? '').split(';')[0] as string;
  const ask = async (path: string): Promise<string> =>
    (await fetch(server.url + path, { headers: { cookie } })).text();
  return Object.assign(server, { events, streams, ask, cookie });
}

const ends: [string, (events: SseMiddleware, given: EventStream) => unknown][] = [
  ['closeWhere', (events) => events.closeWhere(() => true, { final: true })],
  ['close()', (events) => events.close()],
  ['its handler', (_events, given) => given.close()],
  ['the application, with res.end()', (_events, given) => given.res.end()],
];

describe.each([
  ['resave: false and a counter', { resave: false }, true],
  ['resave: true', { resave: true }, false],
  ['rolling: true', { resave: false, rolling: true }, true],
  ["unset: 'destroy'", { resave: true, unset: 'destroy' as const }, true],
])('with %s the end of a stream', (_, options, touches) => {
  test.each(ends)('by %s brings no session back that a logout has destroyed', async (_by, end) => {
    await using server = await serveSessions(options, touches);
    using reader = await read(`${server.url}/listen`, { headers: { cookie: server.cookie } });
    await until('the stream', () => server.streams.length === 1);
    expect(await server.ask('/logout')).toBe('out');
    void end(server.events, server.streams[0] as EventStream);
    await reader.end();
    expect(await server.ask('/me')).toBe('[null,null]');
  });

  test.each(ends)(
    'by %s keeps the changes that other requests have made to the session since',
    async (_by, end) => {
      await using server = await serveSessions(options, touches);
      await server.ask('/cart/old');
      using reader = await read(`${server.url}/listen`, { headers: { cookie: server.cookie } });
      await until('the stream', () => server.streams.length === 1);
      await server.ask('/cart/new');
      void end(server.events, server.streams[0] as EventStream);
      await reader.end();
      expect(await server.ask('/me')).toBe('["ann","new"]');
      expect(dataOf(server.streams[0]?.req as Request).user).toBe('ann');
    },
  );
});
