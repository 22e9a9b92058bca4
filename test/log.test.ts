import { inspect } from 'node:util';
import fc from 'fast-check';
import { beforeEach, describe, expect, test } from 'vitest';
import { Log, type HistoryLimits } from '../src/log/log.ts';
import { entrySize, LogEntry } from '../src/log/log-entry.ts';

const LIMITS: HistoryLimits = { events: 1_000, bytes: 1_000_000, age: Infinity, latest: false };
const ALL = Number.MAX_SAFE_INTEGER;

let now = 0;
let offset = 0;
const followed = new Set<string>();

beforeEach(() => {
  now = 0;
  offset = 0;
  followed.clear();
});

function makeLog(maxBytes = ALL, maxChannels = ALL): Log {
  return new Log(
    maxBytes,
    maxChannels,
    (channel) => followed.has(channel),
    () => now,
  );
}

/** Appends the next event of the registry to a channel. */
function put(
  log: Log,
  channel: string,
  limits: Partial<HistoryLimits> = {},
  data = `${offset + 1}`,
): LogEntry {
  const entry = new LogEntry({ channel, epoch: 'e', offset: ++offset, data });
  log.append(entry, { ...LIMITS, ...limits });
  return entry;
}

function offsets(log: Log, channels: string[], after = 0): number[] {
  return log.read(channels, after, ALL).entries.map((entry) => entry.offset);
}

function trimmed(log: Log, channel: string): number {
  return log.read([channel], 0, ALL).trimmed[0] as number;
}

const SIZE = new LogEntry({ channel: 'a', epoch: 'e', offset: 1, data: '1' }).size;

describe('a read', () => {
  test('merges the entries after the cursor in the order of their offsets', () => {
    const log = makeLog();
    for (const channel of ['a', 'b', 'c', 'a', 'b', 'a']) put(log, channel);
    expect(offsets(log, ['a', 'b'])).toEqual([1, 2, 4, 5, 6]);
    expect(offsets(log, ['b', 'a'], 4)).toEqual([5, 6]);
    expect(offsets(log, ['c'], 3)).toEqual([]);
    expect(offsets(log, ['unknown'])).toEqual([]);
  });

  test('returns at most maxBytes, at least one entry, and whether these are all', () => {
    const log = makeLog();
    for (let count = 0; count < 5; count++) put(log, 'a', {}, 'x'.repeat(1_000));
    const first = log.read(['a'], 0, 2_500);
    expect([first.entries.map((entry) => entry.offset), first.complete]).toEqual([[1, 2], false]);
    const tiny = log.read(['a'], 3, 1);
    expect([tiny.entries.map((entry) => entry.offset), tiny.complete]).toEqual([[4], false]);
    const last = log.read(['a'], 4, 1);
    expect([last.entries.map((entry) => entry.offset), last.complete]).toEqual([[5], true]);
  });

  test('returns the bytes that were published', () => {
    const log = makeLog();
    const entry = put(log, 'a');
    expect(log.read(['a'], 0, ALL).entries[0]?.frame).toBe(entry.frame);
  });
});

describe('the log of a channel keeps', () => {
  test('at most `events` events', () => {
    const log = makeLog();
    for (let count = 0; count < 300; count++) put(log, 'a', { events: 3 });
    expect(offsets(log, ['a'])).toEqual([298, 299, 300]);
    expect(trimmed(log, 'a')).toBe(297);
    expect(log.held).toEqual({
      events: 3,
      bytes: log.read(['a'], 0, ALL).entries.reduce((sum, entry) => sum + entry.size, 0),
    });
  });

  test('at most `bytes` bytes, and nothing of a larger event', () => {
    const log = makeLog();
    for (let count = 0; count < 5; count++) put(log, 'a', { bytes: 2 * SIZE });
    expect(offsets(log, ['a'])).toEqual([4, 5]);
    put(log, 'a', { bytes: 2 * SIZE }, 'x'.repeat(2 * SIZE));
    expect(offsets(log, ['a'])).toEqual([]);
    expect(trimmed(log, 'a')).toBe(6);
    expect(log.held).toEqual({ events: 0, bytes: 0 });
  });

  test('no event older than `age` when it is read', () => {
    const log = makeLog();
    put(log, 'a', { age: 100 });
    now = 60;
    put(log, 'a', { age: 100 });
    now = 100;
    expect(offsets(log, ['a'])).toEqual([1, 2]);
    now = 101;
    expect(offsets(log, ['a'])).toEqual([2]);
    expect(trimmed(log, 'a')).toBe(1);
    now = 161;
    expect(offsets(log, ['a'])).toEqual([]);
    expect(trimmed(log, 'a')).toBe(2);
  });

  test('nothing after clear()', () => {
    const log = makeLog();
    put(log, 'a');
    put(log, 'b');
    put(log, 'a');
    log.clear('a');
    log.clear('unknown');
    expect(offsets(log, ['a', 'b'])).toEqual([2]);
    expect([trimmed(log, 'a'), trimmed(log, 'b')]).toEqual([3, 0]);
  });
});

test('in a newest-only channel replaced events are not missing, but cleared events are', () => {
  const log = makeLog();
  for (let count = 0; count < 5; count++) put(log, 'a', { events: 1, latest: true });
  expect(offsets(log, ['a'])).toEqual([5]);
  expect(trimmed(log, 'a')).toBe(0);
  log.clear('a');
  expect(trimmed(log, 'a')).toBe(5);
});

test('all channels together keep at most maxHistory bytes: the channel with the oldest last publish loses events first', () => {
  const log = makeLog(4 * SIZE);
  for (const channel of ['a', 'a', 'b', 'b']) put(log, channel);
  put(log, 'a');
  // Both events of b are older than the newest of a, and the last publish to b is longer ago.
  expect([offsets(log, ['a']), offsets(log, ['b'])]).toEqual([[1, 2, 5], [4]]);
  put(log, 'c');
  expect([offsets(log, ['a']), offsets(log, ['b']), offsets(log, ['c'])]).toEqual([
    [1, 2, 5],
    [],
    [6],
  ]);
  expect([trimmed(log, 'a'), trimmed(log, 'b')]).toEqual([0, 4]);
  expect(log.held.bytes).toBeLessThanOrEqual(4 * SIZE);
});

describe('beyond maxChannels', () => {
  test('channels without subscribers are forgotten first, in the order of their last publish', () => {
    const log = makeLog(ALL, 3);
    followed.add('a');
    for (const channel of ['a', 'b', 'c', 'b', 'd']) put(log, channel);
    expect([
      offsets(log, ['a']),
      offsets(log, ['b']),
      offsets(log, ['c']),
      offsets(log, ['d']),
    ]).toEqual([[1], [2, 4], [], [5]]);
    put(log, 'e');
    expect([offsets(log, ['a']), offsets(log, ['b'])]).toEqual([[1], []]);
  });

  test('an unknown channel may be a forgotten one: its `trimmed` is the newest forgotten offset', () => {
    const log = makeLog(ALL, 2);
    for (const channel of ['a', 'b', 'c', 'd']) put(log, channel);
    expect(['a', 'b', 'never'].map((channel) => trimmed(log, channel))).toEqual([2, 2, 2]);
    // When d was added, a had already been forgotten, and d might have been forgotten before, too.
    expect(['c', 'd'].map((channel) => trimmed(log, channel))).toEqual([0, 1]);
    // A forgotten channel has lost its events, even after a new publish.
    put(log, 'a');
    expect([offsets(log, ['a']), trimmed(log, 'a')]).toEqual([[5], 2]);
  });

  test('a channel that gets or loses its subscribers changes its place in the order', () => {
    const log = makeLog(ALL, 2);
    put(log, 'a');
    put(log, 'b');
    followed.add('a');
    log.onSubscribersChanged('a');
    put(log, 'c');
    expect([offsets(log, ['a']), offsets(log, ['b'])]).toEqual([[1], []]);
    followed.delete('a');
    log.onSubscribersChanged('a');
    log.onSubscribersChanged('unknown');
    put(log, 'd');
    put(log, 'e');
    expect(offsets(log, ['a'])).toEqual([]);
  });
});

test('whatever is published, memory is bounded, and the sums and `trimmed` are right', () => {
  const limits = fc.record({
    events: fc.integer({ min: 1, max: 4 }),
    bytes: fc.integer({ min: SIZE, max: 4 * SIZE }),
    age: fc.constantFrom(Infinity, 3),
    latest: fc.constant(false),
  });
  const step = fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({ put: fc.constantFrom('a', 'b', 'c', 'd'), size: fc.nat(600), limits }),
    },
    { weight: 1, arbitrary: fc.record({ clear: fc.constantFrom('a', 'b', 'c', 'd') }) },
    { weight: 1, arbitrary: fc.record({ wait: fc.nat(3) }) },
    { weight: 1, arbitrary: fc.record({ toggle: fc.constantFrom('a', 'b', 'c', 'd') }) },
  );
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 60 }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 2 * SIZE, max: 8 * SIZE }),
      (steps, maxChannels, maxBytes) => {
        now = 0;
        offset = 0;
        followed.clear();
        const log = makeLog(maxBytes, maxChannels);
        const published = new Map<string, number[]>();
        const forgotten = new Set<string>();
        for (const each of steps) {
          if ('put' in each) {
            put(log, each.put, each.limits, 'x'.repeat(each.size));
            published.set(each.put, [...(published.get(each.put) ?? []), offset]);
          } else if ('clear' in each) log.clear(each.clear);
          else if ('wait' in each) now += each.wait;
          else {
            if (!followed.delete(each.toggle)) followed.add(each.toggle);
            log.onSubscribersChanged(each.toggle);
          }
          let events = 0;
          let bytes = 0;
          for (const channel of ['a', 'b', 'c', 'd']) {
            const {
              entries,
              trimmed: [gone],
            } = log.read([channel], 0, ALL);
            const kept = entries.map((entry) => entry.offset);
            const all = published.get(channel) ?? [];
            events += entries.length;
            bytes += entries.reduce((sum, entry) => sum + entry.size, 0);
            // The newest events are kept, without a hole. All other events are at or below
            // `trimmed`.
            expect(kept).toEqual(all.slice(all.length - kept.length));
            const lost = all.slice(0, all.length - kept.length);
            expect(gone).toBeGreaterThanOrEqual(lost.at(-1) ?? 0);
            // `trimmed` is larger only if the channel was forgotten.
            if ((gone as number) > (lost.at(-1) ?? 0)) forgotten.add(channel);
          }
          expect(log.held).toEqual({ events, bytes });
          expect(bytes).toBeLessThanOrEqual(maxBytes);
          if (published.size <= maxChannels) expect(forgotten.size).toBe(0);
        }
      },
    ),
    { numRuns: 1_000 },
  );
});

test('console.log and JSON.stringify show the channel, id, event and data of an event', () => {
  const event = new LogEntry({
    channel: 'a',
    epoch: 'e',
    offset: 7,
    event: 'text',
    data: '{"n":1}',
  });
  const shown = { channel: 'a', id: 'e.7', event: 'text', data: '{"n":1}' };
  expect(JSON.parse(JSON.stringify(event))).toEqual(shown);
  expect(inspect(event)).toBe(inspect(shown));
  expect(
    JSON.parse(
      JSON.stringify(new LogEntry({ channel: 'a', epoch: undefined, offset: 1, data: 'x' })),
    ),
  ).toEqual({
    channel: 'a',
    id: '',
    event: 'message',
    data: 'x',
  });
});

test('the size of an entry is known without making the entry', () => {
  const init = fc.record({
    epoch: fc.constantFrom(undefined, 'e', 'epoch_of'),
    offset: fc.nat(),
    event: fc.constantFrom(undefined, '', 'tick', 'größe'),
    data: fc.string({ unit: fc.constantFrom('a', 'ß', '😀', '\n', '\r', '\r\n') }),
    retry: fc.option(fc.nat(100_000), { nil: undefined }),
  });
  fc.assert(
    fc.property(init, (one) => {
      expect(entrySize(one)).toBe(new LogEntry({ channel: 'a', ...one }).size);
    }),
  );
});
