import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { formatCursor, parseCursor } from '../src/protocol/cursor.ts';

const epoch = fc.stringMatching(/^[A-Za-z0-9_-]{1,40}$/);

test('a formatted cursor is parsed to the same cursor', () => {
  fc.assert(
    fc.property(epoch, fc.maxSafeNat(), (name, offset) => {
      const text = formatCursor(name, offset);
      expect(text).toMatch(/^[A-Za-z0-9._-]{1,127}$/);
      expect(parseCursor(text)).toEqual({ epoch: name, offset });
    }),
  );
});

test('any other text is not a cursor, and parsing it never throws', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string({ unit: 'binary' }),
        fc
          .array(fc.constantFrom('a', '.', '-', '0', '9', '+', 'e', ' ', '\n'))
          .map((all) => all.join('')),
      ),
      (text) => {
        const cursor = parseCursor(text);
        expect(cursor === undefined || formatCursor(cursor.epoch, cursor.offset) === text).toBe(
          true,
        );
      },
    ),
    { numRuns: 5_000 },
  );
});

describe('not a cursor is', () => {
  test.each([
    ['the empty string', ''],
    ['no offset', 'abc'],
    ['an empty offset', 'abc.'],
    ['no epoch', '.5'],
    ['a negative offset', 'abc.-1'],
    ['a broken offset', 'abc.1.5'],
    ['an exponent', 'abc.1e3'],
    ['hex', 'abc.0x5'],
    ['leading zeros, because each place has one text', 'abc.007'],
    ['an offset that a number cannot represent exactly', 'abc.9007199254740993'],
    ['a space', 'abc.5 '],
    ['a line end', 'abc.5\n'],
    ['the final id', 'sse:end'],
    ['digits of another script', 'abc.٥'],
  ])('%s', (_, text) => {
    expect(parseCursor(text)).toBeUndefined();
  });

  test('a megabyte, which is rejected without parsing', () => {
    expect(parseCursor(`${'a'.repeat(1_000_000)}.5`)).toBeUndefined();
    expect(parseCursor(`a.${'5'.repeat(1_000_000)}`)).toBeUndefined();
  });
});
