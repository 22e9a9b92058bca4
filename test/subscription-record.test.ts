import { describe, expect, test } from 'vitest';
import type { FollowerHost } from '../src/channels/follower-host.ts';
import { FanOut } from '../src/channels/fan-out.ts';
import { GapCounts } from '../src/channels/gap-counts.ts';
import { SharedSubscriptionState } from '../src/channels/shared-subscription-state.ts';
import { SubscriptionRecord, channelsOf, placedChannelsOf } from '../src/channels/subscription.ts';
import type { Audience, Member } from '../src/channels/audience.ts';
import type { SubscribeOptions } from '../src/stream/event-stream.ts';

function started(channels: readonly string[], options: SubscribeOptions = {}): SubscriptionRecord {
  const record = new SubscriptionRecord(channels, options);
  record.markAllPlaced();
  record.finishStart();
  return record;
}

/** Whether a promise has settled by now. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  const pending = Symbol('pending');
  return (await Promise.race([promise, Promise.resolve(pending)])) !== pending;
}

describe('a subscription record', () => {
  test('is created, then placed, then started', async () => {
    const record = new SubscriptionRecord(['a', 'b'], {});
    const placed = record.whenPlaced();
    const startPromise = record.whenStarted();
    const signal = record.getSignal();
    expect([record.isPlaced, record.isStartFinished, record.placedChannels]).toEqual([
      false,
      false,
      [],
    ]);
    expect(await isSettled(placed)).toBe(false);
    record.markAllPlaced();
    expect([record.isPlaced, record.isStartFinished, record.placedChannels]).toEqual([
      true,
      false,
      ['a', 'b'],
    ]);
    expect([await isSettled(placed), await isSettled(startPromise)]).toEqual([true, false]);
    record.finishStart();
    expect(record.isStartFinished).toBe(true);
    expect(await isSettled(startPromise)).toBe(true);
    expect(signal.aborted).toBe(false);
  });

  test('that ends before it is placed aborts its signal and resolves all waits', async () => {
    const record = new SubscriptionRecord(['a'], {});
    const waits = [record.whenPlaced(), record.whenStarted()];
    const signal = record.getSignal();
    record.finishStart();
    await Promise.all(waits);
    await Promise.all([record.whenPlaced(), record.whenStarted()]);
    expect([signal.aborted, record.getSignal().aborted]).toEqual([true, true]);
  });

  test('has those of its channels placed that the stream follows already', () => {
    const record = new SubscriptionRecord(['a', 'b', 'c'], {});
    record.markPlaced(['c', 'x']);
    record.markPlaced(['a']);
    expect(record.isPlaced).toBe(false);
    expect(['a', 'b', 'c', 'x'].map((channel) => record.hasPlaced(channel))).toEqual([
      true,
      false,
      true,
      false,
    ]);
    const other = started(['x']);
    expect([...placedChannelsOf([record, other])]).toEqual(['c', 'a', 'x']);
    expect(channelsOf([record, other, started(['b'])])).toEqual(['a', 'b', 'c', 'x']);
  });

  test('remembers a loss only before it has started', () => {
    const early = new SubscriptionRecord(['a'], {});
    const late = started(['a']);
    for (const record of [early, late]) record.noteLoss();
    expect([early.recovered, late.recovered]).toEqual([false, true]);
  });
});

describe('two records are alike', () => {
  const filter = (): boolean => true;
  test.each<[string, SubscriptionRecord, SubscriptionRecord, boolean]>([
    ['with the same channels', started(['a', 'b']), started(['a', 'b']), true],
    ['not in another order', started(['a', 'b']), started(['b', 'a']), false],
    ['not with fewer channels', started(['a', 'b']), started(['a']), false],
    ['wherever they started', started(['a'], { since: 'start' }), started(['a']), true],
    [
      'not with other checkpoints',
      started(['a'], { checkpoints: false }),
      started(['a'], {}),
      false,
    ],
    ['not with a filter', started(['a'], { filter }), started(['a'], { filter }), false],
    ['not with onGap', started(['a'], { onGap: () => {} }), started(['a']), false],
    ['not before both have started', started(['a']), new SubscriptionRecord(['a'], {}), false],
  ])('%s', (_, one, other, isAlike) => {
    expect([one.isLike(other), other.isLike(one)]).toEqual([isAlike, isAlike]);
    expect([one.isLike(one), other.isLike(other)]).toEqual([true, true]);
  });
});

describe('the members of an audience share one state', () => {
  const host = {} as FollowerHost;

  function audienceOf(channels: readonly string[]): Audience {
    return new FanOut(() => {}).addMember(channels, { listIndex: -1 } as Member);
  }

  function stateOf(records: SubscriptionRecord[], epoch = 'e'): SharedSubscriptionState {
    return SharedSubscriptionState.initial(host).with({ subscriptions: records, epoch });
  }

  test('if their subscriptions are alike, and their cursors are of the same log', () => {
    const audience = audienceOf(['a']);
    const first = stateOf([started(['a'])]).inAudience(audience);
    expect([first.audience, first.channels]).toEqual([audience, audience.channels]);
    expect(stateOf([started(['a'])]).inAudience(audience)).toBe(first);
    expect(stateOf([started(['a'])], 'f').inAudience(audience)).not.toBe(first);
    expect(stateOf([started(['a']), started(['a'])]).inAudience(audience)).not.toBe(first);
  });

  test('also if a member with a state of its own has joined in between', () => {
    const audience = audienceOf(['a']);
    const first = stateOf([started(['a'])]).inAudience(audience);
    const own = stateOf([started(['a'], { filter: () => true })]).inAudience(audience);
    expect([own.isFiltered, own.hasGapHandler]).toEqual([true, false]);
    expect(stateOf([started(['a'])]).inAudience(audience)).toBe(first);
  });

  test.each<[string, SubscribeOptions]>([
    ['filter', { filter: () => true }],
    ['onGap', { onGap: () => {} }],
  ])('which never holds a function of a request (%s)', (_, options) => {
    const audience = audienceOf(['a']);
    const own = stateOf([started(['a'], options)]).inAudience(audience);
    expect(audience.sharedState).toBeUndefined();
    expect(stateOf([...own.subscriptions]).inAudience(audience)).not.toBe(own);
  });
});

test('gaps are counted for each set of channels, whatever the order of its channels', () => {
  const counts = new GapCounts();
  expect(counts.isEmpty).toBe(true);
  counts.add([started(['a', 'b']), started(['b', 'a']), started(['c'])]);
  counts.add([started(['c'])]);
  expect([['a', 'b'], ['b', 'a'], ['c'], ['a']].map((set) => counts.of(set))).toEqual([1, 1, 2, 0]);
  counts.keepOnly([started(['b', 'a'])]);
  expect([['a', 'b'], ['c']].map((set) => counts.of(set))).toEqual([1, 0]);
  counts.keepOnly([]);
  expect(counts.isEmpty).toBe(true);
});
