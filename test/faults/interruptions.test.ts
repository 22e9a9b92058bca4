import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  memoryBroker,
  sse,
  type Channels,
  type EventStream,
} from '../../src/index.ts';
import type { Receiver } from '../../src/brokers/broker.ts';
import { brokerWith } from '../support/broker-with.ts';
import { connectFake } from '../support/crowd.ts';
import { LossyBroker } from '../support/lossy-broker.ts';
import { until, within } from '../support/wait.ts';

/** A broker elsewhere may miss something or lose its log at any moment. */

interface OpenStream {
  readonly stream: EventStream;
  /** Everything that was written to the reader. */
  readonly text: () => string;
}

function openStream(channels: Channels, lastEventId = '', options: object = {}): OpenStream {
  let text = '';
  const events = sse({ channels, warnings: false, ...options });
  const { stream } = connectFake(events, (bytes) => (text += bytes.toString()), lastEventId);
  return { stream, text: () => text };
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await nextTurn();
}

function dataOf(text: string): string[] {
  return [...text.matchAll(/^data: (\w+)$/gm)].map(([, data = '']) => data);
}

describe('an interruption of many streams that follow channels with and without history', () => {
  test('does not stop the fan-out when an event without history comes before the streams have left', async () => {
    const log = memoryBroker();
    let receiver: Receiver | undefined;
    const broker = brokerWith(log, {
      open: (opened, bounds) => {
        receiver = opened;
        log.open(opened, bounds);
      },
    });
    const channels = createChannels({
      broker,
      historyFor: (name) => (name.startsWith('live') ? false : undefined),
    });
    const events = sse({ channels, warnings: false });
    let received = 0;
    for (let index = 0; index < 600; index++) {
      const { stream } = connectFake(events, (bytes) => {
        received += dataOf(bytes.toString()).filter((data) => data === 'second').length;
      });
      await stream.subscribe(['news', `live${Math.floor(index / 100)}`]);
    }
    await channels.publish('news', 'first');
    await turns(10);
    void channels.publish('live0', 'tick');
    receiver?.interrupted();
    await turns(10);
    await until('all streams to be live again', () => channels.stats().behind === 0);
    await channels.publish('news', 'second');
    await turns(20);
    expect(received).toBe(600);
  });
});

describe('a log that is lost while a second subscription waits for its place', () => {
  /** Subscribes to `x`, whose channel is not listened to yet, and to `y`, which waits for `x`. */
  async function subscribeBoth(lastEventId: string) {
    const broker = new LossyBroker();
    let listen: (() => void) | undefined;
    broker.listening.set('x', new Promise((resolve) => (listen = resolve)));
    const channels = createChannels({ broker });
    for (let index = 0; index < 10; index++) await channels.publish('y', `old${index}`);
    const { stream, text } = openStream(channels, lastEventId);
    const subscriptions = [stream.subscribe('x'), stream.subscribe('y')] as const;
    await turns(5);
    return { broker, channels, text, subscriptions, listen: () => listen?.() };
  }

  test('is reported as a gap to a client that resumes, before the new events', async () => {
    const { broker, channels, text, subscriptions, listen } = await subscribeBoth('A.5');
    broker.lose();
    for (const data of ['new1', 'new2']) await channels.publish('y', data);
    listen();
    await turns(2);
    for (const data of ['new3', 'new4']) await channels.publish('y', data);
    const [x, y] = await Promise.all(subscriptions);
    await channels.publish('y', 'live');
    await turns(10);
    expect(dataOf(text())).toEqual(['new1', 'new2', 'new3', 'new4', 'live']);
    expect([x.recovered, y.recovered]).toEqual([false, false]);
    expect([x.gaps, y.gaps]).toEqual([1, 1]);
  });

  test('does not lose events that are published after the start of a client without an id is known', async () => {
    const { broker, channels, text, subscriptions, listen } = await subscribeBoth('');
    broker.lose();
    for (const data of ['early1', 'early2']) await channels.publish('y', data);
    listen();
    await turns(2);
    for (const data of ['new3', 'new4']) await channels.publish('y', data);
    await Promise.all(subscriptions);
    await channels.publish('y', 'live');
    await turns(10);
    expect(dataOf(text()).filter((data) => !data.startsWith('early'))).toEqual([
      'new3',
      'new4',
      'live',
    ]);
  });

  test('is noticed by a stream of the old log that subscribes before it has read the new one', async () => {
    const broker = new LossyBroker();
    const channels = createChannels({ broker });
    const { stream, text } = openStream(channels);
    const first = await stream.subscribe('x');
    for (let index = 0; index < 10; index++) await channels.publish('x', `x${index}`);
    await turns(5);
    let open: (() => void) | undefined;
    broker.gate = new Promise((resolve) => (open = resolve));
    broker.lose();
    for (const data of ['before1', 'before2', 'before3']) await channels.publish('y', data);
    await turns(3);
    const subscribing = stream.subscribe('y');
    await turns(3);
    open?.();
    const second = await within('the second subscription', subscribing);
    await turns(5);
    await channels.publish('y', 'live');
    await turns(5);
    expect(text()).not.toContain('{"cursor":"A.3"}');
    expect(dataOf(text()).filter((data) => !/^x\d$/.test(data))).toEqual(['live']);
    expect([first.gaps, second.gaps]).toEqual([1, 0]);
    expect(second.recovered).toBe(true);
  });
});

test('a reader that subscribes while a failed listen rejects for 600 others asks the broker again', async () => {
  const log = memoryBroker();
  const listened = new Set<string>();
  let fail: ((error: Error) => void) | undefined;
  const broker = brokerWith(log, {
    open: (receiver, bounds) =>
      log.open(
        {
          follows: (channel) => listened.has(channel),
          receive: (entry) => receiver.receive(entry),
          interrupted: () => receiver.interrupted(),
        },
        bounds,
      ),
    listen: (channel) => {
      if (fail === undefined) return new Promise((_, reject) => (fail = reject));
      listened.add(channel);
      return Promise.resolve(log.listen(channel));
    },
  });
  const channels = createChannels({ broker });
  const events = sse({ channels, warnings: false });
  let failures = 0;
  for (let index = 0; index < 600; index++) {
    connectFake(events)
      .stream.subscribe('a')
      .catch(() => failures++);
  }
  await turns(2);
  fail?.(new Error('refused'));
  await until('the first slice of failures', () => failures > 0);
  expect(failures).toBeLessThan(600);
  const { stream, text } = openStream(channels);
  await within('the subscription of the newcomer', stream.subscribe('a'));
  await until('the failures of all others', () => failures === 600);
  await channels.publish('a', 'hello');
  await until('the event', () => dataOf(text()).includes('hello'));
});

test('a stream whose onGap has thrown gets no further event, even if onError subscribes it', async () => {
  const channels = createChannels({ history: { events: 1 } });
  const cursor = await channels.cursor();
  for (const data of ['a0', 'a1', 'a2']) await channels.publish('a', data);
  const { stream, text } = openStream(channels, cursor, {
    onError: (_: unknown, failed: EventStream) => void failed.subscribe('fallback'),
  });
  void stream.subscribe('a', { onGap: () => Promise.reject(new Error('the database is away')) });
  expect(await within('the end', stream.closed)).toBe('error');
  expect(dataOf(text())).toEqual([]);
});
