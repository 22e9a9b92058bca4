/**
 * Tests of the ledger. If the ledger did not detect violations, the tests with several nodes would
 * prove nothing.
 */
import { describe, expect, test } from 'vitest';
import type { Item } from './client.ts';
import { Ledger, Violation, type ClientRecord } from './ledger.ts';
import type { PublishResult } from './nodes.ts';

const CHANNELS = ['a', 'b'];

/**
 * A ledger with five publishes: 0 is a@1, 1 is b@2, 2 is a@3, 3 was refused, 4 is b@4 with an
 * unknown outcome.
 */
async function ledgerOfFive(): Promise<Ledger> {
  const ledger = new Ledger();
  const publisherOf = (answer: PublishResult) => ({ publish: async () => [answer] });
  await ledger.publish(publisherOf({ id: 'e.1' }), 'a');
  await ledger.publish(publisherOf({ id: 'e.2' }), 'b');
  await ledger.publish(publisherOf({ id: 'e.3' }), 'a');
  await ledger.publish(publisherOf({ code: 'x', delivery: 'none', message: '' }), 'a');
  await ledger.publish(publisherOf({ code: 'x', delivery: 'unknown', message: '' }), 'b');
  return ledger;
}

const nextSecond = () => performance.now() + 1_000;
const connected = (lastEventId = ''): Item => ({
  at: nextSecond(),
  kind: 'connected',
  lastEventId,
});
const checkpoint = (id: string): Item => ({ at: nextSecond(), kind: 'checkpoint', id });
const event = (n: number, channel: string, id: string): Item => ({
  at: nextSecond(),
  kind: 'event',
  n,
  channel,
  id,
});
const gap = (channels: string[], after: string, cursor: string): Item => ({
  at: nextSecond(),
  kind: 'gap',
  channels,
  after,
  cursor,
});
const snapshot = (
  reason: 'start' | 'gap',
  channels: string[],
  after: string,
  cursor: string,
): Item => ({
  at: nextSecond(),
  kind: 'snapshot',
  reason,
  channels,
  lastEventId: after,
  cursor,
});
const ALL = [
  event(0, 'a', 'e.1'),
  event(1, 'b', 'e.2'),
  event(2, 'a', 'e.3'),
  event(4, 'b', 'e.4'),
];

function clientWith(...items: Item[]): ClientRecord {
  return { channels: CHANNELS, items };
}

const whole = clientWith(connected(), checkpoint('e.0'), ...ALL);

describe('the ledger accepts', () => {
  test.each([
    ['a client that has every event', [connected(), checkpoint('e.0'), ...ALL], ALL],
    ['a client that started later', [connected(), checkpoint('e.1'), ...ALL.slice(1)], ALL],
    [
      'a client that reconnected',
      [connected(), checkpoint('e.0'), ...ALL.slice(0, 2), connected('e.2'), ...ALL.slice(2)],
      ALL,
    ],
    [
      'a gap for a lost event',
      [
        connected(),
        checkpoint('e.0'),
        gap(['a'], 'e.0', 'e.4'),
        checkpoint('e.1'),
        ...ALL.slice(1),
      ],
      ALL.slice(1),
    ],
    [
      'another log after a gap',
      [connected(), checkpoint('d.7'), gap(CHANNELS, '', 'e.2'), checkpoint('e.0'), ...ALL],
      ALL,
    ],
    [
      'a snapshot in place of events that the log holds',
      [connected(), snapshot('start', CHANNELS, '', 'e.2'), checkpoint('e.2'), ...ALL.slice(2)],
      ALL,
    ],
    [
      'a snapshot of a channel after a gap',
      [
        connected(),
        checkpoint('e.0'),
        snapshot('gap', ['a'], 'e.0', 'e.3'),
        checkpoint('e.0'),
        ALL[1]!,
        ALL[3]!,
      ],
      ALL.slice(1),
    ],
    [
      'a snapshot of another log',
      [
        connected(),
        checkpoint('d.7'),
        snapshot('gap', CHANNELS, '', 'e.3'),
        checkpoint('e.3'),
        ALL[3]!,
      ],
      ALL,
    ],
  ])('%s', async (_what, items, held) => {
    const ledger = await ledgerOfFive();
    ledger.audit([clientWith(...items)], clientWith(connected(), checkpoint('e.0'), ...held));
    expect(ledger.published).toBe(5);
  });
});

describe('the ledger rejects', () => {
  test.each<[string, Item[], RegExp]>([
    [
      'a missing event',
      [connected(), checkpoint('e.0'), ALL[1]!],
      /a@1 \(0\) was not; no gap was reported/,
    ],
    [
      'a checkpoint beyond a missing event',
      [connected(), checkpoint('e.0'), ALL[0]!, checkpoint('e.2')],
      /b@2 \(1\) was not/,
    ],
    [
      'a reconnect that loses an event',
      [connected(), checkpoint('e.0'), ALL[0]!, connected('e.1'), checkpoint('e.2')],
      /b@2 \(1\) was not/,
    ],
    [
      'a missing event whose publish has an unknown outcome',
      [connected(), checkpoint('e.0'), ...ALL.slice(0, 3), checkpoint('e.4')],
      /b@4/,
    ],
    ['an event twice', [connected(), checkpoint('e.0'), ALL[0]!, ALL[0]!], /comes after/],
    [
      'an event out of order',
      [connected(), checkpoint('e.1'), ALL[2]!, ALL[1]!],
      /b@2 \(1\) was not/,
    ],
    ['ids that step back', [connected(), checkpoint('e.2'), checkpoint('e.1')], /steps back/],
    [
      'an event that was never published',
      [connected(), checkpoint('e.0'), event(9, 'a', 'e.9')],
      /never published/,
    ],
    [
      'an event on the wrong channel',
      [connected(), checkpoint('e.0'), event(0, 'b', 'e.1')],
      /never published/,
    ],
    [
      'an event whose publish was refused',
      [connected(), checkpoint('e.0'), event(3, 'a', 'e.5')],
      /its publish failed/,
    ],
    [
      'an event with two ids',
      [connected(), checkpoint('e.0'), event(0, 'a', 'e.2')],
      /came as e.2, but has id e.1/,
    ],
    ['another log without a gap', [connected(), checkpoint('d.7'), ...ALL], /another log/],
    [
      'a gap for an event that the log holds',
      [connected(), checkpoint('e.0'), gap(['a'], 'e.0', 'e.4'), checkpoint('e.1')],
      /the log holds it/,
    ],
    [
      'a gap for a channel that the client does not follow',
      [connected(), checkpoint('e.0'), gap(['c'], 'e.0', 'e.4')],
      /gap in c/,
    ],
    [
      'a gap that starts before the last id of the client',
      [connected(), checkpoint('e.2'), gap(['a'], 'e.1', 'e.4')],
      /but the client is at/,
    ],
    [
      'an event that the snapshot before it contains',
      [connected(), checkpoint('e.0'), snapshot('start', CHANNELS, '', 'e.2'), ALL[0]!],
      /e.1 comes after the snapshot of a/,
    ],
    [
      'a missing event that was published after the snapshot',
      [connected(), snapshot('start', CHANNELS, '', 'e.2'), checkpoint('e.2'), ALL[3]!],
      /a@3 \(2\) was not/,
    ],
    [
      'a missing event of a channel that the snapshot does not name',
      [connected(), checkpoint('e.0'), snapshot('gap', ['a'], 'e.0', 'e.3'), ALL[3]!],
      /b@2 \(1\) was not/,
    ],
    [
      'a second snapshot of the start',
      [connected('e.2'), snapshot('start', CHANNELS, '', 'e.2')],
      /a snapshot of the start, for a client that has an id/,
    ],
    ['an event before the first checkpoint', [connected(), ALL[0]!], /before any checkpoint/],
    [
      'a response after which an EventSource does not reconnect',
      [{ at: 0, kind: 'fault', description: 'status 500' }],
      /status 500/,
    ],
    [
      'an id before the publish of its event',
      [connected(), { at: 0, kind: 'checkpoint', id: 'e.3' }],
      /before e.1 was published/,
    ],
  ])('%s', async (_what, items, message) => {
    const ledger = await ledgerOfFive();
    expect(() => ledger.audit([clientWith(...items), whole], whole)).toThrow(message);
    expect(() => ledger.audit([clientWith(...items), whole], whole)).toThrow(Violation);
  });

  test('two nodes that read different events', async () => {
    const ledger = await ledgerOfFive();
    expect(() => ledger.audit([whole], whole, clientWith(...ALL.slice(1)))).toThrow(
      'one node reads 0 in the log, another does not',
    );
  });

  test('two events with the same id', async () => {
    const ledger = await ledgerOfFive();
    const client = clientWith(
      connected(),
      checkpoint('e.0'),
      event(0, 'a', 'e.1'),
      event(4, 'b', 'e.2'),
    );
    expect(() => ledger.audit([client], client)).toThrow('1 and 4 have the same id e.2');
  });

  test('ids in another order than the calls', async () => {
    const ledger = new Ledger();
    await ledger.publish({ publish: async () => [{ id: 'e.2' }, { id: 'e.1' }] }, 'a', 2);
    expect(() => ledger.audit([], clientWith())).toThrow('published later in the same turn');
  });

  test('a refused publish without a delivery', async () => {
    const ledger = new Ledger();
    const answer = { code: 'x', delivery: undefined, message: '' };
    await ledger.publish({ publish: async () => [answer] }, 'a');
    expect(() => ledger.audit([], clientWith())).toThrow('without a delivery');
  });
});
