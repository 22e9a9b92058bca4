/** What the docs say of single clients, beside the table. */
import cors from 'cors';
import express from 'express';
import { spawn } from 'node:child_process';
import { afterAll, describe, expect, test } from 'vitest';
import { createChannels, sse, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import { filesIn, pageOf } from './blocks.ts';
import { CLIENTS, closeBrowser, openPage, type Client } from './clients.ts';

afterAll(closeBrowser);

async function dataSeenBy(name: string, texts: readonly string[]): Promise<string[]> {
  await using server = await serveStreams((stream) => {
    for (const text of texts) stream.send(text);
  });
  const client = CLIENTS.find((each) => each.name === name) as Client;
  await using following = await client.follow(server.url, server);
  await until('all', async () => (await following.shown()).length >= texts.length);
  return (await following.shown()).map(({ data }) => data);
}

test('an empty first line and a BOM that begins a line reach an EventSource', async () => {
  expect(await dataSeenBy('EventSource (Chromium)', ['\nsecond', '\uFEFFtext'])).toEqual([
    '\nsecond',
    '\uFEFFtext',
  ]);
});

const inPages = CLIENTS.filter(({ name }) =>
  ['EventSource (Chromium)', '@microsoft/fetch-event-source', 'sse.js'].includes(name),
);

test.each(inPages)(
  '$name follows from another origin with cors() in front: resumes, and stops at a final end',
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
    await until('it', async () => (await following.shown()).length === 1);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.publish('a', '2');
    await until('both', async () => (await following.shown()).length === 2);
    expect((await following.shown()).map(({ data }) => data)).toEqual(['1', '2']);
    events.closeWhere(() => true, { final: true });
    await until('it to stop', () => following.isOver());
    expect(channels.stats().gaps).toBe(0);
  },
);

describe('an EventSource in Chromium', () => {
  /** Follows `/` in a page whose service worker is this, and stops and starts the server. */
  async function restartBehind(worker: string): Promise<{ readyState: number; got: string[] }> {
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
    // From the next load on the page is the worker's.
    await page.reload();
    await until('the worker', () =>
      page.evaluate<boolean>('navigator.serviceWorker.controller !== null'),
    );
    await page.evaluate(`
      window.got = [];
      window.failures = 0;
      window.source = new EventSource('/');
      source.onmessage = ({ data }) => got.push(data);
      source.onerror = () => failures++;
    `);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', 'before');
    await until('it', async () => page.evaluate<boolean>('got.length === 1'));
    server.server.close();
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('it to fail', () =>
      page.evaluate<boolean>('failures >= 2 || source.readyState === 2'),
    );
    await channels.publish('a', 'meanwhile');
    server.server.listen(server.port, '127.0.0.1');
    await until('a decision', () =>
      page.evaluate<boolean>('source.readyState === 2 || got.length === 2'),
    );
    const result = await page.evaluate<{ readyState: number; got: string[] }>(
      '({ readyState: source.readyState, got })',
    );
    await page.close();
    return result;
  }

  test('gives up when the server restarts behind a service worker that answers for it', async () => {
    const worker = `addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));`;
    expect(await restartBehind(worker)).toEqual({ readyState: 2, got: ['before'] });
  });

  test('and comes back with the service worker of the docs', async () => {
    const worker = filesIn(await pageOf('clients.md'))['service-worker.js'] as string;
    expect(await restartBehind(worker)).toEqual({ readyState: 1, got: ['before', 'meanwhile'] });
  });

  test('comes back to where it was redirected', async () => {
    const asked: string[] = [];
    await using server = await serveStreams((stream) => void stream.send('x'), { retry: 20 });
    server.server.on('request', ({ url }) => asked.push(url as string));
    server.app.get('/first', (_req, res) => res.redirect(307, '/?ticket=1'));
    const page = await openPage(server);
    await page.evaluate(`window.source = new EventSource('/first')`);
    await until('the stream', () => server.streams.length === 1);
    server.streams[0]?.close();
    await until('it again', () => server.streams.length === 2);
    expect(asked.filter((url) => url === '/first' || url.startsWith('/?'))).toEqual([
      '/first',
      '/?ticket=1',
      '/?ticket=1',
    ]);
    await page.close();
  });
});

describe('@microsoft/fetch-event-source', () => {
  test('loses an empty first line, and a BOM that begins a line', async () => {
    expect(await dataSeenBy('@microsoft/fetch-event-source', ['\nsecond', '\uFEFFtext'])).toEqual([
      'second',
      'text',
    ]);
  });

  test('comes back with the id of the last event that it has shown, also when the connection broke within the next', async () => {
    const seen: string[] = [];
    await using server = await serveStreams(
      (stream) => {
        seen.push(stream.lastEventId);
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
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) => fetchEventSource('/', {}));
    `);
    await until('the first event', () => page.evaluate<boolean>('bytes > 0'));
    const [stream] = server.streams as [EventStream];
    // The next as the library writes it, but only the first half.
    const { res } = stream;
    const write = res.write.bind(res) as (chunk: Buffer) => boolean;
    Object.assign(res, { write: (chunk: Buffer) => write(chunk.subarray(0, chunk.length / 2)) });
    stream.send('x'.repeat(1_000), { id: 'broken' });
    await until('the half', () => page.evaluate<boolean>('bytes > 500'));
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('it to come back', () => seen.length === 2);
    expect(seen).toEqual(['', 'whole']);
    await page.close();
  });

  test('loses an event whose connection breaks before its very last byte', async () => {
    const seen: string[] = [];
    await using server = await serveStreams(
      (stream) => {
        seen.push(stream.lastEventId);
        if (seen.length > 1) return;
        const { res } = stream.open();
        res.write('data: cut\nid: cut\n');
      },
      { retry: 20 },
    );
    const page = await openPage(server);
    await page.evaluate(`
      window.got = [];
      window.bytes = 0;
      const { prototype } = ReadableStreamDefaultReader;
      const { read } = prototype;
      prototype.read = async function () {
        const piece = await read.call(this);
        bytes += piece.value?.length ?? 0;
        return piece;
      };
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', { onmessage: ({ data }) => void got.push(data) }));
    `);
    await until('all but the last byte', () => page.evaluate<boolean>('bytes >= 20'));
    for (const socket of server.sockets) socket.resetAndDestroy();
    await until('it to come back', () => seen.length === 2);
    expect(seen).toEqual(['', 'cut']);
    expect(await page.evaluate('got')).toEqual([]);
    await page.close();
  });

  test('by itself takes a normal end for the end', async () => {
    await using server = await serveStreams((stream) => stream.close({ retry: 20 }));
    const page = await openPage(server);
    await page.evaluate(
      `import('@microsoft/fetch-event-source').then(({ fetchEventSource }) => fetchEventSource('/', {}))`,
    );
    expect(server.streams).toHaveLength(1);
    await page.close();
  });

  test('by itself comes back after a 204', async () => {
    await using server = await serveStreams();
    let requests = 0;
    server.app.get('/gone', (_req, res) => {
      requests++;
      res.status(204).end();
    });
    const page = await openPage(server);
    await page.evaluate(
      `void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) => fetchEventSource('/gone', {}))`,
    );
    await until('it to come back', () => requests >= 2);
    await page.close();
  });

  test('without openWhenHidden closes while the page is hidden, and resumes after', async () => {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    const page = await openPage(server);
    await page.evaluate(`
      window.got = [];
      void import('@microsoft/fetch-event-source').then(({ fetchEventSource }) =>
        fetchEventSource('/', { onmessage: ({ event, data }) => void (event === '' && got.push(data)) }));
    `);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '1');
    await until('it', async () => (await page.evaluate<number>('got.length')) === 1);
    await page.evaluate(`
      Object.defineProperty(document, 'hidden', { value: true, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    `);
    expect(await within('the reason', (server.streams[0] as EventStream).closed, 10_000)).toBe(
      'client',
    );
    await channels.publish('a', '2');
    await page.evaluate(`
      Object.defineProperty(document, 'hidden', { value: false, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    `);
    await until('both', async () => (await page.evaluate<number>('got.length')) === 2);
    expect(await page.evaluate('got')).toEqual(['1', '2']);
    await page.close();
  });
});

describe('sse.js', () => {
  test('by itself does not ask for a stream, and says what it is answered', async () => {
    await using server = await serveStreams();
    const page = await openPage(server);
    const answer =
      await page.evaluate<string>(`import('sse.js').then(({ SSE }) => new Promise((resolve) => {
      const source = new SSE('/');
      source.addEventListener('error', ({ responseCode, data }) => resolve(responseCode + ' ' + data));
    }))`);
    expect(answer).toBe('406 This is an event stream; send the header Accept: text/event-stream\n');
    await page.close();
  });

  test('comes back after a 204 unless it is closed', async () => {
    await using server = await serveStreams((stream) => stream.close({ final: true, retry: 20 }));
    let requests = 0;
    server.server.on('request', (req) => {
      if (req.url === '/') requests++;
    });
    const page = await openPage(server);
    await page.evaluate(`void import('sse.js').then(({ SSE }) => {
      window.source = new SSE('/', { headers: { Accept: 'text/event-stream' }, autoReconnect: true });
    })`);
    await until('it to ask again and again', () => requests >= 4);
    expect(server.streams).toHaveLength(1);
    await page.close();
  });
});

describe('curl', () => {
  async function outputOf(...args: string[]): Promise<string> {
    const curl = spawn('curl', ['-sN', '--max-time', '10', ...args]);
    let printed = '';
    curl.stdout.on('data', (chunk: Buffer) => (printed += chunk.toString()));
    await until('it to end', () => curl.exitCode !== null);
    return printed;
  }

  test('prints the stream as it is', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('first\nline', { event: 'tick' });
      stream.send('second', { id: 2 });
      stream.comment('bye');
      stream.close();
    });
    const printed = await outputOf('-H', 'Accept: text/event-stream', server.url);
    expect(printed).toMatch(
      /^:\nevent: tick\ndata: first\ndata: line\n\n(?:id: 2\n|data: second\n){2}\n: bye\n$/,
    );
  });

  test('resumes by hand', async () => {
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
    const printed = await outputOf(
      '-H',
      'Accept: text/event-stream',
      '-H',
      `Last-Event-ID: ${id}`,
      server.url,
    );
    expect(printed.match(/^data: .*$/gm)).toEqual(['data: 2']);
  });

  test('without the header is told what to send', async () => {
    await using server = await serveStreams();
    expect(await outputOf('-w', '%{http_code}', server.url)).toBe(
      'This is an event stream; send the header Accept: text/event-stream\n406',
    );
  });
});
