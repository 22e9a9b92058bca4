import { describe, expect, test } from 'vitest';
import { ChannelStarts, OLDEST_KEPT } from '../src/channels/channel-starts.ts';
import { LogEntry } from '../src/log/log-entry.ts';

function entry(channel: string, offset: number): LogEntry {
  return new LogEntry({ channel, epoch: 'e', offset, data: '' });
}

interface Case {
  readonly cursor: number;
  /** The start of the channel; `undefined` if only the cursor applies. */
  readonly start?: number;
  /** The end of the log when the start was chosen, for a start at events that the log kept then. */
  readonly end?: number;
  /** Offset of the newest event of the channel that the log no longer holds. */
  readonly trimmed: number;
  readonly isLost: boolean;
}

describe('a channel has lost events exactly if its trimmed offset is beyond its start', () => {
  test.each<Case>([
    // Without a start, the cursor applies.
    { cursor: 0, trimmed: 0, isLost: false },
    { cursor: 0, trimmed: 1, isLost: true },
    { cursor: 5, trimmed: 0, isLost: false },
    { cursor: 5, trimmed: 4, isLost: false },
    { cursor: 5, trimmed: 5, isLost: false },
    { cursor: 5, trimmed: 6, isLost: true },
    // A start beyond the cursor: events up to the start are not delivered.
    { cursor: 5, start: 8, trimmed: 6, isLost: false },
    { cursor: 5, start: 8, trimmed: 8, isLost: false },
    { cursor: 5, start: 8, trimmed: 9, isLost: true },
    // A start below the cursor has no effect.
    { cursor: 5, start: 3, trimmed: 4, isLost: false },
    { cursor: 5, start: 3, trimmed: 6, isLost: true },
    { cursor: 0, start: 0, trimmed: 1, isLost: true },
    // The log kept events up to the end of the log: if these are trimmed, that is not a loss.
    { cursor: 0, start: OLDEST_KEPT, end: 9, trimmed: 0, isLost: false },
    { cursor: 0, start: OLDEST_KEPT, end: 9, trimmed: 9, isLost: false },
    { cursor: 0, start: OLDEST_KEPT, end: 9, trimmed: 10, isLost: true },
    { cursor: 5, start: OLDEST_KEPT, end: 9, trimmed: 9, isLost: false },
    { cursor: 5, start: 8, end: 12, trimmed: 12, isLost: false },
    { cursor: 5, start: 8, end: 12, trimmed: 13, isLost: true },
  ])(
    'cursor $cursor, start $start, end of the log $end, trimmed $trimmed: $isLost',
    ({ cursor, start, end, trimmed, isLost }) => {
      const starts = new ChannelStarts();
      if (end !== undefined) starts.setStartOfKept('a', start as number, end);
      else if (start !== undefined) starts.setStart('a', start);
      expect(starts.collectLost(['a'], [trimmed], cursor)).toEqual(isLost ? ['a'] : []);
      // A loss is found once: the same page shows no loss, unless more was trimmed.
      expect(starts.collectLost(['a'], [trimmed], cursor)).toEqual([]);
      const more = Math.max(trimmed, cursor, start ?? 0) + 1;
      expect(starts.collectLost(['a'], [more], cursor)).toEqual(['a']);
    },
  );

  test('and each channel is checked separately', () => {
    const starts = new ChannelStarts();
    starts.setStart('b', 10);
    starts.setStartOfKept('d', OLDEST_KEPT, 7);
    expect(starts.collectLost(['a', 'b', 'c', 'd'], [7, 7, 4, 7], 5)).toEqual(['a']);
    expect(starts.collectLost(['a', 'b', 'c', 'd'], [7, 11, 6, 8], 5)).toEqual(['b', 'c', 'd']);
  });
});

describe('an event is delivered', () => {
  test.each<[string, number | undefined, number, boolean]>([
    ['without a start', undefined, 1, true],
    ['below its start', 8, 7, false],
    ['at its start', 8, 8, false],
    ['beyond its start', 8, 9, true],
    ['all kept events', OLDEST_KEPT, 1, true],
  ])('%s (%s), at offset %i: %s', (_, start, offset, isOwed) => {
    const starts = new ChannelStarts();
    if (start !== undefined) starts.setStart('a', start);
    expect(starts.isAfterStart(entry('a', offset))).toBe(isOwed);
    expect(starts.isAfterStart(entry('b', offset))).toBe(true);
  });

  test('of a channel whose loss was reported: only if it came after the loss', () => {
    const starts = new ChannelStarts();
    starts.collectLost(['a', 'b'], [7, 0], 5);
    expect([6, 7, 8].map((offset) => starts.isAfterStart(entry('a', offset)))).toEqual([
      false,
      false,
      true,
    ]);
    expect(starts.isAfterStart(entry('b', 6))).toBe(true);
  });
});

describe('the start', () => {
  test('never moves back, except to the oldest kept event', () => {
    const starts = new ChannelStarts();
    starts.setStart('a', 8);
    starts.setStart('a', 3);
    expect([3, 8, 9].map((offset) => starts.isAfterStart(entry('a', offset)))).toEqual([
      false,
      false,
      true,
    ]);
    starts.setStart('a', OLDEST_KEPT);
    expect(starts.isAfterStart(entry('a', 1))).toBe(true);
    // Events that were trimmed at the first look are not delivered any more.
    starts.collectLost(['a'], [4], 0);
    expect([4, 5].map((offset) => starts.isAfterStart(entry('a', offset)))).toEqual([false, true]);
  });

  test('of a channel that is not followed any more is forgotten, and the other starts remain', () => {
    const starts = new ChannelStarts();
    starts.setStart('a', 8);
    starts.setStart('b', 8);
    starts.keepOnly(new Set(['b']));
    expect([starts.isAfterStart(entry('a', 5)), starts.isAfterStart(entry('b', 5))]).toEqual([
      true,
      false,
    ]);
  });
});

describe('a cursor of another log', () => {
  test('is a loss of its channels, without any offset, until the gap is written', () => {
    const starts = new ChannelStarts();
    expect(starts.hasForeign).toBe(false);
    starts.addForeign(['a']);
    starts.addForeign(['c']);
    expect(starts.hasForeign).toBe(true);
    expect(starts.collectLost(['a', 'b', 'c'], [0, 0, 0], 0)).toEqual(['a', 'c']);
    starts.clearForeign();
    expect(starts.hasForeign).toBe(false);
    expect(starts.collectLost(['a', 'b', 'c'], [0, 0, 0], 0)).toEqual([]);
  });

  test('of a channel that is not followed any more is not a loss', () => {
    const starts = new ChannelStarts();
    starts.addForeign(['a', 'b']);
    starts.keepOnly(new Set(['b']));
    expect(starts.collectLost(['a', 'b'], [0, 0], 0)).toEqual(['b']);
    starts.keepOnly(new Set());
    expect(starts.hasForeign).toBe(false);
  });
});

test('a new log has lost events of each channel, and starts in the old log have no meaning', () => {
  const starts = new ChannelStarts();
  starts.setStart('a', 100);
  starts.addForeign(['c']);
  starts.markAllLost(['a', 'b']);
  expect(starts.isAfterStart(entry('a', 1))).toBe(true);
  expect(starts.collectLost(['a', 'b'], [0, 0], 0)).toEqual(['a', 'b']);
});
