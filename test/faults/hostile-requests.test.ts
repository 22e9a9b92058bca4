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

/**
 * Sends a request. Resolves with the received text as soon as the text matches the pattern or the
 * connection ends.
 */
async function answer(port: number, request: string | Buffer, pattern: RegExp): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  let text = '';
  socket.on('error', () => {});
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  socket.write(request);
  await within(
    `an answer with ${pattern}`,
    new Promise<void>((resolve) => {
      socket.on('data', () => pattern.test(text) && resolve());
      socket.on('close', () => resolve());
    }),
  );
  socket.resetAndDestroy();
  return text;
}

test('2,000 connections that are reset during a request leave nothing behind', async () => {
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
  const before = await site.waitUntilEmpty();
  await attack();
  const after = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  expect(after.live - before.live).toBeLessThan(MB);
  console.log(
    `2,000 resets: ${after.opened - before.opened} streams opened, live ` +
      `${megabytes(before.live)} → ${megabytes(after.live)}, ` +
      `longest delay of the witness ${longest} ms`,
  );
}, 60_000);

test('headersTimeout of the server closes 500 connections with an incomplete head', async () => {
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
  await site.waitUntilEmpty();
  await site.expectWitnessServed();
  expect(new Set(answers.map((text) => text.split('\r\n')[0]))).toEqual(
    new Set(['HTTP/1.1 408 Request Timeout']),
  );
  reset(sockets);
});

test('5,000 connections in a burst are served with less than 20 kB each', async () => {
  const COUNT = 5_000;
  await using site = await startHostileSite();

  async function burst(): Promise<{ live: number; rss: number; ms: number; bytes: number }> {
    const start = performance.now();
    const sockets: Socket[] = [];
    let opened = 0;
    let bytes = 0;
    // Connect in waves that fit into the listen backlog of the kernel. The kernel would drop
    // further connections.
    while (sockets.length < COUNT) {
      const wave = await crowd(site.port, requests(1_000, '/rooms/a'));
      for (const socket of wave) {
        socket.once('data', () => opened++);
        socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
      }
      sockets.push(...wave);
      await until('the head of each stream', () => opened === sockets.length, 30_000);
    }
    const ms = performance.now() - start;
    const { live, rss, streams } = await site.holdings();
    expect(streams).toBe(COUNT + 1);
    bytes = 0;
    await site.publish(['a'], 1, 1_000);
    await until('an event on each stream', () => bytes >= COUNT * 1_000, 30_000);
    reset(sockets);
    return { live, rss, ms, bytes };
  }

  await burst();
  const before = await site.waitUntilEmpty();
  const during = await burst();
  const after = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  const each = (during.live - before.live) / COUNT;
  expect(each).toBeLessThan(20_000);
  expect(after.live - before.live).toBeLessThan(3 * MB);
  console.log(
    `5,000 in a burst: opened in ${during.ms.toFixed(0)} ms, ${(each / 1_024).toFixed(1)} KiB ` +
      `live each, ` +
      `live ${megabytes(before.live)} → ${megabytes(during.live)} → ` +
      `${megabytes(after.live)}, ` +
      `rss ${megabytes(before.rss)} → ${megabytes(during.rss)} → ${megabytes(after.rss)}, ` +
      `longest delay of the witness ${longest} ms`,
  );
}, 60_000);

// Values that a client may send as a cursor. `E` stands for the epoch of the log.
const FORGED_CURSORS = [
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

// Matches three events, or the checkpoint of a stream without a gap.
const COMPLETE_ANSWER =
  /(?:x{10}\nid: .+\n\n[^]*){3}|^(?![^]*sse:gap)[^]*event: sse:checkpoint\ndata: .+\nid: .+\n\n/;

test('a forged or very long Last-Event-ID causes a gap and is never sent back', async () => {
  await using site = await startHostileSite({ http: { maxHeaderSize: 131_072 } });
  await site.publish(['a'], 3, 10);
  const epoch = (await site.cursor()).split('.')[0] as string;
  const queries = [
    ...FORGED_CURSORS.map((id) => `lastEventId=${encodeURIComponent(id.replaceAll('E', epoch))}`),
    'lastEventId=%00',
    'lastEventId=%0d%0aevent:%20forged%0d%0adata:%20forged%0d%0a%0d%0a',
    'lastEventId=%zz%c3%28%',
    'lastEventId=%EF%BB%BF%E2%80%A8',
    'lastEventId[]=a&lastEventId[]=b',
    `lastEventId=a&lastEventId=${epoch}.1`,
    `${'lastEventId=a&'.repeat(4_000)}x`,
    'lastEventId[__proto__]=x&__proto__[lastEventId]=y',
  ];
  // Only values with bytes that HTTP allows in a header.
  const headers = FORGED_CURSORS.map((id) =>
    Buffer.from(id.replaceAll('E', epoch)).toString('latin1'),
  ).filter(
    // oxlint-disable-next-line no-control-regex -- the filter removes control characters
    (id) => !/[\0-\x08\x0a-\x1f\x7f]/.test(id),
  );
  const requestTexts = [
    ...queries.map((query) => requestText(`/rooms/a?${query}`)),
    ...headers.map((id) => requestText('/rooms/a', { 'Last-Event-ID': id })),
    // The header twice.
    requestText('/rooms/a', { 'Last-Event-ID': `${epoch}.1\r\nLast-Event-ID: ${epoch}.2` }),
  ];
  for (const request of requestTexts) {
    const text = await answer(
      site.port,
      Buffer.from(request.replace('HTTP/1.1', 'HTTP/1.0'), 'latin1'),
      COMPLETE_ANSWER,
    );
    const head = text.slice(0, text.indexOf('\r\n\r\n'));
    expect(head).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    const parser = new StrictParser().feed(Buffer.from(text.slice(head.length + 4), 'latin1'));
    const [first, ...rest] = parser.events;
    // An array in the query is ignored, so the stream starts at the head without a gap.
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
  const { live } = await site.waitUntilEmpty();
  for (let round = 0; round < 20; round++) {
    const sockets = await crowd(site.port, requestTexts.slice(0, 50));
    await until('more than 40 streams', async () => (await site.counts()).streams > 40);
    reset(sockets);
  }
  const after = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  expect(after.live - live).toBeLessThan(2 * MB);
  console.log(
    `${requestTexts.length} forged ids, then 1,000 requests, 50 at a time: live ` +
      `${megabytes(live)} → ${megabytes(after.live)}, longest delay of the witness ${longest} ms`,
  );
}, 60_000);

test('Node refuses invalid HTTP before the library is called', async () => {
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
  expect((await site.waitUntilEmpty()).opened).toBe(1);
});

/** Opens a connection that sends `count` pipelined requests. */
async function pipeline(site: HostileSite, count: number): Promise<Socket> {
  const [socket] = (await crowd(site.port, [requestText('/rooms/a').repeat(count)])) as [Socket];
  return socket.resume();
}

test('10,000 requests pipelined behind streams queue no events and are closed', async () => {
  const CONNECTIONS = 20;
  const PER_CONNECTION = 500;
  await using site = await startHostileSite({ sse: { stallTimeout: 3_000 } });
  const before = await site.holdings();
  const sockets: Socket[] = [];
  while (sockets.length < CONNECTIONS) sockets.push(await pipeline(site, PER_CONNECTION));
  await until(
    'all streams',
    async () => (await site.counts()).opened > CONNECTIONS * PER_CONNECTION,
  );
  // The server opens a hundred pipelined streams in one turn of the event loop. Each call of
  // `counts()` takes one turn.
  for (let turn = 0; turn < (CONNECTIONS * PER_CONNECTION) / 100; turn++) await site.counts();
  const opened = await site.holdings();
  await site.publish(['a'], 100, 10_000);
  const during = await site.holdings();
  const after = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  console.log(
    `10,000 pipelined: live ${megabytes(before.live)} → ${megabytes(opened.live)}, ` +
      `${megabytes(during.live)} after 1 MB was published ` +
      `→ ${megabytes(after.live)}; ${JSON.stringify(after.closed)}; ` +
      `longest delay of the witness ` +
      `${longest} ms`,
  );
  // The history holds the events in any case.
  expect(during.live - opened.live).toBeLessThan(4 * MB);
  expect(during.buffered).toBeLessThan(CONNECTIONS * PER_CONNECTION * 1_000);
  expect(after.live - before.live).toBeLessThan(5 * MB);
  reset(sockets);
}, 60_000);

test('maxRequestsPerSocket of the server limits the streams of a connection', async () => {
  await using site = await startHostileSite({ maxRequestsPerSocket: 10, sse: { heartbeat: 500 } });
  const sockets = await Promise.all(Array.from({ length: 10 }, () => pipeline(site, 500)));
  await until('101 streams', async () => (await site.counts()).streams === 101);
  await site.publish(['a'], 3, 10);
  expect((await site.counts()).opened).toBe(101);
  reset(sockets);
  await site.waitUntilEmpty();
});

/** A request that follows 100 channels with new names. */
function requestWith100Names(path: string, from: number): string {
  const names = Array.from({ length: 100 }, (_, index) => `name-${from + index}`);
  return requestText(`${path}?names=${names.join(',')}`);
}

test('100,000 channel names leave nothing behind after their streams end', async () => {
  const COUNT = 100_000;
  await using site = await startHostileSite();

  async function followAll(): Promise<{ live: number }> {
    const sockets = await crowd(
      site.port,
      Array.from({ length: COUNT / 100 }, (_, index) => requestWith100Names('/rooms', index * 100)),
    );
    for (const socket of sockets) socket.resume();
    await until('all channels', async () => (await site.counts()).channels === COUNT + 1, 30_000);
    const holdings = await site.holdings();
    reset(sockets);
    return holdings;
  }

  await followAll();
  const before = await site.waitUntilEmpty();
  const during = await followAll();
  const between = await site.waitUntilEmpty();
  // One stream for each name, as `req.params.room`, closed at once.
  for (let from = 0; from < 2_000; from += 500) {
    const wave = await crowd(
      site.port,
      Array.from({ length: 500 }, (_, index) => requestText(`/rooms/alone-${from + index}`)),
    );
    let opened = 0;
    for (const socket of wave) socket.once('data', () => opened++);
    await until('the head of each stream', () => opened === wave.length);
    reset(wave);
  }
  const after = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  const each = (during.live - before.live) / COUNT;
  expect(each).toBeLessThan(2_000);
  expect(between.live - before.live).toBeLessThan(3 * MB);
  expect(after.live - between.live).toBeLessThan(3 * MB);
  console.log(
    `100,000 names followed by 1,000 streams: ${each.toFixed(0)} bytes live each; live ` +
      `${megabytes(before.live)} → ${megabytes(during.live)} → ` +
      `${megabytes(between.live)}, ${megabytes(after.live)} after 2,000 streams with one new ` +
      `name each; longest delay of the witness ${longest} ms`,
  );
}, 60_000);

test('maxChannels and maxHistory limit the memory of 100,000 published names', async () => {
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
  const after = await site.waitUntilEmpty();
  await site.expectWitnessServed();
  expect(after.history.bytes).toBeLessThan(4 * MB);
  expect(after.live - before.live).toBeLessThan(8 * MB);
  console.log(
    `100,000 names published to: ${after.history.events} events in ` +
      `${megabytes(after.history.bytes)} of history remain, ` +
      `live ${megabytes(before.live)} → ${megabytes(after.live)}`,
  );
}, 60_000);

test('invalid names are refused: too long, empty, control characters, too many', async () => {
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
  expect((await site.waitUntilEmpty()).opened).toBe(1);
});

test('clients that read the full history repeatedly use no additional memory', async () => {
  const CLIENTS = 20;
  const PER_CLIENT = 10;
  await using site = await startHostileSite();
  await site.publish(['a'], 1_000, 900);
  const { history } = await site.holdings();

  async function attack(): Promise<number> {
    let received = 0;
    await Promise.all(
      Array.from({ length: CLIENTS }, async (_, client) => {
        for (let count = 0; count < PER_CLIENT; count++) {
          // Without an id, or with a forged id.
          const forged = client % 2 === 0 ? {} : { 'Last-Event-ID': `forged.${count}` };
          const [socket] = (await crowd(site.port, [requestText('/history/a', forged)])) as [
            Socket,
          ];
          let bytes = 0;
          socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
          await until('the full history', () => bytes > history.events * 900);
          received += bytes;
          reset([socket]);
        }
      }),
    );
    return received;
  }

  await attack();
  const before = await site.waitUntilEmpty();
  const start = performance.now();
  const received = await attack();
  const seconds = (performance.now() - start) / 1_000;
  const after = await site.waitUntilEmpty();
  // 500 clients at the same time, and none of them reads.
  const sockets = await crowd(site.port, requests(500, '/history/a'));
  for (const socket of sockets) socket.pause();
  await until('501 streams', async () => (await site.counts()).streams === 501);
  const during = await site.holdings();
  reset(sockets);
  const end = await site.waitUntilEmpty();
  const longest = await site.expectWitnessServed();
  expect(after.live - before.live).toBeLessThan(3 * MB);
  expect(during.live - before.live).toBeLessThan(500 * 2 * 65_536);
  expect(end.live - before.live).toBeLessThan(3 * MB);
  console.log(
    `${CLIENTS * PER_CLIENT} full histories of ${history.events} events by ${CLIENTS} clients: ` +
      `${((CLIENTS * PER_CLIENT) / seconds).toFixed(0)} a second, ` +
      `${megabytes(received / seconds)}/s, live ${megabytes(before.live)} → ` +
      `${megabytes(after.live)}; 500 clients that never read: ` +
      `${megabytes(during.live)}; longest delay of the witness ${longest} ms`,
  );
}, 60_000);
