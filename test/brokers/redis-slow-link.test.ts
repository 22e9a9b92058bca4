/** A node whose link to Redis carries less within `timeout` than the node has to read. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { ReaderNode } from '../support/redis-readers.ts';
import { startRedis, type RedisClient, type RedisServer } from '../support/redis-server.ts';
import { startRelay } from '../support/relay.ts';
import { until, within } from '../support/wait.ts';
import { LIMITS, type Node } from './contract.ts';

const TIMEOUT = 1_000;
const BYTES_PER_SECOND = 1_000_000;
const CHANNELS = ['c0', 'c1', 'c2', 'c3', 'c4'];

// The number for each channel. All events together take several times the timeout.
const EVENTS = 9;
const EVENT_BYTES = 90_000;

// The bytes that Redis may hold for a client that has not read them yet.
const MAX_OUTPUT_BYTES = 2_000_000;

let redis: RedisServer;
let client: RedisClient;

beforeEach(async () => {
  redis = await startRedis();
  client = await redis.client();
});

afterEach(async () => {
  await redis[Symbol.asyncDispose]();
});

function nodeAt(url: string, timeout = TIMEOUT): ReaderNode {
  const connection = ownConnection(url, 10_000, () => {});
  const timing = { timeout, probe: 300, linger: 60_000, wait: { min: 5, max: 50 } };
  return new ReaderNode(new RedisBroker(connection, 'slow', timing));
}

async function publishHistory(node: Node): Promise<string[]> {
  const data = Array.from({ length: EVENTS }, (_, index) => `${index}`.padEnd(EVENT_BYTES, 'x'));
  for (const one of data) {
    await Promise.all(CHANNELS.map((channel) => node.publish(channel, one, { history: LIMITS })));
  }
  return data;
}

/** Repeats an action until it is stopped, and keeps its results. */
class Repetition<T> implements AsyncDisposable {
  readonly #results = new Set<T>();
  readonly #done: Promise<void>;
  #isStopped = false;

  constructor(action: () => Promise<T>) {
    this.#done = this.#run(action);
  }

  async stop(): Promise<T[]> {
    this.#isStopped = true;
    await this.#done;
    return [...this.#results];
  }

  async #run(action: () => Promise<T>): Promise<void> {
    while (!this.#isStopped) this.#results.add(await action());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

async function outcomeOfPublish(node: Node): Promise<string> {
  return node.publish('other', 'x').then(() => 'published', String);
}

/** The most bytes that Redis holds for one of its clients. */
async function outputBytes(): Promise<number> {
  const clients = await client.clientList();
  return Math.max(...clients.map(({ omem }) => omem));
}

test(
  'a node that missed more than its link carries in time opens, and readers get all of it',
  { timeout: 60_000 },
  async () => {
    await using relay = await startRelay(redis.port);
    await using there = nodeAt(redis.url, 10_000);
    await using here = nodeAt(relay.url);
    const readers = await Promise.all(CHANNELS.map((channel) => here.follow(channel)));
    await until('the readers to be live', () => readers.every(({ isLive }) => isLive));
    relay.sever();
    await until('the node to notice', () => here.broker.state === 'broken');
    const data = await publishHistory(there);
    relay.throttle(BYTES_PER_SECOND);
    relay.mend();
    await using output = new Repetition(outputBytes);
    const isConnected = async () => (await outcomeOfPublish(here)) === 'published';
    await until('the node to be connected', isConnected, 20_000);
    await using publishes = new Repetition(() => outcomeOfPublish(here));
    await until('the node to be open', () => here.broker.state === 'open', 20_000);
    const isWhole = (): boolean => readers.every(({ delivered }) => delivered.length === EVENTS);
    await until('the readers to have everything', isWhole, 20_000);
    expect(await publishes.stop()).toEqual(['published']);
    expect(Math.max(...(await output.stop()))).toBeLessThan(MAX_OUTPUT_BYTES);
    for (const { delivered, gaps } of readers) {
      expect(delivered.map((one) => one.slice(0, 1))).toEqual(data.map((one) => one.slice(0, 1)));
      expect(gaps).toBe(0);
    }
  },
);

test.each([
  ['from its memory, which it fills first', true],
  ['page by page', false],
])(
  'a node reads older events that take longer than the timeout: %s',
  { timeout: 60_000 },
  async (_, isListening) => {
    await using relay = await startRelay(redis.port);
    await using there = nodeAt(redis.url, 10_000);
    await using here = nodeAt(relay.url);
    await publishHistory(there);
    if (isListening) await Promise.all(CHANNELS.map((channel) => here.listen(channel)));
    await here.broker.position();
    relay.throttle(BYTES_PER_SECOND);
    await using output = new Repetition(outputBytes);
    await using publishes = new Repetition(() => outcomeOfPublish(here));
    const readAll = async (channel: string): Promise<string[]> => {
      const found: string[] = [];
      for (let after = 0; ;) {
        const page = await here.broker.read([channel], after, 65_536, here.signal);
        expect(Math.max(...page.trimmed)).toBeLessThanOrEqual(after);
        for (const entry of page.entries) {
          found.push(entry.data.slice(0, 1));
          after = entry.offset;
        }
        if (page.complete) return found;
      }
    };
    const found = await within(
      'all events to be read',
      Promise.all(CHANNELS.map((channel) => readAll(channel))),
      20_000,
    );
    expect(await publishes.stop()).toEqual(['published']);
    expect(Math.max(...(await output.stop()))).toBeLessThan(MAX_OUTPUT_BYTES);
    for (const data of found) expect(data).toEqual('012345678'.split(''));
  },
);

test('a node that missed the loss of the log and a long history since reads each event once', async () => {
  await using relay = await startRelay(redis.port);
  await using there = nodeAt(redis.url, 10_000);
  await using here = nodeAt(relay.url);
  const [channel = ''] = CHANNELS;
  await here.listen(channel);
  await there.publish(channel, 'before', { history: LIMITS });
  await here.broker.position();
  await until('the event to arrive', () => here.broker.held.events === 1);
  relay.sever();
  await until('the node to notice', () => here.broker.state === 'broken');
  await client.flushAll();
  await publishHistory(there);
  relay.mend();
  await until('the node to be open', () => here.broker.state === 'open', 20_000);
  const { entries } = await here.read([channel]);
  expect(entries.map(({ data }) => data.slice(0, 1))).toEqual('012345678'.split(''));
});
