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
import type { Readable } from 'node:stream';
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
) {
  // Without heartbeats and `stallTimeout` the timer of the monitor fires once in a second, so an
  // event that waited for the timer would let the test time out.
  const events = sse({ heartbeat: false, stallTimeout: false, ...options });
  const handler: RequestListener = (req, res) => {
    if (transport === 'HTTP/1.1 with a wrapped write()') wrapWrite(res);
    events(req, res, () => {
      const stream = (res as { sse?: EventStream }).sse as EventStream;
      void work(stream).then(() => stream.close());
    });
  };
  await using server = await listening(
    transport === 'HTTP/2'
      ? (http2.createServer(handler as never) as unknown as Server)
      : createServer(handler),
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
  await within('the end of the stream', once(body, 'close'), 15_000);
  session?.destroy();
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
