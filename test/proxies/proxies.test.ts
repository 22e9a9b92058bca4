import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import type { Page } from 'playwright-core';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  type Channels,
  type EventStream,
  type SseOptions,
} from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { launchChromium } from '../support/chromium.ts';
import { startHaproxy, startNginx, type Proxy, type ProxyOptions } from '../support/proxy.ts';
import { readThrough } from '../support/proxy-reader.ts';
import { Resources } from '../support/resources.ts';
import { dial, requestText } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

// Time limit in ms for bytes that a proxy must pass on at once. Buffered bytes would never arrive,
// and a state that is reported with the next heartbeat would arrive after 15 s, so the limit leaves
// time for a busy machine. The actual times are printed.
const MAX_DELAY_MS = 5_000;

// The idle timeout of the proxies in seconds, and a shorter heartbeat interval in ms.
const IDLE_TIMEOUT_S = 2;
const HEARTBEAT_MS = 500;

type Launch = (options: ProxyOptions) => Promise<Proxy>;

const nginx = (name: string): Launch => {
  return (options) => startNginx(name, options);
};

const haproxy = (name: string): Launch => {
  return (options) => startHaproxy(name, options);
};

const proxies: [string, Launch][] = [
  ['nginx with default settings, HTTP/1.0 to the application', nginx('default')],
  ['nginx that compresses all responses', nginx('gzip')],
  ['nginx with HTTP/2 in front and keep-alive connections behind', nginx('http2')],
  ['HAProxy', haproxy('default')],
  ['HAProxy with HTTP/2 in front and compression', haproxy('http2')],
];

interface Site extends AsyncDisposable {
  readonly server: StreamServer;
  readonly channels: Channels;
  readonly proxy: Proxy;
}

/** Starts an application whose streams follow channel `a`, behind a proxy. */
async function startSite(launch: Launch, options: SseOptions = {}, idle?: number): Promise<Site> {
  const channels = createChannels();
  const server = await serveStreams((stream) => stream.subscribe('a', { checkpoints: false }), {
    channels,
    ...options,
  });
  const proxy = await launch(
    idle === undefined ? { app: server.port } : { app: server.port, idle },
  );
  return {
    server,
    channels,
    proxy,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await proxy[Symbol.asyncDispose]();
    },
  };
}

describe.each(proxies)('%s', (name, launch) => {
  test('passes on the head, the first byte and each event at once', async () => {
    await using site = await startSite(launch);
    let start = performance.now();
    using reader = await readThrough(site.proxy);
    await until('the first byte', () => reader.comments.length > 0, MAX_DELAY_MS);
    const times = [performance.now() - start];
    expect(reader.headers).toMatchObject({
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache, no-transform',
    });
    for (const data of ['1', 'x'.repeat(100_000), '3']) {
      start = performance.now();
      await site.channels.publish('a', data);
      await until('the event', () => reader.events.at(-1)?.data === data, MAX_DELAY_MS);
      times.push(performance.now() - start);
    }
    console.log(
      `${name}: first byte and three events: ${times.map((ms) => ms.toFixed(0)).join(', ')} ms`,
    );
  });

  test('passes on each event of a compressed stream at once', async () => {
    await using site = await startSite(launch, { compress: true });
    using reader = await readThrough(site.proxy);
    expect(reader.headers['content-encoding']).toBe('gzip');
    expect(site.server.streams[0]?.res.getHeader('content-encoding')).toBe('gzip');
    for (const data of ['1', '2', 'x'.repeat(100_000), '3']) {
      await site.channels.publish('a', data);
      await until('the event', () => reader.events.at(-1)?.data === data, MAX_DELAY_MS);
    }
  });

  test('reports a disconnect of a reader to the application at once', async () => {
    await using site = await startSite(launch);
    using reader = await readThrough(site.proxy);
    const [stream] = site.server.streams as [EventStream];
    reader.close();
    expect(await within('the close reason', stream.closed, MAX_DELAY_MS)).toBe('client');
    expect(site.channels.stats().subscriptions).toBe(0);
    await until('the end of the socket', () => site.server.sockets.size === 0, MAX_DELAY_MS);
  });

  test('passes on the end of a stream or of its connection at once', async () => {
    await using site = await startSite(launch);
    using first = await readThrough(site.proxy);
    site.server.streams[0]?.close();
    await until('the end of the first stream', () => first.ended, MAX_DELAY_MS);
    using second = await readThrough(site.proxy);
    for (const socket of site.server.sockets) socket.resetAndDestroy();
    await until('the end of the second stream', () => second.ended, MAX_DELAY_MS);
  });

  test('lets a reader resume without missing or repeated events', async () => {
    await using site = await startSite(launch);
    let published = 0;
    async function publish(): Promise<void> {
      for (let count = 0; count < 50; count++) await site.channels.publish('a', `${published++}`);
    }
    using first = await readThrough(site.proxy);
    await publish();
    await until('eleven events', () => first.events.length > 10);
    first.close();
    const firstEvents = [...first.events];
    await publish();
    using second = await readThrough(site.proxy, '/', {
      'last-event-id': firstEvents.at(-1)?.id as string,
    });
    await publish();
    await until('all events', () => firstEvents.length + second.events.length >= published);
    const all = [...firstEvents, ...second.events].map(({ data }) => data);
    expect(all).toEqual(Array.from({ length: published }, (__, index) => `${index}`));
    expect(site.channels.stats().gaps).toBe(0);
  });
});

// These tests mostly wait, so they run concurrently.
describe.concurrent.each([
  ...proxies,
  ['HAProxy with a tunnel timeout of an hour', haproxy('tunnel')],
] as const)('%s', (_, launch) => {
  test('keeps a stream with heartbeats open beyond its idle timeout', async () => {
    await using site = await startSite(launch, { heartbeat: HEARTBEAT_MS }, IDLE_TIMEOUT_S);
    using reader = await readThrough(site.proxy);
    await until(
      'heartbeats for twice the idle timeout',
      () => reader.comments.length > (2 * IDLE_TIMEOUT_S * 1_000) / HEARTBEAT_MS + 1,
    );
    expect(reader.ended).toBe(false);
    await site.channels.publish('a', 'still there');
    await until('the event', () => reader.events.length === 1, MAX_DELAY_MS);
  });

  test('closes a silent stream without heartbeats on both sides', async () => {
    await using site = await startSite(launch, { heartbeat: false }, IDLE_TIMEOUT_S);
    using reader = await readThrough(site.proxy);
    await until('the end of the stream', () => reader.ended);
    expect(await within('the close reason', (site.server.streams[0] as EventStream).closed)).toBe(
      'client',
    );
  });
});

describe('compression', () => {
  test('nginx compresses streams in spite of no-transform; HAProxy does not', async () => {
    for (const [launch, encoding] of [
      [nginx('gzip'), 'gzip'],
      [haproxy('http2'), undefined],
    ] as const) {
      await using site = await startSite(launch);
      site.server.app.get('/page', (_, res) => void res.json('x'.repeat(10_000)));
      using stream = await readThrough(site.proxy);
      using page = await readThrough(site.proxy, '/page', { accept: 'application/json' });
      expect([stream.headers['content-encoding'], page.headers['content-encoding']]).toEqual([
        encoding,
        'gzip',
      ]);
    }
  });
});

describe.each([
  ['nginx', nginx('default')],
  ['HAProxy', haproxy('default')],
])('%s', (name, launch) => {
  test('passes back-pressure of a slow reader on to the application', async () => {
    await using site = await startSite(launch);
    const socket = await dial(site.proxy.port, requestText('/'));
    socket.pause();
    await until('an open stream', () => site.server.events.streams.size === 1);
    let published = 0;
    await until('the stream to be behind', async () => {
      await site.channels.publish('a', 'x'.repeat(100_000));
      published += 100_000;
      return site.channels.stats().behind === 1;
    });
    console.log(
      `${name}: a reader that never reads is behind after ${published / 1e6} MB in socket buffers`,
    );
    socket.destroy();
    await until('the end of the stream', () => site.server.events.streams.size === 0);
  });
});

describe('while the application restarts', () => {
  /** Opens a page with an EventSource behind the proxy, and stops the application. */
  async function startAndStop(
    resources: Resources,
    launch: Launch,
  ): Promise<Site & { page: Page }> {
    const site = resources.use(await startSite(launch, { retry: 50 }));
    site.server.app.get('/page', (_, res) => void res.send('<!doctype html><title>reader</title>'));
    const browser = resources.use(await launchChromium());
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(`${site.proxy.url}/page`);
    await page.evaluate(`
      window.received = [];
      window.source = new EventSource('/');
      source.onmessage = ({ data }) => received.push(data);
      window.opened = 0;
      source.onopen = () => opened++;
    `);
    await until('the subscription', () => site.channels.stats().subscriptions === 1);
    await site.channels.publish('a', 'before');
    await until('the first event', async () => page.evaluate<boolean>('received.length === 1'));
    site.server.server.close();
    for (const socket of site.server.sockets) socket.resetAndDestroy();
    return Object.assign(site, { page });
  }

  test.each([
    ['nginx', nginx('restart'), 502],
    ['nginx with HTTP/2', nginx('http2'), 502],
    ['HAProxy', haproxy('restart'), 503],
  ])(
    '%s keeps an EventSource reconnecting until the restart, and no event is lost',
    async (_, launch, status) => {
      await using resources = new Resources();
      const { server, channels, page } = await startAndStop(resources, launch);
      await channels.publish('a', 'meanwhile');
      await until(
        'two responses of the proxy',
        async () => page.evaluate<boolean>('opened >= 3'),
        20_000,
      );
      // Other requests get an error status.
      expect(await page.evaluate('fetch("/").then((response) => response.status)')).toBe(status);
      server.server.listen(server.port, '127.0.0.1');
      await until('the subscription after the restart', () => channels.stats().subscriptions === 1);
      await channels.publish('a', 'after');
      await until('the last event', async () =>
        page.evaluate<boolean>('received.at(-1) === "after"'),
      );
      expect(await page.evaluate('received')).toEqual(['before', 'meanwhile', 'after']);
    },
  );

  test.each([
    ['nginx', nginx('default')],
    ['HAProxy', haproxy('default')],
  ])('%s with default settings makes an EventSource give up', async (_, launch) => {
    await using resources = new Resources();
    const { page } = await startAndStop(resources, launch);
    await until(
      'the EventSource to give up',
      async () => page.evaluate<boolean>('source.readyState === 2'),
      20_000,
    );
  });

  test.each([
    ['nginx', nginx('restart')],
    ['HAProxy', haproxy('restart')],
  ])('%s passes on a 503 of the application', async (_, launch) => {
    await using site = await startSite(launch, { maxStreams: 1, whenFull: 'reject' });
    using first = await readThrough(site.proxy);
    const second = await fetch(site.proxy.url, { headers: { accept: 'text/event-stream' } });
    expect([first.ended, second.status, await second.text()]).toEqual([
      false,
      503,
      'No streams are accepted now; try again later.\n',
    ]);
  });
});

describe('configuration of a proxy', () => {
  test.each([
    ['nginx', nginx('http2')],
    ['HAProxy', haproxy('http2')],
  ])(
    '%s with HTTP/2 in front sends forwarding headers to an application that trusts it',
    async (_, launch) => {
      await using site = await startSite(launch);
      site.server.app.set('trust proxy', 'loopback');
      site.server.app.get(
        '/who',
        ({ ips, protocol, host }, res) => void res.json({ ips, protocol, host }),
      );
      const { stdout } = await promisify(execFile)('curl', [
        '-sk',
        '--http2',
        `${site.proxy.url}/who`,
      ]);
      // nginx omits the port.
      expect(JSON.parse(stdout)).toEqual({
        ips: ['127.0.0.1'],
        protocol: 'https',
        host: expect.stringMatching(/^localhost(:\d+)?$/),
      });
    },
  );

  test('nginx that ignores X-Accel-Buffering buffers everything, even the head', async () => {
    await using site = await startSite(nginx('ignoring'), { heartbeat: 50 });
    const socket = await dial(site.proxy.port, requestText('/'));
    let received = 0;
    socket.on('data', (chunk: Buffer) => (received += chunk.length));
    await until('an open stream', () => site.server.events.streams.size === 1);
    await site.channels.publish('a', 'buffered');
    await until(
      'heartbeats of an idle page for five minutes',
      () => site.server.events.stats().bytes > 100,
    );
    expect(received).toBe(0);
    site.server.streams[0]?.close();
    await until('the complete response after its end', () => received > 100);
    socket.destroy();
  });

  test('nginx that ignores X-Accel-Buffering needs proxy_buffering off', async () => {
    await using site = await startSite((options) =>
      startNginx('ignoring', { ...options, more: 'proxy_buffering off;' }),
    );
    using reader = await readThrough(site.proxy);
    await site.channels.publish('a', 'passed on');
    await until('the event', () => reader.events.length === 1, MAX_DELAY_MS);
  });

  test('HAProxy without http-no-delay delays each small event by 200 ms', async () => {
    async function measureMinDelay(launch: Launch): Promise<number> {
      await using site = await startSite(launch);
      using reader = await readThrough(site.proxy);
      const times: number[] = [];
      for (let count = 1; count <= 5; count++) {
        const start = performance.now();
        await site.channels.publish('a', 'small');
        await until('the event', () => reader.events.length === count, MAX_DELAY_MS);
        times.push(performance.now() - start);
      }
      return Math.min(...times);
    }
    expect(await measureMinDelay(haproxy('default'))).toBeLessThan(150);
    expect(await measureMinDelay(haproxy('tunnel'))).toBeGreaterThan(150);
  });

  test('HAProxy without abortonclose reports a disconnect with the next heartbeat', async () => {
    await using site = await startSite(haproxy('tunnel'), { heartbeat: HEARTBEAT_MS });
    using reader = await readThrough(site.proxy);
    const [stream] = site.server.streams as [EventStream];
    const bytesBefore = site.server.events.stats().bytes;
    reader.close();
    expect(await within('the close reason', stream.closed)).toBe('client');
    expect(site.server.events.stats().bytes).toBeGreaterThan(bytesBefore);
  });

  test('nginx with keep-alive reuses the connection of an ended stream', async () => {
    await using site = await startSite(nginx('http2'));
    let connections = 0;
    site.server.server.on('connection', () => connections++);
    for (let count = 0; count < 3; count++) {
      using reader = await readThrough(site.proxy);
      site.server.streams.at(-1)?.close();
      await until('the end of the stream', () => reader.ended);
    }
    expect(connections).toBe(1);
  });

  test('over HTTP/2 twelve streams of one Chromium page resume after a break', async () => {
    await using site = await startSite(nginx('http2'), { retry: 50 });
    site.server.app.get('/page', (_, res) => void res.send('<!doctype html><title>reader</title>'));
    await using browser = await launchChromium();
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(`${site.proxy.url}/page`);
    await page.evaluate(`
      window.received = Array.from({ length: 12 }, () => []);
      window.sources = received.map((list, index) => {
        const source = new EventSource('/?' + index);
        source.onmessage = ({ data }) => list.push(data);
        return source;
      });
    `);
    await until('twelve subscriptions', () => site.channels.stats().subscriptions === 12);
    await site.channels.publish('a', 'before');
    await until('the event on each stream', async () =>
      page.evaluate<boolean>('received.every((list) => list.length === 1)'),
    );
    for (const socket of site.server.sockets) socket.resetAndDestroy();
    await site.channels.publish('a', 'meanwhile');
    await until(
      'twelve subscriptions after the break',
      () => site.channels.stats().subscriptions === 12,
    );
    await site.channels.publish('a', 'after');
    await until('the event on each stream', async () =>
      page.evaluate<boolean>('received.every((list) => list.at(-1) === "after")'),
    );
    expect(await page.evaluate('received')).toEqual(
      Array.from({ length: 12 }, () => ['before', 'meanwhile', 'after']),
    );
  });
});
