import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { CHUNK_BYTES, WriteQueue } from '../src/stream/write-queue.ts';

const BYTES_PER_TURN = 262_144;

// A piece below this size is copied together with its neighbours.
const COPY_BELOW_BYTES = 512;

/** @returns a buffer of `length` bytes of one letter */
function bytesOf(length: number, letter = 'x'): Buffer {
  return Buffer.alloc(length, letter);
}

/** Takes pieces until the queue is empty. */
function takeAll(queue: WriteQueue): Buffer[] {
  const pieces: Buffer[] = [];
  while (!queue.isEmpty) pieces.push(queue.shift());
  return pieces;
}

describe('shift() returns', () => {
  test.each<[string, number[], number[]]>([
    ['nothing from an empty queue', [], []],
    ['a single small event', [1], [1]],
    ['small events together', [100, 200, 300], [600]],
    ['events that fill a chunk exactly', [CHUNK_BYTES - 1, 1], [CHUNK_BYTES]],
    ['an event of one chunk as a whole', [CHUNK_BYTES], [CHUNK_BYTES]],
    ['an event above a chunk in chunks', [CHUNK_BYTES + 1], [CHUNK_BYTES, 1]],
    ['two chunks and a rest', [2 * CHUNK_BYTES + 10], [CHUNK_BYTES, CHUNK_BYTES, 10]],
    [
      'the rest of a large event together with the next',
      [CHUNK_BYTES + 600, 700],
      [CHUNK_BYTES, 1_300],
    ],
    ['no part of an event that does not fit', [CHUNK_BYTES - 600, 700], [CHUNK_BYTES - 600, 700]],
    ['a large event after small ones, separately', [10, CHUNK_BYTES], [10, CHUNK_BYTES]],
  ])('%s', (_, events, pieces) => {
    const queue = new WriteQueue([]);
    for (const length of events) queue.add(bytesOf(length));
    expect(queue.size).toBe(events.reduce((sum, length) => sum + length, 0));
    expect(takeAll(queue).map(({ length }) => length)).toEqual(pieces);
    expect([queue.size, queue.isEmpty]).toEqual([0, true]);
  });
});

const LENGTHS = fc.oneof(
  fc.integer({ min: 1, max: COPY_BELOW_BYTES + 1 }),
  fc.integer({ min: CHUNK_BYTES - 2, max: CHUNK_BYTES + 2 }),
  fc.integer({ min: 1, max: 3 * CHUNK_BYTES }),
);

test('all bytes are removed in the order in which they were added, in chunks', () => {
  const steps = fc.array(
    fc.oneof(
      fc.record({ kind: fc.constant('add' as const), lengths: fc.tuple(LENGTHS) }),
      fc.record({
        kind: fc.constant('addAll' as const),
        lengths: fc.array(LENGTHS, { maxLength: 4 }),
      }),
      fc.record({ kind: fc.constant('take' as const), lengths: fc.constant([]) }),
    ),
    { maxLength: 30 },
  );
  fc.assert(
    fc.property(steps, fc.array(LENGTHS, { maxLength: 3 }), (all, first) => {
      let letter = 0;
      const make = (length: number): Buffer =>
        bytesOf(length, String.fromCharCode(97 + (letter++ % 26)));
      const initial = first.map(make);
      const added = [...initial];
      const taken: Buffer[] = [];
      const queue = new WriteQueue(initial);
      for (const { kind, lengths } of all) {
        const buffers = lengths.map(make);
        added.push(...buffers);
        if (kind === 'add') queue.add(buffers[0] as Buffer);
        else if (kind === 'addAll') queue.addAll(buffers);
        else if (!queue.isEmpty) taken.push(queue.shift());
        const bytesOut = taken.reduce((sum, { length }) => sum + length, 0);
        const bytesIn = added.reduce((sum, { length }) => sum + length, 0);
        expect(queue.size).toBe(bytesIn - bytesOut);
        expect(queue.isEmpty).toBe(queue.size === 0);
      }
      taken.push(...takeAll(queue));
      expect(Math.max(0, ...taken.map(({ length }) => length))).toBeLessThanOrEqual(CHUNK_BYTES);
      expect(Buffer.concat(taken).equals(Buffer.concat(added))).toBe(true);
    }),
  );
});

describe('the bytes of an event are', () => {
  test.each([
    ['copied below 512 bytes', COPY_BELOW_BYTES - 1, true],
    ['kept as they are from 512 bytes on', COPY_BELOW_BYTES, false],
  ])('%s by add()', (_, length, isCopied) => {
    const queue = new WriteQueue([]);
    const bytes = bytesOf(length);
    queue.add(bytes);
    expect(queue.shift() !== bytes).toBe(isCopied);
  });

  test('copied by add() into memory that holds nothing else', () => {
    const queue = new WriteQueue([]);
    for (const text of ['one', 'two', 'three']) queue.add(Buffer.from(text));
    const piece = queue.shift();
    expect(piece.toString()).toBe('onetwothree');
    expect(piece.buffer.byteLength).toBe(piece.length);
  });

  test('kept without a copy by addAll() and by the constructor, which do not change the array of the caller', () => {
    const small = [bytesOf(1), bytesOf(2)];
    const queue = new WriteQueue(small);
    queue.addAll(small);
    queue.add(bytesOf(1_000));
    expect(small).toHaveLength(2);
    const alone = new WriteQueue(small.slice(0, 1));
    expect(alone.shift()).toBe(small[0]);
    const later = new WriteQueue([]);
    later.addAll(small.slice(1));
    expect(later.shift()).toBe(small[1]);
  });
});

describe('in one turn of the event loop', () => {
  test('the share of a queue is used up after 256 KiB, and is new in the next turn', async () => {
    const queue = new WriteQueue([bytesOf(2 * BYTES_PER_TURN)]);
    let taken = 0;
    while (!queue.hasUsedUpTurn()) taken += queue.shift().length;
    expect(taken).toBe(BYTES_PER_TURN);
    await nextTurn();
    expect(queue.hasUsedUpTurn()).toBe(false);
    taken = 0;
    while (!queue.hasUsedUpTurn()) taken += queue.shift().length;
    expect(taken).toBe(BYTES_PER_TURN);
    expect(queue.isEmpty).toBe(true);
  });

  test('each queue has its own share', () => {
    const [one, other] = [1, 2].map(() => new WriteQueue([bytesOf(2 * BYTES_PER_TURN)])) as [
      WriteQueue,
      WriteQueue,
    ];
    while (!one.hasUsedUpTurn()) one.shift();
    expect(other.hasUsedUpTurn()).toBe(false);
  });

  test('defer() calls back once, in the next turn, however often it is called', async () => {
    const queue = new WriteQueue([bytesOf(10)]);
    const onTurn = vi.fn<() => void>();
    queue.defer(onTurn);
    queue.defer(onTurn);
    expect(onTurn).not.toHaveBeenCalled();
    await nextTurn();
    expect(onTurn).toHaveBeenCalledOnce();
    queue.defer(onTurn);
    await nextTurn();
    expect(onTurn).toHaveBeenCalledTimes(2);
  });
});

test('bytes in the queue at defer() are deferred bytes until they are removed or the next turn comes', async () => {
  const queue = new WriteQueue([bytesOf(CHUNK_BYTES), bytesOf(1_000)]);
  expect(queue.deferredBytes).toBe(0);
  queue.defer(() => {});
  expect(queue.deferredBytes).toBe(CHUNK_BYTES + 1_000);
  queue.add(bytesOf(5_000));
  expect(queue.deferredBytes).toBe(CHUNK_BYTES + 1_000);
  queue.shift();
  expect(queue.deferredBytes).toBe(1_000);
  queue.shift();
  expect([queue.deferredBytes, queue.size]).toEqual([0, 0]);
  await nextTurn();
  expect(queue.deferredBytes).toBe(0);
});
