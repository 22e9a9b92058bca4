import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import cors, { type CorsOptions } from 'cors';
import express from 'express';
import type { Browser } from 'playwright-core';
import { expect, test } from 'vitest';
import { sse, stream } from '../../src/index.ts';
import { start } from '../support/child.ts';
import { launchChromium } from '../support/chromium.ts';
import { serve } from '../support/server.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';

/** Returns a code block of docs/security.md. */
function codeBlockOf(name: string): string {
  const text = readFileSync(new URL('../../docs/security.md', import.meta.url), 'utf8');
  const block = new RegExp(`^\`\`\`js ${name}\\n([^]*?)^\`\`\`$`, 'm').exec(text)?.[1];
  if (block === undefined) throw new Error(`docs/security.md has no code block ${name}`);
  return block;
}

interface Application extends AsyncDisposable {
  readonly url: string;
  publish(channel: string, data: unknown): void;
  /** Closes all connections. */
  cut(): void;
}

// The part that an application must provide. Authentication accepts any user object in the header.
const USER_CODE = `
function authenticate(req, res, next) {
  req.user = JSON.parse(req.headers.authorization?.replace('Bearer ', '') ?? 'null');
  if (req.user === null) res.sendStatus(401);
  else next();
}
function mayRead(user, room) {
  return user.rooms.includes(room);
}
app.get('/page', (req, res) => void res.send('<!doctype html><title>page</title>'));
process.on('message', ({ channel, data }) => {
  if (channel === undefined) server.closeAllConnections();
  else void channels.publish(channel, data);
});
`;

/**
 * Starts the application of docs/security.md in a process of its own.
 * @param lifetime the time in ms for which a ticket is valid
 */
async function startApplication(lifetime: number): Promise<Application> {
  const dir = mkdtempSync(join(tmpdir(), 'res-sse-security-'));
  const program = codeBlockOf('guarded')
    .replace("'res-sse'", JSON.stringify(new URL('../../src/index.ts', import.meta.url).href))
    .replace("'express'", JSON.stringify(import.meta.resolve('express')))
    .replace('30_000', `${lifetime}`)
    .replace(
      'app.listen(4444);',
      `const server = app.listen(0, '127.0.0.1', () => {
        const url = \`http://localhost:\${server.address().port}\`;
        ourPages.add(url);
        process.send({ url });
      });`,
    );
  const file = join(dir, 'guarded.mjs');
  writeFileSync(file, program + USER_CODE);
  const child = start(process.execPath, ['--import', import.meta.resolve('tsx'), file]);
  let url: string | undefined;
  child.process.on('message', (message: { url: string }) => (url = message.url));
  await until('the URL of the application', () => {
    if (!child.isRunning) throw new Error(`the application exited: ${child.output}`);
    return url !== undefined;
  });
  return {
    url: url as unknown as string,
    publish: (channel, data) => void child.process.send({ channel, data }),
    cut: () => void child.process.send({}),
    async [Symbol.asyncDispose]() {
      await child[Symbol.asyncDispose]();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

interface User {
  id: string;
  tenant: string;
  rooms: string[];
}

async function ticketFor(
  application: Application,
  user: User,
  headers: Record<string, string> = {},
): Promise<string> {
  const response = await fetch(`${application.url}/tickets`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${JSON.stringify(user)}`, ...headers },
  });
  return ((await response.json()) as { ticket: string }).ticket;
}

async function statusOf(url: string, headers: Record<string, string> = {}): Promise<number> {
  using reader = await read(url, { headers });
  return reader.response.status;
}

const ALICE: User = { id: 'alice', tenant: 'a', rooms: ['b:c', 'lobby'] };
const BOB: User = { id: 'bob', tenant: 'a:b', rooms: ['c'] };

test('a ticket opens one stream of a room that its user may read, once', async () => {
  await using application = await startApplication(30_000);
  const events = `${application.url}/events`;
  expect((await fetch(`${application.url}/tickets`, { method: 'POST' })).status).toBe(401);
  expect(await statusOf(`${events}/lobby`)).toBe(403);
  expect(await statusOf(`${events}/lobby?ticket=forged`)).toBe(403);
  const ticket = await ticketFor(application, ALICE);
  expect(await statusOf(`${events}/lobby?ticket=${ticket}`)).toBe(200);
  expect(await statusOf(`${events}/lobby?ticket=${ticket}`)).toBe(403);
  // A ticket is used up, even if the room was refused.
  const other = await ticketFor(application, ALICE);
  expect(await statusOf(`${events}/c?ticket=${other}`)).toBe(403);
  expect(await statusOf(`${events}/lobby?ticket=${other}`)).toBe(403);
  // Two tickets in the query are an array.
  const twice = await ticketFor(application, ALICE);
  expect(await statusOf(`${events}/lobby?ticket=${twice}&ticket=${twice}`)).toBe(403);
});

test('an expired ticket is refused', async () => {
  await using application = await startApplication(50);
  const ticket = await ticketFor(application, ALICE);
  const startTime = Date.now();
  await until('the ticket to expire', () => Date.now() - startTime > 100);
  expect(await statusOf(`${application.url}/events/lobby?ticket=${ticket}`)).toBe(403);
});

test('tenants whose names and rooms join to the same text share no channel', async () => {
  await using application = await startApplication(30_000);
  using alice = await read(
    `${application.url}/events/b:c?ticket=${await ticketFor(application, ALICE)}`,
  );
  using bob = await read(`${application.url}/events/c?ticket=${await ticketFor(application, BOB)}`);
  expect([alice.response.status, bob.response.status]).toEqual([200, 200]);
  application.publish('a:b:c', 'for alice');
  application.publish('a%3Ab:c', 'for bob');
  expect([(await alice.next()).data, (await bob.next()).data]).toEqual(['for alice', 'for bob']);
  expect([alice.events.length, bob.events.length]).toEqual([1, 1]);
});

test('one user has at most ten streams, independently of other users', async () => {
  await using application = await startApplication(30_000);
  const openStream = async (user: User) =>
    read(
      `${application.url}/events/${user.rooms[0]!}?ticket=${await ticketFor(application, user)}`,
    );
  const readers = await Promise.all(Array.from({ length: 11 }, () => openStream(ALICE)));
  // The refused EventSource gets an empty stream with a reconnection time.
  await until('one refused stream', () => readers.filter((reader) => reader.ended).length === 1);
  const refused = readers.find((reader) => reader.ended);
  expect([refused?.response.status, refused?.events.length, refused?.retries.length]).toEqual([
    200, 0, 1,
  ]);
  using bob = await openStream(BOB);
  application.publish('a%3Ab:c', 'for bob');
  expect((await bob.next()).data).toBe('for bob');
  for (const reader of readers) reader.close();
});

test('a cross-site request is refused although its ticket is valid', async () => {
  await using application = await startApplication(30_000);
  const url = async () =>
    `${application.url}/events/lobby?ticket=${await ticketFor(application, ALICE)}`;
  expect(await statusOf(await url(), { Origin: 'https://evil.example' })).toBe(403);
  expect(await statusOf(await url(), { Origin: 'null' })).toBe(403);
  expect(await statusOf(await url(), { 'Sec-Fetch-Site': 'cross-site' })).toBe(403);
  expect(
    await statusOf(await url(), { Origin: 'https://app.example', 'Sec-Fetch-Site': 'same-site' }),
  ).toBe(200);
});

test('the documented page reconnects with a new ticket and misses no event', async () => {
  await using application = await startApplication(30_000);
  await using browser = await launchChromium();
  const page = await browser.newPage();
  await page.goto(`${application.url}/page`);
  await page.evaluate(`
    window.received = [];
    window.token = ${JSON.stringify(JSON.stringify(ALICE))};
    window.show = (data) => received.push(data);
  `);
  const urls: string[] = [];
  page.on('response', (response) => void urls.push(response.url()));
  await page.addScriptTag({ content: `${codeBlockOf('page')}\nfollow('lobby');` });
  const streams = () => urls.filter((url) => url.includes('/events/lobby?'));
  await until('the stream of the page', () => streams().length === 1);
  application.publish('a:lobby', { n: 1 });
  await until(
    'the first event',
    async () => (await page.evaluate<number>('received.length')) === 1,
  );
  application.cut();
  application.publish('a:lobby', { n: 2 });
  // The page waits up to five seconds before it reconnects.
  await until(
    'the second event',
    async () => (await page.evaluate<number>('received.length')) === 2,
    20_000,
  );
  expect(await page.evaluate('received')).toEqual([{ n: 1 }, { n: 2 }]);
  expect(new Set(streams().map((url) => new URL(url).searchParams.get('ticket'))).size).toBe(2);
}, 40_000);

interface Attempt {
  /** The data that the page received. */
  received: string[];
  /** The requests that the server received: the session cookie, and the origin. */
  requests: { cookie: string | undefined; isFromPage: boolean; site: unknown }[];
}

/**
 * Opens a page of another origin that opens a stream of an application to which its user has logged
 * in.
 */
async function attempt(
  browser: Browser,
  host: string,
  corsFor?: (origin: string) => CorsOptions,
): Promise<Attempt> {
  await using other = await serve((_req: IncomingMessage, res: ServerResponse) => {
    res.setHeader('Content-Type', 'text/html').end('<!doctype html><title>elsewhere</title>');
  });
  const origin = `http://${host}:${other.port}`;
  const requests: Attempt['requests'] = [];
  const app = express();
  if (corsFor !== undefined) app.use(cors(corsFor(origin)));
  app.use(sse());
  app.get(
    '/login',
    (_, res) =>
      void res.cookie('session', 'secret', { httpOnly: true, sameSite: 'lax' }).send('welcome'),
  );
  app.get(
    '/stream',
    stream((given, req) => {
      requests.push({
        cookie: req.headers.cookie,
        isFromPage: req.headers.origin === origin,
        site: req.headers['sec-fetch-site'],
      });
      given.send('private');
    }),
  );
  await using server = await serve(app);
  const url = `http://localhost:${server.port}`;
  const page = await browser.newPage();
  await page.goto(`${url}/login`);
  await page.goto(origin);
  await page.evaluate(`
    window.received = [];
    window.source = new EventSource('${url}/stream', { withCredentials: true });
    source.onmessage = ({ data }) => received.push(data);
  `);
  await until('an event or an error', async () =>
    page.evaluate<boolean>('received.length > 0 || source.readyState === 2'),
  );
  const received = await page.evaluate<string[]>('received');
  await page.close();
  return { received, requests };
}

test('a page of another origin cannot read a stream; same-site cookies are sent', async () => {
  await using browser = await launchChromium();
  const sameSite = { cookie: 'session=secret', isFromPage: true, site: 'same-site' };
  // The handler ran, although the page belongs to another site.
  expect(await attempt(browser, '127.0.0.1')).toEqual({
    received: [],
    requests: [{ cookie: undefined, isFromPage: true, site: 'cross-site' }],
  });
  // Another port, like another sub-domain, is the same site.
  expect(await attempt(browser, 'localhost')).toEqual({ received: [], requests: [sameSite] });
  expect(await attempt(browser, 'localhost', () => ({}))).toEqual({
    received: [],
    requests: [sameSite],
  });
  for (const originFor of [(origin: string) => [origin], () => true]) {
    expect(
      await attempt(browser, 'localhost', (origin) => ({
        origin: originFor(origin),
        credentials: true,
      })),
    ).toEqual({
      received: ['private'],
      requests: [sameSite],
    });
  }
});
