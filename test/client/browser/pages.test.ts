import { createServer, request, type IncomingMessage } from 'node:http';
import express from 'express';
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { launchChromium } from '../../support/chromium.ts';
import { launchFirefox } from '../../support/firefox.ts';
import { listening, serve, type TestServer } from '../../support/server.ts';
import { until } from '../../support/wait.ts';
import { gotOf, numbers, openTab, serveTabs, statesOf, untilGot, untilState } from './tabs.ts';

const TIMEOUT = 90_000;

/** A proxy that passes a response on when it has ended. */
async function serveBuffering(target: TestServer): Promise<TestServer> {
  return listening(
    createServer((req, res) => {
      const { method, headers, url } = req;
      const upstream = request(
        target.url + url,
        { method, headers },
        (response: IncomingMessage) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('end', () => {
            res.writeHead(response.statusCode ?? 502, response.headers);
            res.end(Buffer.concat(chunks));
          });
        },
      );
      upstream.on('error', () => res.destroy());
      res.on('close', () => upstream.destroy());
      upstream.end();
    }),
  );
}

describe.each([
  ['Chromium', launchChromium],
  ['Firefox', launchFirefox],
])('a page of %s', (_name, launch) => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launch();
  });
  afterAll(() => browser.close());

  async function openPage(server: TestServer, options = {}) {
    const context = await browser.newContext();
    const page = await openTab(context, server, options);
    return { context, page, [Symbol.asyncDispose]: () => context.close() };
  }

  test(
    'finds a half-open line within two missed heartbeats, and misses nothing',
    async () => {
      await using server = await serveTabs({ heartbeat: { interval: 1_000, visible: true } });
      await using tab = await openPage(server);
      await untilState([tab.page], 'open');
      await server.channels.publish('news', 1);
      await untilGot([tab.page], 1);
      const { bytes } = server.events.stats();
      await until('two heartbeats', () => server.events.stats().bytes > bytes + 60);
      const [stream] = server.events.streams;
      const { socket } = stream?.res ?? {};
      // The line of a laptop that slept: it stays open, and nothing that is written arrives.
      if (socket) socket.write = () => true;
      const start = Date.now();
      await server.channels.publish('news', 2);
      await untilGot([tab.page], 2);
      // Two heartbeats, and the time of the request.
      expect(Date.now() - start).toBeLessThan(3_000);
      expect(await gotOf(tab.page)).toEqual([1, 2]);
      expect(await statesOf(tab.page)).toEqual(['connecting', 'open', 'reconnecting', 'open']);
    },
    TIMEOUT,
  );

  test(
    'receives by polling behind a proxy that holds responses back',
    async () => {
      await using server = await serveTabs();
      await using proxy = await serveBuffering(server);
      await using tab = await openPage(proxy);
      await until('a poll', () => server.peak > 0 && server.events.stats().opened > 1, 15_000);
      for (const number of numbers(5)) {
        await server.channels.publish('news', number);
        await untilGot([tab.page], number + 1);
      }
      expect(await gotOf(tab.page)).toEqual(numbers(5));
      expect(await statesOf(tab.page)).toEqual(['connecting', 'reconnecting', 'polling']);
    },
    TIMEOUT,
  );

  test(
    'that is reloaded continues where it was with `persist`',
    async () => {
      await using server = await serveTabs();
      await using tab = await openPage(server, { persist: true });
      await untilState([tab.page], 'open');
      await server.channels.publish('news', 1);
      await untilGot([tab.page], 1);
      await tab.page.goto(`${server.url}/other`);
      await server.channels.publish('news', 2);
      await tab.page.goBack();
      await untilGot([tab.page], 1);
      const back = (await gotOf(tab.page)).at(-1);
      await tab.page.reload();
      await untilState([tab.page], 'open');
      await server.channels.publish('news', 3);
      await untilGot([tab.page], 1);
      expect([back, await gotOf(tab.page)]).toEqual([2, [3]]);
    },
    TIMEOUT,
  );

  test(
    'of another origin receives with CORS for the stream alone, without a preflight request',
    async () => {
      await using server = await serveTabs();
      const methods: string[] = [];
      const app = express();
      app.use((req, res, next) => {
        methods.push(req.method);
        res.set('Access-Control-Allow-Origin', '*');
        next();
      });
      app.use(server.app);
      await using other = await serve(app);
      const lastEventId = await server.channels.cursor();
      await server.channels.publish('news', 1);
      await using tab = await openPage(server, { path: `${other.url}/events`, lastEventId });
      await untilGot([tab.page], 1);
      expect(methods).toEqual(['GET']);
    },
    TIMEOUT,
  );

  test(
    'in the sandbox of another one has a connection of its own at a relative URL',
    async () => {
      await using server = await serveTabs();
      const app = express();
      // The sandbox is another origin.
      app.use((_req, res, next) => {
        res.set('Access-Control-Allow-Origin', '*');
        next();
      });
      app.use(server.app);
      await using outer = await serve(app);
      const context = await browser.newContext();
      const page = await context.newPage();
      await page.goto(`${outer.url}/other`);
      await page.evaluate(() => {
        Object.assign(window, { got: [], states: [] });
        addEventListener('message', ({ data: [list, item] }) => {
          (window as unknown as Record<string, unknown[]>)[list as string]?.push(item);
        });
        const frame = document.createElement('iframe');
        frame.setAttribute('sandbox', 'allow-scripts');
        frame.srcdoc = `<script type="module">
          import { connect } from '/client.js';
          connect('/events', {
            share: true,
            persist: true,
            on: { message: (data) => parent.postMessage(['got', data], '*') },
            onState: (state) => parent.postMessage(['states', state], '*'),
          });
        </script>`;
        document.body.append(frame);
      });
      await untilState([page], 'open');
      await server.channels.publish('news', 1);
      await untilGot([page], 1);
      expect(await statesOf(page)).toEqual(['connecting', 'open']);
      await context.close();
    },
    TIMEOUT,
  );

  test(
    'that goes offline says so at once, and receives what it missed when it is online',
    async () => {
      await using server = await serveTabs();
      const context = await browser.newContext();
      const page = await openTab(context, server);
      await untilState([page], 'open');
      await context.setOffline(true);
      await untilState([page], 'reconnecting', 2_000);
      await server.channels.publish('news', 1);
      await context.setOffline(false);
      await untilGot([page], 1, 2_000);
      expect(await statesOf(page)).toEqual(['connecting', 'open', 'reconnecting', 'open']);
      await context.close();
    },
    TIMEOUT,
  );

  test(
    'asks for a new token when the old one is refused',
    async () => {
      await using server = await serveTabs();
      const tokens: (string | undefined)[] = [];
      const app = express();
      app.use('/events', (req, res, next) => {
        tokens.push(req.get('Authorization'));
        if (req.get('Authorization') === 'Bearer 2') next();
        else res.sendStatus(401);
      });
      app.use(server.app);
      await using guarded = await serve(app);
      const context = await browser.newContext();
      const page = await context.newPage();
      await page.goto(`${guarded.url}/other`);
      await page.evaluate(`(async () => {
        const { connect } = await import('/client.js');
        Object.assign(window, { got: [], states: [] });
        let token = 0;
        connect('/events', {
          headers: async () => ({ Authorization: 'Bearer ' + ++token }),
          on: { message: (data) => got.push(data) },
          onState: (state) => states.push(state),
        });
      })()`);
      await untilState([page], 'open');
      await server.channels.publish('news', 1);
      await untilGot([page], 1);
      expect(tokens).toEqual(['Bearer 1', 'Bearer 2']);
      await context.close();
    },
    TIMEOUT,
  );

  test.each([
    [204, { states: ['connecting', 'ended'], ends: 1, gaps: 0, requests: 1 }],
    [404, { states: ['connecting', 'failed'], ends: 0, gaps: 0, requests: 1 }],
    [410, { states: ['connecting', 'open'], ends: 0, gaps: 1, requests: 2 }],
  ])(
    'that is answered %i says so, and makes no needless request',
    async (status, expected) => {
      await using server = await serveTabs();
      const ids: unknown[] = [];
      server.app.get('/answer', (req, res) => {
        ids.push(req.query['lastEventId']);
        if (ids.length === 1) res.status(status).end();
        else res.type('text/event-stream').write('data: 1\nid: e.1\n\n');
      });
      await using tab = await openPage(server, { path: '/answer', lastEventId: 'e.0' });
      await untilState([tab.page], expected.states.at(-1) ?? '');
      if (expected.requests > 1) await untilGot([tab.page], 1);
      const [ends, gaps] = await tab.page.evaluate<[number, number]>('[ends, gaps.length]');
      const states = await statesOf(tab.page);
      expect({ states, ends, gaps, requests: ids.length }).toEqual(expected);
      expect(ids).toEqual(['e.0', undefined].slice(0, ids.length));
    },
    TIMEOUT,
  );
});

test(
  'a page of Firefox that may not use cookies has a connection of its own',
  async () => {
    await using server = await serveTabs();
    const firefoxUserPrefs = { 'network.cookie.cookieBehavior': 2 };
    await using browser = await launchFirefox({ firefoxUserPrefs });
    const page = await openTab(browser, server, { persist: true });
    await untilState([page], 'open');
    await server.channels.publish('news', 1);
    await untilGot([page], 1);
    expect(await statesOf(page)).toEqual(['connecting', 'open']);
  },
  TIMEOUT,
);
