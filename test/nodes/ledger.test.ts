/** The ledger itself: it must not call well what is not, or the tests of many nodes would prove nothing. */
import { describe, expect, test } from 'vitest';
import type { Item } from './client.ts';
import { Ledger, Violation, type Witness } from './ledger.ts';
import type { Published } from './nodes.ts';

const CHANNELS = ['a', 'b'];

/** A ledger in which 0 to 4 were published: a@1, b@2, a@3, a refused one of a, and b@4, whose publisher does not know. */
async function five(): Promise<Ledger> {
  const ledger = new Ledger();
  const says = (answer: Published) => ({ publish: async () => [answer] });
  await ledger.publish(says({ id: 'e.1' }), 'a');
  await ledger.publish(says({ id: 'e.2' }), 'b');
  await ledger.publish(says({ id: 'e.3' }), 'a');
  await ledger.publish(says({ code: 'x', delivery: 'none', message: '' }), 'a');
  await ledger.publish(says({ code: 'x', delivery: 'unknown', message: '' }), 'b');
  return ledger;
}

const later = () => performance.now() + 1_000;
const connected = (lastEventId = ''): Item => ({ at: later(), kind: 'connected', lastEventId });
const checkpoint = (id: string): Item => ({ at: later(), kind: 'checkpoint', id });
const event = (n: number, channel: string, id: string): Item => ({
  at: later(),
  kind: 'event',
  n,
  channel,
  id,
});
const gap = (channels: string[], after: string, cursor: string): Item => ({
  at: later(),
  kind: 'gap',
  channels,
  after,
  cursor,
});
const ALL = [
  event(0, 'a', 'e.1'),
  event(1, 'b', 'e.2'),
  event(2, 'a', 'e.3'),
  event(4, 'b', 'e.4'),
];

function witness(...items: Item[]): Witness {
  return { channels: CHANNELS, items };
}

const whole = witness(connected(), checkpoint('e.0'), ...ALL);

describe('the ledger is content with', () => {
  test.each([
    ['a client that has everything', [connected(), checkpoint('e.0'), ...ALL], ALL],
    ['one that began later', [connected(), checkpoint('e.1'), ...ALL.slice(1)], ALL],
    [
      'one that came back',
      [connected(), checkpoint('e.0'), ...ALL.slice(0, 2), connected('e.2'), ...ALL.slice(2)],
      ALL,
    ],
    [
      'a gap, of what is lost',
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
      'another log, told as such',
      [connected(), checkpoint('d.7'), gap(CHANNELS, '', 'e.2'), checkpoint('e.0'), ...ALL],
      ALL,
    ],
  ])('%s', async (_what, items, held) => {
    const ledger = await five();
    ledger.audit([witness(...items)], witness(connected(), checkpoint('e.0'), ...held));
    expect(ledger.published).toBe(5);
  });
});

describe('the ledger is not content with', () => {
  test.each<[string, Item[], RegExp]>([
    [
      'an event that is passed over',
      [connected(), checkpoint('e.0'), ALL[1]!],
      /a@1 \(0\) was not; no gap was told/,
    ],
    [
      'a checkpoint that passes over one',
      [connected(), checkpoint('e.0'), ALL[0]!, checkpoint('e.2')],
      /b@2 \(1\) was not/,
    ],
    [
      'a return that loses one',
      [connected(), checkpoint('e.0'), ALL[0]!, connected('e.1'), checkpoint('e.2')],
      /b@2 \(1\) was not/,
    ],
    [
      'one whose publisher does not know, and that others got',
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
      'an event of a channel that it is not of',
      [connected(), checkpoint('e.0'), event(0, 'b', 'e.1')],
      /never published/,
    ],
    [
      'an event that its publisher was told nobody got',
      [connected(), checkpoint('e.0'), event(3, 'a', 'e.5')],
      /its publisher was told/,
    ],
    [
      'an event with another id than elsewhere',
      [connected(), checkpoint('e.0'), event(0, 'a', 'e.2')],
      /came as e.2 and is e.1/,
    ],
    ['another log that was not told', [connected(), checkpoint('d.7'), ...ALL], /another log/],
    [
      'a gap that excuses what is held',
      [connected(), checkpoint('e.0'), gap(['a'], 'e.0', 'e.4'), checkpoint('e.1')],
      /the log holds it/,
    ],
    [
      'a gap that is told of another channel',
      [connected(), checkpoint('e.0'), gap(['c'], 'e.0', 'e.4')],
      /a gap of c/,
    ],
    [
      'a gap from before where the client is',
      [connected(), checkpoint('e.2'), gap(['a'], 'e.1', 'e.4')],
      /where the client is at/,
    ],
    ['an event before any place', [connected(), ALL[0]!], /before any checkpoint/],
    [
      'an answer that no EventSource survives',
      [{ at: 0, kind: 'fault', what: 'answers 500' }],
      /answers 500/,
    ],
    [
      'an id from before it was published',
      [connected(), { at: 0, kind: 'checkpoint', id: 'e.3' }],
      /before e.1 was published/,
    ],
  ])('%s', async (_what, items, message) => {
    const ledger = await five();
    expect(() => ledger.audit([witness(...items), whole], whole)).toThrow(message);
    expect(() => ledger.audit([witness(...items), whole], whole)).toThrow(Violation);
  });

  test('two nodes that read differently', async () => {
    const ledger = await five();
    expect(() => ledger.audit([whole], whole, witness(...ALL.slice(1)))).toThrow(
      'one node reads 0 in the log, another does not',
    );
  });

  test('an id that two events have', async () => {
    const ledger = await five();
    const client = witness(
      connected(),
      checkpoint('e.0'),
      event(0, 'a', 'e.1'),
      event(4, 'b', 'e.2'),
    );
    expect(() => ledger.audit([client], client)).toThrow('1 and 4 have the same id e.2');
  });

  test('ids that are not in the order of the calls', async () => {
    const ledger = new Ledger();
    await ledger.publish({ publish: async () => [{ id: 'e.2' }, { id: 'e.1' }] }, 'a', 2);
    expect(() => ledger.audit([], witness())).toThrow('published later in the same turn');
  });

  test('a publish that is refused without a word on its delivery', async () => {
    const ledger = new Ledger();
    const answer = { code: 'x', delivery: undefined, message: '' };
    await ledger.publish({ publish: async () => [answer] }, 'a');
    expect(() => ledger.audit([], witness())).toThrow('without a word on its delivery');
  });
});
