import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { ServerResponse } from 'node:http';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  type Channels,
  type EventStream,
  type Subscription,
} from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { dial, requestText } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

/**
 * Callbacks of the application that call back into the library while the library is calling them.
 * Each test repeats a situation in which an earlier version lost or repeated events, or crashed.
 */

function data(events: { data: string }[]): string[] {
  return events.map((event) => event.data);
}

async function publishAll(channels: Channels, name: string, ...all: string[]): Promise<string[]> {
  const ids: string[] = [];
  for (const each of all) ids.push((await channels.publish(name, each)).id);
  return ids;
}

async function untilCollected(refs: readonly WeakRef<object>[]): Promise<void> {
  await until('the objects to be collected', async () => {
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc?.();
    return refs.every((ref) => ref.deref() === undefined);
  });
}

test('a filter that throws during unsubscribe loses no event of another reader', async () => {
  const channels = createChannels();
  let subscription: Subscription | undefined;
  await using server = await serveStreams(
    async (stream, req) => {
      const isBad = 'bad' in req.query;
      const made = await stream.subscribe('a', {
        filter: () => {
          if (isBad) throw new Error('boom');
          return true;
        },
      });
      if (isBad) subscription = made;
    },
    { channels },
  );
  using good = await read(server.url);
  using bad = await read(`${server.url}?bad`);
  await until('both subscriptions', () => channels.stats().subscriptions === 2);
  void channels.publish('a', 'one');
  subscription?.unsubscribe();
  await bad.end();
  expect(channels.stats()).toMatchObject({ channels: 1, subscriptions: 1 });
  await publishAll(channels, 'a', 'two', 'three');
  expect(data(await good.take(3))).toEqual(['one', 'two', 'three']);
  expect(server.errors.splice(0)).toHaveLength(1);
});

test('a filter that throws on a channel without history ends only its own stream', async () => {
  const channels = createChannels({ historyFor: (name) => (name === 'live' ? false : undefined) });
  await using server = await serveStreams(
    (stream, req) =>
      stream.subscribe(req.query['bad'] === undefined ? ['live', 'a'] : 'live', {
        filter: () => {
          if (req.query['bad'] !== undefined) throw new Error('boom');
          return true;
        },
      }),
    { channels },
  );
  using bad = await read(`${server.url}?bad`);
  using good = await read(server.url);
  await until('all subscriptions', () => channels.stats().subscriptions === 3);
  void channels.publish('live', 'one');
  void channels.publish('a', 'two');
  await bad.end();
  expect(await (server.streams[0] as EventStream).closed).toBe('error');
  expect(data(await good.take(2)).toSorted()).toEqual(['one', 'two']);
  await channels.publish('live', 'three');
  expect((await good.next()).data).toBe('three');
  expect(server.errors.splice(0)).toHaveLength(1);
});

test('a filter that throws ends its stream in order, if a wrapped write then closes the stream', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    async (stream) => {
      await stream.subscribe('a', {
        checkpoints: false,
        filter: ({ data: given }) => {
          if (given === 'two') throw new Error('boom');
          return true;
        },
      });
      const { res } = stream;
      const write = res.write.bind(res);
      res.write = ((...args: Parameters<typeof write>) => {
        if (String(args[0]).includes('one')) stream.close({ retry: 7 });
        return write(...args);
      }) as typeof res.write;
    },
    { channels },
  );
  using reader = await read(server.url);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  void channels.publish('a', 'one');
  void channels.publish('a', 'two');
  await reader.end();
  expect(data(reader.events)).toEqual(['one']);
  expect(channels.stats().subscriptions).toBe(0);
  expect(server.errors.splice(0)).toHaveLength(1);
});

test.each<[string, (stream: EventStream, subscription: () => Subscription | undefined) => void]>([
  ['sends', (stream) => stream.send('from the filter')],
  ['closes its stream', (stream) => stream.close()],
  ['unsubscribes', (_stream, subscription) => subscription()?.unsubscribe()],
])('a filter that %s is called once for each event', async (_, act) => {
  for (const history of [undefined, false] as const) {
    let calls = 0;
    let subscription: Subscription | undefined;
    const channels = createChannels({ history });
    await using server = await serveStreams(
      async (stream) => {
        subscription = await stream.subscribe('a', {
          filter: () => {
            calls++;
            act(stream, () => subscription);
            return true;
          },
        });
      },
      { channels },
    );
    using reader = await read(server.url);
    await until('the subscription', () => subscription !== undefined);
    await publishAll(channels, 'a', '1');
    await until('the call of the filter', () => calls > 0);
    (server.streams[0] as EventStream).send('after');
    await new Promise((resolve) => setImmediate(resolve));
    expect(calls).toBe(1);
    reader.close();
  }
});

test('a filter that subscribes to another channel neither repeats nor loses events', async () => {
  const channels = createChannels();
  const before = await publishAll(channels, 'room', 'r0', 'r1');
  await using server = await serveStreams(
    async (stream) => {
      await stream.subscribe('invites', {
        filter: (event) => {
          if (event.data === 'invited') {
            void stream.subscribe('room', { since: before[0] as string, resume: false });
          }
          return true;
        },
      });
    },
    { channels },
  );
  using reader = await read(server.url);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  for (const each of ['i1', 'invited', 'i2']) void channels.publish('invites', each);
  expect(data(await reader.take(4)).toSorted()).toEqual(['i1', 'i2', 'invited', 'r1']);
  await publishAll(channels, 'room', 'r2');
  await publishAll(channels, 'invites', 'i3');
  expect(data(await reader.take(2))).toEqual(['r2', 'i3']);
  expect(reader.events).toHaveLength(6);
});

test('a filter that subscribes during catch-up loses no event of the new channel', async () => {
  const channels = createChannels();
  const [first] = await publishAll(channels, 'invites', 'i0');
  await publishAll(channels, 'room', 'r1', 'r2');
  await publishAll(channels, 'invites', 'invited');
  await publishAll(channels, 'room', 'r3');
  await using server = await serveStreams(
    async (stream) => {
      await stream.subscribe('invites', {
        filter: (event) => {
          if (event.data === 'invited') void stream.subscribe('room');
          return true;
        },
      });
    },
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': first as string } });
  expect(data(await reader.take(4))).toEqual(['invited', 'r1', 'r2', 'r3']);
  await publishAll(channels, 'room', 'r4');
  expect((await reader.next()).data).toBe('r4');
});

test('a res-sse:open subscriber can subscribe the stream to another channel', async () => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  const greet = (message: unknown): void =>
    void (message as { stream: EventStream }).stream.subscribe('broadcast');
  subscribe('res-sse:open', greet);
  using reader = await read(server.url);
  await until('both subscriptions', () => channels.stats().subscriptions === 2);
  unsubscribe('res-sse:open', greet);
  await publishAll(channels, 'a', '1');
  await publishAll(channels, 'broadcast', '2');
  expect(data(await reader.take(2))).toEqual(['1', '2']);
  reader.close();
  await until('the stream to end', () => server.events.streams.size === 0);
  expect(channels.names()).toEqual([]);
});

test('a stream that ends in the middle of a page is garbage-collected', async () => {
  if (globalThis.gc === undefined) {
    throw new Error('run node with --expose-gc, as vitest.config.ts does');
  }
  const channels = createChannels();
  const [first] = await publishAll(channels, 'a', '0', '1', '2');
  await using server = await serveStreams(
    (stream) =>
      void stream.subscribe('a', {
        filter: (event) => (event.data === '2' && stream.close(), true),
      }),
    { channels },
  );
  const refs: WeakRef<EventStream>[] = [];
  for (let n = 0; n < 10; n++) {
    using reader = await read(server.url, {
      headers: { 'Last-Event-ID': first as string, Connection: 'close' },
    });
    await reader.end();
    refs.push(new WeakRef(server.streams.pop() as EventStream));
  }
  await until('all sockets to close', () => server.sockets.size === 0);
  await untilCollected(refs);
});

test.each<[string, (stream: EventStream, subscription: Subscription, publish: () => void) => void]>(
  [
    ['unsubscribe()', (_stream, subscription, publish) => (publish(), subscription.unsubscribe())],
    ['close()', (stream, _subscription, publish) => (publish(), stream.close())],
    [
      'close({ final: true })',
      (stream, _subscription, publish) => (publish(), stream.close({ final: true })),
    ],
    [
      'send() and close()',
      (stream, _subscription, publish) => (publish(), stream.send('own'), stream.close()),
    ],
  ],
)(
  'data that a filter parsed is garbage-collected after %s of the last stream of a channel',
  async (_, act) => {
    if (globalThis.gc === undefined) {
      throw new Error('run node with --expose-gc, as vitest.config.ts does');
    }
    for (const history of [undefined, false] as const) {
      const channels = createChannels({ history });
      const kept: Promise<unknown>[] = [];
      const refs: WeakRef<object>[] = [];
      let subscription: Subscription | undefined;
      await using server = await serveStreams(
        async (stream) => {
          subscription = await stream.subscribe('a', {
            filter: (event) => (refs.push(new WeakRef(event.json() as object)), true),
          });
        },
        { channels },
      );
      using reader = await read(server.url);
      await until('the subscription', () => subscription !== undefined);
      act(server.streams[0] as EventStream, subscription as Subscription, () => {
        for (let count = 0; count < 5; count++) kept.push(channels.publish('a', { count }));
      });
      await Promise.all(kept);
      await until('five calls of the filter', () => refs.length === 5);
      expect(channels.stats().history.events).toBe(history === false ? 0 : 5);
      await untilCollected(refs);
      reader.close();
    }
  },
);

test('data that a filter parsed is garbage-collected after the filter throws', async () => {
  const channels = createChannels();
  for (let count = 0; count < 5; count++) await channels.publish('a', { count });
  const refs: WeakRef<object>[] = [];
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('a', {
        since: 'start',
        filter: (event) => {
          refs.push(new WeakRef(event.json() as object));
          if (refs.length === 3) throw new Error('boom');
          return true;
        },
      }),
    { channels },
  );
  await fetch(server.url, { headers: { Accept: 'text/event-stream' } }).then(
    (response) => response.text(),
    () => '',
  );
  await until('three calls of the filter', () => refs.length === 3);
  expect(channels.stats().history.events).toBe(5);
  await untilCollected(refs);
  expect(server.errors.splice(0).length).toBeGreaterThan(0);
});

test('an onGap that awaits another subscription of its stream does not deadlock', async () => {
  const channels = createChannels({ history: { events: 1 } });
  const ids = await publishAll(channels, 'a', '1', '2', '3');
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('a', {
        onGap: async (_stream, gap) => {
          await stream.subscribe('b', { resume: false });
          return gap.cursor;
        },
      }),
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': ids[0] as string } });
  await until(
    'the stream to be live',
    () => channels.stats().behind === 0 && channels.stats().subscriptions === 2,
  );
  await publishAll(channels, 'b', 'b1');
  await publishAll(channels, 'a', '4');
  expect(data(await reader.take(2))).toEqual(['b1', '4']);
});

test('onGap is not called for a subscription that ended during the onGap of another', async () => {
  const channels = createChannels();
  await publishAll(channels, 'a', '1');
  const asked: string[] = [];
  const answer: (() => void)[] = [];
  const subscriptions: Subscription[] = [];
  await using server = await serveStreams(
    async (stream) => {
      const all = ['a', 'b', 'c'].map((name) =>
        stream
          .subscribe(name, {
            onGap: (_stream, gap) => {
              asked.push(name);
              if (name === 'c') throw new Error('onGap of c was called');
              return new Promise<string>((resolve) => answer.push(() => resolve(gap.cursor)));
            },
          })
          .then((subscription) => subscriptions.push(subscription)),
      );
      await Promise.all(all);
    },
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': 'elsewhere.3' } });
  await until('the call of onGap for a', () => asked.length === 1);
  answer.shift()?.();
  await until('the call of onGap for b', () => asked.length === 2);
  // The calls of `subscribe` for b and c came during the `onGap` of a, so they did not wait for
  // their start.
  await until('the subscription to c', () =>
    subscriptions.some((subscription) => subscription.channels[0] === 'c'),
  );
  subscriptions.find((subscription) => subscription.channels[0] === 'c')?.unsubscribe();
  answer.shift()?.();
  await until('the stream to be live', () => channels.stats().behind === 0);
  await publishAll(channels, 'b', 'still here');
  expect((await reader.next()).data).toBe('still here');
  expect(asked).toEqual(['a', 'b']);
});

describe('an onGap that is pending when its subscription ends', () => {
  interface Asked {
    resolve: (cursor?: string) => void;
    reject: (error: Error) => void;
    cursor: string;
  }

  /** Serves a stream whose `onGap` for channel `x` has been called and has not answered yet. */
  async function serveAsked(others: string[]) {
    const channels = createChannels({ history: { events: 2 } });
    let asked: Asked | undefined;
    let subscription: Subscription | undefined;
    const server = await serveStreams(
      async (stream) => {
        subscription = await stream.subscribe('x', {
          onGap: (_stream, { cursor }) =>
            new Promise<string | undefined>((resolve, reject) => {
              asked = { resolve, reject, cursor };
            }),
        });
        for (const other of others) await stream.subscribe(other);
      },
      { channels },
    );
    const reader = await read(server.url);
    await until('the subscriptions', () => channels.stats().subscriptions === 1 + others.length);
    // More bytes than the queue of a stream holds, so the stream has to read the log. The log keeps
    // two events, so the stream finds a gap.
    for (let count = 0; count < 60; count++) void channels.publish('x', 'x'.repeat(300_000));
    await until('the call of onGap', () => asked !== undefined);
    return {
      channels,
      reader,
      stream: server.streams[0] as EventStream,
      asked: asked as unknown as Asked,
      subscription: subscription as Subscription,
      received: () => data(reader.events.filter(({ event }) => event !== 'sse:gap')),
      async [Symbol.asyncDispose]() {
        reader.close();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  const ENDS: [string, (asked: Asked) => void][] = [
    ['rejects', ({ reject }) => reject(new Error('the snapshot failed'))],
    ['hangs', () => {}],
    ['answers', ({ resolve, cursor }) => resolve(cursor)],
  ];

  test.each(ENDS)(
    'and then %s leaves the stream open, and its other channels are delivered',
    async (_, end) => {
      await using gap = await serveAsked(['y']);
      gap.subscription.unsubscribe();
      end(gap.asked);
      await publishAll(gap.channels, 'y', 'y1', 'y2');
      await until('two events', () => gap.received().length === 2);
      await until('the stream to be live', () => gap.channels.stats().behind === 0);
      await publishAll(gap.channels, 'y', 'y3');
      await until('a third event', () => gap.received().length === 3);
      expect(gap.received()).toEqual(['y1', 'y2', 'y3']);
      expect(gap.stream.readyState).toBe(1);
    },
  );

  test.each(ENDS)(
    'and then %s does not delay the next subscription of its stream',
    async (_, end) => {
      await using gap = await serveAsked([]);
      gap.subscription.unsubscribe();
      await within('the next subscription', gap.stream.subscribe('y'));
      await publishAll(gap.channels, 'y', 'y1');
      await until('the first event', () => gap.received().length === 1);
      end(gap.asked);
      await publishAll(gap.channels, 'y', 'y2');
      await until('the second event', () => gap.received().length === 2);
      expect(gap.received()).toEqual(['y1', 'y2']);
      expect([gap.stream.readyState, gap.channels.stats().behind]).toEqual([1, 0]);
    },
  );
});

test('an onGap that returns a cursor does not skip events of complete channels', async () => {
  const channels = createChannels({
    historyFor: (name) => (name === 'small' ? { events: 1 } : undefined),
  });
  const [first] = await publishAll(channels, 'small', 's1', 's2');
  await publishAll(channels, 'large', 'l1', 'l2');
  await publishAll(channels, 'small', 's3');
  const gaps: unknown[] = [];
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe(['small', 'large'], {
        onGap: (_stream, gap) => (
          gaps.push(gap.channels),
          stream.send('snapshot of small'),
          gap.cursor
        ),
      }),
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': first as string } });
  expect(data(await reader.take(3))).toEqual(['snapshot of small', 'l1', 'l2']);
  await publishAll(channels, 'small', 's4');
  expect((await reader.next()).data).toBe('s4');
  expect(gaps).toEqual([['small']]);
});

test('onGap gets the channels of its own subscription; other gaps are sent in-band', async () => {
  const channels = createChannels({ history: { events: 1 } });
  const asked: unknown[] = [];
  const [first] = await publishAll(channels, 'a', '1', '2', '3');
  await publishAll(channels, 'b', '1', '2', '3');
  await publishAll(channels, 'c', '1', '2', '3');
  const subscriptions: Promise<Subscription>[] = [];
  await using server = await serveStreams(
    async (stream) => {
      for (const name of ['a', 'b']) {
        subscriptions.push(
          stream.subscribe(name, {
            onGap: (_stream, gap) => (asked.push([name, gap.channels]), gap.cursor),
          }),
        );
      }
      subscriptions.push(stream.subscribe('c'));
      await Promise.all(subscriptions);
    },
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': first as string } });
  const [gap, event] = await reader.take(2);
  expect(asked).toEqual([
    ['a', ['a']],
    ['b', ['b']],
  ]);
  expect([gap?.event, JSON.parse(gap?.data ?? '')]).toEqual([
    'sse:gap',
    expect.objectContaining({ channels: ['c'] }),
  ]);
  expect(event?.data).toBe('3');
  expect(await within('all subscriptions', Promise.all(subscriptions))).toHaveLength(3);
});

test('a checkpoint is sent when a later subscribe steps back, and after the catch-up', async () => {
  const channels = createChannels();
  await publishAll(channels, 'b', 'b1', 'b2');
  const cursor = await channels.cursor();
  await publishAll(channels, 'b', 'b3');
  await publishAll(channels, 'a', 'a4');
  await using server = await serveStreams(
    async (stream) => {
      await stream.subscribe('a', { since: 'start' });
      await stream.subscribe('b', { since: cursor });
    },
    { channels },
  );
  using reader = await read(server.url);
  expect(data(await reader.take(2))).toEqual(['a4', 'b3']);
  await until('three checkpoints', () => reader.checkpoints.length === 3);
  // One checkpoint at the start, one at the start of b (before b3), one at the head.
  expect(reader.checkpoints.slice(1)).toEqual([cursor, await channels.cursor()]);
  const [stepBack, b3, head] = [
    reader.text.indexOf(`event: sse:checkpoint\ndata: {"cursor":"${cursor}"}`),
    reader.text.indexOf('data: b3'),
    reader.text.lastIndexOf('sse:checkpoint'),
  ];
  expect([stepBack < b3, b3 < head, stepBack > reader.text.indexOf('data: a4')]).toEqual([
    true,
    true,
    true,
  ]);
});

test('a channel that is subscribed again during catch-up starts at its new cursor', async () => {
  const channels = createChannels();
  await publishAll(
    channels,
    'x',
    ...Array.from({ length: 400 }, (_, index) => `${index}:${'x'.repeat(1_000)}`),
  );
  const y = await publishAll(channels, 'y', 'y1', 'y2', 'y3');
  await using server = await serveStreams(
    async (stream) => {
      await stream.subscribe('x', { since: 'start' });
      const first = await stream.subscribe('y');
      first.unsubscribe();
      await stream.subscribe('y', { since: y[0] as string });
    },
    { channels },
  );
  using reader = await read(server.url);
  const events = await reader.take(402);
  expect(data(events).filter((each) => each.startsWith('y'))).toEqual(['y2', 'y3']);
});

/**
 * Replaces `res.write`, as middleware does.
 * @param before called with the text of each write
 */
function wrapWrite(res: ServerResponse, before: (text: string) => void): void {
  // oxlint-disable-next-line typescript/unbound-method -- called with the response as `this`
  const { write } = res;
  res.write = function wrapped(this: ServerResponse, ...args: Parameters<typeof write>): boolean {
    before(String(args[0]));
    return Reflect.apply(write, this, args);
  } as typeof write;
}

/** Returns a function that publishes on its first call and does nothing on later calls. */
function publishesOnce(channels: Channels, name: string, text: string): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    void channels.publish(name, text);
  };
}

const reentrantPublishers: [
  who: string,
  install: (stream: EventStream, publish: () => void) => () => void,
][] = [
  ['its filter', () => () => {}],
  [
    'a wrapped res.write',
    (stream, publish) => {
      wrapWrite(stream.res, (text) => text.includes('data: 4') && publish());
      return () => {};
    },
  ],
  [
    'a res-sse:gap subscriber',
    (_stream, publish) => {
      subscribe('res-sse:gap', publish);
      return () => void unsubscribe('res-sse:gap', publish);
    },
  ],
];

test.each(reentrantPublishers)(
  'an event that %s publishes during catch-up is delivered',
  async (who, install) => {
    const channels = createChannels({ history: { events: 2 } });
    const [first] = await publishAll(channels, 'a', '1', '2', '3', '4');
    const publish = publishesOnce(channels, 'a', 'inside');
    let uninstall = (): void => {};
    await using server = await serveStreams(
      (stream) => {
        uninstall = install(stream, publish);
        const filter = (event: { data: string }): boolean => (
          event.data === '4' && publish(),
          true
        );
        return stream.subscribe('a', who === 'its filter' ? { filter } : {});
      },
      { channels },
    );
    using reader = await read(server.url, { headers: { 'Last-Event-ID': first as string } });
    await until(
      'the stream to be live',
      () => channels.stats().subscriptions === 1 && channels.stats().behind === 0,
    );
    uninstall();
    await publishAll(channels, 'a', 'after');
    await until('the event "after"', () => data(reader.events).includes('after'));
    expect(data(reader.events.filter(({ event }) => event !== 'sse:gap'))).toEqual([
      '3',
      '4',
      'inside',
      'after',
    ]);
  },
);

test.each<[string, (stream: EventStream, subscription: Subscription) => unknown]>([
  ['another subscription ends', (_stream, subscription) => subscription.unsubscribe()],
  ['another subscription begins', (stream) => stream.subscribe('c')],
])(
  'an event that a filter of a live stream publishes is delivered if %s in the same turn',
  async (_, act) => {
    const channels = createChannels();
    const publish = publishesOnce(channels, 'a', 'inside');
    let other: Subscription | undefined;
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a', {
          filter: (event) => (event.data === 'trigger' && publish(), true),
        });
        other = await stream.subscribe('b');
      },
      { channels },
    );
    using reader = await read(server.url);
    await until('the subscriptions', () => other !== undefined && channels.stats().behind === 0);
    void channels.publish('a', 'trigger');
    void act(server.streams[0] as EventStream, other as Subscription);
    await publishAll(channels, 'a', 'after');
    await until('the event "after"', () => data(reader.events).includes('after'));
    expect(data(reader.events)).toEqual(['trigger', 'inside', 'after']);
  },
);

test('no checkpoint passes an event that a filter publishes during a heartbeat', async () => {
  const channels = createChannels();
  const inside = publishesOnce(channels, 'a', 'inside');
  // The monitor visits the newest stream first. Writing the checkpoint of that stream publishes
  // `trigger`, and the filter of the other stream publishes `inside` in response.
  const trigger = publishesOnce(channels, 'a', 'trigger');
  let isArmed = false;
  await using server = await serveStreams(
    (stream, req) => {
      if (req.query['last'] === undefined) {
        return stream.subscribe('a', {
          filter: (event) => (event.data === 'trigger' && inside(), true),
        });
      }
      wrapWrite(stream.res, (text) => isArmed && text.includes('sse:checkpoint') && trigger());
      return stream.subscribe('b');
    },
    { channels, heartbeat: 50 },
  );
  using reader = await read(server.url);
  using last = await read(`${server.url}?last`);
  await until('the subscriptions', () => channels.stats().subscriptions === 2);
  isArmed = true;
  await publishAll(channels, 'elsewhere', 'an event that moves the head');
  await until('a heartbeat', () => last.checkpoints.length > 1 && reader.events.length > 0);
  await publishAll(channels, 'a', 'after');
  await until('the event "after"', () => data(reader.events).includes('after'));
  expect(data(reader.events)).toEqual(['trigger', 'inside', 'after']);
  expectIdsToGrow(reader);
});

/** Expects the ids of events and checkpoints to grow in the order in which they were written. */
function expectIdsToGrow({ text }: Reader): void {
  const offsets = [...text.matchAll(/^id: .*\.(\d+)$/gm)].map(([, offset]) => Number(offset));
  expect(offsets).toEqual(offsets.toSorted((one, other) => one - other));
}

const CROWD = 600;

/**
 * Opens 600 streams that follow `a`, each with a filter of its own. A publish reaches so many
 * streams in several slices.
 */
async function gather(server: StreamServer, channels: Channels): Promise<Reader[]> {
  const readers = await Promise.all(Array.from({ length: CROWD }, () => read(server.url)));
  await until(
    'all streams to be live',
    () => channels.stats().subscriptions === CROWD && channels.stats().behind === 0,
  );
  return readers;
}

/**
 * Publishes two events in each turn, while the streams still receive the events of the turn before.
 */
async function publishInTurns(channels: Channels, turns: number): Promise<string[]> {
  const all: string[] = [];
  for (let turn = 0; turn < turns; turn++) {
    for (const each of [`${2 * turn}`, `${2 * turn + 1}`]) {
      all.push(each);
      void channels.publish('a', each);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  return all;
}

test('filters of 600 streams that write a comment do not change the order of events', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    (stream) => stream.subscribe('a', { filter: () => (stream.comment('seen'), true) }),
    {
      channels,
    },
  );
  const readers = await gather(server, channels);
  const published = await publishInTurns(channels, 4);
  for (const reader of readers) {
    await until('all events', () => reader.events.length >= published.length);
    expect(data(reader.events)).toEqual(published);
    reader.close();
  }
});

test('events that filters of 600 streams send as replacements keep the place of the original', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('a', {
        filter: (event) =>
          Number(event.data) % 2 === 0 ? true : (stream.send(`${event.data}, redacted`), false),
      }),
    { channels },
  );
  const readers = await gather(server, channels);
  const published = await publishInTurns(channels, 4);
  for (const reader of readers) {
    await until('all events', () => reader.events.length >= published.length);
    const [passed, redacted] = [false, true].map((isRedacted) =>
      data(reader.events).filter((each) => each.endsWith('redacted') === isRedacted),
    );
    expect(passed).toEqual(published.filter((each) => Number(each) % 2 === 0));
    expect(redacted).toEqual(
      published.filter((each) => Number(each) % 2 === 1).map((each) => `${each}, redacted`),
    );
    // The replacement takes the place of an event of the same turn, so no event of a later turn
    // comes before it.
    const turns = data(reader.events).map((each) => Math.floor(Number.parseInt(each, 10) / 2));
    expect(turns).toEqual(turns.toSorted((one, other) => one - other));
    reader.close();
  }
});

test('ids step back only with a checkpoint if a filter subscribes during a page', async () => {
  const channels = createChannels();
  const [first] = await publishAll(channels, 'invites', 'i0');
  const [before] = await publishAll(channels, 'room', 'r1', 'r2');
  await publishAll(channels, 'invites', 'invited', 'i4');
  await publishAll(channels, 'room', 'r5');
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('invites', {
        filter: (event) => {
          if (event.data === 'invited') {
            void stream.subscribe('room', { since: before as string, resume: false });
          }
          return true;
        },
      }),
    { channels },
  );
  using reader = await read(server.url, { headers: { 'Last-Event-ID': first as string } });
  await until('all events', () =>
    ['invited', 'i4', 'r2', 'r5'].every((each) => data(reader.events).includes(each)),
  );
  expect(data(reader.events)).toEqual(['invited', 'i4', 'r2', 'r5']);
  // Only a checkpoint may step back. From one checkpoint to the next, the ids of events grow.
  const written = [
    ...reader.text.matchAll(/^(event: sse:checkpoint\n)?data: .*\nid: .*\.(\d+)$/gm),
  ];
  for (const [index, [, checkpoint, offset]] of written.entries()) {
    const previous = Number(written[index - 1]?.[2] ?? 0);
    if (checkpoint === undefined) expect(Number(offset)).toBeGreaterThan(previous);
  }
});

test('close({ final: true }) in a filter writes pending events before sse:end', async () => {
  const channels = createChannels();
  await using server = await serveStreams(
    (stream) =>
      stream.subscribe('a', {
        filter: ({ event }) => {
          if (event === 'done') stream.close({ final: true });
          return true;
        },
      }),
    { channels },
  );
  using reader = await read(server.url);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  void channels.publish('a', 'one');
  void channels.publish('a', 'result', { event: 'done' });
  void channels.publish('a', 'two');
  await reader.end();
  expect(reader.events.map((each) => each.event ?? each.data)).toEqual([
    'one',
    'done',
    'two',
    'sse:end',
  ]);
});

test('close({ final: true }) ends a stream that unsubscribes during its catch-up', async () => {
  const channels = createChannels({ history: { events: 10_000, bytes: 67_108_864 } });
  let subscription: Subscription | undefined;
  await using server = await serveStreams(
    async (stream) => {
      subscription = await stream.subscribe('a', { since: 'start' });
    },
    { channels },
  );
  await publishAll(channels, 'a', ...Array.from({ length: 200 }, () => 'x'.repeat(100_000)));
  const socket = await dial(server.port, requestText('/'));
  socket.pause();
  await until(
    'the reader to be behind',
    () => channels.stats().behind === 1 && subscription !== undefined,
  );
  const stream = server.streams[0] as EventStream;
  stream.close({ final: true });
  subscription?.unsubscribe();
  socket.resume();
  expect(await within('the end', stream.closed)).toBe('final');
});

test('a gap goes to the second subscription of a channel if the first ends in onGap', async () => {
  const channels = createChannels({ history: { events: 1 } });
  const subscriptions: Subscription[] = [];
  await using server = await serveStreams(
    async (stream) => {
      subscriptions.push(
        await stream.subscribe('a', {
          onGap: () => {
            subscriptions[0]?.unsubscribe();
            return new Promise<undefined>(() => {});
          },
        }),
      );
      subscriptions.push(await stream.subscribe('a'));
    },
    { channels },
  );
  using reader = await read(server.url);
  await until('both subscriptions', () => subscriptions.length === 2);
  // More bytes than one flush writes, so the stream reads the rest from the log, which has dropped
  // it.
  for (const text of ['1', '2', '3']) void channels.publish('a', text.repeat(40_000));
  server.streams[0]?.send('now');
  await until('the newest event', () => reader.events.some((event) => event.data.startsWith('3')));
  expect(reader.events.map((event) => event.event ?? event.data[0])).toEqual([
    '1',
    'n',
    'sse:gap',
    '3',
  ]);
});

test('an onGap that subscribes again gets no gap for events before the new start', async () => {
  const channels = createChannels({ history: { events: 1 } });
  let first: Subscription | undefined;
  let second: Subscription | undefined;
  await using server = await serveStreams(
    async (stream) => {
      first = await stream.subscribe('a', {
        onGap: async () => {
          first?.unsubscribe();
          second = await stream.subscribe('a', { resume: false });
        },
      });
    },
    { channels },
  );
  using reader = await read(server.url);
  await until('the subscription', () => first !== undefined);
  for (const text of ['1', '2', '3']) void channels.publish('a', text.repeat(40_000));
  server.streams[0]?.send('now');
  await until('the new subscription', () => second !== undefined);
  await channels.publish('a', '4');
  await until('the newest event', () => reader.events.some(({ data: text }) => text === '4'));
  expect(reader.events.map((event) => event.event ?? event.data[0])).toEqual(['1', 'n', '4']);
  expect(second).toMatchObject({ recovered: true, gaps: 0 });
});

describe('a filter that publishes on a channel without history', () => {
  const historyFor = (name: string): false | undefined =>
    name.startsWith('live') ? false : undefined;

  /** Publishes `2` when the filter is shown `1`, while `change` flushes what is pending. */
  async function received(change: (other: Subscription, stream: EventStream) => unknown) {
    const channels = createChannels({ historyFor });
    let other: Subscription | undefined;
    await using server = await serveStreams(
      async (stream) => {
        other = await stream.subscribe(['other', 'live2']);
        await stream.subscribe('live', {
          filter: (event) => {
            if (event.data === '1') void channels.publish('live', '2');
            return true;
          },
        });
      },
      { channels },
    );
    using reader = await read(server.url);
    await until('three subscriptions', () => channels.stats().subscriptions === 3);
    void channels.publish('live', '1');
    change(other!, server.streams[0]!);
    await until('the flush', () => reader.text.includes('data: 1'));
    await channels.publish('live', '3');
    await until('the last event', () => reader.text.includes('data: 3'));
    return data(reader.events.filter(({ event }) => event !== 'sse:checkpoint'));
  }

  test('loses nothing when another subscription ends meanwhile', async () => {
    expect(await received((other) => other.unsubscribe())).toEqual(['1', '2', '3']);
  });

  test('loses nothing when the stream subscribes to more meanwhile', async () => {
    const subscribed = await received((_, stream) => stream.subscribe(['live3', 'more']));
    expect(subscribed).toEqual(['1', '2', '3']);
  });

  test.each(['drop', 'close'] as const)(
    'loses no event uncounted when it publishes with every event, and its reader is not slow, onSlow %o',
    async (onSlow) => {
      const channels = createChannels({ historyFor });
      let subscription: Subscription | undefined;
      let published = 0;
      await using server = await serveStreams(
        async (stream) => {
          subscription = await stream.subscribe('live2');
          await stream.subscribe('live', {
            filter: () => {
              if (published < 100) void channels.publish('live', `${++published}`);
              return true;
            },
          });
        },
        { channels, onSlow },
      );
      using reader = await read(server.url);
      await until('both subscriptions', () => channels.stats().subscriptions === 2);
      void channels.publish('live', '0');
      subscription!.unsubscribe();
      const dropped = (): number => server.events.stats().dropped;
      await until(
        'every event, received or counted',
        () => published >= 10 && reader.events.length + dropped() === published + 1,
      );
      expect(server.events.stats()).toMatchObject({ open: 1, closed: {} });
    },
  );
});
