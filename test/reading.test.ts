/** Reading channels in the process, with the broker in this process. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { createChannels, memoryBroker, type Subscription } from '../src/index.ts';
import { serveStreams } from './support/app.ts';
import { brokerWith } from './support/broker-with.ts';
import { read } from './support/reader.ts';
import { until } from './support/wait.ts';
import { testReading } from './promises/reading.ts';
import { memoryNodes } from './promises/nodes.ts';

testReading(memoryNodes);

test('follow with { last } starts in the call, and misses nothing that is published after it', async () => {
  const channels = createChannels();
  await channels.publish('a', '1');
  const events = channels.follow('a', { since: { last: 1 } });
  for (const text of ['2', '3', '4']) void channels.publish('a', text);
  const taken: string[] = [];
  for await (const { data } of events) {
    taken.push(data);
    if (data === '4') break;
  }
  expect(taken).toEqual(['1', '2', '3', '4']);
});

test.each([
  ['start', 'start'],
  ['{ last }', { last: 1 }],
])('follow since %s: events that are lost after the call are a gap', async (_what, since) => {
  const channels = createChannels({ history: { events: 2 } });
  for (const text of ['1', '2', '3']) await channels.publish('a', text);
  const early = channels.follow('a', { since });
  const late = channels.follow('a', { since });
  await channels.publish('a', '4');
  expect((await early.next()).value?.data).toBe('3');
  await early.return?.();
  for (const text of ['5', '6']) await channels.publish('a', text);
  await expect(late.next()).rejects.toMatchObject({ code: 'ERR_SSE_GAP' });
});

test.each([
  ['start', 'start'],
  ['{ last }', { last: 3 }],
] as const)(
  'a stream since %s: events that are lost before its first page are a gap',
  async (_what, since) => {
    const channels = createChannels({ history: { events: 10 } });
    await channels.publish('b', 'old');
    let subscribed: Promise<Subscription> | undefined;
    await using server = await serveStreams(
      async (stream) => {
        await stream.subscribe('a');
        // As long as the client has not read this event, the stream reads no page of the log.
        stream.send('x'.repeat(1_000_000));
        subscribed = stream.subscribe('b', { since });
        for (let n = 1; n <= 100; n++) void channels.publish('b', `${n}`);
      },
      { channels },
    );
    using reader = await read(server.url);
    await until('the newest event', () => reader.events.at(-1)?.data === '100');
    expect(reader.events.map(({ event, data }) => event ?? data.slice(0, 3))).toEqual([
      'xxx',
      'sse:gap',
      ...Array.from({ length: 10 }, (_, n) => `${n + 91}`),
    ]);
    expect((await subscribed)?.recovered).toBe(false);
  },
);

test('a consumer that is stopped at any time is not kept by the registry', async () => {
  const broker = memoryBroker();
  let onRead: (() => void) | undefined;
  const channels = createChannels({
    broker: brokerWith(broker, {
      read: (...args) => {
        onRead?.();
        return broker.read(...args);
      },
    }),
  });
  await channels.publish('a', 'event');
  const followAndStop = async (microtasks: number): Promise<WeakRef<object>> => {
    const stop = new AbortController();
    const countDown = (left: number): void => {
      if (left === 0) stop.abort();
      else queueMicrotask(() => countDown(left - 1));
    };
    onRead = () => countDown(microtasks);
    const consumer = channels.follow('a', { signal: stop.signal });
    await consumer.next();
    return new WeakRef(consumer);
  };
  const consumers: WeakRef<object>[] = [];
  for (let microtasks = 0; microtasks < 12; microtasks++) {
    consumers.push(await followAndStop(microtasks));
  }
  await until('the consumers to be collected', async () => {
    await nextTurn();
    globalThis.gc?.();
    return consumers.every((ref) => ref.deref() === undefined);
  });
  expect(channels.stats().channels).toBe(0);
});
