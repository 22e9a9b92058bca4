import { afterAll, beforeAll, expect, test } from 'vitest';
import { launchChromium } from '../support/chromium.ts';
import { documented } from '../support/proxy.ts';
import { read, type Reader } from '../support/reader.ts';
import { freePort, startRedis } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import { pageOf } from './pages.ts';
import { Tour } from './tour.ts';

// From top to bottom, each test where the one before has left the folder and the server.
const page = await pageOf('docs/getting-started.md');
let tour: Tour;

beforeAll(async () => {
  tour = await Tour.begin();
});

afterAll(() => tour?.[Symbol.asyncDispose]());

/** A client that comes back with this id. */
async function comeBack(id: string): Promise<Reader> {
  return read(`${tour.url}/news`, { headers: { 'Last-Event-ID': id } });
}

async function answers(port: number): Promise<boolean> {
  return fetch(`http://localhost:${port}`).then(
    () => true,
    () => false,
  );
}

/** Does what a section says; what it shows is what is there. */
async function expectSection(heading: string): Promise<void> {
  const { written, printed } = await tour.follow(page, heading);
  expect(printed).toEqual(written);
}

async function publish(headline: string): Promise<string> {
  const body = JSON.stringify({ headline });
  const headers = { 'Content-Type': 'application/json' };
  const answer = await fetch(`${tour.url}/news`, { method: 'POST', headers, body });
  return ((await answer.json()) as { id: string }).id;
}

test('the folder has what the server needs', { timeout: 120_000 }, async () => {
  await expectSection('## A folder');
});

test('the server shows what the guide shows', async () => {
  await expectSection('## A server');
});

test('a client that comes back gets what the guide shows', async () => {
  await expectSection('## Come back');
});

test(
  'the page shows what is published, and is live again after a restart',
  { timeout: 60_000 },
  async () => {
    await using browser = await launchChromium();
    await expectSection('## A page');
    const tab = await browser.newPage();
    await tab.goto(tour.url);
    await tab.getByText('Frog seen twice').waitFor();
    await tab.getByText('live', { exact: true }).waitFor();
    await publish('Seen on the page');
    await tab.getByText('Seen on the page').waitFor();

    await tour.stop('server', 'SIGINT');
    await tab.getByText('reconnecting …').waitFor();
    await tour.startAs('server', 'node server.js');
    // The state of the new server, fetched after the gap, is empty.
    await tab.getByText('Seen on the page').waitFor({ state: 'detached' });
    await tab.getByText('live', { exact: true }).waitFor();
  },
);

test('the test of the guide passes', async () => {
  await expectSection('## A test');
  expect(tour.printed).toContain('pass 1');
});

test(
  'with Redis a new server goes on where the old one ended, and the old one ends by itself',
  { timeout: 120_000 },
  async () => {
    await using redis = await startRedis();
    tour.redisUrl = redis.url;
    await expectSection('## Deploy');
    const first = await publish('before');
    using reader = await comeBack(first);
    await publish('meanwhile');
    const { id, data } = await reader.next();
    expect(data).toBe('{"headline":"meanwhile"}');
    expect(await tour.stop('server', 'SIGTERM')).toBe(0);
    await reader.end();
    expect(reader.retries).toHaveLength(1);

    await tour.startAs('server', `REDIS_URL=${redis.url} node server.js`);
    await publish('after');
    using again = await comeBack(id ?? '');
    expect(await again.next()).toMatchObject({ event: 'headline', data: '{"headline":"after"}' });

    const port = await freePort();
    await tour.startAs('second', `PORT=${port} REDIS_URL=${redis.url} node server.js`);
    await until('the second server', () => answers(port));
    using elsewhere = await read(`http://localhost:${port}/news`, {
      headers: { 'Last-Event-ID': id ?? '' },
    });
    expect((await elsewhere.next()).data).toBe('{"headline":"after"}');
    await publish('at the first');
    expect((await elsewhere.next()).data).toBe('{"headline":"at the first"}');
  },
);

test('the configuration of nginx is the one that is tried', () => {
  const block = page.blocks.find(({ language }) => language === 'nginx');
  expect(block?.text.replace('3000', '4444')).toBe(documented('nginx', 'restart'));
});
