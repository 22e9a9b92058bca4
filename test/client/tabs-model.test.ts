import fc from 'fast-check';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Model } from './tabs-model.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

type Step =
  | { do: 'publish' | 'cut' | 'down' | 'up' }
  | { do: 'open'; behind: number | undefined }
  | { do: 'close' | 'freeze' | 'thaw'; tab: number }
  | { do: 'crash'; tab: number; lost: number }
  | { do: 'wait'; ms: number };

const tab = fc.nat(7);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.constant({ do: 'publish' } as const) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constantFrom('cut' as const, 'down' as const, 'up' as const) }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('open' as const),
      behind: fc.option(fc.nat(5), { nil: undefined }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom('close' as const, 'freeze' as const, 'thaw' as const),
      tab,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('crash' as const),
      tab,
      lost: fc.double({ min: 0, max: 1 }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('wait' as const),
      ms: fc.constantFrom(1, 10, 100, 3_000, 20_000),
    }),
  },
);

async function perform(model: Model, action: Step): Promise<void> {
  const alive = model.tabs.filter(({ isDead }) => !isDead);
  const chosen = 'tab' in action ? alive[action.tab % Math.max(1, alive.length)] : undefined;
  if (action.do === 'publish') model.publish();
  else if (action.do === 'cut') model.cut();
  else if (action.do === 'down' || action.do === 'up') model.isDown = action.do === 'down';
  else if (action.do === 'open') {
    const { behind } = action;
    model.open(behind === undefined ? undefined : Math.max(0, model.head - behind));
  } else if (action.do === 'wait') await vi.advanceTimersByTimeAsync(action.ms);
  else if (chosen === undefined) return;
  else if (action.do === 'close') model.close(chosen);
  else if (action.do === 'crash') model.crash(chosen, () => Math.random() > action.lost);
  else if (action.do === 'freeze') chosen.isFrozen = true;
  else model.thaw(chosen);
  await vi.advanceTimersByTimeAsync(0);
}

test('tabs miss and repeat no event, whenever tabs open, close, crash and freeze, and use one connection in the end', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 60 }), async (steps) => {
      const model = new Model();
      model.open();
      for (const each of steps) await perform(model, each);
      model.isDown = false;
      for (const each of model.tabs) model.thaw(each);
      await vi.advanceTimersByTimeAsync(120_000);
      model.publish();
      await vi.advanceTimersByTimeAsync(60_000);
      const alive = model.tabs.filter(({ isDead }) => !isDead);
      for (const { received, due, isOpen } of alive) {
        expect(isOpen).toBe(true);
        const [first = due + 1] = received;
        // A page without an id may receive events from before it was open.
        expect(first).toBeLessThanOrEqual(due + 1);
        expect(received).toEqual(
          Array.from({ length: model.head - first + 1 }, (_, n) => first + n),
        );
      }
      expect(model.streams).toBe(Math.min(1, alive.length));
      for (const each of alive) model.close(each);
      await vi.advanceTimersByTimeAsync(1_000);
      expect(model.streams).toBe(0);
      vi.unstubAllGlobals();
    }),
    { numRuns: 300 },
  );
}, 120_000);

test('a page that is a little older than the leader needs no connection of its own', async () => {
  const model = new Model();
  model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  for (let count = 0; count < 10; count++) model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  const late = model.open(4);
  const ahead = model.open(10);
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  expect([late.received, ahead.received]).toEqual([[5, 6, 7, 8, 9, 10, 11], [11]]);
  expect(model.requests).toBe(1);
});

test('a page that is older than all that the leader knows has a connection of its own until it has caught up', async () => {
  const model = new Model();
  for (let count = 0; count < 10; count++) model.publish();
  model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  const late = model.open(4);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(late.received).toEqual([5, 6, 7, 8, 9, 10]);
  expect([model.requests, model.streams]).toEqual([2, 1]);
});

test('a page without an id asks the server where it starts', async () => {
  const model = new Model();
  const first = model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  const second = model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  expect([first.received, second.received]).toEqual([[1, 2], [2]]);
  expect([model.requests, model.streams]).toEqual([2, 1]);
});

test('a page without an id misses nothing from the moment on at which it is open', async () => {
  for (let round = 0; round < 50; round++) {
    const model = new Model();
    model.open();
    const second = model.open();
    while (!second.isOpen) await vi.advanceTimersByTimeAsync(1);
    for (let count = 0; count < 3; count++) {
      model.publish();
      await vi.advanceTimersByTimeAsync(round % 10);
    }
    await vi.advanceTimersByTimeAsync(1_000);
    expect(second.received).toEqual([1, 2, 3]);
    vi.unstubAllGlobals();
  }
});

test('a lost message is repaired with the next one', async () => {
  const model = new Model();
  model.open(0);
  const second = model.open(0);
  await vi.advanceTimersByTimeAsync(1_000);
  model.losesMessage = second;
  for (let count = 0; count < 3; count++) {
    model.publish();
    await vi.advanceTimersByTimeAsync(50);
  }
  expect(second.received).toEqual([1, 2, 3]);
  expect(model.requests).toBe(1);
});

test('pages that may not use locks have connections of their own', async () => {
  const model = new Model();
  model.isLockBlocked = true;
  const tabs = [model.open(), model.open()];
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(tabs).toMatchObject([
    { isOpen: true, received: [1] },
    { isOpen: true, received: [1] },
  ]);
  expect(model.streams).toBe(2);
});

test('a page that closes hands over at once', async () => {
  const model = new Model();
  const first = model.open();
  const second = model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  model.close(first);
  model.publish();
  await vi.advanceTimersByTimeAsync(100);
  expect(second.received).toEqual([1, 2]);
});
