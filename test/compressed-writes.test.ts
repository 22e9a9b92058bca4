/** Which texts are compressed together, and how often; and middleware that wraps compressed responses. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { setImmediate as nextTurn } from 'node:timers/promises';
import * as zlib from 'node:zlib';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { createChannels, sse, type EventStream, type SubscribeOptions } from '../src/index.ts';
import { dataOf, open, serve, tick, type Body } from './support/compressed.ts';
import { until } from './support/wait.ts';

vi.mock('node:zlib', { spy: true });

const compressor = vi.mocked(zlib.deflateRawSync);

async function openMany(url: string, count: number): Promise<Body[]> {
  return Promise.all(Array.from({ length: count }, () => open(url)));
}

describe('a stream whose bytes wait', () => {
  /** @returns the number of bytes of a body with both texts, which are queued together */
  async function bytesOf(...texts: readonly string[]): Promise<number> {
    await using server = await serve((stream) => {
      stream.open();
      // As a shutdown does, to write the end behind pending events.
      stream.cork();
      for (const text of texts) stream.send(text);
      stream.uncork();
      stream.close();
    });
    const body = await open(server.url);
    await until('the end', () => body.end !== undefined);
    expect(body.end).toBe(true);
    expect(dataOf(body)).toEqual(texts);
    return body.bytes;
  }

  test('never compresses two sends together', async () => {
    const secret = Array.from({ length: 300 }, (_, index) => `s${index * 7_919}`).join();
    const other = secret.replaceAll('s', 't');
    const sizes = await Promise.all([bytesOf(secret, secret), bytesOf(secret, other)]);
    expect(sizes[0]).toBeGreaterThan(sizes[1] - 10);
  });

  test('never compresses two small sends together', async () => {
    const [secret, other] = ['a', 'b'].map((letter) => letter.repeat(400)) as [string, string];
    const same = await bytesOf(secret, secret, secret, secret);
    expect(same).toBe(await bytesOf(secret, other, secret, other));
  });
});

describe('events of two channels are never compressed together', () => {
  /** @returns the number of bytes of a stream that gets a secret of its own channel and a guess */
  async function bytesWith(secret: string, guess: string, since: 'now' | 'start'): Promise<number> {
    const channels = createChannels();
    await using server = await serve(
      (stream) => stream.subscribe(['own', 'chat'], { since, checkpoints: false }),
      { channels },
    );
    const publish = (): void => {
      void channels.publish('own', secret);
      void channels.publish('chat', guess);
    };
    if (since === 'start') publish();
    const body = await open(server.url);
    await until('the stream', () => server.events.stats().opened === 1);
    if (since === 'now') publish();
    await until('the events', () => dataOf(body).length === 2);
    return body.bytes;
  }

  test.each(['now', 'start'] as const)('to one stream that reads from %s', async (since) => {
    const secret = Array.from({ length: 300 }, (_, index) => `s${index * 7_919}`).join();
    const other = secret.replaceAll('s', 't');
    const [right, wrong] = [
      await bytesWith(secret, secret, since),
      await bytesWith(secret, other, since),
    ];
    expect(right).toBeGreaterThan(wrong - 10);
  });
});

describe('a text is compressed once for all streams', () => {
  async function compressionsOf(
    size: number,
    options: SubscribeOptions = {},
    events: number = 1,
  ): Promise<number> {
    const channels = createChannels();
    await using server = await serve((stream) => stream.subscribe('a', options), { channels });
    const text = (seq: number): string => `${seq} ${tick(seq).repeat(size / 200)}`;
    const isOld = options.since !== undefined;
    const publish = async (): Promise<void> => {
      for (let seq = 0; seq < events; seq++) await channels.publish('a', text(seq));
    };
    if (isOld) await publish();
    compressor.mockClear();
    const bodies = await openMany(server.url, 20);
    await until('the streams', () => server.events.stats().opened === 20);
    if (!isOld) await publish();
    await until('the events', () => bodies.every((body) => dataOf(body).length === events));
    for (const body of bodies) expect(dataOf(body).at(-1)).toBe(text(events - 1));
    return compressor.mock.calls.length;
  }

  test('of a usual size', async () => {
    expect(await compressionsOf(1_000)).toBe(1);
  });

  test('of more than 64 KiB', async () => {
    expect(await compressionsOf(300_000)).toBe(1);
  });

  test('with filters that accept the same', async () => {
    expect(await compressionsOf(2_000, { filter: () => true })).toBe(1);
  });

  test('that read the same page of the history', async () => {
    // Each page in at most two parts.
    expect(await compressionsOf(2_000, { since: 'start' }, 20)).toBeLessThanOrEqual(4);
  });
});

describe('the body is valid, and has everything that was written, behind middleware', () => {
  type Write = (...args: unknown[]) => boolean;

  /** Serves a stream whose response has been wrapped. @returns its text */
  async function textOf(
    wrap: (res: ServerResponse) => void,
    act: (stream: EventStream) => unknown,
  ): Promise<string> {
    const errors: unknown[] = [];
    await using server = await serve(
      (stream) => {
        wrap(stream.res);
        return act(stream);
      },
      { onError: (error) => void errors.push(error) },
    );
    const body = await open(server.url);
    await until('the end', () => body.end !== undefined);
    expect(body.end).toBe(true);
    expect(errors).toEqual([]);
    return body.text;
  }

  async function sendAndClose(stream: EventStream): Promise<void> {
    stream.send('1');
    await nextTurn();
    stream.send('2');
    stream.close();
  }

  test('that takes its wrapper off within the first write', async () => {
    const text = await textOf((res) => {
      const write = res.write.bind(res) as Write;
      res.write = ((...args: unknown[]) => {
        res.write = write as typeof res.write;
        return write(...args);
      }) as typeof res.write;
    }, sendAndClose);
    expect(text).toBe(':\ndata: 1\n\ndata: 2\n\n');
  });

  test('that takes its wrappers of write() and end() off within the first write', async () => {
    const text = await textOf((res) => {
      const write = res.write.bind(res) as Write;
      const end = res.end.bind(res);
      res.write = ((...args: unknown[]) => {
        res.write = write as typeof res.write;
        res.end = end;
        return write(...args);
      }) as typeof res.write;
    }, sendAndClose);
    expect(text).toBe(':\ndata: 1\n\ndata: 2\n\n');
  });

  test('that writes before it passes the bytes of the stream on', async () => {
    let isDue = true;
    const text = await textOf((res) => {
      const write = res.write.bind(res) as Write;
      res.write = ((...args: unknown[]) => {
        if (isDue) {
          isDue = false;
          res.write(': own\n\n', () => (isDue = false));
        }
        return write(...args);
      }) as typeof res.write;
    }, sendAndClose);
    // Blocks keep the order in which they were made.
    expect(text).toBe(':\n: own\n\ndata: 1\n\ndata: 2\n\n');
  });

  test('that sends and writes before it passes what the application writes on', async () => {
    let isDue = false;
    const text = await textOf(
      (res) => {
        const write = res.write.bind(res) as Write;
        res.write = ((...args: unknown[]) => {
          if (isDue) {
            isDue = false;
            (res as { sse?: EventStream }).sse?.send('sent');
            res.write(': own\n\n');
          }
          return write(...args);
        }) as typeof res.write;
      },
      async (stream) => {
        stream.open();
        isDue = true;
        await new Promise<unknown>((resolve) => {
          stream.res.write('data: 1\n\n', resolve);
        });
        stream.close();
      },
    );
    expect(text).toBe(':\ndata: 1\n\ndata: sent\n\n: own\n\n');
  });

  test('that passes a part of the bytes on by res.write()', async () => {
    let isInside = false;
    const text = await textOf((res) => {
      const write = res.write.bind(res) as Write;
      res.write = ((chunk: Buffer, ...args: unknown[]) => {
        if (isInside) return write(chunk, ...args);
        isInside = true;
        res.write(chunk);
        isInside = false;
        return true;
      }) as typeof res.write;
    }, sendAndClose);
    expect(text).toBe(':\ndata: 1\n\ndata: 2\n\n');
  });

  test('that writes within end(), of which nothing is sent', async () => {
    const text = await textOf((res) => {
      const end = res.end.bind(res) as (...args: unknown[]) => ServerResponse;
      res.end = ((...args: unknown[]) => {
        res.write(': footer\n\n');
        return end(...args);
      }) as typeof res.end;
    }, sendAndClose);
    expect(text).toBe(':\ndata: 1\n\ndata: 2\n\n');
  });

  test('if the application ends the response twice', async () => {
    const text = await textOf(
      () => {},
      (stream) => {
        stream.open();
        stream.res.end('data: 1\n\n');
        stream.res.end();
      },
    );
    expect(text).toBe(':\ndata: 1\n\n');
  });
});

test('over HTTP/2, stats().bytes is the number of bytes of the body', async () => {
  const events = sse({ compress: true });
  const server = http2.createServer((req, res) => {
    events(req, res, () => {
      const { sse: stream } = res as unknown as { sse: EventStream };
      stream.send('1');
      stream.close({ retry: 5 });
    });
  });
  server.listen(0);
  await once(server, 'listening');
  const session = http2.connect(`http://localhost:${(server.address() as AddressInfo).port}`);
  onTestFinished(() => {
    session.destroy();
    server.close();
  });
  const request = session.request({ accept: 'text/event-stream', 'accept-encoding': 'gzip' });
  const body = await buffer(request);
  expect(zlib.gunzipSync(body).toString()).toBe(':\ndata: 1\n\nretry: 5\n');
  expect(events.stats().bytes).toBe(body.length);
});
