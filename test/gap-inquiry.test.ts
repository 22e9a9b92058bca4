import { describe, expect, test } from 'vitest';
import { planGapQuestions } from '../src/channels/gap-inquiry.ts';
import { SubscriptionRecord } from '../src/channels/subscription.ts';

interface Subscribed {
  readonly channels: readonly string[];
  /** Whether it has no `onGap`. */
  readonly isSilent?: true;
  /** Whether it was asked, and nothing was delivered since. */
  readonly wasAsked?: true;
  /** Whether its start is not known yet. */
  readonly isPending?: true;
}

function recordOf({ channels, isSilent, wasAsked, isPending }: Subscribed): SubscriptionRecord {
  const record = new SubscriptionRecord(channels, isSilent ? {} : { onGap: () => {} });
  if (!isPending) record.markAllPlaced();
  record.wasAskedAboutGap = wasAsked === true;
  return record;
}

describe('a gap is a question', () => {
  test.each<[string, Subscribed[], string[], (readonly [number, string[]])[]]>([
    ['to no subscription without onGap', [{ channels: ['a'], isSilent: true }], ['a'], []],
    ['for the channels with a gap only', [{ channels: ['a', 'b'] }], ['b'], [[0, ['b']]]],
    [
      'to each subscription that has one of them',
      [{ channels: ['a'] }, { channels: ['b'] }, { channels: ['c'] }],
      ['a', 'c'],
      [
        [0, ['a']],
        [2, ['c']],
      ],
    ],
    [
      'for each channel once, to the first subscription that has it',
      [{ channels: ['a', 'b'] }, { channels: ['b', 'c'] }],
      ['a', 'b', 'c'],
      [
        [0, ['a', 'b']],
        [1, ['c']],
      ],
    ],
    [
      'not to a subscription whose channels all have a question',
      [{ channels: ['a', 'b'] }, { channels: ['b'] }],
      ['a', 'b'],
      [[0, ['a', 'b']]],
    ],
    [
      'to the next subscription, if the first has no onGap',
      [{ channels: ['a'], isSilent: true }, { channels: ['a'] }],
      ['a'],
      [[1, ['a']]],
    ],
    [
      'to the next subscription, if the first was asked since the last delivery',
      [{ channels: ['a'], wasAsked: true }, { channels: ['a'] }],
      ['a'],
      [[1, ['a']]],
    ],
    [
      'not to a subscription whose start is not known',
      [{ channels: ['a'], isPending: true }],
      ['a'],
      [],
    ],
  ])('%s', (_, subscribed, lost, expected) => {
    const records = subscribed.map(recordOf);
    const questions = planGapQuestions(lost, records);
    expect(questions.map(({ record, channels }) => [records.indexOf(record), channels])).toEqual(
      expected,
    );
  });
});
