/** The result of each publish, if several publishes went to Redis in one call. */
import { expect, test } from 'vitest';
import type { Publication, SseError } from '../../src/index.ts';
import type { AppendResult } from '../../src/brokers/redis/append-format.ts';
import type { LogClient } from '../../src/brokers/redis/log-client.ts';
import { PublishQueue } from '../../src/brokers/redis/publish-queue.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { startRedis } from '../support/redis-server.ts';
import { LIMITS, Node } from './contract.ts';

async function outcome(published: Promise<{ id: string }>): Promise<string> {
  return published.then(
    ({ id }) => `id ${id}`,
    (error: SseError) => error.delivery ?? 'no delivery',
  );
}

test('each publish of a call has its own result when the header of the call was not sent', async () => {
  const result: AppendResult = {
    epoch: 'e',
    head: 5,
    headerProblem: 'NOPERM no permissions to access one of the channels',
    warning: '',
    results: [
      { id: 'e.1' },
      { problem: 'OOM command not allowed', isDeliveryUnknown: false },
      // It may have got the offset 2.
      { problem: 'ERR something', isDeliveryUnknown: true },
      // In a channel without history: the event has been sent to the nodes already.
      { id: '' },
      // With a key that has been published before.
      { id: 'e.0' },
      { id: 'e.3' },
      // An event and the end of its channel, which have the offsets 4 and 5.
      { id: 'e.5' },
      // The channel had ended before.
      { firstEnd: 'e.5' },
    ],
  };
  const client = {
    toAppendItem: ({ isEnd = false }: Publication) => {
      return { keys: [], args: [], bytes: 1, entries: isEnd ? 2 : 1, channel: 'a' };
    },
    append: () => Promise.resolve(result),
  } as unknown as LogClient;
  const reached: unknown[] = [];
  const queue = new PublishQueue(
    client,
    10_000,
    (epoch, head) => reached.push([epoch, head]),
    () => {
      throw new Error('not expected');
    },
  );
  const publication = {
    channel: 'a',
    data: '',
    event: undefined,
    retry: undefined,
    key: undefined,
    history: LIMITS,
  };
  const outcomes = await Promise.all(
    result.results.map((answer) => {
      const isEnd = 'id' in answer && answer.id === 'e.5';
      return outcome(queue.add({ ...publication, isEnd }));
    }),
  );
  expect(outcomes.slice(0, 6)).toEqual(['unknown', 'none', 'unknown', 'id ', 'id e.0', 'unknown']);
  expect(outcomes.slice(6)).toEqual(['unknown', 'none']);
  expect(reached).toEqual([['e', 5]]);
});

test('a publish without a header has the delivery unknown; without history, a refused publish has none', async () => {
  // No channels.
  const acl = 'user limited on >secret ~{queue}:* resetchannels +@all';
  await using redis = await startRedis({ acl: [acl] });
  const connection = ownConnection(redis.url.replace('//', '//limited:secret@'), 1_000, () => {});
  const timing = { timeout: 2_000, probe: 10_000, linger: 60_000, wait: { min: 5, max: 100 } };
  await using node = new Node(new RedisBroker(connection, 'queue', timing));
  expect(await outcome(node.publish('a', '1'))).toBe('unknown');
  expect(await outcome(node.publish('a', '2', { history: false }))).toBe('none');
  // The key can be used again, because the event was not published.
  const once = { history: false, key: 'k' } as const;
  expect(await outcome(node.publish('a', '3', once))).toBe('none');
  expect(await outcome(node.publish('a', '3', once))).toBe('none');
});
