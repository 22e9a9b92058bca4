import { describe, expect, test } from 'vitest';
import { channelsKey } from '../src/channels/fan-out.ts';
import { Frame, countFitting } from '../src/channels/frame.ts';
import { LogEntry } from '../src/log/log-entry.ts';

function entry(offset: number, data = ''): LogEntry {
  return new LogEntry({ channel: 'a', epoch: 'e', offset, data });
}

/** Entries whose frames have exactly these sizes. */
function entriesOf(...sizes: number[]): LogEntry[] {
  const overhead = entry(1).frame.length;
  return sizes.map((size) => entry(1, 'x'.repeat(size - overhead)));
}

describe('a frame', () => {
  const entries = [entry(3), entry(7), entry(8)];

  test('has the joined bytes of its entries, and their first and last offset', () => {
    const frame = new Frame(entries);
    expect([frame.firstOffset, frame.lastOffset]).toEqual([3, 8]);
    expect(frame.bytes.toString()).toBe(entries.map((each) => each.frame.toString()).join(''));
  });

  test('of one entry has the bytes of the entry without a copy', () => {
    expect(new Frame([entries[0]!]).bytes).toBe(entries[0]!.frame);
  });

  test.each<[string, LogEntry[], boolean]>([
    ['the same entries', [...entries], true],
    ['fewer entries', entries.slice(1), false],
    ['more entries', [...entries, entry(9)], false],
    ['equal entries that are other objects', [entries[0]!, entries[1]!, entry(8)], false],
  ])('consists of its entries only (%s: %s)', (_, others, isSame) => {
    expect(new Frame(entries).consistsOf(others)).toBe(isSame);
  });
});

test.each<[number[], number, number]>([
  [[100], 1_000, 1],
  [[100, 100, 100], 1_000, 3],
  [[100, 100, 100], 300, 3],
  [[100, 100, 100], 299, 2],
  [[100, 500, 100], 300, 1],
  // The first entry counts, however large it is.
  [[500], 300, 1],
  [[500, 100], 300, 1],
  [[], 300, 0],
])('of entries of %j bytes, a frame of at most %i bytes holds %i', (sizes, maxBytes, count) => {
  const entries = entriesOf(...sizes);
  expect(entries.map(({ frame }) => frame.length)).toEqual(sizes);
  expect(countFitting(entries, maxBytes)).toBe(count);
});

test.each<[string[], string[], boolean]>([
  [['a', 'b'], ['b', 'a'], true],
  [['a'], ['a'], true],
  [['a', 'b'], ['a', 'c'], false],
  [['a', 'b'], ['ab'], false],
  [['a b'], ['a', 'b'], false],
  [['a,b'], ['a', 'b'], false],
])('the sets of channels %j and %j have the same key: %s', (one, other, isSame) => {
  expect(channelsKey(one) === channelsKey(other)).toBe(isSame);
});
