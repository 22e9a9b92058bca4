import { OutgoingMessage } from 'node:http';
import express from 'express';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import * as first from '../src/index.ts';
import { read } from './support/reader.ts';
import { serve } from './support/server.ts';
import { until, within } from './support/wait.ts';

/**
 * Two copies of the package in one process: the app's copy, and the copy of a library of the app.
 */

let second: typeof first;

beforeAll(async () => {
  vi.resetModules();
  second = await import('../src/index.ts');
});

afterAll(() => {
  vi.resetModules();
});

const ASK = { Accept: 'text/event-stream' };

describe.each([
  ['the first copy in front', () => [first, second] as const],
  ['the second copy in front', () => [second, first] as const],
])('with %s', (_, copies) => {
  /**
   * An app with `sse()` of one copy in front of a route with `sse()` of the other copy, and a route
   * with only `stream()` of the other copy.
   */
  async function nested(outerOptions: first.SseOptions, innerOptions: first.SseOptions) {
    const [outerCopy, innerCopy] = copies();
    const app = express();
    const channels = innerCopy.createChannels();
    const outer = outerCopy.sse(outerOptions);
    const inner = innerCopy.sse({ channels, ...innerOptions });
    app.use(outer);
    app.get(
      '/alone',
      innerCopy.stream((stream) => void stream.send('x')),
    );
    app.get('/listen', inner, channels.listen('a'));
    return Object.assign(await serve(app), { outer, inner, channels, outerCopy, innerCopy });
  }

  test('streams of an inner sse() belong to streams, stats() and close() of the outer one', async () => {
    await using server = await nested({}, {});
    using reader = await read(`${server.url}/listen`);
    await until('the stream', () => server.channels.stats().subscriptions === 1);
    expect([server.outer.streams.size, server.inner.streams.size]).toEqual([1, 1]);
    const [stream] = [...server.outer.streams];
    for (const { EventStream } of [first, second]) expect(stream).toBeInstanceOf(EventStream);
    await server.channels.publish('a', '1');
    expect((await reader.next()).data).toBe('1');
    expect(await within('close()', server.outer.close({ within: 1_000 }))).toEqual({
      closed: 1,
      destroyed: 0,
    });
    await reader.end();
    expect(server.inner.stats()).toMatchObject({ open: 0, closed: { shutdown: 1 } });
  });

  test('the limits of both copies apply', async () => {
    await using server = await nested({ maxStreams: 2 }, { maxStreams: 1 });
    using one = await read(`${server.url}/listen`);
    await until('the stream', () => server.outer.streams.size === 1);
    using two = await read(`${server.url}/listen`);
    await two.end();
    expect(server.inner.stats().rejected).toBe(1);
    using three = await read(`${server.url}/alone`);
    await three.next();
    using four = await read(`${server.url}/alone`);
    await four.end();
    expect(server.outer.stats()).toMatchObject({ open: 2, rejected: 2 });
    expect(one.ended).toBe(false);
  });

  test('a revocation between sse() of both copies ends the stream before it receives anything', async () => {
    const [outerCopy, innerCopy] = copies();
    const channels = outerCopy.createChannels();
    const outer = outerCopy.sse({ channels, identity: () => 'ann' });
    const app = express();
    app.use(outer, async (_req, _res, next) => {
      await outer.revoke('ann');
      next();
    });
    app.get('/', innerCopy.sse({ heartbeat: 5_000 }), channels.listen('a'));
    await using server = await serve(app);
    using reader = await read(server.url);
    await channels.publish('a', 'secret');
    await reader.end();
    expect(reader.events).toEqual([]);
    expect(outer.stats().closed).toEqual({ revoked: 1 });
  });

  test('stream() answers 406 without Accept; instanceof works for both copies', async () => {
    await using server = await nested({}, {});
    expect((await fetch(`${server.url}/alone`, { headers: { Accept: 'text/html' } })).status).toBe(
      406,
    );
    const response = await fetch(`${server.url}/alone`, { headers: ASK });
    expect(response.status).toBe(200);
    await response.body?.cancel();
    expect(second.sse).not.toBe(first.sse);
    expect({}).not.toBeInstanceOf(first.EventStream);
    expect(undefined).not.toBeInstanceOf(first.EventStream);
  });
});

test('an agent that has put its own write on the prototype before the import sees every write', async () => {
  const prototype = OutgoingMessage.prototype;
  // oxlint-disable-next-line typescript/unbound-method -- put back as it was
  const { write } = prototype;
  let seen = '';
  prototype.write = function (this: OutgoingMessage, ...args: unknown[]) {
    seen += String(args[0]);
    return Reflect.apply(write, this, args) as boolean;
  } as typeof write;
  try {
    vi.resetModules();
    const { createChannels, sse } = await import('../src/index.ts');
    const channels = createChannels();
    const app = express();
    app.use(sse({ channels }));
    app.get('/', channels.listen('a'));
    await using server = await serve(app);
    using reader = await read(server.url);
    await until('the stream', () => channels.stats().subscriptions === 1);
    for (let count = 0; count < 22; count++) {
      await channels.publish('a', `event ${count}`);
      await reader.next();
      expect(seen).toContain(`data: event ${count}\n`);
    }
  } finally {
    prototype.write = write;
  }
});
