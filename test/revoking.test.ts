/** Revoking, with the broker in this process and without channels. */
import { createServer } from 'node:http';
import express from 'express';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  sse,
  stream,
  type EventStream,
  type SseMiddleware,
  type SseOptions,
} from '../src/index.ts';
import { memoryNodes } from './promises/nodes.ts';
import { testRevoking } from './promises/revoking.ts';
import { read } from './support/reader.ts';
import { listening, serve } from './support/server.ts';
import { until } from './support/wait.ts';

testRevoking(memoryNodes);

test('without channels, revoke() ends the streams of this node', async () => {
  const events = sse({ identity: (req) => req.get('X-User') });
  const app = express();
  app.use(events);
  // A route with options of its own has the same identities.
  app.get(
    '/',
    sse({ retry: 500 }),
    stream((given) => given.send('hello')),
  );
  await using server = await serve(app);
  const reader = await read(server.url, { headers: { 'X-User': 'ann' } });
  using other = await read(server.url, { headers: { 'X-User': 'bob' } });
  await events.revoke('ann');
  await reader.end();
  expect(events.stats().closed).toEqual({ revoked: 1 });
  expect(other.ended).toBe(false);
});

test.each([
  [{ retry: 1_234 }, 'retry: 1234', false],
  [{ final: true }, 'event: sse:end', true],
  [{}, 'retry: ', false],
])(
  'revoke() with %j ends a stream whose request was on its way with these options',
  async (options, text, isFinal) => {
    const events = sse({ identity: (req) => req.get('X-User') });
    const app = express();
    let goOn: (() => void) | undefined;
    app.use(events);
    app.use((_req, _res, next) => {
      goOn = next;
    });
    app.get(
      '/',
      stream((given) => given.open()),
    );
    await using server = await serve(app);
    const reading = read(server.url, { headers: { 'X-User': 'ann' } });
    await until('the check', () => goOn !== undefined);
    await events.revoke('ann', options);
    goOn?.();
    const reader = await reading;
    await reader.end();
    expect(reader.text).toContain(text);
    expect(reader.text.includes('sse:end')).toBe(isFinal);
    expect(events.stats().closed).toEqual({ revoked: 1 });
  },
);

const identity: SseOptions['identity'] = (req) => req.get('X-User');
const userOf: SseOptions['identity'] = (req) => req.get('X-User')?.toLowerCase();

/** An app with an app-wide `sse()`, and one on its route `/`. */
function makeNested(
  outer: SseMiddleware,
  inner: SseMiddleware,
  handler: (stream: EventStream) => unknown = (given) => given.open(),
): express.Express {
  const app = express();
  app.use(outer);
  app.get('/', inner, stream(handler));
  const onError: express.ErrorRequestHandler = (error: { code?: string }, _req, res, _next) => {
    res.status(500).end(error.code);
  };
  app.use(onError);
  return app;
}

const asAnn = { headers: { 'X-User': 'ann' } };

describe('one sse() on a route and one in front of it', () => {
  const allow = (): boolean => true;

  test.each<[string, SseOptions, SseOptions, 'outer' | 'inner']>([
    ['the identity in front, other options on the route', { identity }, { retry: 9 }, 'outer'],
    ['another authorize on the route', { identity }, { authorize: allow }, 'outer'],
    ['another identity on the route', { identity }, { identity: userOf }, 'outer'],
    ['another identity on the route', { identity }, { identity: userOf }, 'inner'],
    ['the identity on the route', {}, { identity }, 'inner'],
  ])('without channels, %s: revoke() ends the streams', async (_what, front, route, caller) => {
    const both = { outer: sse(front), inner: sse(route) };
    await using server = await serve(makeNested(both.outer, both.inner));
    const reader = await read(server.url, asAnn);
    using other = await read(server.url, { headers: { 'X-User': 'bob' } });
    await both[caller].revoke('ann');
    await reader.end();
    expect(both[caller].stats().closed).toEqual({ revoked: 1 });
    expect(other.ended).toBe(false);
  });

  test.each<[string, (channels: SseOptions['channels']) => SseOptions]>([
    ['other options', () => ({ retry: 9 })],
    ['another authorize', () => ({ authorize: allow })],
    ['the same channels', (channels) => ({ channels })],
    ['another identity and the same channels', (channels) => ({ channels, identity: userOf })],
  ])('with channels and an identity in front, a route with %s', async (_what, route) => {
    const channels = createChannels();
    const events = sse({ identity, channels });
    const inner = sse(route(channels));
    const app = makeNested(events, inner, (given) => given.subscribe('a'));
    await using server = await serve(app);
    const reader = await read(server.url, asAnn);
    await events.revoke('ann');
    await reader.end();
    expect(inner.stats().closed).toEqual({ revoked: 1 });
    await channels.close();
  });

  test.each<[string, (channels: SseOptions['channels']) => [SseOptions, SseOptions]]>([
    [
      'the channels in front, the identity on the route',
      (channels) => [{ channels }, { identity }],
    ],
    [
      'the identity in front, the channels on the route',
      (channels) => [{ identity }, { channels }],
    ],
    [
      'the identity in front, both on the route',
      (channels) => [{ identity }, { channels, identity: userOf }],
    ],
    [
      'both in front, the identity on the route',
      (channels) => [{ channels, identity }, { identity: userOf }],
    ],
    [
      'both in front, other channels on the route',
      (channels) => [{ channels, identity }, { channels: createChannels() }],
    ],
  ])('%s: no stream opens that revoke() could not end on all nodes', async (_what, make) => {
    const channels = createChannels();
    const [front, route] = make(channels);
    await using server = await serve(makeNested(sse(front), sse(route)));
    using reader = await read(server.url, asAnn);
    expect(reader.response.status).toBe(500);
    await reader.end();
    expect(reader.text).toBe('ERR_SSE_OPTION');
    // Other requests are not changed.
    expect((await fetch(server.url)).status).toBe(406);
    await channels.close();
  });

  test('a revocation after the first of them has seen the request ends the stream', async () => {
    const channels = createChannels();
    const events = sse({ identity, channels });
    const app = express();
    let isChecked = false;
    let goOn = (): void => {};
    app.use(events);
    app.use((_req, _res, next) => {
      isChecked = true;
      goOn = next;
    });
    app.get('/', sse({ authorize: allow }), channels.listen('a'));
    await using server = await serve(app);
    const reading = read(server.url, asAnn);
    await until('the check', () => isChecked);
    await events.revoke('ann');
    goOn();
    const reader = await reading;
    await reader.end();
    expect(events.stats().closed).toEqual({ revoked: 1 });
    await channels.close();
  });
});

test.each<[string, SseOptions, SseOptions[]]>([
  ['an sse() that attaches no stream and one that does', {}, [{ accept: 'any' }]],
  [
    'an sse() that attaches no stream and one with an identity of its own',
    {},
    [{ accept: 'any', identity: (req) => req.get('X-User') }],
  ],
  [
    'two sse() that attach a stream, with one between them that does not',
    { accept: 'any' },
    [{ accept: 'event-stream' }, { accept: 'any' }],
  ],
])('a revocation between %s ends the stream', async (_what, front, route) => {
  const channels = createChannels();
  const outer = sse({ identity, channels, ...front });
  const inner = route.map((options) => sse({ ...options, ...(options.identity && { channels }) }));
  const app = express();
  let isRevoked = false;
  app.use(outer, async (_req, _res, next) => {
    if (isRevoked) await outer.revoke('ann');
    next();
  });
  app.get(
    '/',
    ...inner,
    stream((given) => given.send('secret')),
  );
  await using server = await serve(app);
  for (isRevoked of [false, true]) {
    using reader = await read(server.url, { headers: { 'X-User': 'ann', Accept: '*/*' } });
    if (!isRevoked) expect((await reader.next()).data).toBe('secret');
    else {
      await reader.end();
      expect(reader.events).toEqual([]);
    }
  }
  await channels.close();
});

test('a revocation between two sse() with an identity each ends the stream', async () => {
  const options: SseOptions = {
    identity: ({ headers }) => headers['user'] as string,
    warnings: false,
  };
  const [outer, inner] = [sse(options), sse(options)];
  await using server = await listening(
    createServer((req, res) => {
      const send = (): void => void (res as { sse?: EventStream }).sse?.send('secret');
      // As authentication that asks a database.
      outer(req, res, () => void outer.revoke('ann').then(() => inner(req, res, send)));
    }),
  );
  // The hosts of the chain are made at the first request.
  for (const user of ['bob', 'ann']) {
    using reader = await read(server.url, { headers: { user } });
    if (user === 'bob') expect((await reader.next()).data).toBe('secret');
    else {
      await reader.end();
      expect(reader.events).toEqual([]);
    }
  }
});

test('a closed stream is not kept if it was open before a second sse() with an identity', async () => {
  const options: SseOptions = { identity: () => 'ann', warnings: false };
  const [outer, inner] = [sse(options), sse(options)];
  let ref: WeakRef<EventStream> | undefined;
  await using server = await listening(
    createServer((req, res) => {
      outer(req, res, () => {
        const stream = (res as { sse?: EventStream }).sse as EventStream;
        stream.open();
        inner(req, res, () => void stream.close());
        ref = new WeakRef(stream);
      });
    }),
  );
  const reader = await read(server.url);
  await reader.end();
  await until('the stream to be collected', async () => {
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc?.();
    return ref?.deref() === undefined;
  });
});
