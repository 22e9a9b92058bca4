import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import http2 from 'node:http2';
import express from 'express';
import { describe, expect, test } from 'vitest';
import { sse, stream, type EventStream, type SseOptions } from '../src/index.ts';
import { dial, listening, requestText } from './support/server.ts';
import { until } from './support/wait.ts';

/** Inactivity timeouts of Node's HTTP server, which do not depend on heartbeats. */

/**
 * A server whose connections time out after 100 ms. `/` is a stream; all other requests are never
 * answered.
 */
async function serveTimeouts(
  prepare: express.RequestHandler = (_req, _res, next) => next(),
  keepAliveTimeout = 5_000,
) {
  const app = express();
  const events = sse();
  const streams: EventStream[] = [];
  app.use(prepare, events);
  app.get(
    '/',
    stream((given) => void streams.push(given.open())),
  );
  app.use(() => {});
  const raw = createServer({ keepAliveTimeout }, app);
  raw.setTimeout(100);
  return Object.assign(await listening(raw), { events, streams });
}

/** Opens idle connections, one after the other, and waits until the server closes them. */
async function cutOthers(port: number): Promise<void> {
  for (let count = 0; count < 3; count++) {
    const other = await dial(port, requestText('/never'));
    other.resume();
    await once(other, 'close');
  }
}

describe('over HTTP/1.1 an inactivity timeout', () => {
  test.each<[string, express.RequestHandler | undefined]>([
    ['of the server', undefined],
    [
      'that middleware has set',
      (req, _res, next) => {
        req.socket.setTimeout(50);
        next();
      },
    ],
  ])('%s does not cut a quiet stream', async (_, prepare) => {
    await using server = await serveTimeouts(prepare);
    const socket = await dial(server.port, requestText('/'));
    socket.resume();
    await until('the stream', () => server.streams.length === 1);
    await cutOthers(server.port);
    expect(server.streams[0]?.readyState).toBe(1);
    expect(server.streams[0]?.req.socket.timeout).toBe(0);
    socket.destroy();
  });

  test.each([5_000, 0])(
    'applies again to the next request of the connection, with keepAliveTimeout %i',
    async (keepAlive) => {
      await using server = await serveTimeouts(undefined, keepAlive);
      const socket = await dial(server.port, requestText('/'));
      let text = '';
      socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
      await until('the stream', () => server.streams.length === 1);
      server.streams[0]?.close();
      await until('its end', () => text.endsWith('0\r\n\r\n'));
      const closed = once(socket, 'close');
      socket.write(requestText('/never'));
      await closed;
    },
  );

  test('does not disconnect a stream that was pipelined', async () => {
    await using server = await serveTimeouts();
    const socket = await dial(server.port, requestText('/') + requestText('/'));
    socket.resume();
    await until('the streams', () => server.streams.length === 2);
    server.streams[0]?.close();
    await cutOthers(server.port);
    expect(server.streams[1]?.readyState).toBe(1);
    socket.destroy();
  });
});

describe('over HTTP/2 a timeout', () => {
  test.each<[string, number, SseOptions, number]>([
    ['below the heartbeat is told once', 5_000, {}, 1],
    ['is told where there is no heartbeat', 50_000, { heartbeat: false }, 1],
    ['above the heartbeat is not told', 20_000, {}, 0],
    ['that is none is not told', 0, {}, 0],
    ['is not told without warnings', 5_000, { warnings: false }, 0],
  ])('of the session that %s', async (_, ms, options, times) => {
    const told: Error[] = [];
    const note = (warning: Error & { code?: string }): void => {
      if (warning.code === 'RES_SSE_SERVER_TIMEOUT') told.push(warning);
    };
    process.on('warning', note);
    const raw = http2.createServer();
    raw.setTimeout(ms);
    const events = sse(options);
    let opened = 0;
    raw.on('request', (req, res) =>
      events(req, res, () => {
        (res as unknown as { sse?: EventStream }).sse?.open();
        opened++;
      }),
    );
    await using server = await listening(raw as unknown as Server);
    const session = http2.connect(server.url);
    for (let count = 0; count < 2; count++) {
      session.request({ ':path': '/', accept: 'text/event-stream' }).resume();
    }
    await until('the streams', () => opened === 2);
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', note);
    expect(told).toHaveLength(times);
    session.destroy();
  });
});
