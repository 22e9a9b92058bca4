/** The async context (`AsyncLocalStorage`) of the application's functions, and its release. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { expect, test } from 'vitest';
import { createChannels, type Channels, type EventStream } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';
import { liveHeap } from './support/heap.ts';
import { until } from './support/wait.ts';

interface Store {
  readonly user: string;
}

const requests = new AsyncLocalStorage<Store>();

function user(): string | undefined {
  return requests.getStore()?.user;
}

/** Streams whose requests have their own store. The query names the store. */
function serveUsers(handler: (stream: EventStream) => unknown, channels?: Channels) {
  return serveStreams(
    (stream, req) => requests.run({ user: req.query['user'] as string }, () => handler(stream)),
    { channels },
  );
}

test('a filter runs in the context of the request that subscribed, not in that of the publisher', async () => {
  const channels = createChannels();
  const seen: [string, string | undefined][] = [];
  await using server = await serveUsers(
    (stream) =>
      stream.subscribe('a', {
        filter: ({ data }) => {
          seen.push([data, user()]);
          return true;
        },
      }),
    channels,
  );
  using ada = await read(`${server.url}?user=ada`);
  using bob = await read(`${server.url}?user=bob`);
  await until('both subscriptions', () => channels.stats().subscriptions === 2);
  await requests.run({ user: 'publisher' }, () => channels.publish('a', 'live'));
  await Promise.all([ada.next(), bob.next()]);
  // A flush runs in the context of the call that flushes.
  void requests.run({ user: 'publisher' }, () => channels.publish('a', 'flushed'));
  for (const stream of server.streams) requests.run({ user: 'sender' }, () => stream.comment());
  await Promise.all([ada.next(), bob.next()]);
  expect(seen.toSorted()).toEqual([
    ['flushed', 'ada'],
    ['flushed', 'bob'],
    ['live', 'ada'],
    ['live', 'bob'],
  ]);
});

test('an onGap in mid-stream runs in the context of the request that subscribed', async () => {
  const channels = createChannels({ history: { events: 1 } });
  await using server = await serveUsers(
    (stream) =>
      stream.subscribe('a', {
        onGap: (_, { cursor }) => {
          stream.send(`snapshot for ${user()}`);
          return cursor;
        },
      }),
    channels,
  );
  using ada = await read(`${server.url}?user=ada`);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  requests.run({ user: 'publisher' }, () => {
    for (let count = 0; count < 3; count++) void channels.publish('a', 'x'.repeat(40_000));
    // More is pending than a flush delivers, so the stream reads the rest from the log, which has
    // trimmed it.
    server.streams[0]?.send('now');
  });
  await until('the snapshot', () => ada.events.some(({ data }) => data.startsWith('snapshot')));
  expect(ada.events.find(({ data }) => data.startsWith('snapshot'))?.data).toBe('snapshot for ada');
});

test('a source is released in the context of the request that piped it', async () => {
  const returned: (string | undefined)[] = [];
  const source = {
    [Symbol.asyncIterator]: () => ({
      next: () => new Promise<IteratorResult<string>>(() => {}),
      return: () => {
        returned.push(user());
        return Promise.resolve({ done: true as const, value: undefined });
      },
    }),
  };
  await using server = await serveUsers((stream) => stream.open().pipe(source));
  using ada = await read(`${server.url}?user=ada`);
  requests.run({ user: 'admin' }, () => server.events.closeWhere(() => true));
  await ada.end();
  expect(returned).toEqual(['ada']);
});

test('work of the library itself runs outside the context of any request', async () => {
  const seen: (string | undefined)[] = [];
  await using server = await serveStreams(
    (stream) => requests.run({ user: 'ada' }, () => stream.open()),
    {
      maxLifetime: 50,
      heartbeat: 20,
    },
  );
  function note(message: unknown): void {
    if (server.streams.includes((message as { stream: EventStream }).stream)) seen.push(user());
  }
  subscribe('res-sse:close', note);
  try {
    using aged = await read(server.url);
    await aged.end();
    await until('the end', () => seen.length > 0);
    expect([seen, await server.streams[0]?.closed]).toEqual([[undefined], 'aged']);
  } finally {
    unsubscribe('res-sse:close', note);
  }
});

test('the store of an ended stream is garbage-collected while other streams continue', async () => {
  const channels = createChannels();
  let store: WeakRef<Store> | undefined;
  await using server = await serveStreams(
    (stream, req) => {
      const own = { user: req.query['user'] as string };
      // The first stream starts the timer of the monitor, and lets the broker listen to the
      // channel.
      store ??= new WeakRef(own);
      return requests.run(own, () => stream.subscribe('a'));
    },
    { channels },
  );
  const first = await read(`${server.url}?user=first`);
  using second = await read(`${server.url}?user=second`);
  await until('both subscriptions', () => channels.stats().subscriptions === 2);
  await channels.publish('a', 'hello');
  await second.next();
  first.close();
  server.streams.splice(0);
  await until('the end of the first', () => channels.stats().subscriptions === 1);
  await until('the store to be collected', async () => {
    await liveHeap();
    return store?.deref() === undefined;
  });
  await channels.publish('a', 'still here');
  expect((await second.next()).data).toBe('still here');
});
