/**
 * Calls that wait for Redis. Each call resolves, times out or is aborted, and leaves nothing in
 * memory.
 */
import { getEventListeners } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { SseError } from '../../src/index.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { withLimits } from '../../src/common/async.ts';
import { ConditionQueue } from '../../src/brokers/redis/condition-queue.ts';
import { startRedis } from '../support/redis-server.ts';
import { startRelay } from '../support/relay.ts';
import { until } from '../support/wait.ts';
import { Node } from './contract.ts';

const TIMING = {
  timeout: 2_000,
  probe: 200,
  linger: 60_000,
  wait: { min: 5, max: 100 },
  inUse: 100,
};

function nodeAt(url: string, heartbeat: number = 1_000): Node {
  return new Node(
    new RedisBroker(
      ownConnection(url, heartbeat, () => {}),
      'waits',
      TIMING,
    ),
  );
}

/** Number of objects that are still in memory after a garbage collection. */
async function countAlive(references: readonly WeakRef<object>[]): Promise<number> {
  await nextTurn();
  globalThis.gc?.();
  return references.filter((reference) => reference.deref() !== undefined).length;
}

describe('a call that waits for Redis can be aborted', () => {
  test('at once while Redis is unreachable, and leaves nothing in memory', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using node = nodeAt(relay.url);
    await node.listen('a');
    await node.publish('a', '1');
    const { epoch } = await node.broker.position();
    relay.sever();
    await until('the node to detect the failure', () => node.broker.state === 'broken');
    const reasons: unknown[] = [];
    const reason = new Error('the reader has left');
    const waits = (): WeakRef<object> => {
      const controller = new AbortController();
      const { signal } = controller;
      for (const call of [
        () => node.broker.position(undefined, signal),
        () => node.broker.position({ epoch, offset: 99 }, signal),
        () => node.broker.read(['a'], 0, 1_000, signal),
        () => node.broker.read(['never', 'heard'], 0, 1_000, signal),
      ]) {
        Promise.resolve(call()).then(
          () => reasons.push('answered'),
          (error: unknown) => reasons.push(error),
        );
      }
      expect(getEventListeners(signal, 'abort')).toHaveLength(4);
      controller.abort(reason);
      expect(getEventListeners(signal, 'abort')).toHaveLength(0);
      return new WeakRef(signal);
    };
    const references = Array.from({ length: 200 }, waits);
    await until('all calls to be rejected', () => reasons.length === 800);
    expect(new Set(reasons)).toEqual(new Set([reason]));
    await until('the signals to be collected', async () => (await countAlive(references)) <= 1);
    relay.mend();
    expect((await node.broker.position()).offset).toBe(1);
  });

  test('while Redis does not answer a command', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using node = nodeAt(relay.url);
    const { epoch } = await node.broker.position();
    relay.stall('replies');
    const controller = new AbortController();
    const position = Promise.resolve(
      node.broker.position({ epoch, offset: 99 }, controller.signal),
    );
    const page = Promise.resolve(node.broker.read(['a'], 0, 1_000, controller.signal));
    await nextTurn();
    controller.abort(new Error('the reader has left'));
    await expect(position).rejects.toThrow('the reader has left');
    await expect(page).rejects.toThrow('the reader has left');
    relay.flow();
  });

  test('with a signal that is already aborted', async () => {
    await using redis = await startRedis();
    await using node = nodeAt(redis.url);
    const signal = AbortSignal.abort(new Error('the reader has left'));
    await expect(Promise.resolve(node.broker.position(undefined, signal))).rejects.toThrow(
      'the reader has left',
    );
  });
});

test('neither a broken connection nor its node leaves a timer behind', async () => {
  const timers = (): number =>
    process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
  await using redis = await startRedis();
  await using relay = await startRelay(redis.port);
  const before = timers();
  {
    // node-redis sets a timer for the next connection attempt.
    await using node = nodeAt(relay.url, 60_000);
    for (let times = 1; times <= 5; times++) {
      await until('the node to be open', () => node.broker.state === 'open');
      relay.cut();
      await until('an interruption', () => node.interruptions === times);
    }
  }
  await until('the timers to be cleared', () => timers() <= before, 3_000);
});

describe('an unreachable Redis', () => {
  const PORT = 1;

  async function rejection(promise: PromiseLike<unknown>): Promise<unknown> {
    return Promise.resolve(promise).then(
      () => 'answered',
      (error: unknown) => error,
    );
  }

  test('rejects position, read and publish in time, with address and cause', async () => {
    await using node = new Node(
      new RedisBroker(
        ownConnection(`redis://127.0.0.1:${PORT}`, 1_000, () => {}),
        'waits',
        { ...TIMING, timeout: 300 },
      ),
    );
    const errors = await Promise.all([
      rejection(Promise.resolve(node.broker.position())),
      rejection(Promise.resolve(node.broker.read(['a'], 0, 1_000))),
      rejection(node.publish('a', '1')),
    ]);
    for (const error of errors) {
      expect(error).toMatchObject({ code: 'ERR_SSE_BROKER', cause: { code: 'ECONNREFUSED' } });
      expect((error as Error).message).toContain('127.0.0.1:1 ');
    }
    expect((errors[2] as SseError).delivery).toBe('none');
    expect((errors[0] as SseError).delivery).toBeUndefined();
  });

  test('causes one warning, with the address and the reason', async () => {
    const warnings: string[] = [];
    const note = (warning: Error & { code?: string }): void =>
      void warnings.push(`${warning.code}: ${warning.message}`);
    process.on('warning', note);
    await using node = new Node(
      new RedisBroker(
        ownConnection(`redis://127.0.0.1:${PORT}`, 1_000, () => {}),
        'waits',
        { ...TIMING, unreachable: 300 },
      ),
    );
    await until('a warning', () => warnings.length > 0);
    expect(node.broker.state).toBe('connecting');
    expect(warnings).toEqual([
      'RES_SSE_BROKER_UNREACHABLE: Redis at 127.0.0.1:1 has not been reached for 0.3 s: ' +
        'connect ECONNREFUSED 127.0.0.1:1',
    ]);
    process.off('warning', note);
  });
});

describe('calls that wait for an offset', () => {
  test('resolve when the node reaches the offset, 250 in each turn', async () => {
    const conditions = new ConditionQueue();
    let resolved = 0;
    for (let index = 0; index < 1_000; index++) {
      void conditions.until(index % 2, undefined).then(() => resolved++);
    }
    for (let turns = 1; turns <= 2; turns++) {
      // Several headers in one turn resolve no more calls.
      for (let header = 0; header < 10; header++) conditions.reach(0);
      await Promise.resolve();
      expect(resolved).toBe(250 * turns);
      await nextTurn();
    }
    expect([resolved, conditions.size]).toEqual([500, 500]);
    conditions.reach(1);
    await until('the other calls', () => resolved === 1_000);
  });

  test('wait while the node is broken, and resolve when it has healed at any offset', async () => {
    const conditions = new ConditionQueue();
    let resolved = 0;
    conditions.reach(5);
    conditions.interrupt();
    void conditions.until(3, undefined).then(() => resolved++);
    void conditions.until(8, undefined).then(() => resolved++);
    await nextTurn();
    expect(resolved).toBe(0);
    conditions.reopen(1);
    await nextTurn();
    expect([resolved, conditions.size]).toEqual([2, 0]);
  });

  test('wait until their offset is reached or they are aborted, in any order', async () => {
    const step = fc.record({ do: fc.constantFrom('wait', 'abort', 'reach'), value: fc.nat(30) });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 80 }), async (steps) => {
        const conditions = new ConditionQueue();
        const waiting: { offset: number; controller: AbortController; end: string }[] = [];
        let reached = -1;
        for (const { do: what, value } of steps) {
          if (what === 'wait') {
            const one = { offset: value, controller: new AbortController(), end: '' };
            waiting.push(one);
            conditions.until(value, one.controller.signal).then(
              () => (one.end ||= 'resolved'),
              () => (one.end ||= 'rejected'),
            );
          } else if (what === 'abort') {
            waiting[value % Math.max(waiting.length, 1)]?.controller.abort();
          } else {
            reached = Math.max(reached, value);
            conditions.reach(reached);
          }
          await nextTurn();
          for (const { offset, controller, end } of waiting) {
            if (end === '') {
              expect([offset > reached, controller.signal.aborted]).toEqual([true, false]);
            } else if (end === 'resolved') expect(offset).toBeLessThanOrEqual(reached);
            else expect(controller.signal.aborted).toBe(true);
          }
          expect(conditions.size).toBe(waiting.filter(({ end }) => end === '').length);
        }
      }),
      { numRuns: 100 },
    );
  });
});

describe('waiting for a promise with a time limit and a signal', () => {
  test('leaves no listener on the signal and no timer', async () => {
    const { signal } = new AbortController();
    expect(await withLimits(Promise.resolve(1), { signal, timeoutMs: 60_000 })).toBe(1);
    await expect(
      withLimits(Promise.reject(new Error('no')), { signal, timeoutMs: 60_000 }),
    ).rejects.toThrow('no');
    await expect(withLimits(new Promise(() => {}), { signal, timeoutMs: 1 })).rejects.toThrow(
      'no answer within 1 ms',
    );
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  });
});
