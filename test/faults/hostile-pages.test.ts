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

/** A code block of docs/security.md, as it stands there. */
function documented(name: string): string {
  const text = readFileSync(new URL('../../docs/security.md', import.meta.url), 'utf8');
  const block = new RegExp(`^\`\`\`js ${name}\\n([^]*?)^\`\`\`$`, 'm').exec(text)?.[1];
  if (block === undefined) throw new Error(`docs/security.md has no ${name}`);
  return block;
}

interface Guarded extends AsyncDisposable {
  readonly url: string;
  publish(channel: string, data: unknown): void;
  /** Breaks all connections. */
  cut(): void;
}

// What the application brings: whoever names himself is believed.
const APPLICATION = `
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

/** The documented application, in a process of its own. */
async function startGuarded(lifetime: number): Promise<Guarded> {
  const dir = mkdtempSync(join(tmpdir(), 'res-sse-security-'));
  const program = documented('guarded')
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
  writeFileSync(file, program + APPLICATION);
  const child = start(process.execPath, ['--import', import.meta.resolve('tsx'), file]);
  let url: string | undefined;
  child.process.on('message', (message: { url: string }) => (url = message.url));
  await until('the application', () => {
    if (!child.isRunning) throw new Error(`it has ended: ${child.output}`);
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
  guarded: Guarded,
  user: User,
  headers: Record<string, string> = {},
): Promise<string> {
  const response = await fetch(`${guarded.url}/tickets`, {
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

test('a ticket opens one stream of the room that its user may read, once', async () => {
  await using guarded = await startGuarded(30_000);
  const events = `${guarded.url}/events`;
  expect((await fetch(`${guarded.url}/tickets`, { method: 'POST' })).status).toBe(401);
  expect(await statusOf(`${events}/lobby`)).toBe(403);
  expect(await statusOf(`${events}/lobby?ticket=forged`)).toBe(403);
  const ticket = await ticketFor(guarded, ALICE);
  expect(await statusOf(`${events}/lobby?ticket=${ticket}`)).toBe(200);
  expect(await statusOf(`${events}/lobby?ticket=${ticket}`)).toBe(403);
  // Spent, though on a room that she may not read.
  const other = await ticketFor(guarded, ALICE);
  expect(await statusOf(`${events}/c?ticket=${other}`)).toBe(403);
  expect(await statusOf(`${events}/lobby?ticket=${other}`)).toBe(403);
  // Twice in the query it is an array.
  const twice = await ticketFor(guarded, ALICE);
  expect(await statusOf(`${events}/lobby?ticket=${twice}&ticket=${twice}`)).toBe(403);
});

test('a ticket that is not used soon opens nothing', async () => {
  await using guarded = await startGuarded(50);
  const ticket = await ticketFor(guarded, ALICE);
  const begun = Date.now();
  await until('its time to be over', () => Date.now() - begun > 100);
  expect(await statusOf(`${guarded.url}/events/lobby?ticket=${ticket}`)).toBe(403);
});

test('tenants whose names and rooms run together do not share a channel', async () => {
  await using guarded = await startGuarded(30_000);
  using alice = await read(`${guarded.url}/events/b:c?ticket=${await ticketFor(guarded, ALICE)}`);
  using bob = await read(`${guarded.url}/events/c?ticket=${await ticketFor(guarded, BOB)}`);
  expect([alice.response.status, bob.response.status]).toEqual([200, 200]);
  guarded.publish('a:b:c', 'for alice');
  guarded.publish('a%3Ab:c', 'for bob');
  expect([(await alice.next()).data, (await bob.next()).data]).toEqual(['for alice', 'for bob']);
  expect([alice.events.length, bob.events.length]).toEqual([1, 1]);
});

test('one user holds ten streams at most, and another has his own', async () => {
  await using guarded = await startGuarded(30_000);
  const open = async (user: User) =>
    read(
      `${guarded.url}/events/${user.rooms[0] as string}?ticket=${await ticketFor(guarded, user)}`,
    );
  const readers = await Promise.all(Array.from({ length: 11 }, () => open(ALICE)));
  // An EventSource is sent away so that it comes back.
  await until('one to be sent away', () => readers.filter((reader) => reader.ended).length === 1);
  const away = readers.find((reader) => reader.ended);
  expect([away?.response.status, away?.events.length, away?.retries.length]).toEqual([200, 0, 1]);
  using bob = await open(BOB);
  guarded.publish('a%3Ab:c', 'for bob');
  expect((await bob.next()).data).toBe('for bob');
  for (const reader of readers) reader.close();
});

test('a request from a page elsewhere is refused, whatever it carries', async () => {
  await using guarded = await startGuarded(30_000);
  const url = async () => `${guarded.url}/events/lobby?ticket=${await ticketFor(guarded, ALICE)}`;
  expect(await statusOf(await url(), { Origin: 'https://evil.example' })).toBe(403);
  expect(await statusOf(await url(), { Origin: 'null' })).toBe(403);
  expect(await statusOf(await url(), { 'Sec-Fetch-Site': 'cross-site' })).toBe(403);
  expect(
    await statusOf(await url(), { Origin: 'https://app.example', 'Sec-Fetch-Site': 'same-site' }),
  ).toBe(200);
});

test('the documented page gets a new ticket after a break and misses nothing, in Chromium', async () => {
  await using guarded = await startGuarded(30_000);
  await using browser = await launchChromium();
  const page = await browser.newPage();
  await page.goto(`${guarded.url}/page`);
  await page.evaluate(`
    window.got = [];
    window.token = ${JSON.stringify(JSON.stringify(ALICE))};
    window.show = (data) => got.push(data);
  `);
  const urls: string[] = [];
  page.on('response', (response) => void urls.push(response.url()));
  await page.addScriptTag({ content: `${documented('page')}\nfollow('lobby');` });
  const streams = () => urls.filter((url) => url.includes('/events/lobby?'));
  await until('the stream', () => streams().length === 1);
  guarded.publish('a:lobby', { n: 1 });
  await until('the first', async () => (await page.evaluate<number>('got.length')) === 1);
  guarded.cut();
  guarded.publish('a:lobby', { n: 2 });
  // It stays away for up to five seconds.
  await until('the second', async () => (await page.evaluate<number>('got.length')) === 2, 20_000);
  expect(await page.evaluate('got')).toEqual([{ n: 1 }, { n: 2 }]);
  expect(new Set(streams().map((url) => new URL(url).searchParams.get('ticket'))).size).toBe(2);
}, 40_000);

interface Attempt {
  /** What the page has received. */
  got: string[];
  /** What the request brought: the session's cookie, and where it came from. */
  requests: { cookie: string | undefined; isFromPage: boolean; site: unknown }[];
}

/** A page elsewhere opens a stream of an application that its user has logged in to. */
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
    window.got = [];
    window.source = new EventSource('${url}/stream', { withCredentials: true });
    source.onmessage = ({ data }) => got.push(data);
  `);
  await until('an event or a refusal', async () =>
    page.evaluate<boolean>('got.length > 0 || source.readyState === 2'),
  );
  const got = await page.evaluate<string[]>('got');
  await page.close();
  return { got, requests };
}

test('a page elsewhere can open a stream and cannot read it; cookies come along from the same site', async () => {
  await using browser = await launchChromium();
  const sameSite = { cookie: 'session=secret', isFromPage: true, site: 'same-site' };
  // The handler has run, for a page that may be anybody's.
  expect(await attempt(browser, '127.0.0.1')).toEqual({
    got: [],
    requests: [{ cookie: undefined, isFromPage: true, site: 'cross-site' }],
  });
  // Ports do not make another site, nor do sub-domains.
  expect(await attempt(browser, 'localhost')).toEqual({ got: [], requests: [sameSite] });
  expect(await attempt(browser, 'localhost', () => ({}))).toEqual({
    got: [],
    requests: [sameSite],
  });
  for (const whom of [(origin: string) => [origin], () => true]) {
    expect(
      await attempt(browser, 'localhost', (origin) => ({
        origin: whom(origin),
        credentials: true,
      })),
    ).toEqual({
      got: ['private'],
      requests: [sameSite],
    });
  }
});
