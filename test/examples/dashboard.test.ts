import { createServer } from 'node:http';
import { once } from 'node:events';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createExample } from '../../examples/dashboard/app.ts';
import type { Sample } from '../../examples/dashboard/sampler.ts';
import { launchChromium } from '../support/chromium.ts';
import { launchFirefox } from '../support/firefox.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import { serveExample } from './serve-example.ts';

let browser: Browser;

beforeAll(async () => {
  browser = await launchChromium();
});

afterAll(async () => {
  await browser?.close();
});

/** Returns the points of the line, as pairs of x and y. */
async function pointsOf(page: Page): Promise<number[][]> {
  const points = await page.locator('#line').getAttribute('points');
  return (points ?? '').split(' ').map((pair) => pair.split(',').map(Number));
}

/**
 * Returns a sampler with rising load. It is called every 5 ms, and its samples are one second
 * apart.
 */
function risingLoad(): () => Sample {
  let count = 0;
  return () => ({ at: ++count * 1_000, busy: count % 101 });
}

test('the plot in Chromium moves left with each sample', async () => {
  await using server = await serveExample(createExample());
  await using page = await browser.newPage();
  const foreignRequests: string[] = [];
  const errors: string[] = [];
  page.on(
    'request',
    (request) => void (request.url().startsWith(server.url) || foreignRequests.push(request.url())),
  );
  page.on('pageerror', (error) => void errors.push(error.message));
  await page.goto(server.url);
  await until('a line', async () => (await pointsOf(page)).length >= 3);
  const before = await pointsOf(page);
  expect(before.at(-1)?.[0]).toBe(30_000);
  await until(
    'another point of the line',
    async () => (await pointsOf(page)).length > before.length,
  );
  const after = await pointsOf(page);
  // Earlier points moved to the left and kept their height.
  expect(after[0]?.[0]).toBeLessThan(before[0]?.[0] as number);
  expect(after.slice(0, before.length).map(([, y]) => y)).toEqual(before.map(([, y]) => y));
  expect(await page.locator('#now').textContent()).toMatch(/^\d+(\.\d)? %$/);
  expect(await page.locator('#state').textContent()).toBe('live');
  expect([foreignRequests, errors]).toEqual([[], []]);
});

test('the line has the points of the samples, without samples that are too old', async () => {
  await using server = await serveExample(createExample(risingLoad(), 5));
  await using page = await browser.newPage();
  await page.goto(server.url);
  await until('a full plot', async () => (await pointsOf(page))[0]?.[0] === 1_000);
  const points = await pointsOf(page);
  expect(points.length).toBeLessThanOrEqual(30);
  const pixels = await page.locator('#line').boundingBox();
  expect(pixels?.width).toBeGreaterThan(300);
  expect(pixels?.height).toBeGreaterThan(10);
});

test('a page shows "reconnecting" and then "live" after a restart of its server', async () => {
  const first = await serveExample(createExample());
  await using page = await browser.newPage();
  await page.goto(first.url);
  await until('a line', async () => (await pointsOf(page)).length >= 2);
  await first[Symbol.asyncDispose]();
  await until(
    'the state "reconnecting"',
    async () => (await page.locator('#state').textContent()) === 'reconnecting',
  );
  const before = await pointsOf(page);
  const example = createExample();
  const restarted = createServer(example.app).listen(first.port, '127.0.0.1');
  try {
    await once(restarted, 'listening');
    await until(
      'the state "live"',
      async () => (await page.locator('#state').textContent()) === 'live',
    );
    await until(
      'another point of the line',
      async () => (await pointsOf(page)).length > before.length,
    );
  } finally {
    await example.close?.();
    restarted.close();
    restarted.closeAllConnections();
  }
});

test.each([
  ['Chromium', launchChromium],
  ['Firefox', launchFirefox],
])(
  'two tabs of %s use one connection, and the second goes on when the first is closed',
  async (_name, launch) => {
    await using server = await serveExample(createExample());
    await using own = await launch();
    await using context = await own.newContext();
    const [first, second] = [await context.newPage(), await context.newPage()];
    for (const page of [first, second]) {
      await page.goto(server.url);
      await until('a line', async () => (await pointsOf(page)).length >= 3);
    }
    await until('one stream', () => server.example.events.streams.size === 1);
    await first.close();
    const before = await pointsOf(second);
    await until(
      'more points of the line',
      async () => (await pointsOf(second)).length > before.length + 2,
    );
    expect(server.example.events.streams.size).toBe(1);
    expect(await second.locator('#state').textContent()).toBe('live');
  },
);

test('a slow tab continues with the newest sample, without a gap', async () => {
  await using server = await serveExample(createExample(risingLoad(), 5));
  using early = await read(`${server.url}/load`);
  const { id, data } = await early.next();
  early.close();
  const { at } = JSON.parse(data) as Sample;
  using control = await read(`${server.url}/load`);
  await control.take(22);
  using late = await read(`${server.url}/load`, { headers: { 'Last-Event-ID': id as string } });
  const next = await late.next();
  expect(next.event).toBe('sample');
  expect(JSON.parse(next.data).at).toBeGreaterThanOrEqual(at + 20_000);
});
