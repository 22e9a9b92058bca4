/** Statements of `docs/clients.md` about single clients, besides the table. */
import cors from 'cors';
import express from 'express';
import { spawn } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createChannels, sse, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import { filesIn, pageOf } from './blocks.ts';
import { CLIENTS, closeBrowser, startFirefox, openPage, type Client } from './clients.ts';

beforeAll(startFirefox);
afterAll(closeBrowser);

async function dataReceivedBy(name: string, texts: readonly string[]): Promise<string[]> {
  await using server = await serveStreams((stream) => {
    for (const text of texts) stream.send(text);
  });
  const client = CLIENTS.find((each) => each.name === name) as Client;
  await using following = await client.follow(server.url, server);
  await until('all events', async () => (await following.shownEvents()).length >= texts.length);
  return (await following.shownEvents()).map(({ data }) => data);
}

test('an EventSource receives an empty first line and a BOM at the start of a line', async () => {
  expect(await dataReceivedBy('EventSource (Chromium)', ['\nsecond', '\uFEFFtext'])).toEqual([
    '\nsecond',
    '\uFEFFtext',
  ]);
});

const pageClients = CLIENTS.filter(({ name }) =>
  [
    'EventSource (Chromium)',
    'EventSource (Firefox)',
    '@microsoft/fetch-event-source',
    'sse.js',
  ].includes(name),
);

test.each(pageClients)(
  '$name resumes, and stops at a final end, from another origin with cors()',
  async (client) => {
    const channels = createChannels();
    const app = express();
    const events = sse({ channels, retry: 20 });
    app.use(cors(), events);
    app.get('/', channels.listen('a'));
    await using server = await serve(app);
    await using elsewhere = await serveStreams();
    await using following = await client.follow(server.url, elsewhere);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '1');
    await until('one event', async () => (await following.shownEvents()).length === 1);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.publish('a', '2');
    await until('two events', async () => (await following.shownEvents()).length === 2);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['1', '2']);
    events.closeWhere(() => true, { final: true });
    await until('the client to stop', () => following.isOver());
    expect(channels.stats().gaps).toBe(0);
  },
);

describe('an EventSource', () => {
  /** Follows `/` in a page with the service worker, and restarts the server. */
  async function restartBehind(
    worker: string,
  ): Promise<{ readyState: number; received: string[] }> {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), {
      channels,
      retry: 50,
    });
    server.app.get('/worker.js', (_req, res) => void res.type('text/javascript').send(worker));
    const page = await openPage(server);
    await page.evaluate(`
      navigator.serviceWorker.register('/worker.js').then(() => navigator.serviceWorker.ready)
    `);
    // The service worker controls the page from the next load.
    await page.reload();
    await until('control by the service worker', () =>
      page.evaluate<boolean>('navigator.serviceWorker.controller !== null'),
    );
    await page.evaluate(`
      window.received = [];
      window.failures = 0;
      window.source = new EventSource('/');
      source.onmessage = ({ data }) => received.push(data);
      source.onerror = () => failures++;
    `);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', 'before');
    await until('one event', async () => page.evaluate<boolean>('received.length === 1'));
    server.server.close();
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('two failures or the end', () =>
      page.evaluate<boolean>('failures >= 2 || source.readyState === 2'),
    );
    await channels.publish('a', 'meanwhile');
    server.server.listen(server.port, '127.0.0.1');
    await until('a second event or the end', () =>
      page.evaluate<boolean>('source.readyState === 2 || received.length === 2'),
    );
    const result = await page.evaluate<{ readyState: number; received: string[] }>(
      '({ readyState: source.readyState, received })',
    );
    await page.close();
    return result;
  }

  test('in Chromium gives up after a server restart behind a plain service worker', async () => {
    const worker = `addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));`;
    expect(await restartBehind(worker)).toEqual({ readyState: 2, received: ['before'] });
  });

  test('in Chromium reconnects after a server restart with the service worker of the docs', async () => {
    const worker = filesIn(await pageOf('clients.md'))['service-worker.js'] as string;
    expect(await restartBehind(worker)).toEqual({
      readyState: 1,
      received: ['before', 'meanwhile'],
    });
  });

  test.each([
    ['Chromium', 'the URL to which it was redirected', ['/first', '/?ticket=1', '/?ticket=1']],
    ['Firefox', 'the first URL', ['/first', '/?ticket=1', '/first', '/?ticket=1']],
  ] as const)('in %s reconnects to %s', async (browser, _url, expected) => {
    const requestedUrls: string[] = [];
    await using server = await serveStreams((stream) => void stream.send('x'), { retry: 20 });
    server.server.on('request', ({ url }) => requestedUrls.push(url as string));
    server.app.get('/first', (_req, res) => res.redirect(307, '/?ticket=1'));
    const page = await openPage(server, browser);
    await page.evaluate(`window.source = new EventSource('/first')`);
    await until('the first stream', () => server.streams.length === 1);
    server.streams[0]?.close();
    await until('the second stream', () => server.streams.length === 2);
    expect(requestedUrls.filter((url) => url === '/first' || url.startsWith('/?'))).toEqual(
      expected,
    );
    await page.close();
  });

  test.each([
    ['Chromium', 'reconnects', 1],
    ['Firefox', 'gives up', 2],
  ] as const)(
    'in %s %s after a refused connection to another origin',
    async (browser, _result, readyState) => {
      const channels = createChannels();
      const app = express();
      app.use(cors(), sse({ channels, retry: 50 }));
      app.get('/', channels.listen('a'));
      await using server = await serve(app);
      await using elsewhere = await serveStreams();
      const page = await openPage(elsewhere, browser);
      await page.evaluate(`
      window.failures = 0;
      window.source = new EventSource(${JSON.stringify(server.url)});
      source.onerror = () => failures++;
    `);
      await until('the subscription', () => channels.stats().subscriptions === 1);
      server.server.close();
      for (const socket of server.sockets) socket.resetAndDestroy();
      await until('a refused connection', () => page.evaluate<boolean>('failures >= 2'));
      server.server.listen(server.port, '127.0.0.1');
      await until('a new connection or the end', () =>
        page.evaluate<boolean>('source.readyState !== 0'),
      );
      expect(await page.evaluate('source.readyState')).toBe(readyState);
      await page.close();
    },
  );
});

describe('@microsoft/fetch-event-source', () => {
  test('loses an empty first line, and a BOM at the start of a line', async () => {
    expect(
      await dataReceivedBy('@microsoft/fetch-event-source', ['\nsecond', '\uFEFFtext']),
    ).toEqual(['second', 'text']);
  });

  test('reconnects with the last complete id if the connection breaks in an event', async () => {
    const lastEventIds: string[] = [];
    await using server = await serveStreams(
      (stream) => {
        lastEventIds.push(stream.lastEventId);
        stream.send('whole', { id: 'whole' });
      },
      { retry: 20 },
    );
    const page = await openPage(server);
    await page.evaluate(`
      window.bytes = 0;
      const { prototype } = ReadableStreamDefaultReader;
      const { read } = prototype;
      prototype.read = async function () {
        const piece = await read.call(this);
        bytes += piece.value?.length ?? 0;
        return piece;
      };
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', {}));
    `);
    await until('the first event', () => page.evaluate<boolean>('bytes > 0'));
    const [stream] = server.streams as [EventStream];
    // Write only the first half of the next event.
    const { res } = stream;
    const write = res.write.bind(res) as (chunk: Buffer) => boolean;
    Object.assign(res, { write: (chunk: Buffer) => write(chunk.subarray(0, chunk.length / 2)) });
    stream.send('x'.repeat(1_000), { id: 'broken' });
    await until('half of the event', () => page.evaluate<boolean>('bytes > 500'));
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('a reconnect', () => lastEventIds.length === 2);
    expect(lastEventIds).toEqual(['', 'whole']);
    await page.close();
  });

  test('loses an event if the connection breaks before the last byte', async () => {
    const lastEventIds: string[] = [];
    await using server = await serveStreams(
      (stream) => {
        lastEventIds.push(stream.lastEventId);
        if (lastEventIds.length > 1) return;
        const { res } = stream.open();
        res.write('data: cut\nid: cut\n');
      },
      { retry: 20 },
    );
    const page = await openPage(server);
    await page.evaluate(`
      window.received = [];
      window.bytes = 0;
      const { prototype } = ReadableStreamDefaultReader;
      const { read } = prototype;
      prototype.read = async function () {
        const piece = await read.call(this);
        bytes += piece.value?.length ?? 0;
        return piece;
      };
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', { onmessage: ({ data }) => void received.push(data) }));
    `);
    await until('all bytes except the last', () => page.evaluate<boolean>('bytes >= 20'));
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('a reconnect', () => lastEventIds.length === 2);
    expect(lastEventIds).toEqual(['', 'cut']);
    expect(await page.evaluate('received')).toEqual([]);
    await page.close();
  });

  test('does not reconnect by itself after a normal end', async () => {
    await using server = await serveStreams((stream) => stream.close({ retry: 20 }));
    const page = await openPage(server);
    await page.evaluate(
      `import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', {}))`,
    );
    expect(server.streams).toHaveLength(1);
    await page.close();
  });

  test('reconnects by itself after a 204', async () => {
    await using server = await serveStreams();
    let requests = 0;
    server.app.get('/gone', (_req, res) => {
      requests++;
      res.status(204).end();
    });
    const page = await openPage(server);
    await page.evaluate(
      `void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/gone', {}))`,
    );
    await until('a reconnect', () => requests >= 2);
    await page.close();
  });

  test('without openWhenHidden closes while the page is hidden, and resumes then', async () => {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    const page = await openPage(server);
    await page.evaluate(`
      window.received = [];
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', {
          onmessage: ({ event, data }) => void (event === '' && received.push(data)),
        }));
    `);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '1');
    await until('one event', async () => (await page.evaluate<number>('received.length')) === 1);
    await page.evaluate(`
      Object.defineProperty(document, 'hidden', { value: true, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    `);
    expect(
      await within('the close reason', (server.streams[0] as EventStream).closed, 10_000),
    ).toBe('client');
    await channels.publish('a', '2');
    await page.evaluate(`
      Object.defineProperty(document, 'hidden', { value: false, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    `);
    await until('two events', async () => (await page.evaluate<number>('received.length')) === 2);
    expect(await page.evaluate('received')).toEqual(['1', '2']);
    await page.close();
  });
});

describe('sse.js', () => {
  test('sends no Accept header by itself, and reports the error answer', async () => {
    await using server = await serveStreams();
    const page = await openPage(server);
    const answer =
      await page.evaluate<string>(`import('sse.js').then(({ SSE }) => new Promise((resolve) => {
      const source = new SSE('/');
      source.addEventListener('error', ({ responseCode, data }) =>
        resolve(responseCode + ' ' + data));
    }))`);
    expect(answer).toBe('406 This is an event stream; send the header Accept: text/event-stream\n');
    await page.close();
  });

  test('reconnects after a 204 unless it is closed', async () => {
    await using server = await serveStreams((stream) => stream.close({ final: true, retry: 20 }));
    let requests = 0;
    server.server.on('request', (req) => {
      if (req.url === '/') requests++;
    });
    const page = await openPage(server);
    await page.evaluate(`void import('sse.js').then(({ SSE }) => {
      const headers = { Accept: 'text/event-stream' };
      window.source = new SSE('/', { headers, autoReconnect: true });
    })`);
    await until('four requests', () => requests >= 4);
    expect(server.streams).toHaveLength(1);
    await page.close();
  });
});

describe('curl', () => {
  async function outputOf(...args: string[]): Promise<string> {
    const curl = spawn('curl', ['-sN', '--max-time', '10', ...args]);
    let output = '';
    curl.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await until('the exit of curl', () => curl.exitCode !== null);
    return output;
  }

  test('prints the raw stream', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('first\nline', { event: 'tick' });
      stream.send('second', { id: 2 });
      stream.comment('bye');
      stream.close();
    });
    const output = await outputOf('-H', 'Accept: text/event-stream', server.url);
    expect(output).toMatch(
      /^:\nevent: tick\ndata: first\ndata: line\n\n(?:id: 2\n|data: second\n){2}\n: bye\n$/,
    );
  });

  test('resumes with a Last-Event-ID header', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a', { checkpoints: false });
        stream.close();
      },
      { channels },
    );
    const { id } = await channels.publish('a', '1');
    await channels.publish('a', '2');
    const output = await outputOf(
      '-H',
      'Accept: text/event-stream',
      '-H',
      `Last-Event-ID: ${id}`,
      server.url,
    );
    expect(output.match(/^data: .*$/gm)).toEqual(['data: 2']);
  });

  test('prints which header to send if the Accept header is missing', async () => {
    await using server = await serveStreams();
    expect(await outputOf('-w', '%{http_code}', server.url)).toBe(
      'This is an event stream; send the header Accept: text/event-stream\n406',
    );
  });
});
