import http2 from 'node:http2';
import type { Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import express from 'express';
import { describe, expect, test } from 'vitest';
import { sse, stream, type CloseReason, type EventStream } from '../src/index.ts';
import { dial, listening, requestText, serve, type TestServer } from './support/server.ts';
import { until, within } from './support/wait.ts';

/**
 * The reason says who ended the stream: `'client'` is the peer or the network, `'server'` and
 * `'error'` are this process.
 */

type Ending = {
  given: EventStream;
  server: TestServer;
  socket: Socket;
  fail: (error: unknown) => void;
};

async function reasonOf(
  end: (ending: Ending) => void,
  touch: (given: EventStream) => void = () => {},
): Promise<CloseReason> {
  const app = express();
  const events = sse();
  let given: EventStream | undefined;
  let fail: ((error: unknown) => void) | undefined;
  app.use((_req, res, next) => {
    // Added before the listener of the stream.
    res.on('close', () => touch(res.sse as EventStream));
    next();
  });
  app.use(events);
  app.get('/', (_req, res, next) => {
    given = res.sse;
    given?.send('x');
    fail = next;
  });
  app.use((error: Error, _req: unknown, res: express.Response, next: express.NextFunction) =>
    res.headersSent ? next(error) : void res.end(),
  );
  app.set('env', 'test');
  await using server = await serve(app);
  const socket = await dial(server.port, requestText('/'));
  socket.resume();
  await until('the stream', () => given !== undefined);
  end({ given: given as EventStream, server, socket, fail: fail as (error: unknown) => void });
  const reason = await within('its end', (given as EventStream).closed);
  await until('the stream to end', () => events.streams.size === 0);
  expect(events.stats().closed).toEqual({ [reason]: 1 });
  socket.destroy();
  return reason;
}

describe('over HTTP/1.1 a stream ends as', () => {
  test.each<[CloseReason, string, (ending: Ending) => void]>([
    ['client', 'its client leaves', ({ socket }) => void socket.destroy()],
    ['client', 'its client closes its half', ({ socket }) => void socket.end()],
    ['client', 'its client resets the connection', ({ socket }) => void socket.resetAndDestroy()],
    [
      'client',
      'its client breaks the protocol',
      ({ socket }) => void socket.write('no request at all\r\n\r\n'),
    ],
    ['server', 'the application destroys the response', ({ given }) => void given.res.destroy()],
    [
      'server',
      'the application destroys the response and sends',
      ({ given }) => {
        given.res.destroy();
        given.send('late');
      },
    ],
    [
      'server',
      'the application destroys the socket',
      ({ given }) => void given.req.socket.destroy(),
    ],
    [
      'server',
      'its error handler destroys the connection',
      ({ fail }) => fail(new Error('for this test')),
    ],
    [
      'server',
      'the server closes all connections',
      ({ server }) => server.server.closeAllConnections(),
    ],
    ['server', 'the socket times out', ({ given }) => void given.req.socket.setTimeout(20)],
    ['server', 'the application ends the response', ({ given }) => void given.res.end()],
    [
      'error',
      'the application destroys the response with an error',
      ({ given }) => void given.res.destroy(new Error('boo')),
    ],
    [
      'error',
      'the application destroys the socket with an error',
      ({ given }) => void given.req.socket.destroy(new Error('boo')),
    ],
  ])('%s where %s', async (reason, _, end) => {
    expect(await reasonOf(end)).toBe(reason);
  });

  test.each<[string, (given: EventStream) => void]>([
    ['sends', (given) => void given.send('late')],
    ['closes', (given) => void given.close()],
    ['asks', (given) => void given.comment()],
  ])(
    "'client' where its client leaves, also if an earlier listener for that %s",
    async (_, touch) => {
      expect(await reasonOf(({ socket }) => void socket.destroy(), touch)).toBe('client');
    },
  );
});

describe('over HTTP/2 a stream ends as', () => {
  type Http2Ending = {
    given: EventStream;
    request: http2.ClientHttp2Stream;
    session: http2.ClientHttp2Session;
  };

  test.each<[CloseReason, string, (ending: Http2Ending) => void]>([
    [
      'client',
      'its client cancels',
      ({ request }) => request.close(http2.constants.NGHTTP2_CANCEL),
    ],
    ['client', 'its client closes', ({ request }) => request.close()],
    ['client', 'its client destroys the session', ({ session }) => session.destroy()],
    ['server', 'the application destroys the response', ({ given }) => void given.res.destroy()],
    [
      'server',
      'the application destroys the session',
      ({ given }) => (given.res as unknown as http2.Http2ServerResponse).stream.session?.destroy(),
    ],
    [
      'error',
      'the application destroys the response with an error',
      ({ given }) => void given.res.destroy(new Error('boo')),
    ],
  ])('%s where %s', async (reason, _, end) => {
    const raw = http2.createServer();
    const events = sse();
    let given: EventStream | undefined;
    raw.on('request', (req, res) =>
      events(req, res, () => {
        given = (res as unknown as { sse?: EventStream }).sse;
        given?.send('x');
      }),
    );
    await using server = await listening(raw as unknown as Server);
    const session = http2.connect(
      `http://127.0.0.1:${(server.server.address() as AddressInfo).port}`,
    );
    session.on('error', () => {});
    const asked = session.request({ ':path': '/', accept: 'text/event-stream' });
    asked.on('error', () => {});
    asked.resume();
    await until('the stream', () => given !== undefined);
    end({ given: given as EventStream, request: asked, session });
    expect(await within('its end', (given as EventStream).closed)).toBe(reason);
    session.destroy();
  });
});

test('the end of a client whose request has a large unread body is noticed at once, if the handler resumes the request', async () => {
  const app = express();
  const events = sse({ heartbeat: false, stallTimeout: false });
  app.use(events);
  app.post(
    '/',
    stream((given, req) => {
      req.resume();
      given.open();
    }),
  );
  await using server = await serve(app);
  const size = 5_000_000;
  const socket = await dial(
    server.port,
    requestText('/', { 'Content-Length': String(size) }, 'POST'),
  );
  socket.resume();
  socket.write('x'.repeat(size));
  await until('the stream', () => events.streams.size === 1);
  const [given] = [...events.streams];
  socket.destroy();
  expect(await within('its end', given!.closed)).toBe('client');
});
