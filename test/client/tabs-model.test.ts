import fc from 'fast-check';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Model, type Tab } from './tabs-model.ts';

const RUNS = Number(process.env['TABS_RUNS'] ?? 80);

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
  | { do: 'close' | 'freeze' | 'thaw' | 'pagehide' | 'pageshow'; tab: number }
  | { do: 'closeAt'; tab: number; state: string; events: number | undefined }
  | { do: 'crash'; tab: number; lost: number }
  | { do: 'refuse'; tab: number }
  | { do: 'clock'; ms: number }
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
    weight: 5,
    arbitrary: fc.record({
      do: fc.constantFrom(
        ...(['close', 'freeze', 'thaw', 'pagehide', 'pageshow', 'pageshow'] as const),
      ),
      tab,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('closeAt' as const),
      tab,
      state: fc.constantFrom('open', 'reconnecting'),
      events: fc.option(fc.nat(3), { nil: undefined }),
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
  { weight: 1, arbitrary: fc.record({ do: fc.constant('refuse' as const), tab }) },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('clock' as const),
      ms: fc.constantFrom(-3_600_000, -3_000, 3_000, 3_600_000),
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
  const { alive } = model;
  const chosen = 'tab' in action ? alive[action.tab % Math.max(1, alive.length)] : undefined;
  if (action.do === 'publish') model.publish();
  else if (action.do === 'cut') model.cut();
  else if (action.do === 'down' || action.do === 'up') model.isDown = action.do === 'down';
  else if (action.do === 'open') {
    const { behind } = action;
    model.open(behind === undefined ? undefined : Math.max(0, model.head - behind));
  } else if (action.do === 'wait') await vi.advanceTimersByTimeAsync(action.ms);
  else if (action.do === 'clock') vi.setSystemTime(Date.now() + action.ms);
  else if (chosen === undefined) return;
  else if (action.do === 'refuse') chosen.isRefused = true;
  else if (action.do === 'closeAt') {
    const { events, state } = action;
    chosen.closesAt = events === undefined ? state : model.head + 1 + events;
  } else if (action.do === 'close') model.close(chosen);
  else if (action.do === 'crash') model.crash(chosen, () => Math.random() > action.lost);
  else if (action.do === 'freeze') chosen.isFrozen = true;
  else if (action.do === 'thaw') model.thaw(chosen);
  else model.dispatch(chosen, action.do);
  await vi.advanceTimersByTimeAsync(0);
}

/** Expects each event once and in order, and a gap exactly where events are missing. */
function expectComplete({ received, due }: Tab, head: number): void {
  // Without an id, and the channel had ended before.
  if (due === Infinity) return;
  let previous: number | undefined;
  let isAfterGap = false;
  for (const item of received) {
    if (item === 'gap') isAfterGap = true;
    else {
      // A page without an id may receive events from before it was open.
      const least = previous ?? (item <= due ? item - 1 : due);
      if (isAfterGap) expect(item).toBeGreaterThan(least);
      else expect(item).toBe(least + 1);
      previous = item;
      isAfterGap = false;
    }
  }
  // Behind a 410 the server starts at the newest event, and the channel may have ended there.
  if (!isAfterGap) expect(previous ?? due).toBe(head);
}

test.each([
  ['', () => {}],
  [
    ' and the server keeps few events',
    (model: Model) => {
      model.history = 3;
    },
  ],
  [
    ' and the server answers 410 for lost events',
    (model: Model) => {
      model.history = 3;
      model.answersGone = true;
    },
  ],
  [
    ' and ids cannot be compared',
    (model: Model) => {
      model.idOf = (number) => `id${number}`;
      model.history = 6;
    },
  ],
  [
    ' and a proxy holds streams back',
    (model: Model) => {
      model.isBuffering = true;
    },
  ],
  [
    ' and ids have numbers that are not in order',
    (model: Model) => {
      model.idOf = (number) => `order.${10_000 - number}`;
    },
  ],
])(
  'tabs miss and repeat no event, whenever tabs open, close, crash and freeze%s, and use one connection in the end',
  async (_what, prepare) => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { minLength: 1, maxLength: 60 }),
        fc.constantFrom(undefined, 'during the steps', 'at last'),
        async (steps, end) => {
          // A run that failed leaves tabs.
          vi.clearAllTimers();
          vi.unstubAllGlobals();
          const model = new Model();
          prepare(model);
          model.open();
          for (const each of steps) await perform(model, each);
          model.publish();
          if (end === 'during the steps') model.end();
          model.isDown = false;
          for (const each of model.tabs) {
            each.closesAt = undefined;
            model.thaw(each);
            model.dispatch(each, 'pageshow');
          }
          await vi.advanceTimersByTimeAsync(120_000);
          model.publish();
          if (end === 'at last') model.end();
          await vi.advanceTimersByTimeAsync(60_000);
          const { alive } = model;
          for (const each of alive) {
            expect(each).toMatchObject({ isOpen: !end, isEnded: !!end });
            expectComplete(each, model.head);
          }
          expect(model.streams).toBe(end || model.isBuffering ? 0 : Math.min(1, alive.length));
          for (const each of alive) model.close(each);
          await vi.advanceTimersByTimeAsync(1_000);
          expect(model.remains()).toEqual({ streams: 0, channels: 0, locks: 0 });
          expect(vi.getTimerCount()).toBe(0);
        },
      ),
      { numRuns: RUNS },
    );
  },
  120_000,
);

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

test('a page that wakes up after it has lost the lock does not tell the others its old state', async () => {
  const model = new Model();
  const first = model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  model.isDown = true;
  model.cut();
  await vi.advanceTimersByTimeAsync(10);
  first.isFrozen = true;
  model.isDown = false;
  const others = [model.open(), model.open(0)];
  await vi.advanceTimersByTimeAsync(20_000);
  expect(others).toMatchObject([{ isOpen: true }, { isOpen: true }]);
  model.thaw(first, true);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(others).toMatchObject([{ isOpen: true }, { isOpen: true }]);
  expect(first.isOpen).toBe(true);
});

test('pages that may not use channels have connections of their own', async () => {
  const model = new Model();
  model.isChannelBlocked = true;
  const tabs = [model.open(), model.open()];
  await vi.advanceTimersByTimeAsync(1_000);
  model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(tabs).toMatchObject([
    { isOpen: true, received: [1] },
    { isOpen: true, received: [1] },
  ]);
  for (const each of tabs) model.close(each);
  expect(model.remains()).toEqual({ streams: 0, channels: 0, locks: 0 });
  expect(vi.getTimerCount()).toBe(0);
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

test('a page that calls close() when it is told that it takes over leaves no connection and no lock', async () => {
  const model = new Model();
  const first = model.open();
  const second = model.open();
  const third = model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  second.closesAt = 'reconnecting';
  model.close(first);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(model.streams).toBe(1);
  model.publish();
  await vi.advanceTimersByTimeAsync(100);
  expect([second.received, third.received]).toEqual([[], [1]]);
  model.close(third);
  await vi.advanceTimersByTimeAsync(100);
  expect(model.remains()).toEqual({ streams: 0, channels: 0, locks: 0 });
  expect(vi.getTimerCount()).toBe(0);
});

test('a page at the id before a gap, or between it and the first id after it, is told of the gap, too', async () => {
  const model = new Model();
  model.history = 3;
  for (let count = 0; count < 9; count++) model.publish();
  const first = model.open(1);
  await vi.advanceTimersByTimeAsync(1_000);
  const [same, between, after] = [model.open(1), model.open(4), model.open(7)];
  await vi.advanceTimersByTimeAsync(1_000);
  const all = [first, same, between, after].map(({ received }) => received);
  expect(all).toEqual([
    ['gap', 7, 8, 9],
    ['gap', 7, 8, 9],
    ['gap', 7, 8, 9],
    [8, 9],
  ]);
  expect(model.streams).toBe(1);
});

test('pages that lose the same events are told of the gap over one connection', async () => {
  for (let round = 0; round < 20; round++) {
    const model = new Model();
    model.history = 3;
    const tabs = [model.open(0), model.open(0), model.open(0)];
    await vi.advanceTimersByTimeAsync(1_000);
    model.isDown = true;
    model.cut();
    for (let count = 0; count < 9; count++) model.publish();
    await vi.advanceTimersByTimeAsync(10);
    model.isDown = false;
    const { requests } = model;
    await vi.advanceTimersByTimeAsync(10_000);
    for (const { received } of tabs) expect(received).toEqual(['gap', 7, 8, 9]);
    expect(model.requests).toBe(requests + 1);
    vi.unstubAllGlobals();
  }
});

test('a page ahead of a leader that is told of a gap is told of it if it lost something, too', async () => {
  const model = new Model();
  model.history = 3;
  for (let count = 0; count < 9; count++) model.publish();
  model.isDown = true;
  const tabs = [model.open(1), model.open(4), model.open(7)];
  await vi.advanceTimersByTimeAsync(100);
  model.isDown = false;
  await vi.advanceTimersByTimeAsync(10_000);
  const all = tabs.map(({ received }) => received);
  expect(all).toEqual([
    ['gap', 7, 8, 9],
    ['gap', 7, 8, 9],
    [8, 9],
  ]);
  expect(model.streams).toBe(1);
});

test('pages whose id is answered with 410 are told once, and miss nothing that follows', async () => {
  const model = new Model();
  model.history = 3;
  model.answersGone = true;
  for (let count = 0; count < 9; count++) model.publish();
  const tabs = [model.open(1), model.open(1)];
  await vi.advanceTimersByTimeAsync(1_000);
  for (let count = 0; count < 3; count++) model.publish();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(tabs.map(({ received }) => received)).toEqual([
    ['gap', 10, 11, 12],
    ['gap', 10, 11, 12],
  ]);
  expect(model.requests).toBe(2);
});

test('a page without an id that joins while the channel ends hears from the server what it has missed', async () => {
  for (let round = 0; round < 30; round++) {
    const model = new Model();
    model.since = 0;
    const first = model.open();
    await vi.advanceTimersByTimeAsync(1_000);
    model.publish();
    await vi.advanceTimersByTimeAsync(1_000);
    const late = model.open();
    await vi.advanceTimersByTimeAsync(round % 10);
    model.end();
    await vi.advanceTimersByTimeAsync(1_000);
    expect([first, late]).toMatchObject([
      { isEnded: true, received: [1] },
      { isEnded: true, received: [1] },
    ]);
    vi.unstubAllGlobals();
  }
});

test('the end that a leader without an id hears of is not the end for a page that has one', async () => {
  const model = new Model();
  const tabs = [model.open(), model.open(0)];
  model.publish();
  model.end();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(tabs).toMatchObject([
    { isEnded: true, received: [] },
    { isEnded: true, received: [1] },
  ]);
});

test('the name of the lock and the channel has the version of the messages, so that a page with another client does not read them', async () => {
  const model = new Model();
  model.open();
  await vi.advanceTimersByTimeAsync(1_000);
  expect([...model.names]).toEqual(['res-sse:1:http://server/events true']);
});
