import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { createServer as createHttpServer, type RequestListener, type Server } from 'node:http';
import http2 from 'node:http2';
import { createServer as createHttpsServer, get as httpsGet } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import compression from 'compression';
import connect from 'connect';
import cors from 'cors';
import express from 'express';
import session from 'express-session';
import express4 from 'express4';
import helmet from 'helmet';
import { describe, expect, test } from 'vitest';
import { createChannels, sse, stream, type Channels, type EventStream } from '../../src/index.ts';
import { read } from '../support/reader.ts';
import { listening, serve } from '../support/server.ts';
import { StrictParser } from '../support/strict-parser.ts';
import { until, within } from '../support/wait.ts';

/** Middleware and routes as in the README, in whatever has `use`. */
function install(app: { use: (...args: never[]) => unknown }): {
  seen: EventStream[];
  channels: Channels;
} {
  const seen: EventStream[] = [];
  const channels = createChannels();
  const use = app.use.bind(app) as (...args: unknown[]) => void;
  use(sse({ channels, heartbeat: 50 }));
  use('/listen', channels.listen('news'));
  use(
    '/',
    stream((given) => {
      seen.push(given);
      given.send('direct');
    }),
  );
  return { seen, channels };
}

describe.each<[string, () => RequestListener & { use: () => unknown }]>([
  ['Express 5', () => express() as never],
  ['Express 4', () => express4() as never],
  ['Connect', () => connect() as never],
])('in %s', (_, make) => {
  test('res.sse sends, channels deliver, heartbeats are sent, and the end of a client is noticed', async () => {
    const app = make();
    const { seen, channels } = install(app);
    await using server = await serve(app);
    using direct = await read(server.url);
    expect((await direct.next()).data).toBe('direct');
    using listener = await read(`${server.url}/listen`);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('news', 'published');
    expect((await listener.next()).data).toBe('published');
    await until('a heartbeat', () => direct.comments.length > 1);
    direct.close();
    expect(await within('the reason', (seen[0] as EventStream).closed)).toBe('client');
    expect((await fetch(server.url)).status).toBe(406);
  });
});

test('on a bare http server it is called with (req, res, next)', async () => {
  const events = sse();
  await using server = await listening(
    createHttpServer((req, res) => {
      events(req, res, () => {
        const { sse: given } = res as typeof res & { sse?: EventStream };
        if (given) given.send('bare');
        else res.end('no stream');
      });
    }),
  );
  using reader = await read(server.url);
  expect((await reader.next()).data).toBe('bare');
  expect(await (await fetch(server.url)).text()).toBe('no stream');
});

/** A certificate for this machine, made for this run. */
function certificate(): { key: Buffer; cert: Buffer } {
  const folder = mkdtempSync(join(tmpdir(), 'res-sse-'));
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  execFileSync(
    'openssl',
    [
      'req',
      '-x509',
      '-newkey',
      'rsa:2048',
      '-nodes',
      '-keyout',
      key,
      '-out',
      cert,
      '-days',
      '1',
      '-subj',
      '/CN=localhost',
    ],
    { stdio: 'ignore' },
  );
  return { key: readFileSync(key), cert: readFileSync(cert) };
}

test('on https', async () => {
  const app = express();
  install(app);
  await using server = await listening(createHttpsServer(certificate(), app), 'https');
  const parser = new StrictParser();
  const req = httpsGet(
    server.url,
    { headers: { Accept: 'text/event-stream' }, rejectUnauthorized: false },
    (res) => {
      res.on('data', (chunk: Buffer) => parser.feed(chunk));
      res.on('error', () => {});
    },
  );
  req.on('error', () => {});
  await until('the event', () => parser.events.length === 1);
  expect(parser.events[0]?.data).toBe('direct');
  req.destroy();
});

describe.each<[string, () => [Server, string]]>([
  ['h2c', () => [http2.createServer() as unknown as Server, 'http']],
  ['TLS', () => [http2.createSecureServer(certificate()) as unknown as Server, 'https']],
])('on http2 (%s, compat API)', (_, make) => {
  /** One request on a session of its own. */
  function ask(url: string, headers: Record<string, string> = {}) {
    const client = http2.connect(url, { rejectUnauthorized: false });
    client.on('error', () => {});
    const request = client.request({ ':path': '/', accept: 'text/event-stream', ...headers });
    const parser = StrictParser.of(request);
    let head: Record<string, unknown> | undefined;
    request.on('response', (given) => (head = given));
    request.on('error', () => {});
    return { session: client, request, parser, head: () => head };
  }

  test('events, heartbeats, a large event, a final end and a client that leaves', async () => {
    const [raw, protocol] = make();
    const events = sse({ heartbeat: 50, maxBuffered: 10_000_000 });
    const seen: EventStream[] = [];
    const handler = stream((given) => {
      seen.push(given);
      given.send('direct');
    });
    raw.on('request', (req, res) =>
      events(req, res, () => handler(req as never, res as never, () => {})),
    );
    await using server = await listening(raw, protocol);
    const first = ask(server.url);
    await until('the first event', () => first.parser.events.length === 1);
    expect(first.head()).toMatchObject({
      ':status': 200,
      'content-type': 'text/event-stream',
      'x-accel-buffering': 'no',
    });
    expect(first.head()).not.toHaveProperty('connection');
    const [given] = seen as [EventStream];
    await until('a heartbeat', () => first.parser.comments.length > 1);
    given.send('x'.repeat(2_000_000));
    given.send('after');
    await until('the large event', () => first.parser.events.length === 3, 20_000);
    expect(first.parser.events.map((event) => event.data.length)).toEqual([6, 2_000_000, 5]);
    given.close({ final: true });
    await until('the end', () => first.request.closed);
    expect(first.parser.events.at(-1)).toEqual({
      type: 'sse:end',
      data: '{}',
      lastEventId: 'sse:end',
    });
    first.session.close();

    const marked = ask(server.url, { 'last-event-id': 'sse:end' });
    await until('the answer', () => marked.head() !== undefined);
    expect(marked.head()).toMatchObject({ ':status': 204 });
    marked.session.close();

    const leaving = ask(server.url);
    await until('its event', () => leaving.parser.events.length === 1);
    leaving.request.close(http2.constants.NGHTTP2_CANCEL);
    expect(await within('the reason', (seen.at(-1) as EventStream).closed)).toBe('client');
    expect((seen.at(-1) as EventStream).send('late')).toBe(false);
    leaving.session.close();

    const head = ask(server.url, { ':method': 'HEAD' });
    await until('the end', () => head.request.closed);
    expect(head.head()).toMatchObject({ ':status': 200, 'content-type': 'text/event-stream' });
    head.session.close();
    expect(events.stats()).toMatchObject({ open: 0, closed: { final: 1, client: 1 } });
  });

  test('a reader that stops reading is closed at maxBuffered, and its session stays open', async () => {
    const [raw, protocol] = make();
    const events = sse({ maxBuffered: 100_000, stallTimeout: false });
    const seen: EventStream[] = [];
    const handler = stream((given) => void seen.push(given));
    raw.on('request', (req, res) =>
      events(req, res, () => handler(req as never, res as never, () => {})),
    );
    await using server = await listening(raw, protocol);
    const slow = ask(server.url);
    await until('the stream', () => seen.length === 1);
    slow.request.pause();
    const [given] = seen as [EventStream];
    await until('its end', () => {
      for (let count = 0; count < 20 && given.readyState === 1; count++) {
        given.send('x'.repeat(1_000));
      }
      return given.readyState === 2;
    });
    expect(await given.closed).toBe('slow');
    expect(slow.session.destroyed).toBe(false);
    const other = slow.session.request({ ':path': '/', accept: 'text/event-stream' });
    other.on('error', () => {});
    await until('another stream on the same session', () => seen.length === 2);
    slow.session.destroy();
  });
});

describe('behind other middleware the first event arrives at once', () => {
  test('compression, helmet, cors and express-session', async () => {
    const app = express();
    app.use(compression({ threshold: 0 }), helmet(), cors());
    app.use(session({ secret: 'for this test', resave: true, saveUninitialized: true }));
    const { seen, channels } = install(app);
    await using server = await serve(app);
    using reader = await read(server.url, {
      headers: { 'Accept-Encoding': 'gzip, br', Origin: 'http://elsewhere.example' },
    });
    expect((await reader.next()).data).toBe('direct');
    const { headers } = reader.response;
    expect(headers.get('content-encoding')).toBeNull();
    expect(headers.get('access-control-allow-origin')).toBe('*');
    expect(headers.get('set-cookie')).toMatch(/^connect\.sid=/);
    expect(headers.get('x-content-type-options')).toBe('nosniff');
    (seen[0] as EventStream).close({ final: true });
    await reader.end();
    expect(reader.events.at(-1)?.event).toBe('sse:end');
    using listener = await read(`${server.url}/listen`);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('news', 'published');
    expect((await listener.next()).data).toBe('published');
    // Other responses are compressed as before.
    const page = await fetch(`${server.url}/listen`, {
      headers: { 'Accept-Encoding': 'gzip', Accept: 'application/json' },
    });
    expect([page.status, page.headers.get('content-encoding')]).toEqual([406, 'gzip']);
  });

  test('with cors in front a page of another origin can read the 204', async () => {
    const app = express();
    app.use(cors(), sse());
    await using server = await serve(app);
    const response = await fetch(server.url, {
      headers: {
        Accept: 'text/event-stream',
        'Last-Event-ID': 'sse:end',
        Origin: 'http://elsewhere.example',
      },
    });
    expect([response.status, response.headers.get('access-control-allow-origin')]).toEqual([
      204,
      '*',
    ]);
  });
});
