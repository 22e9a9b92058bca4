/** Senders that wait while the write mark, at most `maxBuffered`, is exceeded. */
import {
  createServer,
  get,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import http2 from 'node:http2';
import { once } from 'node:events';
import type { Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { sse, type EventStream, type SseOptions } from '../src/index.ts';
import { listening } from './support/server.ts';
import { within } from './support/wait.ts';

type Transport = 'HTTP/1.1' | 'HTTP/1.1 with a wrapped write()' | 'HTTP/2';

const KB = 'x'.repeat(1_000);
const COUNT = 200;
const LARGE_AT = 100;

/** Small events, and one that is larger than each limit. */
function* items(): Generator<string> {
  for (let index = 0; index < COUNT; index++) {
    yield `${index} ${index === LARGE_AT ? KB.repeat(150) : KB}`;
  }
}

function wrapWrite(res: ServerResponse): void {
  const write = res.write.bind(res) as (...args: unknown[]) => boolean;
  res.write = ((...args: unknown[]) => write(...args)) as typeof res.write;
}

/** Opens one stream, runs `work` for it, and reads until the stream has ended. */
async function run(
  transport: Transport,
  options: SseOptions,
  work: (stream: EventStream) => Promise<void>,
  highWaterMark = 16_384,
) {
  // Without heartbeats and `stallTimeout` the timer of the monitor fires once in a second, so an
  // event that waited for the timer would let the test time out.
  const events = sse({ heartbeat: false, stallTimeout: false, ...options });
  let done: Promise<void> | undefined;
  const handler: RequestListener = (req, res) => {
    if (transport === 'HTTP/1.1 with a wrapped write()') wrapWrite(res);
    events(req, res, () => {
      const stream = (res as { sse?: EventStream }).sse as EventStream;
      done = work(stream).finally(() => stream.close());
      done.catch(() => {});
    });
  };
  await using server = await listening(
    transport === 'HTTP/2'
      ? (http2.createServer(handler as never) as unknown as Server)
      : createServer({ highWaterMark }, handler),
  );
  const session = transport === 'HTTP/2' ? http2.connect(server.url) : undefined;
  const accept = 'text/event-stream';
  const request = session?.request({ ':path': '/', accept });
  const body: Readable =
    request ??
    ((await once(get(server.url, { headers: { accept } }), 'response')) as [Readable])[0];
  let text = '';
  let chunks = 0;
  body.setEncoding('utf8').on('error', () => {});
  body.on('data', (chunk: string) => {
    text += chunk;
    if (++chunks % 8 !== 0) return;
    body.pause();
    setTimeout(() => body.resume(), 3);
  });
  const bodyClosed = new Promise((resolve) => body.once('close', resolve));
  await within('the end of the stream', bodyClosed, 15_000);
  session?.destroy();
  await done;
  const received = [...text.matchAll(/^data: (\d+) /gm)].map(([, index]) => Number(index));
  const { dropped, closed } = events.stats();
  return { received, dropped, closed };
}

const all = { received: [...Array(COUNT).keys()], dropped: 0, closed: { server: 1 } };

describe.each<Transport>(['HTTP/1.1', 'HTTP/1.1 with a wrapped write()', 'HTTP/2'])('%s:', (on) => {
  describe.each([0, 1, 1_000, 16_384, 65_535, 65_536])('with maxBuffered %i', (maxBuffered) => {
    test.each(['close', 'drop'] as const)('pipe() loses nothing, onSlow %o', async (onSlow) => {
      expect(await run(on, { maxBuffered, onSlow }, (stream) => stream.pipe(items()))).toEqual(all);
    });

    test('a loop that awaits drained() when send() returns false loses nothing', async () => {
      const result = await run(on, { maxBuffered }, async (stream) => {
        for (const item of items()) if (!stream.send(item)) await stream.drained();
      });
      expect(result).toEqual(all);
    });
  });

  test('two pipes to one stream lose nothing', async () => {
    const result = await run(on, { maxBuffered: 1_000 }, async (stream) => {
      await Promise.all([stream.pipe(items()), stream.pipe(items())]);
    });
    expect(result.received.toSorted((a, b) => a - b)).toEqual(
      all.received.flatMap((index) => [index, index]),
    );
  });

  test('send() returns false while more than maxBuffered is queued', async () => {
    const answers: boolean[] = [];
    await run(on, { maxBuffered: 1_000 }, async (stream) => {
      stream.open();
      await stream.drained();
      answers.push(stream.send('a'));
      answers.push(stream.send(KB.repeat(200)));
      await stream.drained();
      expect(stream.bufferedAmount).toBeLessThanOrEqual(1_000);
    });
    expect(answers).toEqual([true, false]);
  });
});

describe('an agent whose write() throws for no bytes ends the stream with the error, from', () => {
  const failure = new Error('the agent');

  /** Holds all bytes back, and replaces the `write()` that asks whether bytes were flushed. */
  async function breakEmptyWrites({ res }: EventStream): Promise<void> {
    // The client gets the head first.
    await setImmediate();
    const carrier: Writable = (res as { stream?: Writable }).stream ?? (res.socket as Writable);
    carrier.cork();
    const write = carrier.write.bind(carrier) as (...args: unknown[]) => boolean;
    carrier.write = ((...args: unknown[]) => {
      if ((args[0] as Buffer).length === 0) throw failure;
      return write(...args);
    }) as typeof carrier.write;
  }

  test.each<Transport>(['HTTP/1.1', 'HTTP/2'])('drained() over %s', async (on) => {
    const errors: unknown[] = [];
    const options = { maxBuffered: 0, onError: (error: unknown) => void errors.push(error) };
    const result = await run(on, options, async (stream) => {
      await breakEmptyWrites(stream.open());
      stream.send(KB);
      await within('drained()', stream.drained());
      expect(await within('the end', stream.closed)).toBe('error');
    });
    expect(errors).toEqual([failure]);
    expect(result.closed).toEqual({ error: 1 });
  });

  test('send() of a large event', async () => {
    const errors: unknown[] = [];
    const options = { onError: (error: unknown) => void errors.push(error) };
    const result = await run(
      'HTTP/1.1',
      options,
      async (stream) => {
        await breakEmptyWrites(stream.open());
        expect(stream.send(KB.repeat(200))).toBe(false);
        expect(await within('the end', stream.closed)).toBe('error');
      },
      1_048_576,
    );
    expect(errors).toEqual([failure]);
    expect(result.closed).toEqual({ error: 1 });
  });
});
