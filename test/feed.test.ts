import { expect, test } from 'vitest';
import { Feed } from '../src/channels/feed.ts';
import { LogEntry } from '../src/log/log-entry.ts';

function entry(offset: number, size = 10): LogEntry {
  return new LogEntry({ channel: 'a', epoch: 'e', offset, data: 'x'.repeat(size) });
}

function filled(...offsets: number[]): Feed {
  const feed = new Feed('a');
  for (const offset of offsets) feed.push(entry(offset));
  return feed;
}

function offsetsOf(feed: Feed): (number | undefined)[] {
  return Array.from({ length: feed.events }, (_, index) => feed.at(index)?.offset);
}

test('keeps entries in the order of their offsets, with their bytes', () => {
  const feed = filled(3, 7, 8);
  expect(offsetsOf(feed)).toEqual([3, 7, 8]);
  expect([feed.newest, feed.events]).toEqual([8, 3]);
  expect(feed.bytes).toBe([3, 7, 8].reduce((sum, offset) => sum + entry(offset).frame.length, 0));
});

test('ignores an entry that came before, also after it was forgotten or dropped', () => {
  const feed = filled(3, 7);
  expect([feed.push(entry(7)), feed.push(entry(5))]).toEqual([false, false]);
  feed.forget(7);
  expect(feed.push(entry(7))).toBe(false);
  feed.push(entry(9));
  feed.dropAll();
  expect(feed.push(entry(9))).toBe(false);
  expect([feed.events, feed.bytes, feed.newest]).toEqual([0, 0, 9]);
});

test.each([
  [0, 0],
  [2, 0],
  [3, 1],
  [6, 1],
  [7, 2],
  [8, 3],
  [99, 3],
])('finds the first entry after offset %i at index %i', (offset, index) => {
  expect(filled(3, 7, 8).indexAfter(offset)).toBe(index);
});

test.each<[number, number[]]>([
  [0, [3, 7, 8]],
  [3, [7, 8]],
  [6, [7, 8]],
  [7, [8]],
  [8, []],
  [Infinity, []],
])(
  'forgets entries up to offset %d, gives their bytes, and keeps the newest offset',
  (upTo, rest) => {
    const feed = filled(3, 7, 8);
    const before = feed.bytes;
    const forgotten = feed.forget(upTo);
    expect(offsetsOf(feed)).toEqual(rest);
    expect(feed.bytes).toBe(before - forgotten);
    expect(feed.bytes).toBe(rest.reduce((sum, offset) => sum + entry(offset).frame.length, 0));
    expect(feed.newest).toBe(8);
  },
);

test('drops everything, and gives the offset and number of the dropped entries until all audiences are informed', () => {
  const feed = filled(3, 7);
  const { bytes } = feed;
  expect([feed.droppedUpTo, feed.droppedEvents]).toEqual([0, 0]);
  expect(feed.dropAll()).toBe(bytes);
  expect([feed.droppedUpTo, feed.droppedEvents, feed.events, feed.bytes]).toEqual([7, 2, 0, 0]);
  feed.push(entry(9));
  feed.dropAll();
  expect([feed.droppedUpTo, feed.droppedEvents]).toEqual([9, 3]);
  feed.push(entry(12));
  // A round that started before the drop informs no audience of the drop.
  feed.forget(7);
  expect([feed.droppedEvents, offsetsOf(feed)]).toEqual([3, [12]]);
  feed.forget(12);
  expect([feed.droppedUpTo, feed.droppedEvents]).toEqual([9, 0]);
});
