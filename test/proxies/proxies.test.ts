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

// What is held back would never come, and what is told with the next heartbeat after 15 s; a busy machine has its time. What it
// takes is printed.
const AT_ONCE = 5_000;

// The proxies' own idle timeout in the tests of it, in seconds, and the heartbeat in ms that outlives it.
const IDLE = 2;
const HEARTBEAT = 500;

type Launch = (options: ProxyOptions) => Promise<Proxy>;

const nginx = (name: string): Launch => {
  return (options) => startNginx(name, options);
};

const haproxy = (name: string): Launch => {
  return (options) => startHaproxy(name, options);
};

const proxies: [string, Launch][] = [
  ['nginx as it comes, HTTP/1.0 to the application', nginx('default')],
  ['nginx that compresses everything', nginx('gzip')],
  ['nginx with HTTP/2 in front and kept connections behind', nginx('http2')],
  ['HAProxy', haproxy('default')],
  ['HAProxy with HTTP/2 in front that compresses', haproxy('http2')],
];

interface Site extends AsyncDisposable {
  readonly server: StreamServer;
  readonly channels: Channels;
  readonly proxy: Proxy;
}

/** An application whose streams follow channel `a`, behind a proxy. */
async function site(launch: Launch, options: SseOptions = {}, idle?: number): Promise<Site> {
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
  test('passes on the head and the first byte at once, and each event within a second', async () => {
    await using at = await site(launch);
    let begun = performance.now();
    using reader = await readThrough(at.proxy);
    await until('the first byte', () => reader.comments.length > 0, AT_ONCE);
    const times = [performance.now() - begun];
    expect(reader.headers).toMatchObject({
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache, no-transform',
    });
    for (const data of ['1', 'x'.repeat(100_000), '3']) {
      begun = performance.now();
      await at.channels.publish('a', data);
      await until('the event', () => reader.events.at(-1)?.data === data, AT_ONCE);
      times.push(performance.now() - begun);
    }
    console.log(
      `${name}: the first byte and three events took ${times.map((ms) => ms.toFixed(0)).join(', ')} ms`,
    );
  });

  test('tells the application at once that a reader has left', async () => {
    await using at = await site(launch);
    using reader = await readThrough(at.proxy);
    const [stream] = at.server.streams as [EventStream];
    reader.close();
    expect(await within('the reason', stream.closed, AT_ONCE)).toBe('client');
    expect(at.channels.stats().subscriptions).toBe(0);
    await until('the socket to go', () => at.server.sockets.size === 0, AT_ONCE);
  });

  test('tells a reader at once that its stream has ended, by the application or with it', async () => {
    await using at = await site(launch);
    using first = await readThrough(at.proxy);
    at.server.streams[0]?.close();
    await until('the end', () => first.ended, AT_ONCE);
    using second = await readThrough(at.proxy);
    for (const socket of at.server.sockets) socket.resetAndDestroy();
    await until('the end', () => second.ended, AT_ONCE);
  });

  test('a reader that comes back through it has missed nothing and gets nothing twice', async () => {
    await using at = await site(launch);
    let published = 0;
    async function publish(): Promise<void> {
      for (let count = 0; count < 50; count++) await at.channels.publish('a', `${published++}`);
    }
    using first = await readThrough(at.proxy);
    await publish();
    await until('some of it', () => first.events.length > 10);
    first.close();
    const got = [...first.events];
    await publish();
    using second = await readThrough(at.proxy, '/', { 'last-event-id': got.at(-1)?.id as string });
    await publish();
    await until('the rest', () => got.length + second.events.length >= published);
    const all = [...got, ...second.events].map(({ data }) => data);
    expect(all).toEqual(Array.from({ length: published }, (__, index) => `${index}`));
    expect(at.channels.stats().gaps).toBe(0);
  });
});

// Each of them mostly waits.
describe.concurrent.each([
  ...proxies,
  ['HAProxy with a tunnel timeout of an hour', haproxy('tunnel')],
] as const)('%s', (_, launch) => {
  test('keeps a silent stream with heartbeats beyond its own idle timeout', async () => {
    await using at = await site(launch, { heartbeat: HEARTBEAT }, IDLE);
    using reader = await readThrough(at.proxy);
    await until(
      'its timeout to be over twice',
      () => reader.comments.length > (2 * IDLE * 1_000) / HEARTBEAT + 1,
    );
    expect(reader.ended).toBe(false);
    await at.channels.publish('a', 'still there');
    await until('the event', () => reader.events.length === 1, AT_ONCE);
  });

  test('cuts off a silent stream without heartbeats, and tells the application', async () => {
    await using at = await site(launch, { heartbeat: false }, IDLE);
    using reader = await readThrough(at.proxy);
    await until('the cut', () => reader.ended);
    expect(await within('the reason', (at.server.streams[0] as EventStream).closed)).toBe('client');
  });
});

describe('compression', () => {
  test('nginx, told to, compresses a stream in spite of no-transform; HAProxy compresses the rest and leaves streams alone', async () => {
    for (const [launch, encoding] of [
      [nginx('gzip'), 'gzip'],
      [haproxy('http2'), undefined],
    ] as const) {
      await using at = await site(launch);
      at.server.app.get('/page', (_, res) => void res.json('x'.repeat(10_000)));
      using stream = await readThrough(at.proxy);
      using page = await readThrough(at.proxy, '/page', { accept: 'application/json' });
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
  test('does not heap up what a reader does not take: the application feels it', async () => {
    await using at = await site(launch);
    const socket = await dial(at.proxy.port, requestText('/'));
    socket.pause();
    await until('the stream', () => at.server.events.streams.size === 1);
    let published = 0;
    await until('it to fall behind', async () => {
      await at.channels.publish('a', 'x'.repeat(100_000));
      published += 100_000;
      return at.channels.stats().behind === 1;
    });
    console.log(
      `${name}: a reader that never reads is behind after ${published / 1e6} MB, which lie in the sockets' buffers`,
    );
    socket.destroy();
    await until('the end', () => at.server.events.streams.size === 0);
  });
});

describe('while the application restarts', () => {
  /** A page with an EventSource behind the proxy, and the application stopped since. */
  async function stopped(resources: Resources, launch: Launch): Promise<Site & { page: Page }> {
    const at = resources.use(await site(launch, { retry: 50 }));
    at.server.app.get('/page', (_, res) => void res.send('<!doctype html><title>reader</title>'));
    const browser = resources.use(await launchChromium());
    const page = await browser.newPage();
    await page.goto(`${at.proxy.url}/page`);
    await page.evaluate(`
      window.got = [];
      window.source = new EventSource('/');
      source.onmessage = ({ data }) => got.push(data);
      window.opened = 0;
      source.onopen = () => opened++;
    `);
    await until('the stream', () => at.channels.stats().subscriptions === 1);
    await at.channels.publish('a', 'before');
    await until('the event', async () => page.evaluate<boolean>('got.length === 1'));
    at.server.server.close();
    for (const socket of at.server.sockets) socket.resetAndDestroy();
    return Object.assign(at, { page });
  }

  test.each([
    ['nginx', nginx('restart'), 502],
    ['HAProxy', haproxy('restart'), 503],
  ])(
    '%s sends an EventSource round until the application is back, and nothing is lost',
    async (_, launch, status) => {
      await using resources = new Resources();
      const { server, channels, proxy, page } = await stopped(resources, launch);
      await channels.publish('a', 'meanwhile');
      await until(
        'two answers of the proxy',
        async () => page.evaluate<boolean>('opened >= 3'),
        20_000,
      );
      // Who has not asked for a stream is told the truth.
      expect((await fetch(proxy.url)).status).toBe(status);
      server.server.listen(server.port, '127.0.0.1');
      await until('the stream again', () => channels.stats().subscriptions === 1);
      await channels.publish('a', 'after');
      await until('it', async () => page.evaluate<boolean>('got.at(-1) === "after"'));
      expect(await page.evaluate('got')).toEqual(['before', 'meanwhile', 'after']);
    },
  );

  test.each([
    ['nginx', nginx('default')],
    ['HAProxy', haproxy('default')],
  ])('%s as it comes makes an EventSource give up', async (_, launch) => {
    await using resources = new Resources();
    const { page } = await stopped(resources, launch);
    await until('its end', async () => page.evaluate<boolean>('source.readyState === 2'), 20_000);
  });

  test.each([
    ['nginx', nginx('restart')],
    ['HAProxy', haproxy('restart')],
  ])('%s passes a 503 of the application on', async (_, launch) => {
    await using at = await site(launch, { maxStreams: 1, whenFull: 'reject' });
    using first = await readThrough(at.proxy);
    const second = await fetch(at.proxy.url, { headers: { accept: 'text/event-stream' } });
    expect([first.ended, second.status, await second.text()]).toEqual([
      false,
      503,
      'No streams are accepted now; try again later.\n',
    ]);
  });
});

describe('what one has to know', () => {
  test.each([
    ['nginx', nginx('http2')],
    ['HAProxy', haproxy('http2')],
  ])(
    'with HTTP/2 in front, %s tells who asked and how, to an application that trusts it',
    async (_, launch) => {
      await using at = await site(launch);
      at.server.app.set('trust proxy', 'loopback');
      at.server.app.get(
        '/who',
        ({ ips, protocol, host }, res) => void res.json({ ips, protocol, host }),
      );
      const { stdout } = await promisify(execFile)('curl', [
        '-sk',
        '--http2',
        `${at.proxy.url}/who`,
      ]);
      // nginx leaves the port out.
      expect(JSON.parse(stdout)).toEqual({
        ips: ['127.0.0.1'],
        protocol: 'https',
        host: expect.stringMatching(/^localhost(:\d+)?$/),
      });
    },
  );

  test('nginx told to ignore X-Accel-Buffering passes nothing on, not even the head', async () => {
    await using at = await site(nginx('ignoring'), { heartbeat: 50 });
    const socket = await dial(at.proxy.port, requestText('/'));
    let received = 0;
    socket.on('data', (chunk: Buffer) => (received += chunk.length));
    await until('the stream', () => at.server.events.streams.size === 1);
    await at.channels.publish('a', 'held back');
    await until(
      'as many heartbeats as an idle page gets in five minutes',
      () => at.server.events.stats().bytes > 100,
    );
    expect(received).toBe(0);
    at.server.streams[0]?.close();
    await until('all of it, now that it has an end', () => received > 100);
    socket.destroy();
  });

  test('and with proxy_buffering off it passes it on all the same', async () => {
    await using at = await site((options) =>
      startNginx('ignoring', { ...options, more: 'proxy_buffering off;' }),
    );
    using reader = await readThrough(at.proxy);
    await at.channels.publish('a', 'passed on');
    await until('the event', () => reader.events.length === 1, AT_ONCE);
  });

  test('HAProxy without http-no-delay holds back each small event for a fifth of a second', async () => {
    async function quickest(launch: Launch): Promise<number> {
      await using at = await site(launch);
      using reader = await readThrough(at.proxy);
      const times: number[] = [];
      for (let count = 1; count <= 5; count++) {
        const begun = performance.now();
        await at.channels.publish('a', 'small');
        await until('the event', () => reader.events.length === count, AT_ONCE);
        times.push(performance.now() - begun);
      }
      return Math.min(...times);
    }
    expect(await quickest(haproxy('default'))).toBeLessThan(150);
    expect(await quickest(haproxy('tunnel'))).toBeGreaterThan(150);
  });

  test('HAProxy without abortonclose tells the application with the next heartbeat that a reader has left', async () => {
    await using at = await site(haproxy('tunnel'), { heartbeat: HEARTBEAT });
    using reader = await readThrough(at.proxy);
    const [stream] = at.server.streams as [EventStream];
    const beats = at.server.events.stats().bytes;
    reader.close();
    expect(await within('the reason', stream.closed)).toBe('client');
    expect(at.server.events.stats().bytes).toBeGreaterThan(beats);
  });

  test('nginx with kept connections uses one again whose stream the application has ended', async () => {
    await using at = await site(nginx('http2'));
    let connections = 0;
    at.server.server.on('connection', () => connections++);
    for (let count = 0; count < 3; count++) {
      using reader = await readThrough(at.proxy);
      at.server.streams.at(-1)?.close();
      await until('the end', () => reader.ended);
    }
    expect(connections).toBe(1);
  });

  test('over HTTP/2 one page of Chromium has twelve streams at once, and all come back after a break', async () => {
    await using at = await site(nginx('http2'), { retry: 50 });
    at.server.app.get('/page', (_, res) => void res.send('<!doctype html><title>reader</title>'));
    await using browser = await launchChromium();
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    await page.goto(`${at.proxy.url}/page`);
    await page.evaluate(`
      window.got = Array.from({ length: 12 }, () => []);
      window.sources = got.map((list, index) => {
        const source = new EventSource('/?' + index);
        source.onmessage = ({ data }) => list.push(data);
        return source;
      });
    `);
    await until('twelve streams', () => at.channels.stats().subscriptions === 12);
    await at.channels.publish('a', 'before');
    await until('it everywhere', async () =>
      page.evaluate<boolean>('got.every((list) => list.length === 1)'),
    );
    for (const socket of at.server.sockets) socket.resetAndDestroy();
    await at.channels.publish('a', 'meanwhile');
    await until('twelve streams again', () => at.channels.stats().subscriptions === 12);
    await at.channels.publish('a', 'after');
    await until('it everywhere', async () =>
      page.evaluate<boolean>('got.every((list) => list.at(-1) === "after")'),
    );
    expect(await page.evaluate('got')).toEqual(
      Array.from({ length: 12 }, () => ['before', 'meanwhile', 'after']),
    );
  });
});
