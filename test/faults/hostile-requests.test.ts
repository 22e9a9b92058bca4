import { randomInt } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { expect, test } from 'vitest';
import { StrictParser } from '../support/strict-parser.ts';
import { requestText } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import {
  MB,
  crowd,
  megabytes,
  requests,
  reset,
  startHostileSite,
  type HostileSite,
} from './hostile-site.ts';

/** Sends bytes, and resolves with all that comes back once it contains the pattern or the connection has ended. */
async function answer(port: number, request: string | Buffer, pattern: RegExp): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  let text = '';
  socket.on('error', () => {});
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  socket.write(request);
  await within(
    `${pattern} in an answer`,
    new Promise<void>((resolve) => {
      socket.on('data', () => pattern.test(text) && resolve());
      socket.on('close', () => resolve());
    }),
  );
  socket.resetAndDestroy();
  return text;
}

test('2,000 connections reset anywhere in a request or just after it leave nothing behind', async () => {
  await using site = await startHostileSite();
  const request = requestText('/rooms/a', { 'Last-Event-ID': 'AAAAAAAA.1' });
  async function attack(): Promise<void> {
    for (let round = 0; round < 10; round++) {
      const parts = Array.from({ length: 200 }, (_, index) =>
        index % 4 === 0 ? request : request.slice(0, randomInt(1, request.length)),
      );
      reset(await crowd(site.port, parts));
    }
  }
  await attack();
  const before = await site.emptied();
  await attack();
  const after = await site.emptied();
  const longest = await site.undisturbed();
  expect(after.live - before.live).toBeLessThan(MB);
  console.log(
    `2,000 resets: ${after.opened - before.opened} streams were opened, live ${megabytes(before.live)} → ${megabytes(after.live)}, ` +
      `the witness waited ${longest} ms at most`,
  );
}, 60_000);

test('500 connections that never finish their head are cut off by headersTimeout of the server', async () => {
  await using site = await startHostileSite({
    http: { headersTimeout: 1_000, requestTimeout: 2_000, connectionsCheckingInterval: 200 },
  });
  const half = requestText('/rooms/a').slice(0, -2);
  const sockets = await crowd(
    site.port,
    Array.from({ length: 500 }, () => half),
  );
  const answers = sockets.map(() => '');
  for (const [index, socket] of sockets.entries()) {
    socket.on('data', (chunk: Buffer) => (answers[index] += chunk.toString()));
  }
  await site.emptied();
  await site.undisturbed();
  expect(new Set(answers.map((text) => text.split('\r\n')[0]))).toEqual(
    new Set(['HTTP/1.1 408 Request Timeout']),
  );
  reset(sockets);
});

test('5,000 connections in a burst are all served, cost kilobytes each, and leave nothing behind', async () => {
  const COUNT = 5_000;
  await using site = await startHostileSite();

  async function burst(): Promise<{ live: number; rss: number; ms: number; bytes: number }> {
    const begun = performance.now();
    const sockets: Socket[] = [];
    let opened = 0;
    let bytes = 0;
    // No more at once than the kernel keeps for a server that is busy: what is beyond is its loss, not ours.
    while (sockets.length < COUNT) {
      const wave = await crowd(site.port, requests(1_000, '/rooms/a'));
      for (const socket of wave) {
        socket.once('data', () => opened++);
        socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
      }
      sockets.push(...wave);
      await until('the wave to be served', () => opened === sockets.length, 30_000);
    }
    const ms = performance.now() - begun;
    const { live, rss, streams } = await site.holdings();
    expect(streams).toBe(COUNT + 1);
    bytes = 0;
    await site.publish(['a'], 1, 1_000);
    await until('an event to each', () => bytes >= COUNT * 1_000, 30_000);
    reset(sockets);
    return { live, rss, ms, bytes };
  }

  await burst();
  const before = await site.emptied();
  const during = await burst();
  const after = await site.emptied();
  const longest = await site.undisturbed();
  const each = (during.live - before.live) / COUNT;
  expect(each).toBeLessThan(20_000);
  expect(after.live - before.live).toBeLessThan(3 * MB);
  console.log(
    `5,000 in a burst: open after ${during.ms.toFixed(0)} ms, ${(each / 1_024).toFixed(1)} KiB live each, ` +
      `live ${megabytes(before.live)} → ${megabytes(during.live)} → ${megabytes(after.live)}, ` +
      `rss ${megabytes(before.rss)} → ${megabytes(during.rss)} → ${megabytes(after.rss)}, the witness waited ${longest} ms at most`,
  );
}, 60_000);

// What a client may send for a cursor; `E` stands for the epoch of the log.
const FORGED = [
  'E.-1',
  'E.+1',
  'E.1e3',
  'E.0x1',
  'E.01',
  'E.1.1',
  'E. 1',
  'E.\u0663',
  'E.9007199254740991',
  'E.99999999999999999999999999',
  'E.Infinity',
  'E.NaN',
  'E.',
  '.1',
  '.',
  'AAAAAAAA.1',
  '__proto__.1',
  '-1',
  '0',
  'null',
  "' OR 1=1 --",
  '$where',
  '../../etc/passwd',
  '<script>alert(1)</script>',
  'id: 1',
  '\u0001\u007f\u0085',
  '\uFFFD',
  '\u{1F600}'.repeat(100),
  'x'.repeat(60_000),
  'E.1'.repeat(5_000),
];

// Three events, or the checkpoint of a stream that was told no gap.
const DONE =
  /(?:x{10}\nid: .+\n\n[^]*){3}|^(?![^]*sse:gap)[^]*event: sse:checkpoint\ndata: .+\nid: .+\n\n/;

test('a forged or giant Last-Event-ID is a gap and nothing else: none of it comes back, whatever it holds', async () => {
  await using site = await startHostileSite({ http: { maxHeaderSize: 131_072 } });
  await site.publish(['a'], 3, 10);
  const epoch = (await site.cursor()).split('.')[0] as string;
  const queries = [
    ...FORGED.map((id) => `lastEventId=${encodeURIComponent(id.replaceAll('E', epoch))}`),
    'lastEventId=%00',
    'lastEventId=%0d%0aevent:%20forged%0d%0adata:%20forged%0d%0a%0d%0a',
    'lastEventId=%zz%c3%28%',
    'lastEventId=%EF%BB%BF%E2%80%A8',
    'lastEventId[]=a&lastEventId[]=b',
    `lastEventId=a&lastEventId=${epoch}.1`,
    `${'lastEventId=a&'.repeat(4_000)}x`,
    'lastEventId[__proto__]=x&__proto__[lastEventId]=y',
  ];
  // Only bytes that HTTP lets through in a header.
  const headers = FORGED.map((id) =>
    Buffer.from(id.replaceAll('E', epoch)).toString('latin1'),
  ).filter(
    // oxlint-disable-next-line no-control-regex -- these are what is looked for
    (id) => !/[\0-\x08\x0a-\x1f\x7f]/.test(id),
  );
  const wanted = [
    ...queries.map((query) => requestText(`/rooms/a?${query}`)),
    ...headers.map((id) => requestText('/rooms/a', { 'Last-Event-ID': id })),
    // Twice.
    requestText('/rooms/a', { 'Last-Event-ID': `${epoch}.1\r\nLast-Event-ID: ${epoch}.2` }),
  ];
  for (const request of wanted) {
    const text = await answer(
      site.port,
      Buffer.from(request.replace('HTTP/1.1', 'HTTP/1.0'), 'latin1'),
      DONE,
    );
    const head = text.slice(0, text.indexOf('\r\n\r\n'));
    expect(head).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    const parser = new StrictParser().feed(Buffer.from(text.slice(head.length + 4), 'latin1'));
    const [first, ...rest] = parser.events;
    // An array in the query is no `lastEventId`, and starts now.
    if (first?.type !== 'sse:checkpoint') {
      expect([first?.type, Object.keys(JSON.parse(first?.data ?? ''))]).toEqual([
        'sse:gap',
        ['channels', 'after', 'cursor'],
      ]);
      expect(JSON.parse(first?.data ?? '')).toMatchObject({ channels: ['a'], after: '' });
      expect(rest.map(({ type }) => type)).toEqual([
        'sse:checkpoint',
        'message',
        'message',
        'message',
      ]);
    }
  }
  const { live } = await site.emptied();
  for (let round = 0; round < 20; round++) {
    const sockets = await crowd(site.port, wanted.slice(0, 50));
    await until('answers', async () => (await site.counts()).streams > 40);
    reset(sockets);
  }
  const after = await site.emptied();
  const longest = await site.undisturbed();
  expect(after.live - live).toBeLessThan(2 * MB);
  console.log(
    `${wanted.length} kinds of forged ids, 1,000 of them at 50 a time: live ${megabytes(live)} → ${megabytes(after.live)}, the witness waited ${longest} ms at most`,
  );
}, 60_000);

test('what is no HTTP is refused before the library sees it', async () => {
  await using site = await startHostileSite();
  for (const id of ['\0', 'a\rb', 'x'.repeat(60_000)]) {
    const text = await answer(
      site.port,
      requestText('/rooms/a', { 'Last-Event-ID': id }),
      /\r\n\r\n/,
    );
    expect(text).toMatch(/^HTTP\/1\.1 (400|431) /);
  }
  const text = await answer(
    site.port,
    requestText(`/rooms/a?lastEventId=${'x'.repeat(60_000)}`),
    /\r\n\r\n/,
  );
  expect(text).toMatch(/^HTTP\/1\.1 431 /);
  expect((await site.emptied()).opened).toBe(1);
});

/** One connection with so many requests behind each other. */
async function pipeline(site: HostileSite, count: number): Promise<Socket> {
  const [socket] = (await crowd(site.port, [requestText('/rooms/a').repeat(count)])) as [Socket];
  return socket.resume();
}

test('10,000 requests pipelined behind streams hold no events, and their connections are cut off with them', async () => {
  const CONNECTIONS = 20;
  const EACH = 500;
  await using site = await startHostileSite({ sse: { stallTimeout: 3_000 } });
  const before = await site.holdings();
  const sockets: Socket[] = [];
  while (sockets.length < CONNECTIONS) sockets.push(await pipeline(site, EACH));
  await until('the streams', async () => (await site.counts()).opened > CONNECTIONS * EACH);
  // Streams begin to wait for their turn on the connection a hundred in a turn of the event loop, and each question takes one.
  for (let turn = 0; turn < (CONNECTIONS * EACH) / 100; turn++) await site.counts();
  const opened = await site.holdings();
  await site.publish(['a'], 100, 10_000);
  const during = await site.holdings();
  const after = await site.emptied();
  const longest = await site.undisturbed();
  console.log(
    `10,000 pipelined: live ${megabytes(before.live)} → ${megabytes(opened.live)}, ${megabytes(during.live)} when 1 MB was published ` +
      `→ ${megabytes(after.live)}; ${JSON.stringify(after.closed)}; the witness waited ${longest} ms at most`,
  );
  // The events are in the history anyway.
  expect(during.live - opened.live).toBeLessThan(4 * MB);
  expect(during.buffered).toBeLessThan(CONNECTIONS * EACH * 1_000);
  expect(after.live - before.live).toBeLessThan(5 * MB);
  reset(sockets);
}, 60_000);

test('maxRequestsPerSocket of the server lets no more than so many pile up on a connection', async () => {
  await using site = await startHostileSite({ maxRequestsPerSocket: 10, sse: { heartbeat: 500 } });
  const sockets = await Promise.all(Array.from({ length: 10 }, () => pipeline(site, 500)));
  await until('the streams', async () => (await site.counts()).streams === 101);
  await site.publish(['a'], 3, 10);
  expect((await site.counts()).opened).toBe(101);
  reset(sockets);
  await site.emptied();
});

/** Follows a hundred channels, whose names nobody has heard before. */
function hundred(path: string, from: number): string {
  const names = Array.from({ length: 100 }, (_, index) => `name-${from + index}`);
  return requestText(`${path}?names=${names.join(',')}`);
}

test('100,000 channel names leave nothing behind, one after the other or all at once', async () => {
  const COUNT = 100_000;
  await using site = await startHostileSite();

  async function followed(): Promise<{ live: number }> {
    const sockets = await crowd(
      site.port,
      Array.from({ length: COUNT / 100 }, (_, index) => hundred('/rooms', index * 100)),
    );
    for (const socket of sockets) socket.resume();
    await until('the channels', async () => (await site.counts()).channels === COUNT + 1, 30_000);
    const held = await site.holdings();
    reset(sockets);
    return held;
  }

  await followed();
  const before = await site.emptied();
  const during = await followed();
  const between = await site.emptied();
  // Each of them alone, as `req.params.room`, and left at once.
  for (let from = 0; from < 2_000; from += 500) {
    const wave = await crowd(
      site.port,
      Array.from({ length: 500 }, (_, index) => requestText(`/rooms/alone-${from + index}`)),
    );
    let opened = 0;
    for (const socket of wave) socket.once('data', () => opened++);
    await until('the wave to be served', () => opened === wave.length);
    reset(wave);
  }
  const after = await site.emptied();
  const longest = await site.undisturbed();
  const each = (during.live - before.live) / COUNT;
  expect(each).toBeLessThan(2_000);
  expect(between.live - before.live).toBeLessThan(3 * MB);
  expect(after.live - between.live).toBeLessThan(3 * MB);
  console.log(
    `100,000 names followed by 1,000 streams: ${each.toFixed(0)} bytes live each; live ${megabytes(before.live)} → ${megabytes(during.live)} → ` +
      `${megabytes(between.live)}, and ${megabytes(after.live)} after 2,000 streams with a name of their own; the witness waited ${longest} ms at most`,
  );
}, 60_000);

test('100,000 names that are published to are held to maxChannels and maxHistory', async () => {
  await using site = await startHostileSite({
    channels: { maxChannels: 1_000, maxHistory: 4 * MB },
  });
  const before = await site.holdings();
  for (let from = 0; from < 100_000; from += 1_000) {
    await site.publish(
      Array.from({ length: 1_000 }, (_, index) => `name-${from + index}`),
      1,
      1_000,
    );
  }
  const after = await site.emptied();
  await site.undisturbed();
  expect(after.history.bytes).toBeLessThan(4 * MB);
  expect(after.live - before.live).toBeLessThan(8 * MB);
  console.log(
    `100,000 names published to: ${after.history.events} events in ${megabytes(after.history.bytes)} of history are left, ` +
      `live ${megabytes(before.live)} → ${megabytes(after.live)}`,
  );
}, 60_000);

test('names that are none are refused: too long, empty, with control characters, too many', async () => {
  await using site = await startHostileSite({ http: { maxHeaderSize: 131_072 } });
  for (const path of [
    `/rooms/${'x'.repeat(257)}`,
    `/rooms/${encodeURIComponent('ü'.repeat(129))}`,
    '/rooms/a%00b',
    '/rooms/a%0d%0aevent:%20forged',
    '/rooms/%zz',
    '/rooms?names=',
    `/rooms?names=${Array.from({ length: 101 }, (_, index) => index).join(',')}`,
  ]) {
    expect([
      path.slice(0, 30),
      (await answer(site.port, requestText(path), /\r\n\r\n/)).split('\r\n')[0],
    ]).toEqual([path.slice(0, 30), 'HTTP/1.1 400 Bad Request']);
  }
  expect((await site.emptied()).opened).toBe(1);
});

test('a client that asks for a full history again and again costs its bytes, and no memory', async () => {
  const CLIENTS = 20;
  const EACH = 10;
  await using site = await startHostileSite();
  await site.publish(['a'], 1_000, 900);
  const { history } = await site.holdings();

  async function attack(): Promise<number> {
    let received = 0;
    await Promise.all(
      Array.from({ length: CLIENTS }, async (_, client) => {
        for (let count = 0; count < EACH; count++) {
          // Nothing at all, or an id of nobody's.
          const forged = client % 2 === 0 ? {} : { 'Last-Event-ID': `forged.${count}` };
          const [socket] = (await crowd(site.port, [requestText('/history/a', forged)])) as [
            Socket,
          ];
          let bytes = 0;
          socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
          await until('the history', () => bytes > history.events * 900);
          received += bytes;
          reset([socket]);
        }
      }),
    );
    return received;
  }

  await attack();
  const before = await site.emptied();
  const begun = performance.now();
  const received = await attack();
  const seconds = (performance.now() - begun) / 1_000;
  const after = await site.emptied();
  // And all at once, by clients that take nothing of it.
  const sockets = await crowd(site.port, requests(500, '/history/a'));
  for (const socket of sockets) socket.pause();
  await until('the streams', async () => (await site.counts()).streams === 501);
  const during = await site.holdings();
  reset(sockets);
  const end = await site.emptied();
  const longest = await site.undisturbed();
  expect(after.live - before.live).toBeLessThan(3 * MB);
  expect(during.live - before.live).toBeLessThan(500 * 2 * 65_536);
  expect(end.live - before.live).toBeLessThan(3 * MB);
  console.log(
    `${CLIENTS * EACH} full histories of ${history.events} events by ${CLIENTS} clients: ${((CLIENTS * EACH) / seconds).toFixed(0)} a second, ` +
      `${megabytes(received / seconds)}/s, live ${megabytes(before.live)} → ${megabytes(after.live)}; 500 at once that take nothing: ` +
      `${megabytes(during.live)}; the witness waited ${longest} ms at most`,
  );
}, 60_000);
