import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IndexedList, type IndexedListMember } from '../src/common/indexed-list.ts';

interface Named extends IndexedListMember {
  readonly name: string;
}

function listOf(names: string): { list: IndexedList<Named>; members: Map<string, Named> } {
  const list = new IndexedList<Named>();
  const members = new Map(names.split('').map((name) => [name, { name, listIndex: -1 }]));
  for (const member of members.values()) list.add(member);
  return { list, members };
}

function namesIn(list: IndexedList<Named>): string {
  return list.members.map(({ name }) => name).join('');
}

describe('delete() puts the last member in the place of the deleted one', () => {
  test.each([
    ['abcd', 'a', 'dbc'],
    ['abcd', 'b', 'adc'],
    ['abcd', 'd', 'abc'],
    ['a', 'a', ''],
    ['abcd', 'ab', 'dc'],
    ['abcd', 'dcba', ''],
  ])('%s without %s is %s', (before, deleted, after) => {
    const { list, members } = listOf(before);
    for (const name of deleted) expect(list.delete(members.get(name) as Named)).toBe(true);
    expect(namesIn(list)).toBe(after);
    expect(list.members.map(({ listIndex }) => listIndex)).toEqual([...list.members.keys()]);
    for (const name of deleted) expect(members.get(name)?.listIndex).toBe(-1);
  });

  test('returns false for a member that is in no list, and changes nothing', () => {
    const { list, members } = listOf('ab');
    const a = members.get('a') as Named;
    list.delete(a);
    expect(list.delete(a)).toBe(false);
    expect(list.delete({ name: 'x', listIndex: -1 })).toBe(false);
    expect(namesIn(list)).toBe('b');
  });
});

test('has() is false for a member of another list at the same index', () => {
  const { list, members } = listOf('a');
  const { list: other, members: others } = listOf('b');
  expect([list.has(members.get('a') as Named), list.has(others.get('b') as Named)]).toEqual([
    true,
    false,
  ]);
  expect([other.has(members.get('a') as Named), other.has(others.get('b') as Named)]).toEqual([
    false,
    true,
  ]);
});

test('has() is false outside of the list, even if the list is empty', () => {
  const member: Named = { name: 'a', listIndex: -1 };
  const list = new IndexedList<Named>();
  expect(list.has(member)).toBe(false);
  list.add(member);
  list.delete(member);
  expect(list.has(member)).toBe(false);
});

test('after any additions and deletions, the list has the same members as a set', () => {
  const steps = fc.array(fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 7 })), {
    maxLength: 60,
  });
  fc.assert(
    fc.property(steps, (all) => {
      const members = Array.from({ length: 8 }, (_, index) => ({
        name: String(index),
        listIndex: -1,
      }));
      const list = new IndexedList<Named>();
      const expected = new Set<Named>();
      for (const [isAdded, index] of all) {
        const member = members[index] as Named;
        // A member is in the list once at most.
        if (isAdded && !expected.has(member)) {
          list.add(member);
          expected.add(member);
        } else if (!isAdded) {
          expect(list.delete(member)).toBe(expected.delete(member));
        }
        expect(new Set(list.members)).toEqual(expected);
        for (const each of members) expect(list.has(each)).toBe(expected.has(each));
      }
    }),
  );
});
