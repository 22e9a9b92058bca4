import type { Page } from 'playwright-core';
import { describe, expect, test } from 'vitest';
import { launchChromium, setFrozen } from '../../support/chromium.ts';
import { launchFirefox } from '../../support/firefox.ts';
import { until } from '../../support/wait.ts';
import { launchFirefoxWithProcesses, processOf } from './processes.ts';
import {
  gotOf,
  leaderOf,
  numbers,
  openTab,
  openWorker,
  publishNumbers,
  serveTabs,
  statesOf,
  untilGot,
  untilState,
} from './tabs.ts';

const TIMEOUT = 90_000;

describe.each([
  ['Chromium', launchChromium],
  ['Firefox', launchFirefoxWithProcesses],
])('a tab of %s', (_name, launch) => {
  async function openThree() {
    const server = await serveTabs();
    const browser = await launch();
    const context = await browser.newContext();
    const pages: Page[] = [];
    for (let tab = 0; tab < 3; tab++) pages.push(await openTab(context, server));
    await untilState(pages, 'open');
    const leader = await leaderOf(pages);
    return {
      server,
      pages,
      leader,
      pid: await processOf(leader),
      others: pages.filter((page) => page !== leader),
      async [Symbol.asyncDispose]() {
        await browser.close();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  test(
    'that holds the connection and whose process is killed hands it over in the middle of 500 events',
    async () => {
      await using tabs = await openThree();
      const { server, leader, others, pid } = tabs;
      const published = publishNumbers(server.channels, 0, 500);
      await untilGot([leader], 50);
      process.kill(pid, 'SIGKILL');
      await published;
      await untilGot(others, 500);
      for (const page of others) expect(await gotOf(page)).toEqual(numbers(500));
      await until('one stream', () => server.events.streams.size === 1);
    },
    TIMEOUT,
  );

  test(
    'that holds the connection and whose process is stopped hands it over, and misses and repeats nothing later',
    async () => {
      await using tabs = await openThree();
      const { server, others, pages, pid } = tabs;
      await publishNumbers(server.channels, 0, 50);
      await untilGot(pages, 50);
      process.kill(pid, 'SIGSTOP');
      try {
        await publishNumbers(server.channels, 50, 300);
        await untilGot(others, 300, 25_000);
        for (const page of others) expect(await gotOf(page)).toEqual(numbers(300));
      } finally {
        process.kill(pid, 'SIGCONT');
      }
      await publishNumbers(server.channels, 300, 500);
      await untilGot(pages, 500);
      for (const page of pages) expect(await gotOf(page)).toEqual(numbers(500));
      await until('one stream', () => server.events.streams.size === 1);
    },
    TIMEOUT,
  );
});

describe('if Chromium freezes a page that holds the connection,', () => {
  // A page has the event `freeze`, and its worker has none.
  test.each([
    ['the page', false, 2_000],
    ['its worker', true, 25_000],
  ])(
    '%s hands it over, and receives what it missed when the page is active again',
    async (_what, isWorker, ms) => {
      await using server = await serveTabs();
      await using browser = await launchChromium();
      const context = await browser.newContext();
      const leader = isWorker
        ? await openWorker(context, server)
        : await openTab(context, server, { share: true });
      await untilState([leader], 'open');
      const others = [await openTab(context, server), await openTab(context, server)];
      const pages = [leader, ...others];
      await untilState(pages, 'open');
      await publishNumbers(server.channels, 0, 50);
      await untilGot(pages, 50);
      await setFrozen(leader, true);
      await publishNumbers(server.channels, 50, 300);
      await untilGot(others, 300, ms);
      for (const page of others) expect(await gotOf(page)).toEqual(numbers(300));
      expect((await gotOf(leader)).length).toBeLessThan(300);
      await setFrozen(leader, false);
      await publishNumbers(server.channels, 300, 500);
      await untilGot(pages, 500);
      for (const page of pages) expect(await gotOf(page)).toEqual(numbers(500));
      await untilState(pages, 'open');
      await until('one stream', () => server.events.streams.size === 1);
    },
    TIMEOUT,
  );
});

describe.each([
  ['Chromium', () => launchChromium({ ignoreDefaultArgs: ['--disable-back-forward-cache'] })],
  ['Firefox', launchFirefox],
])('a page of %s that goes back receives what it missed meanwhile,', (name, launch) => {
  test.each([
    ['with a connection of its own', [false, true], 0],
    ['that shares the connection', [true, true], 1],
    ['that held the connection', [true, true], 0],
  ])(
    '%s',
    async (_what, shares, index) => {
      await using server = await serveTabs();
      await using browser = await launch();
      const context = await browser.newContext();
      const pages: Page[] = [];
      for (const share of shares) {
        pages.push(await openTab(context, server, { share, persist: true }));
        await untilState(pages, 'open');
      }
      const [page, other] = [pages[index], pages[1 - index]] as [Page, Page];
      await page.evaluate(
        `addEventListener('pageshow', ({ persisted }) => { window.persisted = persisted; })`,
      );
      await page.goto(`${server.url}/other`);
      await until('one stream', () => server.events.streams.size === 1);
      await server.channels.publish('news', 1);
      await untilGot([other], 1, 2_000);
      // A page from the cache does not load.
      await page.goBack({ waitUntil: 'commit' });
      await untilGot([page], 1);
      // Firefox keeps no page with an open request or a lock, and loads it again.
      const isKept = name === 'Chromium';
      expect(await page.evaluate('window.persisted')).toBe(isKept ? true : undefined);
      await untilState([page], 'open');
      await server.channels.publish('news', 2);
      await untilGot(pages, 2);
      expect(await Promise.all(pages.map(gotOf))).toEqual([
        [1, 2],
        [1, 2],
      ]);
      const last = isKept ? ['connecting', 'open', 'reconnecting', 'open'] : ['connecting', 'open'];
      expect(await statesOf(page)).toEqual(last);
      expect(server.events.streams.size).toBe(shares.includes(false) ? 2 : 1);
    },
    TIMEOUT,
  );
});
