/**
 * Answers of Redis that arrive before earlier messages on the other connection: newest-only channels
 * have no false gap.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Page } from '../../src/index.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { Steps } from '../support/redis-steps.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { until } from '../support/wait.ts';
import { LIMITS, Node } from './contract.ts';

const LATEST = { ...LIMITS, events: 1, latest: true };
const TIMING = { timeout: 10_000, probe: 10_000, linger: 60_000, wait: { min: 5, max: 100 } };

let redis: RedisServer;
// Carries only the messages to the nodes. Commands and answers do not go through the relay.
let relay: Relay;

beforeEach(async () => {
  redis = await startRedis();
  relay = await startRelay(redis.port);
});

afterEach(async () => {
  await relay[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
});

const own = (url: string) => ownConnection(url, 1_000, () => {});

function nodeWith(steps: Steps): Node {
  const line = own(relay.url);
  const connection = {
    ...own(redis.url),
    subscriber: () => line.subscriber(),
  };
  const broker = new RedisBroker(steps.connection(connection), 'overtaken', TIMING);
  return new Node(broker);
}

async function publish(node: Node, ...data: string[]): Promise<number> {
  let id = '';
  for (const one of data) ({ id } = await node.publish('d', one, { history: LATEST }));
  return Number(id.split('.')[1]);
}

/**
 * Publishes before the first query for which `isDue` returns true, and delays the messages until
 * some time after the answer to this query.
 * @param isDue called with the name of each query
 */
function overtake(steps: Steps, there: Node, isDue: (name: string) => boolean): void {
  let due: number | undefined;
  steps.watch(async (index, phase) => {
    if (phase === 'before' && due === undefined && isDue(steps.made[index] as string)) {
      due = index;
      relay.stall('replies');
      await publish(there, 'third', 'fourth');
    } else if (phase === 'after' && index === due) {
      void (async () => {
        for (let turn = 0; turn < 50; turn++) await nextTurn();
        relay.flow();
      })();
    }
  });
}

/** Expects that a reader at this offset gets the newest event, and no gap. */
function expectNewest({ entries, trimmed }: Page, after: number): void {
  expect(entries.map(({ data }) => data)).toEqual(['fourth']);
  expect(Math.max(...trimmed)).toBeLessThanOrEqual(after);
}

test('an answer that overtakes messages causes no gap when a node starts to listen to a channel', async () => {
  const steps = new Steps();
  await using there = new Node(new RedisBroker(own(redis.url), 'overtaken', TIMING));
  await using here = nodeWith(steps);
  const after = await publish(there, 'first');
  await publish(there, 'second');
  await here.broker.position({ epoch: '', offset: 0 });
  overtake(steps, there, (name) => name === 'send 2');
  await here.listen('d');
  expectNewest(await here.read(['d'], after), after);
});

test('an answer that overtakes messages causes no gap when a node loads older events', async () => {
  const steps = new Steps();
  await using there = new Node(new RedisBroker(own(redis.url), 'overtaken', TIMING));
  await using here = nodeWith(steps);
  const after = await publish(there, 'first');
  await publish(there, 'second');
  await here.listen('d');
  let queries = 0;
  // The sizes, then the events.
  overtake(steps, there, (name) => name === 'send 2' && ++queries === 2);
  expectNewest(await here.read(['d'], after), after);
});

test('an answer that overtakes messages causes no gap when a node heals with several queries', async () => {
  const steps = new Steps();
  await using there = new Node(new RedisBroker(own(redis.url), 'overtaken', TIMING));
  await using here = nodeWith(steps);
  const others = Array.from({ length: 1_000 }, (_, index) => `c${index}`);
  await Promise.all(others.map((channel) => here.listen(channel)));
  await here.listen('d');
  const after = await publish(there, 'first');
  await until('the first event', () => here.received.length === 1);
  await publish(there, 'second');
  await until('the second event', () => here.received.length === 2);
  overtake(steps, there, (name) => name === 'send 2');
  await relay.closeAll();
  await until('the node to notice', () => here.interruptions === 1);
  expectNewest(await here.read(['d'], after), after);
});
