import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { CatchUpQueue, type CatchUpJob } from '../src/channels/catch-up-queue.ts';
import { until } from './support/wait.ts';

const MAX_STEPS = 100;
const MAX_BYTES = 4_194_304;
const MAX_READS = 64;

/** Counts turns of the event loop. A turn starts after the queue's work of the previous turn. */
class Turns {
  now = 0;
  #isOver = false;

  constructor() {
    const count = (): void => {
      this.now++;
      if (!this.#isOver) setImmediate(count);
    };
    setImmediate(count);
  }

  stop(): void {
    this.#isOver = true;
  }
}

/** The number of steps of each turn. */
function perTurn(turns: readonly number[]): number[] {
  const counts = new Map<number, number>();
  for (const turn of turns) counts.set(turn, (counts.get(turn) ?? 0) + 1);
  return [...counts.values()];
}

function jobs(count: number, step: (index: number, job: CatchUpJob) => void): CatchUpJob[] {
  return Array.from({ length: count }, (_, index) => {
    const job = { step: () => step(index, job) };
    return job;
  });
}

test('a step is done in a later turn, or with mayRunNow in this one', async () => {
  const queue = new CatchUpQueue();
  const done: string[] = [];
  queue.add({ step: () => done.push('later') }, false);
  queue.add({ step: () => done.push('now') }, true);
  expect(done).toEqual(['now']);
  await nextTurn();
  await nextTurn();
  expect(done).toEqual(['now', 'later']);
});

describe('in one turn the queue runs', () => {
  test.each([true, false])(
    'at most 100 steps, in the order in which the streams came (mayRunNow: %s)',
    async (mayRunNow) => {
      const queue = new CatchUpQueue();
      const turns = new Turns();
      const done: number[] = [];
      const at: number[] = [];
      for (const job of jobs(1_000, (index) => void (done.push(index), at.push(turns.now)))) {
        queue.add(job, mayRunNow);
      }
      expect(done.length).toBe(mayRunNow ? MAX_STEPS : 0);
      await until('all steps', () => done.length === 1_000);
      turns.stop();
      expect(Math.max(...perTurn(at))).toBeLessThanOrEqual(MAX_STEPS);
      expect(done).toEqual(Array.from({ length: 1_000 }, (_, index) => index));
    },
  );

  test('steps until they have read 4 MiB: the step that exceeds this limit is the last one', async () => {
    const queue = new CatchUpQueue();
    const turns = new Turns();
    const at: number[] = [];
    const bytes = 1_048_576;
    const all = jobs(50, () => {
      at.push(turns.now);
      queue.countBytes(bytes);
    });
    for (const job of all) queue.add(job, true);
    await until('all steps', () => at.length === all.length);
    turns.stop();
    expect(Math.max(...perTurn(at))).toBeLessThanOrEqual(MAX_BYTES / bytes);
  });

  test('one step of each stream: a stream that its own step adds again has its next step in the next turn', async () => {
    const queue = new CatchUpQueue();
    const turns = new Turns();
    const done: { index: number; turn: number }[] = [];
    const all = jobs(5, (index, job) => {
      done.push({ index, turn: turns.now });
      if (done.length <= 20) queue.add(job, false);
    });
    for (const job of all) queue.add(job, false);
    await until('the steps', () => done.length > 20);
    turns.stop();
    const keys = done.map(({ index, turn }) => `${index} in ${turn}`);
    expect(new Set(keys).size).toBe(keys.length);
    // All streams have made the same progress.
    const counts = perTurn(done.map(({ index }) => index));
    expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
  });

  test('as many steps as in the turn before, even if that turn has reached its limits', async () => {
    const queue = new CatchUpQueue();
    const done: string[] = [];
    for (const job of jobs(MAX_STEPS, () => done.push('first'))) queue.add(job, true);
    queue.add({ step: () => done.push('second') }, true);
    expect(done).toHaveLength(MAX_STEPS);
    await until('the second', () => done.includes('second'));
    await nextTurn();
    await nextTurn();
    queue.add({ step: () => done.push('third') }, true);
    expect(done.at(-1)).toBe('third');
  });
});

describe('pages of a remote broker', () => {
  test('are requested or kept at most 64 at a time; after a page was used, the next page is requested', async () => {
    const queue = new CatchUpQueue();
    const reading: (() => void)[] = [];
    let inHand = 0;
    let most = 0;
    let used = 0;
    const all = jobs(500, () => {
      queue.startRead();
      most = Math.max(most, ++inHand);
      reading.push(() => {
        // The page has arrived. Its step comes before the steps that request a page.
        queue.add(
          {
            step: () => {
              inHand--;
              used++;
              queue.finishRead();
            },
          },
          false,
          true,
        );
      });
    });
    for (const job of all) queue.add(job, true);
    for (let turn = 0; turn < 5; turn++) await nextTurn();
    expect([inHand, reading.length]).toEqual([MAX_READS, MAX_READS]);
    await until('all pages', () => {
      for (const come of reading.splice(0, 10)) come();
      return used === all.length;
    });
    expect(most).toBe(MAX_READS);
  });

  test('that are not needed any more make room for other pages', async () => {
    const queue = new CatchUpQueue();
    let ended = 0;
    const all = jobs(200, () => {
      queue.startRead();
      setImmediate(() => {
        ended++;
        queue.finishRead();
      });
    });
    for (const job of all) queue.add(job, false);
    await until('all of them', () => ended === all.length);
  });
});

describe('a stream that has ended', () => {
  test('has no further step, and is not kept in memory', async () => {
    if (globalThis.gc === undefined) {
      throw new Error('run node with --expose-gc, as vitest.config.ts does');
    }
    const queue = new CatchUpQueue();
    // The limits of this turn are used up, so that all jobs wait.
    for (const job of jobs(MAX_STEPS, () => queue.countBytes(MAX_BYTES))) queue.add(job, true);
    let steps = 0;
    const refs = jobs(50, () => steps++).map((job) => {
      queue.add(job, true);
      queue.delete(job);
      return new WeakRef(job);
    });
    await until('the garbage to be collected', async () => {
      await nextTurn();
      globalThis.gc?.();
      return refs.every((ref) => ref.deref() === undefined);
    });
    expect(steps).toBe(0);
  });

  test('during the step of another stream has no further step', async () => {
    const queue = new CatchUpQueue();
    const done: string[] = [];
    const second = { step: () => done.push('second') };
    queue.add({ step: () => (done.push('first'), queue.delete(second)) }, false);
    queue.add(second, false);
    queue.add({ step: () => done.push('third') }, false);
    await until('the third', () => done.includes('third'));
    expect(done).toEqual(['first', 'third']);
  });
});

describe('waitForTurn()', () => {
  test('resolves for at most 100 callers in one turn, in the order of the calls', async () => {
    const queue = new CatchUpQueue();
    const turns = new Turns();
    const done: number[] = [];
    const at: number[] = [];
    for (let index = 0; index < 1_000; index++) {
      void queue.waitForTurn().then(() => (done.push(index), at.push(turns.now)));
    }
    await until('all', () => done.length === 1_000);
    turns.stop();
    expect(Math.max(...perTurn(at))).toBeLessThanOrEqual(MAX_STEPS);
    expect(done).toEqual(Array.from({ length: 1_000 }, (_, index) => index));
  });

  test('resolves for five callers in one turn if each counts as 20 steps', async () => {
    const queue = new CatchUpQueue();
    const turns = new Turns();
    const at: number[] = [];
    for (let index = 0; index < 50; index++) {
      void queue.waitForTurn(20).then(() => at.push(turns.now));
    }
    await until('all', () => at.length === 50);
    turns.stop();
    expect(perTurn(at)).toEqual(Array.from({ length: 10 }, () => 5));
  });

  test('and steps share the limits of one turn, and both finish', async () => {
    const queue = new CatchUpQueue();
    const turns = new Turns();
    const at: number[] = [];
    let left = 2_000;
    const note = (): void => {
      left--;
      at.push(turns.now);
    };
    for (const job of jobs(1_000, note)) queue.add(job, false);
    for (let index = 0; index < 1_000; index++) void queue.waitForTurn().then(note);
    await until('all', () => left === 0);
    turns.stop();
    expect(Math.max(...perTurn(at))).toBeLessThanOrEqual(MAX_STEPS);
  });
});

test('waitForTurn() leaves half of each turn to the steps, even if its callers call again and again', async () => {
  const queue = new CatchUpQueue();
  const stop = new AbortController();
  const callAgain = async (): Promise<void> => {
    while (!stop.signal.aborted) await queue.waitForTurn();
  };
  const callers = Array.from({ length: 2 * MAX_STEPS }, callAgain);
  const turns = new Turns();
  const at: number[] = [];
  for (const job of jobs(2 * MAX_STEPS, () => at.push(turns.now))) queue.add(job, false);
  for (let turn = 0; turn < 6; turn++) await nextTurn();
  expect(perTurn(at)).toEqual([50, 50, 50, 50]);
  stop.abort();
  turns.stop();
  await Promise.all(callers);
});

test('an empty queue schedules no turn', async () => {
  const queue = new CatchUpQueue();
  queue.add({ step: () => {} }, true);
  await until('it to be at rest', async () => {
    await nextTurn();
    return process.getActiveResourcesInfo().filter((name) => name === 'Immediate').length === 0;
  });
});
