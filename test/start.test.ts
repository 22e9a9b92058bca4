import { describe, expect, test } from 'vitest';
import { requestedCursor, resolveStart } from '../src/channels/start.ts';

const POSITION = { epoch: 'e', offset: 10 };

interface Case {
  /** The client's last event id. */
  readonly id?: string;
  readonly since?: string;
  readonly resume?: boolean;
  readonly offset: number;
  readonly isForeign?: true;
  readonly isFromOldest?: true;
}

describe('the start of a subscription', () => {
  test.each<Case>([
    // Without an id of the client, `since` decides. Its default is 'now'.
    { offset: 10 },
    { since: 'now', offset: 10 },
    { since: 'start', offset: 0, isFromOldest: true },
    { since: 'e.4', offset: 4 },
    { since: 'e.0', offset: 0 },
    { since: 'e.10', offset: 10 },
    // Beyond the end of the log, of another log, or no cursor at all.
    { since: 'e.11', offset: 0, isForeign: true },
    { since: 'f.4', offset: 0, isForeign: true },
    { since: '', offset: 0, isForeign: true },
    { since: 'never', offset: 0, isForeign: true },
    // An id of the client takes precedence.
    { id: 'e.4', offset: 4 },
    { id: 'e.4', since: 'now', offset: 4 },
    { id: 'e.4', since: 'start', offset: 4 },
    { id: 'e.4', since: 'e.7', resume: true, offset: 4 },
    { id: 'e.11', since: 'e.7', offset: 0, isForeign: true },
    { id: 'f.4', since: 'e.7', offset: 0, isForeign: true },
    { id: '17', offset: 0, isForeign: true },
    // The words of `since` mean nothing as an id.
    { id: 'now', offset: 0, isForeign: true },
    { id: 'start', offset: 0, isForeign: true },
    // With `resume: false` the id of the client is ignored.
    { id: 'e.4', resume: false, offset: 10 },
    { id: 'e.4', since: 'start', resume: false, offset: 0, isFromOldest: true },
    { id: 'f.4', since: 'e.7', resume: false, offset: 7 },
  ])(
    'id $id, since $since, resume $resume: offset $offset, foreign $isForeign, all $isFromOldest',
    ({ id = '', since, resume, offset, isForeign = false, isFromOldest = false }) => {
      expect(resolveStart(id, { since, resume }, POSITION)).toEqual({
        offset,
        isForeign,
        isFromOldest,
      });
    },
  );
});

describe('the cursor that a subscription requests', () => {
  test.each<[string, string | undefined, boolean | undefined, number | undefined]>([
    ['', undefined, undefined, undefined],
    ['', 'start', undefined, undefined],
    ['', 'e.4', undefined, 4],
    ['e.5', 'e.4', undefined, 5],
    ['e.5', 'e.4', false, 4],
    ['e.5', undefined, false, undefined],
    ['start', 'e.4', undefined, undefined],
  ])('id "%s", since %s, resume %s: offset %s', (id, since, resume, offset) => {
    expect(requestedCursor(id, { since, resume })?.offset).toBe(offset);
  });
});
