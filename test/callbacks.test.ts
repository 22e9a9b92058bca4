import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { describe, expect, test } from 'vitest';
import { createChannels, type EventStream } from '../src/index.ts';
import { serveStreams, type StreamServer } from './support/app.ts';
import { read } from './support/reader.ts';
import { dial, requestText } from './support/server.ts';
import { until, within } from './support/wait.ts';

/** Code of the application that the library calls, and that calls back into the library. */

/** Subscribes to these diagnostics channels until it is disposed. */
function listening(listeners: Record<string, (message: never) => void>): Disposable {
  const all = Object.entries(listeners) as [string, (message: unknown) => void][];
  for (const [name, listener] of all) subscribe(`res-sse:${name}`, listener);
  return {
    [Symbol.dispose]() {
      for (const [name, listener] of all) unsubscribe(`res-sse:${name}`, listener);
    },
  };
}

/** Sends more than the reader takes, until a condition is true. */
async function sendUntil(server: StreamServer, condition: () => boolean): Promise<EventStream> {
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until('the stream', () => server.streams.length === 1);
  const stream = server.streams[0] as EventStream;
  await until('the queue to be full', () => {
    for (let count = 0; count < 50 && !condition(); count++) stream.send('x'.repeat(10_000));
    return condition();
  });
  return stream;
}

describe('a diagnostics subscriber', () => {
  test('gets the open message before the close message of a stream that opens in a shutdown', async () => {
    const told: string[] = [];
    using _ = listening({ open: () => told.push('open'), close: () => told.push('close') });
    let go: (() => void) | undefined;
    await using server = await serveStreams(async (stream) => {
      await new Promise<void>((resolve) => {
        go = resolve;
      });
      stream.open();
    });
    const reading = read(server.url);
    await until('the request', () => go !== undefined);
    await server.events.close();
    go?.();
    using reader = await reading;
    await reader.end();
    expect(told).toEqual(['open', 'close']);
  });

  test('may close a stream that has just opened, which is counted once', async () => {
    using _ = listening({
      open: ({ stream }: { stream: EventStream }) => stream.close({ retry: 5 }),
    });
    await using server = await serveStreams((stream) => expect(stream.send('late')).toBe(false));
    using reader = await read(server.url);
    await reader.end();
    expect(reader.text).toBe(':\nretry: 5\n');
    await until('the closed stream to be counted', () => server.events.stats().bytes > 0);
    expect(server.events.stats()).toMatchObject({
      open: 0,
      opened: 1,
      sent: 0,
      closed: { server: 1 },
    });
  });

  test.each(['close', 'drop'] as const)(
    "may send and close when a reader is slow, with onSlow '%s'",
    async (onSlow) => {
      let calls = 0;
      using _ = listening({
        slow: ({ stream }: { stream: EventStream }) => {
          calls++;
          expect(stream.send('you are slow')).toBe(false);
          expect(stream.comment('you are slow')).toBe(false);
        },
      });
      await using server = await serveStreams((stream) => stream.open(), {
        onSlow,
        maxBuffered: 100_000,
        stallTimeout: false,
      });
      const stream = await sendUntil(server, () => calls > 0);
      expect([calls, stream.readyState]).toEqual([1, onSlow === 'close' ? 2 : 1]);
      stream.res.destroy();
    },
  );

  test('may answer a rejected request', async () => {
    using _ = listening({
      reject: ({
        req,
      }: {
        req: { res: { status: (code: number) => { end: (text: string) => void } } };
      }) => req.res.status(429).end('too many'),
    });
    await using server = await serveStreams((stream) => stream.open(), { maxStreams: 0 });
    const response = await fetch(server.url, { headers: { Accept: 'text/event-stream' } });
    expect([response.status, await response.text()]).toEqual([429, 'too many']);
  });
});

test('events that are sent on an ended stream are not counted', async () => {
  await using server = await serveStreams((stream) => {
    stream.send('1');
    stream.close();
    stream.send('2');
    stream.writeBytes(Buffer.from(':\n'), 1);
    stream.writeAll([Buffer.from(':\n'), Buffer.from(':\n')]);
    stream.writeAll([Buffer.from(':\n')]);
  });
  using reader = await read(server.url);
  await reader.end();
  expect(server.events.stats().sent).toBe(1);
});

test('twenty listeners for the end of one stream cause no warning of Node', async () => {
  const warnings: Error[] = [];
  const note = (warning: Error): void => void warnings.push(warning);
  process.on('warning', note);
  await using server = await serveStreams((stream) => {
    for (let count = 0; count < 20; count++) stream.signal.addEventListener('abort', () => {});
    stream.close();
  });
  using reader = await read(server.url);
  await reader.end();
  expect(await within('its end', (server.streams[0] as EventStream).closed)).toBe('server');
  process.off('warning', note);
  expect(warnings.filter(({ name }) => name === 'MaxListenersExceededWarning')).toEqual([]);
});

describe('a wrapped write that sends while bytes are being written', () => {
  const SENDS: [string, (stream: EventStream) => void, (body: string) => boolean][] = [
    ['a comment', (stream) => stream.comment('inside'), (body) => body.includes(': inside\n')],
    ['an event', (stream) => stream.send('inside'), (body) => body.includes('data: inside\n')],
    [
      'a large event',
      (stream) => stream.send('inside'.repeat(10_000)),
      (body) => body.includes(`data: ${'inside'.repeat(10_000)}\n`),
    ],
  ];
  const WRITES: [string, (stream: EventStream, publish: (text: string) => void) => void, RegExp][] =
    [
      ['a heartbeat', (stream) => stream.onIdle(), /:\n/],
      ['an event', (stream) => stream.send('outside'), /data: outside\n\n/],
      ['a large event', (stream) => stream.send('o'.repeat(100_000)), /data: o{100000}\n\n/],
      [
        'a published event',
        (_stream, publish) => publish('outside'),
        /data: outside\nid: [^\n]*\n\n/,
      ],
      [
        'a large published event',
        (_stream, publish) => publish('o'.repeat(100_000)),
        /data: o{100000}\nid: [^\n]*\n\n/,
      ],
    ];
  const cases = WRITES.flatMap(([what, write, whole]) =>
    SENDS.flatMap(([sent, send, isIn]) =>
      ['before', 'after'].map((when) => ({
        title: `${sent} ${when} it passes on ${what}`,
        when,
        write,
        whole,
        send,
        isIn,
      })),
    ),
  );

  test.each(cases.map((given) => [given.title, given] as const))(
    'garbles nothing with %s: that comes behind',
    async (_, given) => {
      const channels = createChannels();
      let armed: EventStream | undefined;
      let sent = 0;
      await using server = await serveStreams(
        async (stream) => {
          const write = stream.res.write.bind(stream.res) as (...args: unknown[]) => boolean;
          const sendInside = (): void => {
            if (armed === undefined || sent >= 3) return;
            sent++;
            given.send(armed);
          };
          stream.res.write = ((...args: unknown[]) => {
            if (given.when === 'before') sendInside();
            const answer = write(...args);
            if (given.when === 'after') sendInside();
            return answer;
          }) as typeof stream.res.write;
          await stream.subscribe('a', { checkpoints: false });
        },
        { channels, heartbeat: false, maxBuffered: 10_000_000 },
      );
      using reader = await read(server.url);
      await until(
        'the stream to be open',
        () => channels.stats().subscriptions === 1 && reader.text !== '',
      );
      const before = reader.text.length;
      const [stream] = server.streams as [EventStream];
      armed = stream;
      given.write(stream, (text) => void channels.publish('a', text));
      await until('three sent events', () => sent === 3);
      armed = undefined;
      stream.close();
      await reader.end();
      const body = reader.text.slice(before);
      const whole = given.whole.exec(body);
      expect(whole?.index).toBe(0);
      expect(given.isIn(body.slice(whole?.[0].length))).toBe(true);
      expect(body.replace(given.whole, '').replaceAll(/data: (inside)+\n\n|: inside\n/g, '')).toBe(
        '',
      );
    },
  );
});

test('close() in a wrapped write comes after the event that is being written', async () => {
  await using server = await serveStreams(() => {});
  server.app.get(
    '/wrapped',
    (_req, res, next) => {
      const write = res.write.bind(res) as (bytes: Buffer) => boolean;
      res.write = ((bytes: Buffer) => {
        if (bytes.toString().includes('last')) res.sse?.close();
        return write(bytes);
      }) as typeof res.write;
      next();
    },
    (_req, res) => void res.sse?.send('last'),
  );
  // Behind the sse() that is in front of every route of the app.
  using reader = await read(`${server.url}/wrapped`);
  await reader.end();
  expect(reader.events.map(({ data }) => data)).toEqual(['last']);
  expect(server.events.stats().closed).toEqual({ server: 1 });
});
