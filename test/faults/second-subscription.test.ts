/** A stream with several subscriptions: what happens while one of them waits for the broker. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import {
  createChannels,
  sse,
  type Broker,
  type Channels,
  type EventStream,
} from '../../src/index.ts';
import { parseCursor } from '../../src/protocol/cursor.ts';
import { brokerWith } from '../support/broker-with.ts';
import { connectFake } from '../support/crowd.ts';
import { LossyBroker } from '../support/lossy-broker.ts';

interface Client {
  readonly stream: EventStream;
  /** Everything that was written to the client. */
  readonly text: () => string;
}

function connect(channels: Channels, lastEventId = ''): Client {
  let text = '';
  const events = sse({ channels, warnings: false });
  const { stream } = connectFake(events, (bytes) => (text += bytes.toString()), lastEventId);
  return { stream, text: () => text };
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await nextTurn();
}

/** The last id of the text, from which the client resumes; `''` without an id. */
function lastIdOf(text: string): string {
  return [...text.matchAll(/^id: (.*)$/gm)].at(-1)?.[1] ?? '';
}

function dataOf(text: string): string[] {
  return [...text.matchAll(/^data: (\w+)$/gm)].map(([, data = '']) => data);
}

interface Setup {
  readonly channels: Channels;
  /** The broker listens to `b` from now on. */
  readonly listen: () => void;
  /** The broker refuses to listen to `b`. */
  readonly refuse: (error: Error) => void;
  /** The id before all events. */
  readonly start: string;
}

/** A broker that listens to `a` at once, and to `b` when the test says so. */
async function setUp(): Promise<Setup> {
  const broker = new LossyBroker();
  let listen!: () => void;
  let refuse!: (error: Error) => void;
  const listening = new Promise<void>((resolve, reject) => {
    listen = resolve;
    refuse = reject;
  });
  listening.catch(() => {});
  broker.listening.set('b', listening);
  const channels = createChannels({ broker });
  await channels.publish('a', 'a0');
  return { channels, listen, refuse, start: await channels.cursor() };
}

describe('a second subscription that resumes from the id of the client', () => {
  test('lets the stream write no later id before it is placed', async () => {
    const { channels, listen, start } = await setUp();
    await channels.publish('b', 'b1');
    await channels.publish('a', 'a1');
    const { stream, text } = connect(channels, start);
    const both = Promise.all([stream.subscribe('a'), stream.subscribe('b')]);
    await turns(5);
    await channels.publish('a', 'a2');
    stream.send('direct');
    await turns(5);
    // A client that reconnects now resumes before the events of both channels.
    expect([lastIdOf(text()), dataOf(text())]).toEqual(['', ['direct']]);
    listen();
    await both;
    await turns(5);
    expect(dataOf(text())).toEqual(['direct', 'b1', 'a1', 'a2']);
  });

  test('moves the id of the client back at once, if later ids were written before', async () => {
    const { channels, listen, start } = await setUp();
    await channels.publish('b', 'b1');
    await channels.publish('a', 'a1');
    const { stream, text } = connect(channels, start);
    await stream.subscribe('a');
    await channels.publish('a', 'a2');
    await turns(5);
    expect(dataOf(text())).toEqual(['a1', 'a2']);
    const second = stream.subscribe('b');
    await channels.publish('a', 'a3');
    await turns(5);
    expect(lastIdOf(text())).toBe(start);
    listen();
    await second;
    await turns(5);
    expect(dataOf(text())).toEqual(['a1', 'a2', 'b1', 'a3']);
    expect(lastIdOf(text())).toBe(await channels.cursor());
  });

  test.each([
    ['behind an earlier subscription', (): Partial<Broker> => ({}), ['c', 'b']],
    [
      'for the start of its newest events',
      (): Partial<Broker> => ({
        startsOfNewest: async (channels) => {
          await turns(20);
          return channels.map(() => 0);
        },
      }),
      ['b'],
    ],
  ])('lets the stream write no later id while it waits %s', async (_, membersOf, added) => {
    const lossy = new LossyBroker();
    lossy.listening.set('c', turns(20));
    const channels = createChannels({ broker: brokerWith(lossy, membersOf()) });
    const { stream, text } = connect(channels);
    await stream.subscribe('a');
    const start = await channels.cursor();
    await channels.publish('b', 'b1');
    const since = added.length === 1 ? { last: 1 } : start;
    const waiting = Promise.all(
      added.map((name) => stream.subscribe(name, name === 'b' ? { since } : {})),
    );
    await channels.publish('a', 'a1');
    await turns(5);
    // A client that reconnects now resumes before the event of `b`.
    const { offset } = parseCursor(lastIdOf(text())) ?? { offset: 0 };
    expect(offset).toBe(0);
    await waiting;
    await turns(5);
    expect(dataOf(text())).toEqual(['b1', 'a1']);
  });

  test('lets the stream continue when it is refused', async () => {
    const { channels, refuse, start } = await setUp();
    const { stream, text } = connect(channels, start);
    await stream.subscribe('a');
    const second = stream.subscribe('b');
    await channels.publish('a', 'a1');
    await turns(5);
    refuse(new Error('not permitted'));
    await expect(second).rejects.toThrow('not permitted');
    await turns(5);
    expect(dataOf(text())).toEqual(['a1']);
    expect(channels.stats().behind).toBe(0);
  });
});

test('a snapshot of a second subscription skips no events of the first one', async () => {
  const { channels } = await setUp();
  for (const data of ['a1', 'a2']) await channels.publish('a', data);
  const { stream, text } = connect(channels);
  const first = stream.subscribe('a', { since: 'start' });
  const seen: (readonly string[])[] = [];
  const second = stream.subscribe(['a', 'c'], {
    snapshot: (_stream, request) => void seen.push(request.channels),
  });
  await Promise.all([first, second]);
  await turns(5);
  expect([dataOf(text()), seen]).toEqual([['a0', 'a1', 'a2'], [['a', 'c']]]);
});

test('two subscriptions to a channel that the broker refuses are both rejected', async () => {
  const { channels, refuse } = await setUp();
  const { stream } = connect(channels);
  const both = [stream.subscribe('b'), stream.subscribe('b')];
  await turns(2);
  refuse(new Error('not permitted'));
  for (const subscribing of both) await expect(subscribing).rejects.toThrow('not permitted');
  expect(channels.names()).toEqual([]);
});

test('a channel that is subscribed again while an onGap is running has no gap', async () => {
  const channels = createChannels({ history: { events: 1 } });
  let text = '';
  const events = sse({ channels, warnings: false });
  const { stream, res } = connectFake(events, (bytes) => (text += bytes.toString()));
  const answers: (() => void)[] = [];
  const onGap = (): Promise<void> =>
    new Promise((resolve) => {
      answers.push(resolve);
    });
  await stream.subscribe('a', { onGap });
  await stream.subscribe('b', { onGap });
  const third = await stream.subscribe('c', { onGap });
  // The client reads nothing, and the channels lose events.
  res.isEager = false;
  stream.send('x'.repeat(100_000));
  for (const channel of ['a', 'b', 'c', 'a', 'b', 'c']) await channels.publish(channel, 'lost');
  await turns(5);
  res.isEager = true;
  for (let index = 0; index < 20; index++) {
    res.deliver(100);
    await turns(2);
  }
  expect(answers).toHaveLength(1);
  third.unsubscribe();
  const anew = await stream.subscribe('c');
  answers[0]?.();
  await turns(5);
  answers[1]?.();
  await turns(5);
  expect(text).not.toContain('"channels":["c"]');
  expect(anew.recovered).toBe(true);
});

test('an event that is sent when a filter unsubscribes comes before the end of the stream', async () => {
  const channels = createChannels();
  await channels.end('done');
  const { stream, text } = connect(channels);
  await stream.subscribe('done', { since: 'start', checkpoints: false });
  const { stream: other, text: textOfOther } = connect(channels);
  const first = await other.subscribe('busy', {
    filter: () => {
      first.unsubscribe();
      return true;
    },
  });
  await other.subscribe('done');
  await channels.publish('busy', 'published');
  // Delivers the published event first. Then only the channel that has ended is left.
  expect(other.send('sent')).toBe(true);
  await turns(5);
  expect(dataOf(textOfOther())).toEqual(['published', 'sent']);
  expect([textOfOther(), text()].map((each) => each.includes('event: sse:end'))).toEqual([
    true,
    true,
  ]);
});

test('a gap of a cursor of another log names no id, also if a snapshot ends its subscription', async () => {
  const channels = createChannels();
  await channels.publish('a', '1');
  const { stream, text } = connect(channels);
  let isAnswered = false;
  const asked = stream.subscribe('n', {
    snapshot: async () => {
      await turns(3);
      isAnswered = true;
    },
  });
  const foreign = stream.subscribe('a', {
    since: 'elsewhere.7',
    snapshot: async () => {
      expect(isAnswered).toBe(true);
      (await foreign).unsubscribe();
    },
  });
  await Promise.all([asked, foreign, stream.subscribe('a')]);
  await turns(10);
  const [, gap] = /^event: sse:gap\ndata: (.*)$/m.exec(text()) ?? [];
  expect(JSON.parse(gap ?? '{}')).toMatchObject({ channels: ['a'], after: '' });
});
