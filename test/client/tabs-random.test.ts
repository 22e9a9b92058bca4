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
          // Behind the proxy, a stream that is tried again takes 10 s.
          for (let second = 0; second < 20; second++) {
            if (alive.every(({ isOpen }) => isOpen !== !!end)) break;
            await vi.advanceTimersByTimeAsync(1_000);
          }
          for (const each of alive) {
            expect(each).toMatchObject({ isOpen: !end, isEnded: !!end });
            expectComplete(each, model.head);
          }
          expect(model.streams).toBe(
            end || model.isBuffering || model.isPolled ? 0 : Math.min(1, alive.length),
          );
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
