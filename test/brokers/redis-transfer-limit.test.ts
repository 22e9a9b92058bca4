import { describe, expect, test } from 'vitest';
import { MIN_BYTES, TransferLimit } from '../../src/brokers/redis/transfer-limit.ts';
import { within } from '../support/wait.ts';

const signal = new AbortController().signal;

describe('the bytes of events in pending answers', () => {
  test('are limited: a query waits for its turn, in the order of the calls', async () => {
    const limit = new TransferLimit(10_000);
    const first = await limit.take(Infinity, 0, signal);
    const order: number[] = [];
    const second = limit.take(1_000, 0, signal).then((share) => {
      order.push(2);
      return share;
    });
    const third = limit.take(2_000, 0, signal).then((share) => {
      order.push(3);
      return share;
    });
    await Promise.resolve();
    expect(order).toEqual([]);
    first.release();
    expect([(await second).bytes, (await third).bytes, order]).toEqual([1_000, 2_000, [2, 3]]);
  });

  test('are granted first to a query of healing, even if many others wait', async () => {
    const limit = new TransferLimit(10_000);
    const first = await limit.take(Infinity, MIN_BYTES, signal);
    const order: string[] = [];
    async function ask(name: string, least: number, given = signal): Promise<void> {
      const share = await limit.take(Infinity, least, given);
      order.push(name);
      share.release();
    }
    const readers = [ask('reader', MIN_BYTES), ask('reader', MIN_BYTES)];
    const abandoned = new AbortController();
    const healing = [ask('healing', 0), ask('abandoned', 0, abandoned.signal)] as const;
    abandoned.abort(new Error('the attempt has ended'));
    first.release();
    await expect(healing[1]).rejects.toThrow('the attempt has ended');
    await Promise.all([healing[0], ...readers]);
    expect(order).toEqual(['healing', 'reader', 'reader']);
  });

  test('include an answer that no caller waits for any more, until a later command is answered', async () => {
    const limit = new TransferLimit(10_000);
    const first = await limit.take(Infinity, 0, signal);
    first.stopWaiting();
    let isTaken = false;
    const second = limit.take(1_000, 0, signal).then((share) => {
      isTaken = true;
      return share;
    });
    limit.onAnswered(0, 0, 1);
    await Promise.resolve();
    expect(isTaken).toBe(false);
    limit.onAnswered(limit.nextOrder(), 0, 1);
    await within('the second question', second);
  });

  test('are 0 for a query that needs no events, if no answer arrives within the timeout', async () => {
    const limit = new TransferLimit(20);
    await limit.take(Infinity, 0, signal);
    expect((await limit.take(Infinity, 0, signal)).bytes).toBe(0);
    await expect(limit.take(Infinity, 1, signal)).rejects.toThrow('no answer within 20 ms');
  });

  test('become fewer with each late answer, down to 0, and more with answers in time', () => {
    const limit = new TransferLimit(1_000);
    const seen = [limit.bytes];
    for (let times = 0; times < 3; times++) {
      limit.onTimeout();
      seen.push(limit.bytes);
    }
    expect(seen).toEqual([262_144, 65_536, MIN_BYTES, 0]);
    limit.onAnswered(1, 0, 500);
    expect(limit.bytes).toBe(0);
    limit.onAnswered(2, 0, 10);
    expect(limit.bytes).toBe(MIN_BYTES);
    for (let times = 0; times < 10; times++) limit.onAnswered(3, limit.bytes, 1);
    expect(limit.bytes).toBe(1_048_576);
    // An answer should take a quarter of the timeout.
    limit.onAnswered(4, 1_000_000, 500);
    expect(limit.bytes).toBe(500_000);
  });

  test('are not waited for after the signal is aborted', async () => {
    const limit = new TransferLimit(10_000);
    await limit.take(Infinity, 0, signal);
    const ended = new AbortController();
    const waiting = limit.take(1, 1, ended.signal);
    ended.abort(new Error('it is closed'));
    await expect(waiting).rejects.toThrow('it is closed');
    await expect(limit.take(1, 1, ended.signal)).rejects.toThrow('it is closed');
  });
});
