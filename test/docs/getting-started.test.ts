import { afterAll, beforeAll, expect, test } from 'vitest';
import { launchChromium } from '../support/chromium.ts';
import { documented } from '../support/proxy.ts';
import { read, type Reader } from '../support/reader.ts';
import { freePort, startRedis } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import { pageOf } from './pages.ts';
import { Tour } from './tour.ts';

// The tests follow the guide from top to bottom. Each test uses the folder and the server of the
// test before.
const page = await pageOf('docs/getting-started.md');
let tour: Tour;

beforeAll(async () => {
  tour = await Tour.begin();
});

afterAll(() => tour?.[Symbol.asyncDispose]());

/** Opens a stream with this last event id. */
async function resumeFrom(id: string): Promise<Reader> {
  return read(`${tour.url}/news`, { headers: { 'Last-Event-ID': id } });
}

async function answers(port: number): Promise<boolean> {
  return fetch(`http://localhost:${port}`).then(
    () => true,
    () => false,
  );
}

/** Follows a section, and compares the output with the output in the guide. */
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

test('section "A folder" installs the packages', { timeout: 120_000 }, async () => {
  await expectSection('## A folder');
});

test('section "A server" has the documented output', async () => {
  await expectSection('## A server');
});

test('section "Come back" has the documented output', async () => {
  await expectSection('## Come back');
});

test(
  'section "A page": the page shows events and reconnects after a restart',
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
    // The page fetches the state of the new server after the gap. That state is empty.
    await tab.getByText('Seen on the page').waitFor({ state: 'detached' });
    await tab.getByText('live', { exact: true }).waitFor();
  },
);

test('section "A test": the test passes', async () => {
  await expectSection('## A test');
  expect(tour.printed).toContain('pass 1');
});

test(
  'section "Deploy": a new server resumes with Redis, and the old server exits',
  { timeout: 120_000 },
  async () => {
    await using redis = await startRedis();
    tour.redisUrl = redis.url;
    await expectSection('## Deploy');
    const first = await publish('before');
    using reader = await resumeFrom(first);
    await publish('meanwhile');
    const { id, data } = await reader.next();
    expect(data).toBe('{"headline":"meanwhile"}');
    expect(await tour.stop('server', 'SIGTERM')).toBe(0);
    await reader.end();
    expect(reader.retries).toHaveLength(1);

    await tour.startAs('server', `REDIS_URL=${redis.url} node server.js`);
    await publish('after');
    using resumed = await resumeFrom(id ?? '');
    expect(await resumed.next()).toMatchObject({ event: 'headline', data: '{"headline":"after"}' });

    const port = await freePort();
    await tour.startAs('second', `PORT=${port} REDIS_URL=${redis.url} node server.js`);
    await until('a response of the second server', () => answers(port));
    using onSecond = await read(`http://localhost:${port}/news`, {
      headers: { 'Last-Event-ID': id ?? '' },
    });
    expect((await onSecond.next()).data).toBe('{"headline":"after"}');
    await publish('at the first');
    expect((await onSecond.next()).data).toBe('{"headline":"at the first"}');
  },
);

test('the nginx configuration of the guide is the tested configuration', () => {
  const block = page.blocks.find(({ language }) => language === 'nginx');
  expect(block?.text.replace('3000', '4444')).toBe(documented('nginx', 'restart'));
});
