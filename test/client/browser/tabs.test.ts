import { createServer } from 'node:http';
import type { Response } from 'express';
import type { Browser, BrowserContext, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { launchChromium } from '../../support/chromium.ts';
import { launchFirefox } from '../../support/firefox.ts';
import { until } from '../../support/wait.ts';
import {
  gotOf,
  leaderOf,
  numbers,
  openTab,
  openWorker,
  publishNumbers,
  serveTabs,
  stateOf,
  statesOf,
  untilGot,
  untilState,
  type TabServer,
} from './tabs.ts';

const TIMEOUT = 90_000;

describe.each([
  ['Chromium', launchChromium],
  ['Firefox', launchFirefox],
])('tabs of %s', (_name, launch) => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launch();
  });
  afterAll(() => browser.close());

  /** Tabs that have the state `open`. */
  async function openTabs(server: TabServer, count: number, options = {}) {
    const context = await browser.newContext();
    const pages: Page[] = [];
    for (let tab = 0; tab < count; tab++) pages.push(await openTab(context, server, options));
    await untilState(pages, 'open');
    return { context, pages, [Symbol.asyncDispose]: () => context.close() };
  }

  async function expectAll(pages: readonly Page[], expected: unknown[]): Promise<void> {
    await untilGot(pages, expected.length);
    for (const page of pages) expect(await gotOf(page)).toEqual(expected);
  }

  test(
    'eight of them use one connection, and each receives each event once',
    async () => {
      await using server = await serveTabs();
      const lastEventId = await server.channels.cursor();
      await using tabs = await openTabs(server, 8, { lastEventId });
      expect(server.events.streams.size).toBe(1);
      await publishNumbers(server.channels, 0, 100);
      await expectAll(tabs.pages, numbers(100));
      expect(server.peak).toBe(1);
    },
    TIMEOUT,
  );

  test.each([
    ['is closed', (page: Page) => page.close()],
    ['goes to another page', (page: Page) => page.goto('about:blank')],
    ['is reloaded', (page: Page) => page.reload()],
    ['calls close()', (page: Page) => page.evaluate('live.close()')],
  ])(
    'miss and repeat nothing of 500 events when the leader %s in the middle',
    async (_what, end) => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 4);
      const leader = await leaderOf(tabs.pages);
      const others = tabs.pages.filter((page) => page !== leader);
      const published = publishNumbers(server.channels, 0, 500);
      await untilGot([leader], 50);
      await end(leader);
      await published;
      await expectAll(others, numbers(500));
      expect(server.events.streams.size).toBe(1);
    },
    TIMEOUT,
  );

  test(
    'take over one after the other, down to the last',
    async () => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 4);
      let pages = tabs.pages;
      const published = publishNumbers(server.channels, 0, 1_000);
      while (pages.length > 1) {
        const leader = await leaderOf(pages);
        pages = pages.filter((page) => page !== leader);
        await leader.close();
        await until('another leader', () =>
          leaderOf(pages).then(
            () => true,
            () => false,
          ),
        );
      }
      await published;
      await expectAll(pages, numbers(1_000));
    },
    TIMEOUT,
  );

  test(
    'take over from a leader that hangs, and what it does later repeats nothing',
    async () => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 3);
      const leader = await leaderOf(tabs.pages);
      const others = tabs.pages.filter((page) => page !== leader);
      await publishNumbers(server.channels, 0, 20);
      await untilGot(tabs.pages, 20);
      const hanging = leader.evaluate(
        '{ const end = Date.now() + 25_000; while (Date.now() < end); }',
      );
      const published = publishNumbers(server.channels, 20, 40);
      await until('another stream', () => server.events.streams.size === 2, 20_000);
      await published;
      await expectAll(others, numbers(40));
      await hanging;
      await publishNumbers(server.channels, 40, 60);
      await expectAll(tabs.pages, numbers(60));
      await until('one stream', () => server.events.streams.size === 1);
    },
    TIMEOUT,
  );

  test(
    'with different cursors of their pages each receive what is theirs, over one connection in the end',
    async () => {
      await using server = await serveTabs();
      const cursors = [];
      for (const number of numbers(6)) {
        cursors.push(await server.channels.cursor());
        await server.channels.publish('news', number);
      }
      const context = await browser.newContext();
      const pages = [];
      // The leader first, then one that is behind it, one that is ahead, and one without an id.
      for (const lastEventId of [cursors[3], cursors[1], cursors[5], '']) {
        pages.push(await openTab(context, server, { lastEventId }));
        await untilState(pages, 'open');
      }
      await server.channels.publish('news', 6);
      for (const [index, expected] of [[3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [5, 6], [6]].entries()) {
        const page = pages[index] as Page;
        await untilGot([page], expected.length);
        expect(await gotOf(page)).toEqual(expected);
      }
      await until('one stream', () => server.events.streams.size === 1);
      await context.close();
    },
    TIMEOUT,
  );

  test(
    'without an id start where the server lets them start, and share the connection then',
    async () => {
      await using server = await serveTabs();
      await server.channels.publish('news', 1);
      await using tabs = await openTabs(server, 4, { path: '/from-start' });
      await expectAll(tabs.pages, [1]);
      await until('one stream', () => server.events.streams.size === 1);
      await server.channels.publish('news', 2);
      await expectAll(tabs.pages, [1, 2]);
    },
    TIMEOUT,
  );

  test(
    'that are too far behind the leader are told of the gap, and the others are not',
    async () => {
      await using server = await serveTabs({ history: 5 });
      const lastEventId = await server.channels.cursor();
      await publishNumbers(server.channels, 0, 20);
      await using tabs = await openTabs(server, 1);
      const late = await openTab(tabs.context, server, { lastEventId });
      await untilState([late], 'open');
      await server.channels.publish('news', 20);
      await untilGot([late], 6);
      expect(await gotOf(late)).toEqual([15, 16, 17, 18, 19, 20]);
      expect(await late.evaluate('gaps.length')).toBe(1);
      expect(await tabs.pages[0]?.evaluate('gaps.length')).toBe(0);
      await until('one stream', () => server.events.streams.size === 1);
    },
    TIMEOUT,
  );

  test(
    'are told together of a gap, once, and of the end',
    async () => {
      await using server = await serveTabs();
      let stream: Response | undefined;
      server.app.get('/raw', (_req, res) => {
        stream = res.type('text/event-stream');
        stream.write('data: 1\nid: e.1\n\n');
      });
      await using tabs = await openTabs(server, 3, { path: '/raw', lastEventId: 'e.0' });
      await untilState(tabs.pages, 'open');
      const gap = { channels: ['news'], after: 'e.1', cursor: 'f.5' };
      stream?.write(
        `event: sse:gap\ndata: ${JSON.stringify(gap)}\n\nevent: sse:checkpoint\ndata: {}\nid: f.5\n\n` +
          'data: 2\nid: f.6\n\n',
      );
      await until('the events', async () => {
        const all = await Promise.all(tabs.pages.map(gotOf));
        return all.every((got) => got.at(-1) === 2);
      });
      stream?.end('event: sse:end\ndata: {}\nid: sse:end\n\n');
      await untilState(tabs.pages, 'ended');
      for (const page of tabs.pages) {
        expect(await page.evaluate('gaps')).toEqual([gap]);
        expect(await page.evaluate('ends')).toBe(1);
      }
    },
    TIMEOUT,
  );

  test(
    'with other names, and without `share`, have connections of their own',
    async () => {
      await using server = await serveTabs();
      const lastEventId = await server.channels.cursor();
      await using tabs = await openTabs(server, 1, { lastEventId });
      for (const share of ['alice', 'bob', false, 'bob']) {
        await openTab(tabs.context, server, { share, lastEventId });
      }
      await until('four streams', () => server.events.streams.size === 4);
      await server.channels.publish('news', 1);
      await untilGot(tabs.context.pages(), 1);
      expect(server.peak).toBe(4);
    },
    TIMEOUT,
  );

  test.each(['navigator.locks', 'BroadcastChannel'])(
    'without %s have connections of their own',
    async (missing) => {
      await using server = await serveTabs();
      const context: BrowserContext = await browser.newContext();
      await context.addInitScript(
        `Object.defineProperty(${missing === 'BroadcastChannel' ? 'window' : 'Navigator.prototype'},
          '${missing.split('.').at(-1)}', { value: undefined, configurable: true })`,
      );
      const pages = [await openTab(context, server), await openTab(context, server)];
      await untilState(pages, 'open');
      await server.channels.publish('news', 1);
      await expectAll(pages, [1]);
      expect(server.events.streams.size).toBe(2);
      await context.close();
    },
    TIMEOUT,
  );

  test(
    'leave nothing behind after close(): no connection, no lock, and nobody who waits for one',
    async () => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 3);
      for (const page of tabs.pages) await page.evaluate('live.close()');
      await until('no stream', () => server.events.streams.size === 0);
      const locks =
        '(async () => { const q = await navigator.locks.query(); return q.held.length + q.pending.length; })()';
      expect(await tabs.pages[0]?.evaluate(locks)).toBe(0);
      await server.channels.publish('news', 1);
      expect(await Promise.all(tabs.pages.map(gotOf))).toEqual([[], [], []]);
    },
    TIMEOUT,
  );

  test(
    'share with workers, which take over, too',
    async () => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 1);
      const [page] = tabs.pages as [Page];
      const other = await openWorker(tabs.context, server);
      await untilState([other], 'open');
      await server.channels.publish('news', 1);
      await untilGot([other], 1);
      expect(server.events.streams.size).toBe(1);
      await page.close();
      await until('the hand-over', async () => (await statesOf(other)).length === 4);
      await server.channels.publish('news', 2);
      await untilGot([other], 2);
      expect(await gotOf(other)).toEqual([1, 2]);
      expect(await statesOf(other)).toEqual(['connecting', 'open', 'reconnecting', 'open']);
    },
    TIMEOUT,
  );

  test(
    'receive what they missed when all connections broke',
    async () => {
      await using server = await serveTabs();
      await using tabs = await openTabs(server, 3);
      await server.channels.publish('news', 1);
      await untilGot(tabs.pages, 1);
      for (const socket of server.sockets) socket.destroy();
      await until('the news', async () => {
        const states = await Promise.all(tabs.pages.map(statesOf));
        return states.every((each) => each.includes('reconnecting'));
      });
      await server.channels.publish('news', 2);
      await expectAll(tabs.pages, [1, 2]);
      expect(await Promise.all(tabs.pages.map(stateOf))).toEqual(['open', 'open', 'open']);
      expect(server.events.streams.size).toBe(1);
    },
    TIMEOUT,
  );

  test(
    'are each told once of the events that a server has lost with its restart, and receive all that follow',
    async () => {
      const before = await serveTabs();
      const lastEventId = await before.channels.cursor();
      await using tabs = await openTabs(before, 3, { lastEventId });
      await publishNumbers(before.channels, 0, 5);
      await untilGot(tabs.pages, 5);
      await before[Symbol.asyncDispose]();
      await untilState(tabs.pages, 'reconnecting');
      await using after = await serveTabs();
      await publishNumbers(after.channels, 5, 10);
      const restarted = createServer(after.app).listen(before.port, '127.0.0.1');
      onTestFinished(() => {
        restarted.close();
        restarted.closeAllConnections();
      });
      await untilState(tabs.pages, 'open');
      await publishNumbers(after.channels, 10, 15);
      await expectAll(tabs.pages, numbers(15));
      for (const page of tabs.pages) expect(await page.evaluate('gaps.length')).toBe(1);
      expect(after.peak).toBe(1);
    },
    TIMEOUT,
  );
});
