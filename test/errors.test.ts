import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express from 'express';
import { afterEach, beforeEach, describe, expect, test, vi, type MockInstance } from 'vitest';
import { createChannels, sse, stream, type EventStream, type SseOptions } from '../src/index.ts';
import { read } from './support/reader.ts';
import { serve } from './support/server.ts';
import { until, within } from './support/wait.ts';

const BOOM = new Error('boom');

function thrower(): never {
  throw BOOM;
}

/** Code that throws after a stream has opened. */
const sources: [string, (given: EventStream, res: express.Response) => unknown][] = [
  ['a handler', (given) => (given.send('x'), thrower())],
  ['a handler that is async', async (given) => (given.send('x'), thrower())],
  [
    'a generator',
    async function* () {
      yield 1;
      thrower();
    },
  ],
  ['a filter', (given) => given.subscribe('a', { since: 'start', filter: thrower })],
  ['an onGap', (given) => given.subscribe('a', { since: 'elsewhere.1', onGap: thrower })],
  [
    'an async onGap',
    (given) => given.subscribe('a', { since: 'elsewhere.1', onGap: () => Promise.reject(BOOM) }),
  ],
  [
    'a wrapped write',
    async (given, res) => {
      given.open();
      // Until the head was sent.
      await new Promise((resolve) => setImmediate(resolve));
      res.write = thrower;
      given.send('x');
    },
  ],
];

/** Serves an app with `sse()` and a route with this handler. */
async function serveFailing(
  handler: (given: EventStream, res: express.Response) => unknown,
  options: SseOptions = {},
) {
  const channels = createChannels();
  await channels.publish('a', 'before');
  const app = express();
  const events = sse({ channels, ...options });
  const streams: EventStream[] = [];
  app.use(events);
  app.get(
    '/failing',
    stream((given, _req, res) => {
      streams.push(given);
      return handler(given, res);
    }),
  );
  return Object.assign(await serve(app), { events, streams });
}

let printed: MockInstance<typeof console.error>;

beforeEach(() => {
  printed = vi.spyOn(console, 'error').mockImplementation(() => {});
});

afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

describe('an error after a stream has opened', () => {
  test.each(sources)('of %s is given to onError, once, with its stream', async (_, handler) => {
    const told: unknown[] = [];
    await using server = await serveFailing(handler, {
      onError: (...args) => void told.push(args),
    });
    using reader = await read(`${server.url}/failing?secret=1`);
    await reader.end();
    await until('the error', () => told.length > 0);
    expect(told).toEqual([[BOOM, server.streams[0]]]);
    expect(await within('its end', (server.streams[0] as EventStream).closed)).toBe('error');
    expect(reader.text).not.toContain('boom');
    expect(printed).not.toHaveBeenCalled();
  });

  test.each(sources)(
    'of %s is printed with its stack, method and route where there is no onError',
    async (_, handler) => {
      vi.stubEnv('NODE_ENV', 'production');
      await using server = await serveFailing(handler);
      using reader = await read(`${server.url}/failing?secret=1`);
      await reader.end();
      await until('the printed error', () => printed.mock.calls.length > 0);
      expect(printed.mock.calls).toEqual([[expect.stringMatching(/GET \/failing(?!\?)/), BOOM]]);
    },
  );

  test('may also be an answer that was begun on the stream', async () => {
    const told: unknown[] = [];
    const answers: ((res: express.Response) => unknown)[] = [
      (res) => res.json({}),
      (res) => res.send('text'),
      (res) => res.redirect('/'),
      (res) => res.sendStatus(202),
    ];
    for (const [index, answer] of answers.entries()) {
      const options = { onError: (error: unknown) => void told.push(error) };
      await using server = await serveFailing(
        (given, res) => (given.send('x'), answer(res)),
        options,
      );
      using reader = await read(`${server.url}/failing`);
      await reader.end();
      await until('the next error', () => told.length > index);
    }
    expect(told).toEqual(
      answers.map(() => expect.objectContaining({ code: 'ERR_HTTP_HEADERS_SENT' })),
    );
  });

  test('is not printed in tests, nor if res-sse:error has subscribers', async () => {
    const heard: unknown[] = [];
    const note = (message: unknown): void => void heard.push(message);
    await using server = await serveFailing((given) => (given.send('x'), thrower()));
    using first = await read(`${server.url}/failing`);
    await first.end();
    vi.stubEnv('NODE_ENV', 'production');
    subscribe('res-sse:error', note);
    using second = await read(`${server.url}/failing`);
    await second.end();
    unsubscribe('res-sse:error', note);
    expect(heard).toHaveLength(1);
    expect(printed).not.toHaveBeenCalled();
  });

  test('is printed if onError throws itself, and affects no other stream', async () => {
    vi.stubEnv('NODE_ENV', 'production');
    const own = new Error('of onError');
    await using server = await serveFailing((given) => (given.send('x'), thrower()), {
      onError: () => {
        throw own;
      },
    });
    using reader = await read(`${server.url}/failing`);
    await reader.end();
    expect(printed.mock.calls.map(([, error]) => error as unknown)).toEqual([own]);
    expect(server.events.stats().closed).toEqual({ error: 1 });
  });

  test('is ignored if it is an AbortError after the client has disconnected', async () => {
    const told: unknown[] = [];
    let isOver = false;
    await using server = await serveFailing(
      async (given) => {
        given.open();
        try {
          await new Promise((_, reject) => {
            given.signal.addEventListener('abort', () => reject(given.signal.reason as Error));
          });
        } finally {
          isOver = true;
        }
      },
      { onError: (error) => void told.push(error) },
    );
    using reader = await read(`${server.url}/failing`);
    reader.close();
    await until('the end of the handler', () => isOver);
    await new Promise((resolve) => setImmediate(resolve));
    expect(told).toEqual([]);
  });
});

test('an error before the stream has opened is passed to next() only', async () => {
  const told: unknown[] = [];
  await using server = await serveFailing(thrower, { onError: (error) => void told.push(error) });
  expect(
    (await fetch(`${server.url}/failing`, { headers: { Accept: 'text/event-stream' } })).status,
  ).toBe(500);
  expect(told).toEqual([]);
});
