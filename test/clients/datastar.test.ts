/** Datastar in browsers, with the markup of the docs. */
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createChannels, type Channels } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { until } from '../support/wait.ts';
import { filesIn, pageOf, writeFiles } from './blocks.ts';
import {
  browserOf,
  closeBrowser,
  startFirefox,
  serveModules,
  type BrowserName,
} from './clients.ts';

const docs = await pageOf('clients.md');
const [, markup = ''] = /^## Datastar\n[^]*?^```html\n([^]*?)^```$/m.exec(docs) ?? [];

type Publication = [data: string, options: { event: string }];

const { 'datastar-events.js': file = '' } = filesIn(docs);
const files = await writeFiles({ 'datastar-events.js': file }, []);
const { signals, appended } = (await files.load('datastar-events.js')) as {
  signals: (values: Record<string, unknown>) => Publication;
  appended: (selector: string, html: string) => Publication;
};

beforeAll(startFirefox);
afterAll(async () => {
  await closeBrowser();
  await files[Symbol.asyncDispose]();
});

interface Site extends AsyncDisposable {
  readonly channels: Channels;
  readonly server: StreamServer;
  readonly page: Page;
  /** For each request to `/listen`: the client's last event id, and the status of the answer. */
  readonly requests: { lastEventId: string | undefined; status?: number }[];
  /** The text of the page, word by word. */
  words(): Promise<string[]>;
}

async function openSite(browser: BrowserName = 'Chromium'): Promise<Site> {
  const channels = createChannels();
  const server = await serveStreams((stream) => stream.close(), {
    channels,
    retry: 20,
    heartbeat: 1_000,
  });
  const requests: Site['requests'] = [];
  server.server.prependListener('request', (req, res) => {
    if (req.url?.startsWith('/listen') !== true) return;
    const request: Site['requests'][number] = {
      lastEventId: req.headers['last-event-id'] as string | undefined,
    };
    requests.push(request);
    res.on('finish', () => (request.status = res.statusCode));
  });
  serveModules(server);
  server.app.get('/listen', channels.listen('a'));
  server.app.get('/page', (_req, res) => {
    const script = '/modules/@starfederation/datastar/dist/datastar.js';
    res
      .type('html')
      .send(`<!doctype html><script type="module" src="${script}"></script><body>${markup}</body>`);
  });
  const page = await (await browserOf(browser)).newPage();
  await page.goto(`${server.url}/page`);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  return {
    channels,
    server,
    page,
    requests,
    words: async () => (await page.evaluate<string>('document.body.innerText')).trim().split(/\s+/),
    async [Symbol.asyncDispose]() {
      await page.close();
      await server[Symbol.asyncDispose]();
    },
  };
}

async function untilWords(site: Site, ...words: string[]): Promise<void> {
  await until(
    `the words ${words.join(' ')}`,
    async () => (await site.words()).join(' ') === words.join(' '),
  );
}

/** Waits for a time in which the page would have asked again. */
async function untilOthersHaveReconnected({ page, server }: Site): Promise<void> {
  const before = server.streams.length;
  await page.evaluate(`window.other = new EventSource('/')`);
  await until('six reconnects of another stream', () => server.streams.length > before + 6);
  await page.evaluate('other.close()');
}

describe('Datastar', () => {
  test('merges signals and fragments, and does not see the events of the library', async () => {
    await using site = await openSite();
    await site.channels.publish('a', ...signals({ count: 1 }));
    await site.channels.publish('a', ...appended('#list', '<li>größer</li>\n<li>🐸</li>'));
    await untilWords(site, '1', 'größer', '🐸');
    expect(site.requests).toHaveLength(1);
  });

  test('reconnects after a cut connection and resumes, without an event twice', async () => {
    await using site = await openSite();
    const { channels, requests, server } = site;
    const { id } = await channels.publish('a', ...appended('#list', '<li>one</li>'));
    await untilWords(site, '0', 'one');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.publish('a', ...appended('#list', '<li>two</li>'));
    await until('the second request', () => requests.length === 2);
    await channels.publish('a', ...appended('#list', '<li>three</li>'));
    await untilWords(site, '0', 'one', 'two', 'three');
    expect(requests[1]?.lastEventId).toBe(id);
  });

  test('makes no further request after a channel has ended', async () => {
    await using site = await openSite();
    await site.channels.end('a', ...signals({ count: 2 }));
    await untilWords(site, '2');
    await untilOthersHaveReconnected(site);
    expect(site.requests).toHaveLength(1);
  });

  test('makes no further request after an end that is not final, either', async () => {
    await using site = await openSite();
    site.server.events.closeWhere(() => true);
    await untilOthersHaveReconnected(site);
    expect(site.requests).toHaveLength(1);
  });

  test.each(['Chromium', 'Firefox'] as const)('stops at a 204 in %s', async (browser) => {
    await using site = await openSite(browser);
    const { channels, requests, server } = site;
    await channels.publish('a', ...signals({ count: 1 }));
    await untilWords(site, '1');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.end('a');
    await until('a 204', () => requests[1]?.status === 204);
    await untilOthersHaveReconnected(site);
    expect(requests).toHaveLength(2);
  });
});
