import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { setImmediate as nextTurn } from 'node:timers/promises';
import express from 'express';
import request from 'supertest';
import { describe, expect, test } from 'vitest';
import {
  SseError,
  createChannels,
  memoryBroker,
  sse,
  stream,
  type Broker,
  type Channels,
  type EventStream,
} from '../src/index.ts';
import { serveStreams, type StreamServer } from './support/app.ts';
import { brokerWith } from './support/broker-with.ts';
import { connectFake } from './support/crowd.ts';
import { read } from './support/reader.ts';
import { dial, requestText } from './support/server.ts';
import { until, within } from './support/wait.ts';

const ASK = { Accept: 'text/event-stream' };

/** A server whose streams follow the channels of the query: `/?follow=a&follow=b`. */
async function serveChannels(
  channels: Channels = createChannels(),
): Promise<StreamServer & { channels: Channels }> {
  const server = await serveStreams(
    (given, req) => given.subscribe([req.query['follow'] as string].flat()),
    { channels },
  );
  return Object.assign(server, { channels });
}

async function rejection(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof SseError) return error.code;
    throw error;
  }
  return 'it was not rejected';
}

describe('publish', () => {
  test('delivers the event, with the id it resolves to, only to the streams of the channel', async () => {
    await using server = await serveChannels();
    using a = await read(`${server.url}?follow=a`);
    using both = await read(`${server.url}?follow=a&follow=b`);
    using b = await read(`${server.url}?follow=b`);
    await until('the subscriptions', () => server.channels.stats().subscriptions === 4);
    const first = await server.channels.publish('a', { n: 1 }, { event: 'tick', retry: 7 });
    const second = await server.channels.publish('b', 'two');
    expect(await both.take(2)).toEqual([
      { event: 'tick', id: first.id, data: '{"n":1}' },
      { event: undefined, id: second.id, data: 'two' },
    ]);
    expect(await a.next()).toEqual({ event: 'tick', id: first.id, data: '{"n":1}' });
    expect(await b.next()).toEqual({ event: undefined, id: second.id, data: 'two' });
    expect(a.retries).toEqual([7]);
    expect([a.events.length, b.events.length]).toEqual([1, 1]);
  });

  test('returns ids that grow across the registry, and that differ between registries', async () => {
    const [channels, others] = [createChannels(), createChannels()];
    const ids: string[] = [];
    for (const name of ['a', 'b', 'a']) ids.push((await channels.publish(name, 1)).id);
    for (const id of ids) expect(id).toMatch(/^[A-Za-z0-9._-]{1,127}$/);
    const [epochs, offsets] = [
      ids.map((id) => id.split('.')[0]),
      ids.map((id) => Number(id.split('.')[1])),
    ];
    expect(new Set(epochs).size).toBe(1);
    expect(offsets).toEqual([...offsets].toSorted((x, y) => x - y));
    expect(new Set(offsets).size).toBe(3);
    expect((await others.publish('a', 1)).id.split('.')[0]).not.toBe(epochs[0]);
  });

  test('encodes an event once for all readers', async () => {
    let encoded = 0;
    await using server = await serveChannels(
      createChannels({
        serialize: (data) => {
          encoded++;
          return JSON.stringify(data);
        },
      }),
    );
    const readers = await Promise.all(
      Array.from({ length: 30 }, () => read(`${server.url}?follow=a`)),
    );
    await until('the subscriptions', () => server.channels.stats().subscriptions === 30);
    await server.channels.publish('a', { n: 1 });
    for (const reader of readers) {
      expect((await reader.next()).data).toBe('{"n":1}');
      reader.close();
    }
    expect(encoded).toBe(1);
  });

  test('keeps the order of the calls, with and without await', async () => {
    await using server = await serveChannels();
    using reader = await read(`${server.url}?follow=a&follow=b`);
    await until('the subscription', () => server.channels.stats().subscriptions === 2);
    for (let index = 0; index < 100; index++) {
      void server.channels.publish(index % 3 === 0 ? 'a' : 'b', `${index}`);
    }
    expect((await reader.take(100)).map((event) => event.data)).toEqual(
      Array.from({ length: 100 }, (_, index) => `${index}`),
    );
  });

  test.each<[string, () => Promise<unknown>, string]>([
    ['an empty name', () => createChannels().publish('', 1), 'ERR_SSE_CHANNEL_NAME'],
    [
      'a name that is no string',
      () => createChannels().publish(7 as never, 1),
      'ERR_SSE_CHANNEL_NAME',
    ],
    [
      'a name with a control character',
      () => createChannels().publish('a\u0000b', 1),
      'ERR_SSE_CHANNEL_NAME',
    ],
    [
      'a name with a lone surrogate',
      () => createChannels().publish('a\uD800', 1),
      'ERR_SSE_CHANNEL_NAME',
    ],
    [
      'a name of 257 bytes',
      () => createChannels().publish(`${'é'.repeat(128)}x`, 1),
      'ERR_SSE_CHANNEL_NAME',
    ],
    ['no data', () => createChannels().publish('a', undefined), 'ERR_SSE_DATA'],
    ['data that serialize cannot take', () => createChannels().publish('a', 1n), 'ERR_SSE_DATA'],
    [
      'an event name with a line end',
      () => createChannels().publish('a', 1, { event: 'x\ry' }),
      'ERR_SSE_EVENT',
    ],
    [
      "an event name of the library's",
      () => createChannels().publish('a', 1, { event: 'sse:gap' }),
      'ERR_SSE_EVENT',
    ],
    [
      'a retry that is none',
      () => createChannels().publish('a', 1, { retry: -5 }),
      'ERR_SSE_RETRY',
    ],
    [
      'a retry beyond what a timer takes',
      () => createChannels().publish('a', 1, { retry: 2 ** 31 }),
      'ERR_SSE_RETRY',
    ],
    [
      'an option that is none',
      () => createChannels().publish('a', 1, { id: 5 } as object),
      'ERR_SSE_OPTION',
    ],
  ])('rejects %s, and no stream gets an event', async (_, publish, code) => {
    expect(await rejection(publish())).toBe(code);
  });

  test('accepts a name of 256 bytes', async () => {
    expect((await createChannels().publish('é'.repeat(128), 1)).id).not.toBe('');
  });

  test('publishes one message on the diagnostics channel res-sse:publish', async () => {
    const messages: unknown[] = [];
    const note = (message: unknown): void => void messages.push(message);
    subscribe('res-sse:publish', note);
    const { id } = await createChannels().publish('told', 1);
    unsubscribe('res-sse:publish', note);
    expect(messages).toEqual([{ channel: 'told', id }]);
  });
});

describe('subscribe', () => {
  test('opens the stream and resolves with the channels, without duplicates', async () => {
    const channels = createChannels();
    let subscription: unknown;
    await using server = await serveStreams(
      async (given) => {
        subscription = await given.subscribe(['a', 'b', 'a']);
        expect(given.readyState).toBe(1);
      },
      { channels },
    );
    using reader = await read(server.url);
    await until('the subscription', () => subscription !== undefined);
    expect(subscription).toMatchObject({ channels: ['a', 'b'] });
    expect(reader.ended).toBe(false);
    expect(channels.names().toSorted()).toEqual(['a', 'b']);
    expect([
      channels.channel('a').size,
      channels.channel('b').size,
      channels.channel('c').size,
    ]).toEqual([1, 1, 0]);
  });

  test('delivers events published later in the same turn, and no earlier events', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        void channels.publish('a', 'before');
        void given.subscribe('a');
        void channels.publish('a', 'after');
      },
      { channels },
    );
    using other = await read(server.url);
    expect((await other.next()).data).toBe('after');
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('after');
    // The first stream followed the channel before the second one.
    expect((await other.take(2)).map((event) => event.data)).toEqual(['before', 'after']);
  });

  test('on an ended stream resolves with an ended subscription, and follows no channel', async () => {
    await using server = await serveChannels();
    const reader = await read(`${server.url}?follow=a`);
    await until('the subscription', () => server.channels.stats().subscriptions === 1);
    const gone = server.streams[0] as EventStream;
    reader.close();
    await gone.closed;
    const subscription = await server.channels.subscribe(gone, 'b');
    subscription.unsubscribe();
    expect(server.channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
    expect(server.channels.names()).toEqual([]);
  });

  test('without channels rejects with ERR_SSE_NO_CHANNELS', async () => {
    let code = '';
    await using server = await serveStreams(async (given) => {
      code = await rejection(given.subscribe('a'));
    });
    using reader = await read(server.url);
    await until('the response head', () => reader.text !== '');
    expect(code).toBe('ERR_SSE_NO_CHANNELS');
  });

  test('to channels of another registry rejects with ERR_SSE_OTHER_REGISTRY', async () => {
    const others = createChannels();
    await using server = await serveChannels();
    using reader = await read(`${server.url}?follow=a`);
    await until('the subscription', () => server.channels.stats().subscriptions === 1);
    expect(await rejection(others.subscribe(server.streams[0] as EventStream, 'a'))).toBe(
      'ERR_SSE_OTHER_REGISTRY',
    );
    await server.channels.publish('a', 'still here');
    expect((await reader.next()).data).toBe('still here');
    expect(others.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
  });

  test.each<[string, unknown, string]>([
    ['no name', [], 'ERR_SSE_CHANNEL_NAME'],
    ['101 names', Array.from({ length: 101 }, (_, index) => `${index}`), 'ERR_SSE_CHANNEL_NAME'],
    ['a bad one among them', ['a', ''], 'ERR_SSE_CHANNEL_NAME'],
    ['no list', undefined, 'ERR_SSE_CHANNEL_NAME'],
  ])('to %s is refused before the stream opens', async (_, names, code) => {
    const channels = createChannels();
    await using server = await serveStreams((given) => given.subscribe(names as string), {
      channels,
    });
    using reader = await read(server.url);
    expect(reader.response.status).toBe(500);
    expect(server.errors.splice(0)).toEqual([expect.objectContaining({ code })]);
  });

  test("after an id of the application's own rejects, and an own id on a stream that follows throws: ERR_SSE_ID_TAKEN", async () => {
    const codes: string[] = [];
    const channels = createChannels();
    await using server = await serveStreams(
      async (given, req) => {
        if (req.query['first'] === 'id') {
          given.send('x', { id: 1 });
          codes.push(await rejection(given.subscribe('a')));
        } else {
          await given.subscribe('a');
          given.send('without an id is fine');
          try {
            given.send('x', { id: 1 });
          } catch (error) {
            codes.push((error as SseError).code);
          }
        }
      },
      { channels },
    );
    using first = await read(`${server.url}?first=id`);
    using second = await read(`${server.url}?first=subscribe`);
    await until('both error codes', () => codes.length === 2);
    expect(codes).toEqual(['ERR_SSE_ID_TAKEN', 'ERR_SSE_ID_TAKEN']);
    expect((await second.next()).data).toBe('without an id is fine');
    expect(first.events).toHaveLength(1);
  });

  test('rejects if historyFor throws, and releases no channel of another stream', async () => {
    const channels = createChannels({
      historyFor: (name) => {
        if (name === 'bad') throw new Error('no such room');
        return undefined;
      },
    });
    await using server = await serveStreams(
      async (given, req) => {
        const following = given.subscribe([req.query['follow'] as string].flat());
        if (req.query['may'] === undefined) await following;
        else await following.catch((error: unknown) => given.send(String(error), 'refused'));
      },
      { channels },
    );
    using other = await read(`${server.url}?follow=a`);
    await until('the other subscription', () => channels.stats().subscriptions === 1);
    for (const names of ['follow=bad&follow=a', 'follow=b&follow=bad&follow=a']) {
      using refused = await read(`${server.url}?may&${names}`);
      expect(await refused.next()).toMatchObject({ event: 'refused', data: 'Error: no such room' });
      expect(channels.names()).toEqual(['a']);
      expect(channels.stats()).toMatchObject({ channels: 1, subscriptions: 1, behind: 0 });
    }
    await channels.publish('a', 'still followed');
    expect((await other.next()).data).toBe('still followed');
  });

  test('a second call adds channels; events of a channel that is followed twice arrive once', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        await given.subscribe(['a', 'b']);
        await given.subscribe(['b', 'c']);
        for (const name of ['a', 'b', 'c']) await channels.publish(name, name);
        await channels.publish('a', 'end');
      },
      { channels },
    );
    using reader = await read(server.url);
    expect((await reader.take(4)).map((event) => event.data)).toEqual(['a', 'b', 'c', 'end']);
    expect(channels.stats().subscriptions).toBe(3);
  });

  test('unsubscribe ends the subscription after earlier events; the stream stays open', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        const ab = await given.subscribe(['a', 'b']);
        await given.subscribe(['b']);
        void channels.publish('a', 'before');
        ab.unsubscribe();
        ab.unsubscribe();
        void channels.publish('a', 'after');
        void channels.publish('b', 'still followed');
        expect(channels.names()).toEqual(['b']);
        given.send('direct');
      },
      { channels },
    );
    using reader = await read(server.url);
    expect((await reader.take(3)).map((event) => event.data)).toEqual([
      'before',
      'still followed',
      'direct',
    ]);
  });
});

describe('order', () => {
  test('send, comment and close come after events that were published before', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        await given.subscribe('a');
        void channels.publish('a', '1');
        given.send('2');
        void channels.publish('a', '3');
        void channels.publish('a', '4');
        given.comment('5');
        void channels.publish('a', '6');
        given.close({ retry: 77 });
      },
      { channels },
    );
    using bystander = await read(server.url).then(async (reader) => (await reader.end(), reader));
    expect(bystander.text.replaceAll(/event: sse:checkpoint\n.*\nid: .*\n\n|id: .*\n/g, '')).toBe(
      ':\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n: 5\ndata: 6\n\nretry: 77\n',
    );
  });

  test('an event that one stream received early is delivered once to every stream', async () => {
    const channels = createChannels();
    const streams: EventStream[] = [];
    await using server = await serveStreams(
      async (given) => {
        await given.subscribe('a');
        streams.push(given);
      },
      { channels },
    );
    using early = await read(server.url);
    await until('the first stream', () => streams.length === 1);
    using late = await read(server.url);
    await until('both streams', () => streams.length === 2);
    void channels.publish('a', '1');
    (streams[0] as EventStream).send('direct');
    void channels.publish('a', '2');
    expect((await early.take(3)).map((event) => event.data)).toEqual(['1', 'direct', '2']);
    expect((await late.take(2)).map((event) => event.data)).toEqual(['1', '2']);
    await channels.publish('a', '3');
    expect((await early.next()).data).toBe('3');
    expect((await late.next()).data).toBe('3');
  });
});

describe('a filter', () => {
  test('accepts the events for which it returns true, and receives them as published', async () => {
    const seen: unknown[] = [];
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        await given.subscribe('a', {
          filter: (event) => {
            seen.push([event.channel, event.id, event.event, event.data, event.json()]);
            return (event.json() as { n?: number } | undefined)?.n !== 2;
          },
        });
        const ids: string[] = [];
        for (const n of [1, 2, 3]) {
          ids.push((await channels.publish('a', { n }, { event: 'tick' })).id);
        }
        ids.push((await channels.publish('a', 'no { JSON')).id);
        await new Promise((resolve) => setImmediate(resolve));
        expect(seen).toEqual([
          ['a', ids[0], 'tick', '{"n":1}', { n: 1 }],
          ['a', ids[1], 'tick', '{"n":2}', { n: 2 }],
          ['a', ids[2], 'tick', '{"n":3}', { n: 3 }],
          ['a', ids[3], 'message', 'no { JSON', undefined],
        ]);
      },
      { channels },
    );
    using reader = await read(server.url);
    expect((await reader.take(3)).map((event) => event.data)).toEqual([
      '{"n":1}',
      '{"n":3}',
      'no { JSON',
    ]);
  });

  test.each<[string, () => unknown]>([
    [
      'throws',
      () => {
        throw new Error('broken filter');
      },
    ],
    ['answers with a promise', async () => true],
    ['answers with nothing', () => undefined],
    ['answers 1', () => 1],
  ])(
    'that %s fails closed: its stream ends with error, and other streams continue',
    async (_, filter) => {
      const channels = createChannels();
      await using server = await serveStreams(
        (given, req) =>
          given.subscribe('a', 'bad' in req.query ? { filter: filter as () => boolean } : {}),
        { channels },
      );
      using before = await read(server.url);
      using bad = await read(`${server.url}?bad`);
      using after = await read(server.url);
      await until('the subscriptions', () => channels.stats().subscriptions === 3);
      await channels.publish('a', 'secret');
      await bad.end();
      expect(bad.text).not.toContain('secret');
      expect(await (server.streams[1] as EventStream).closed).toBe('error');
      for (const reader of [before, after]) expect((await reader.next()).data).toBe('secret');
      expect(server.errors.splice(0)).toHaveLength(1);
      expect(channels.stats().subscriptions).toBe(2);
    },
  );

  test('of one subscription does not reject events that another subscription accepts', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      async (given) => {
        await given.subscribe(['a', 'b'], { filter: () => false });
        await given.subscribe('b');
        await channels.publish('a', 'hidden');
        await channels.publish('b', 'wanted');
      },
      { channels },
    );
    using reader = await read(server.url);
    expect((await reader.next()).data).toBe('wanted');
    expect(reader.events).toHaveLength(1);
  });
});

test('a slow reader of a channel without history is closed at maxBuffered; others get all events', async () => {
  const channels = createChannels({ history: false });
  await using server = await serveStreams((given) => given.subscribe('a'), {
    channels,
    maxBuffered: 200_000,
    stallTimeout: false,
  });
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until('the slow stream', () => server.streams.length === 1);
  using reader = await read(server.url);
  await until('both subscriptions', () => channels.stats().subscriptions === 2);
  const slow = server.streams[0] as EventStream;
  let published = 0;
  await until(
    'the slow one to be closed',
    async () => {
      for (let count = 0; count < 20; count++) {
        await channels.publish('a', `${published++}:${'x'.repeat(10_000)}`);
      }
      await new Promise((resolve) => setImmediate(resolve));
      return slow.readyState === 2;
    },
    30_000,
  );
  expect(await slow.closed).toBe('slow');
  const events = await reader.take(published);
  expect(events.map((event) => Number.parseInt(event.data, 10))).toEqual(
    Array.from({ length: published }, (_, index) => index),
  );
  socket.destroy();
});

test('events that the feed of a live-only channel has dropped are counted', async () => {
  const channels = createChannels({ history: false, maxEvent: 2_000_000 });
  const events = sse({ channels, warnings: false, onSlow: 'drop', maxBuffered: 64_000_000 });
  let received = 0;
  const { stream } = connectFake(events, (bytes) => {
    received += bytes.toString().split('data: ').length - 1;
  });
  await stream.subscribe(['a', 'b']);
  // Fewer frames than one round delivers, and more than the feed of a channel holds.
  for (let index = 0; index < 6; index++) void channels.publish('b', 'b'.repeat(50_000));
  for (let index = 0; index < 17; index++) void channels.publish('a', 'a'.repeat(1_000_000));
  for (let turn = 0; turn < 50; turn++) await nextTurn();
  expect(received + events.stats().dropped).toBe(23);
  expect(events.stats().dropped).toBeGreaterThan(0);
});

test("of several channels without history, what one drops with onSlow 'drop' takes no event from another", async () => {
  const channels = createChannels({ history: false });
  await using server = await serveStreams((given) => given.subscribe(['big', 'small']), {
    channels,
    onSlow: 'drop',
  });
  using reader = await read(server.url);
  await until('the subscriptions', () => channels.stats().subscriptions === 2);
  for (let count = 0; count < 5; count++) void channels.publish('small', `small ${count}`);
  for (let count = 0; count < 20; count++) void channels.publish('big', 'z'.repeat(1_000_000));
  const small = (): string[] =>
    reader.events.map((event) => event.data).filter((each) => !each.startsWith('z'));
  await until('the small events', () => small().length === 5);
  expect(small()).toEqual(['small 0', 'small 1', 'small 2', 'small 3', 'small 4']);
  await until(
    'each large one to be there or counted',
    () => reader.events.length - 5 + server.events.stats().dropped === 20,
  );
});

describe('a channel handle', () => {
  test('publishes to and subscribes to its channel', async () => {
    const channels = createChannels();
    const haiku = channels.channel('haiku');
    expect(haiku.name).toBe('haiku');
    await using server = await serveStreams((given) => haiku.subscribe(given), { channels });
    using reader = await read(server.url);
    await until('the subscription', () => haiku.size === 1);
    const { id } = await haiku.publish('an old silent pond', { event: 'text' });
    expect(await reader.next()).toEqual({ event: 'text', id, data: 'an old silent pond' });
    reader.close();
    await until('the stream to end', () => haiku.size === 0);
  });

  test('with an invalid name throws', () => {
    expect(() => createChannels().channel('')).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_CHANNEL_NAME' }),
    );
  });
});

describe('listen', () => {
  function app(channels: Channels, route: express.RequestHandler): express.Express {
    const made = express();
    made.use(sse({ channels }));
    made.get('/events/:room', route);
    made.use(
      (error: Error, _req: express.Request, res: express.Response, _next: express.NextFunction) =>
        res.status(500).json({ error: error.message }),
    );
    return made;
  }

  test('follows the given channels', async () => {
    const { serve } = await import('./support/server.ts');
    const channels = createChannels();
    const made = express();
    made.use(sse({ channels }));
    made.get('/one', channels.listen('a'));
    made.get('/two', channels.listen(['a', 'b'], { filter: (event) => event.data !== 'hidden' }));
    made.get(
      '/:room',
      channels.listen<express.Request>(
        async (req) => req.params['room'] as string,
        (req) => ({ filter: () => req.query['all'] === '1' }),
      ),
    );
    await using server = await serve(made);
    using one = await read(`${server.url}/one`);
    using two = await read(`${server.url}/two`);
    using room = await read(`${server.url}/b?all=1`);
    using none = await read(`${server.url}/b?all=0`);
    await until('the subscriptions', () => channels.stats().subscriptions === 5);
    for (const [name, data] of [
      ['a', '1'],
      ['b', 'hidden'],
      ['b', '2'],
    ] as const) {
      await channels.publish(name, data);
    }
    expect((await two.take(2)).map((event) => event.data)).toEqual(['1', '2']);
    expect((await room.take(2)).map((event) => event.data)).toEqual(['hidden', '2']);
    expect((await one.next()).data).toBe('1');
    expect(none.events).toEqual([]);
  });

  test('answers 406 without Accept, and 403 if the function returns null, with a text', async () => {
    const channels = createChannels();
    const made = app(
      channels,
      channels.listen((req) =>
        (req as express.Request).params['room'] === 'open' ? 'open' : null,
      ) as express.RequestHandler,
    );
    await request(made).get('/events/open').expect(406);
    const response = await request(made).get('/events/closed').set(ASK).expect(403);
    expect(response.text).toBe('You may not follow this.\n');
    await request(made)
      .get('/events/closed')
      .set('Accept', 'application/json, text/event-stream')
      .expect(403, { code: 'ERR_SSE_FORBIDDEN', message: 'You may not follow this.' });
    expect(channels.stats().subscriptions).toBe(0);
  });

  test('passes errors of its functions to next', async () => {
    const channels = createChannels();
    const failing = [
      channels.listen(() => {
        throw new Error('no database');
      }),
      channels.listen(async () => {
        throw new Error('no database');
      }),
      channels.listen('a', async () => {
        throw new Error('no database');
      }),
    ];
    for (const route of failing) {
      await request(app(channels, route as express.RequestHandler))
        .get('/events/x')
        .set(ASK)
        .expect(500, { error: 'no database' });
    }
    await request(app(channels, channels.listen(() => '') as express.RequestHandler))
      .get('/events/x')
      .set(ASK)
      .expect(500);
  });

  test('throws for invalid arguments when the route is made', () => {
    expect(() => createChannels().listen('')).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_CHANNEL_NAME' }),
    );
    expect(() => createChannels().listen('a', { filtre: () => true } as object)).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_OPTION' }),
    );
  });
});

describe('an event larger than maxEvent', () => {
  test('is rejected before any stream receives it; the next event is delivered', async () => {
    const channels = createChannels({ maxEvent: 100 });
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    using reader = await read(server.url);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await expect(channels.publish('a', 'x'.repeat(100))).rejects.toMatchObject({
      code: 'ERR_SSE_DATA',
      delivery: undefined,
    });
    // Each line of the data has the field name.
    await expect(channels.publish('a', '\n'.repeat(15))).rejects.toMatchObject({
      code: 'ERR_SSE_DATA',
    });
    await channels.publish('a', 'x'.repeat(100 - 'data: \n\n'.length));
    expect((await reader.next()).data).toHaveLength(92);
    expect(channels.stats().published).toBe(1);
  });

  test('has more than 1 MiB by default', async () => {
    const channels = createChannels();
    await channels.publish('a', 'x'.repeat(1_000_000));
    await expect(channels.publish('a', 'x'.repeat(1_048_576))).rejects.toMatchObject({
      code: 'ERR_SSE_DATA',
    });
  });
});

describe('close of the registry', () => {
  test('rejects a subscribe call while the streams end', async () => {
    const channels = createChannels();
    const waiting: EventStream[] = [];
    await using server = await serveStreams(
      async (stream) => {
        if (server.streams.length === 1) waiting.push(stream.open());
        else await stream.subscribe('a');
      },
      { channels },
    );
    using first = await read(server.url);
    using second = await read(server.url);
    await until('both streams', () => server.streams[1]?.readyState === 1);
    let refused: unknown;
    server.streams[1]?.signal.addEventListener('abort', () => {
      waiting[0]?.subscribe('a').catch((error: unknown) => (refused = error));
    });
    await channels.close();
    await second.end();
    expect(refused).toMatchObject({ code: 'ERR_SSE_CLOSED' });
    expect([first.ended, channels.stats().subscriptions]).toEqual([false, 0]);
  });

  test('that is called again by the end of a stream happens once', async () => {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
    using first = await read(server.url);
    using second = await read(server.url);
    await until('both subscriptions', () => channels.stats().subscriptions === 2);
    const closings = new Set<Promise<void>>();
    for (const { signal } of server.streams) {
      signal.addEventListener('abort', () => void closings.add(channels.close()));
    }
    closings.add(channels.close());
    await Promise.all([...closings, first.end(), second.end()]);
    expect(closings.size).toBe(1);
  });

  test('ends its streams, with a reconnection time, after pending events', async () => {
    const channels = createChannels();
    await using server = await serveStreams(
      (given, req) => ('follow' in req.query ? given.subscribe('a') : given.open()),
      {
        channels,
      },
    );
    using follower = await read(`${server.url}?follow`);
    using other = await read(server.url);
    await until('both streams', () => server.events.streams.size === 2);
    void channels.publish('a', 'last words');
    const closing = channels.close();
    expect(channels.close()).toBe(closing);
    await within('close', closing);
    await follower.end();
    expect(follower.events.map((event) => event.data)).toEqual(['last words']);
    expect(follower.retries).toHaveLength(1);
    expect(await (server.streams[0] as EventStream).closed).toBe('shutdown');
    expect(other.ended).toBe(false);
    expect(channels.stats()).toEqual({
      channels: 0,
      subscriptions: 0,
      behind: 0,
      published: 1,
      gaps: 0,
      history: { events: 0, bytes: 0 },
      broker: { state: 'closed' },
    });
    expect(await rejection(channels.publish('a', 1))).toBe('ERR_SSE_CLOSED');
    expect(await rejection(channels.subscribe(server.streams[1] as EventStream, 'a'))).toBe(
      'ERR_SSE_CLOSED',
    );
  });
});

test('two registries in one process do not exchange events', async () => {
  const [ours, theirs] = [createChannels(), createChannels()];
  await using server = await serveChannels(ours);
  using reader = await read(`${server.url}?follow=a`);
  await until('the subscription', () => ours.stats().subscriptions === 1);
  await theirs.publish('a', 'theirs');
  await ours.publish('a', 'ours');
  expect((await reader.next()).data).toBe('ours');
});

test('a broker serves one registry', () => {
  const broker = memoryBroker();
  createChannels({ broker });
  expect(() => createChannels({ broker })).toThrow(
    expect.objectContaining({ code: 'ERR_SSE_OTHER_REGISTRY' }),
  );
});

describe('a broker that listens late', () => {
  function slowBroker(): {
    broker: Broker;
    listened: string[];
    unlistened: string[];
    answer: (error?: Error) => void;
  } {
    const waiting: ((error?: Error) => void)[] = [];
    const listened: string[] = [];
    const unlistened: string[] = [];
    const memory = memoryBroker();
    const broker = brokerWith(memory, {
      listen: (channel) => {
        listened.push(channel);
        return new Promise<void>((resolve, reject) =>
          waiting.push((error) =>
            error === undefined ? resolve(void memory.listen(channel)) : reject(error),
          ),
        );
      },
      unlisten: (channel) => {
        unlistened.push(channel);
        memory.unlisten(channel);
      },
    });
    return {
      broker,
      listened,
      unlistened,
      answer: (error) => waiting.splice(0).forEach((settle) => settle(error)),
    };
  }

  test('listens once per channel, also if a stream ends meanwhile', async () => {
    const { broker, listened, unlistened, answer } = slowBroker();
    const channels = createChannels({ broker });
    let settled = 0;
    await using server = await serveStreams(
      (given) => void given.subscribe(['a', 'b']).then(() => settled++),
      { channels },
    );
    const reader = await read(server.url);
    await until('the subscription', () => listened.length === 2);
    reader.close();
    await (server.streams[0] as EventStream).closed;
    expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
    answer();
    await until('the subscription to settle', () => settled === 1);
    expect([listened, unlistened]).toEqual([
      ['a', 'b'],
      ['a', 'b'],
    ]);
    expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
  });

  test('and then fails: subscribe rejects, and follows no channel', async () => {
    const { broker, listened, answer } = slowBroker();
    const channels = createChannels({ broker });
    let error: unknown;
    await using server = await serveStreams(
      (given) => void given.subscribe('a').catch((reason: unknown) => (error = reason)),
      {
        channels,
      },
    );
    using reader = await read(server.url);
    await until('the subscription', () => listened.length === 1);
    answer(new Error('no broker'));
    await until('the subscription to reject', () => error !== undefined);
    expect(error).toEqual(new Error('no broker'));
    expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0 });
    expect(reader.ended).toBe(false);
  });
});

describe('a historyFor', () => {
  test('that closes the subscribing stream leaves no subscription', async () => {
    let closing: EventStream | undefined;
    const channels = createChannels({
      historyFor: () => {
        closing?.close();
        return undefined;
      },
    });
    let returned = false;
    await using server = await serveStreams(
      async (given) => {
        closing = given.send('hi') ? given : undefined;
        await given.subscribe(['a', 'b']);
        returned = true;
      },
      { channels },
    );
    using reader = await read(server.url);
    await reader.end();
    await until('the handler to return', () => returned);
    await until('the response to close', () => (server.streams[0] as EventStream).res.closed);
    expect(channels.stats()).toMatchObject({ channels: 0, subscriptions: 0, behind: 0 });
  });

  test('that throws rejects subscribe; if the handler ignores this, the stream opens', async () => {
    const channels = createChannels({
      historyFor: (name) => {
        if (name === 'bad') throw new Error('no such room');
        return undefined;
      },
    });
    const swallowed: unknown[] = [];
    await using server = await serveStreams(
      (given) => given.subscribe('bad').catch((error: unknown) => void swallowed.push(error)),
      { channels },
    );
    using reader = await read(server.url);
    expect([reader.response.status, swallowed]).toEqual([200, [new Error('no such room')]]);
    const [given] = server.streams as [EventStream];
    await given.subscribe('good');
    await channels.publish('good', 'hello');
    expect((await reader.next()).data).toBe('hello');
    expect(channels.stats()).toMatchObject({ channels: 1, subscriptions: 1 });
  });
});

test('stream() and res.sse.subscribe work together in one route', async () => {
  const channels = createChannels();
  await using server = await serveStreams(() => {}, { channels });
  server.app.get(
    '/mixed',
    stream(async (given) => {
      given.send('hello');
      await given.subscribe('a');
    }),
  );
  using reader = await read(`${server.url}/mixed`);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  await channels.publish('a', 'from the channel');
  expect((await reader.take(2)).map((event) => event.data)).toEqual(['hello', 'from the channel']);
});
