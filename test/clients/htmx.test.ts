/** The SSE extension of htmx 4 in Chromium, with the code of the docs. */
import type { Page } from 'playwright-core';
import { afterAll, describe, expect, test } from 'vitest';
import { createChannels, type Channels } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { until } from '../support/wait.ts';
import { filesIn, pageOf } from './blocks.ts';
import { browserOf, closeBrowser, serveModules } from './clients.ts';

afterAll(closeBrowser);

const docs = await pageOf('clients.md');
const { 'htmx-ends.js': script = '' } = filesIn(docs);
const [, markup = ''] = /^## htmx\n[^]*?^```html\n([^]*?)^```$/m.exec(docs) ?? [];

interface Site extends AsyncDisposable {
  readonly channels: Channels;
  readonly server: StreamServer;
  readonly page: Page;
  /** For each request to `/listen`: the client's last event id, and the status of the answer. */
  readonly requests: { lastEventId: string | undefined; status?: number }[];
  /** The text of the page. */
  text(): Promise<string>;
}

/** Opens a page with the markup of the docs, or with another. */
async function openSite(html = markup, js = script): Promise<Site> {
  const channels = createChannels();
  const server = await serveStreams((stream) => stream.close(), {
    channels,
    retry: 20,
    heartbeat: 1_000,
  });
  const requests: Site['requests'] = [];
  server.server.prependListener('request', (req, res) => {
    if (req.url !== '/listen') return;
    const request: Site['requests'][number] = {
      lastEventId: req.headers['last-event-id'] as string | undefined,
    };
    requests.push(request);
    res.on('finish', () => (request.status = res.statusCode));
  });
  serveModules(server);
  server.app.get('/listen', channels.listen('a'));
  server.app.get('/page', (_req, res) => {
    res.type('html').send(`<!doctype html>
      <script src="/modules/htmx.org/dist/htmx.js"></script>
      <script src="/modules/htmx.org/dist/ext/hx-sse.js"></script>
      <script>
        window.events = [];
        for (const type of ['tick', 'sse:checkpoint', 'sse:end', 'htmx:sse:close']) {
          addEventListener(type, ({ detail }) => events.push([type, detail.data ?? detail.reason]));
        }
        ${js}
      </script>
      <body>${html}</body>`);
  });
  const page = await (await browserOf('Chromium')).newPage();
  await page.goto(`${server.url}/page`);
  return {
    channels,
    server,
    page,
    requests,
    text: async () => (await page.evaluate<string>('document.body.innerText')).trim(),
    async [Symbol.asyncDispose]() {
      await page.close();
      await server[Symbol.asyncDispose]();
    },
  };
}

describe('hx-sse of htmx 4', () => {
  test('swaps messages, and dispatches named events', async () => {
    await using site = await openSite();
    const { channels } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '<p>größer\n🐸</p>');
    await channels.publish('a', { n: 1 }, { event: 'tick' });
    await channels.publish('a', '<p>second</p>');
    await until('both messages', async () => (await site.text()).includes('second'));
    expect((await site.text()).split(/\s+/)).toEqual(['größer', '🐸', 'second']);
    const events = await site.page.evaluate<[string, string][]>('events');
    expect(events).toContainEqual(['tick', '{"n":1}']);
  });

  test('reconnects after a cut connection and resumes, without a message twice', async () => {
    await using site = await openSite();
    const { channels, server, requests } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    const { id } = await channels.publish('a', '<p>one</p>');
    await until('one message', async () => (await site.text()) === 'one');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.publish('a', '<p>two</p>');
    await until('the second request', () => requests.length === 2);
    await channels.publish('a', '<p>three</p>');
    await until('three messages', async () => (await site.text()).includes('three'));
    expect((await site.text()).split(/\s+/)).toEqual(['one', 'two', 'three']);
    expect(requests[1]?.lastEventId).toBe(id);
  });

  test('stops at sse:end with hx-sse:close, and makes no further request', async () => {
    await using site = await openSite();
    const { channels, requests } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.end('a', '<p>last</p>');
    await until('the close event', async () =>
      (await site.page.evaluate<string[][]>('events')).some(([type]) => type === 'htmx:sse:close'),
    );
    await untilOthersHaveReconnected(site);
    expect(await site.text()).toBe('last');
    expect(requests).toHaveLength(1);
  });

  test('stops at a 204 with the script of the docs', async () => {
    await using site = await openSite();
    const { channels, server, requests } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    const { id } = await channels.publish('a', '<p>one</p>');
    await until('one message', async () => (await site.text()) === 'one');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.end('a');
    await until('the close event', async () =>
      (await site.page.evaluate<string[][]>('events')).some(([type]) => type === 'htmx:sse:close'),
    );
    await untilOthersHaveReconnected(site);
    expect(requests.slice(1)).toEqual([{ lastEventId: id, status: 204 }]);
  });

  test('asks again and again after a 204, without that script', async () => {
    await using site = await openSite(markup, '');
    const { channels, server, requests } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '<p>one</p>');
    await until('one message', async () => (await site.text()) === 'one');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.end('a');
    await until('three answers of 204', () => requests.length >= 4);
    expect(requests.slice(1, 4).map(({ status }) => status)).toEqual([204, 204, 204]);
  });

  test('asks again after sse:end, without hx-sse:close', async () => {
    const html = markup.replace(/\s*hx-sse:close="[^"]*"/, '');
    await using site = await openSite(html, '');
    const { channels, requests } = site;
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.end('a', '<p>last</p>');
    await until('three answers of 204', () => requests.length >= 4);
    expect(requests[1]).toEqual({ lastEventId: 'sse:end', status: 204 });
  });
});

/** Waits for a time in which htmx would have asked again, after the time of its last `retry:`. */
async function untilOthersHaveReconnected({ page, server }: Site): Promise<void> {
  const before = server.streams.length;
  await page.evaluate(`window.other = new EventSource('/')`);
  await until('40 reconnects of another stream', () => server.streams.length > before + 40);
  await page.evaluate('other.close()');
}
