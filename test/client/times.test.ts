import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  exchanges,
  last,
  open,
  pass,
  restoreGlobals,
  stubGlobals,
  untilRequest,
  URL_OF_STREAM,
} from './exchanges.ts';
import { record } from './recorded.ts';

beforeEach(stubGlobals);
afterEach(restoreGlobals);

describe('silence', () => {
  test('of two heartbeats of comments ends the connection, and the next one resumes', async () => {
    const live = record(URL_OF_STREAM);
    await open('data: 1\nid: e.1\n\n');
    for (let beat = 0; beat < 3; beat++) {
      await pass(15_000);
      last().send(':\n');
    }
    expect(await untilRequest()).toBeGreaterThan(29_000);
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting']);
    expect(live.errors.at(-1)?.message).toBe('no byte arrived for 30000 ms');
    expect(last().url.searchParams.get('lastEventId')).toBe('e.1');
    expect(exchanges[0]?.signal.aborted).toBe(true);
  });

  test('of two heartbeats that say their interval is found within it', async () => {
    const live = record(URL_OF_STREAM);
    await open(':\nevent: sse:ping\ndata: {"interval":2000}\n\n');
    expect(await untilRequest()).toBeLessThanOrEqual(4_050);
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting']);
  });

  test('of two heartbeats that do not say it is found, too', async () => {
    record(URL_OF_STREAM);
    await open();
    await pass(2_000);
    last().send('event: sse:ping\ndata: {}\n\n');
    await pass(0);
    expect(await untilRequest()).toBeLessThanOrEqual(4_050);
  });

  test('is not mistaken for a short one if two heartbeats arrive together', async () => {
    const live = record(URL_OF_STREAM);
    await open();
    for (const ms of [4_000, 100, 3_900]) {
      await pass(ms);
      last().send('event: sse:ping\ndata: {}\n\n');
    }
    await pass(7_000);
    expect(live.states).toEqual(['connecting', 'open']);
  });

  test('is measured anew after a connection that ended because a late event made a heartbeat look early', async () => {
    record(URL_OF_STREAM);
    await open();
    await pass(10_000);
    last().send('data: delayed\n\n');
    await pass(5_000);
    last().send(':\n');
    let opened = 1;
    for (let second = 1; second <= 300; second++) {
      await pass(1_000);
      if (exchanges.length > opened) {
        opened = exchanges.length;
        second = 0;
        await open();
      } else if (second % 15 === 0) last().send(':\n');
      expect(exchanges.length).toBeLessThanOrEqual(2);
    }
    expect(exchanges).toHaveLength(2);
  });

  test('of two heartbeats that are known from an earlier connection is found within them', async () => {
    record(URL_OF_STREAM);
    await open('event: sse:ping\ndata: {"interval":2000}\n\n');
    last().end();
    await untilRequest();
    await open();
    expect(await untilRequest()).toBeLessThanOrEqual(4_050);
  });

  test('of a server whose heartbeat is not known ends the connection after a minute', async () => {
    record(URL_OF_STREAM);
    await open();
    const ms = await untilRequest();
    expect(ms).toBeGreaterThan(59_000);
    expect(ms).toBeLessThan(61_000);
  });

  test('is not found while bytes arrive, be it one comment after the other', async () => {
    const live = record(URL_OF_STREAM);
    await open();
    for (let second = 0; second < 300; second++) {
      await pass(1_000);
      last().send(':\n');
    }
    expect(exchanges).toHaveLength(1);
    expect(live.states).toEqual(['connecting', 'open']);
  });

  test('while the machine slept is found when it wakes', async () => {
    const live = record(URL_OF_STREAM);
    await open();
    await pass(1_000);
    vi.setSystemTime(Date.now() + 3_600_000);
    expect(await untilRequest()).toBeLessThanOrEqual(5_050);
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting']);
  });

  test('is found after the clock was set back, too', async () => {
    record(URL_OF_STREAM);
    await open();
    await pass(1_000);
    vi.setSystemTime(Date.now() - 3_600_000);
    expect(await untilRequest()).toBeLessThan(66_000);
  });
});

describe('reconnecting', () => {
  test('follows after the time that the server has sent, and up to twice of it', async () => {
    record(URL_OF_STREAM);
    await open('retry: 3000\n');
    last().end();
    expect(await untilRequest()).toBe(3_000);
    await open();
    vi.mocked(Math.random).mockReturnValue(0.99);
    last().end();
    expect(await untilRequest()).toBe(6_000);
  });

  test('backs off up to half a minute while attempts fail, and anew after an open stream', async () => {
    record(URL_OF_STREAM);
    await pass(0);
    const delays: number[] = [];
    for (let attempt = 0; attempt < 8; attempt++) {
      last().fail();
      delays.push(await untilRequest());
    }
    expect(delays).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    await open();
    last().end();
    expect(await untilRequest()).toBe(1_000);
  });

  test('waits for a second at least after an attempt that has failed', async () => {
    record(URL_OF_STREAM);
    await open('retry: 50\n');
    last().end();
    expect(await untilRequest()).toBe(50);
    last().fail();
    await untilRequest();
    last().fail();
    expect(await untilRequest()).toBeGreaterThanOrEqual(1_000);
  });

  test('does not hurry where the server asked for hours', async () => {
    record(URL_OF_STREAM);
    await open('retry: 500000\n');
    last().end();
    expect(await untilRequest()).toBe(500_000);
  });

  test.each([
    ['seconds', () => '40'],
    ['a date', () => new Date(Date.now() + 40_000).toUTCString()],
  ])('waits as long as Retry-After says in %s', async (_, value) => {
    const live = record(URL_OF_STREAM);
    await pass(0);
    last().answer(503, { 'Retry-After': value() });
    const ms = await untilRequest();
    expect(ms).toBeGreaterThan(38_000);
    expect(ms).toBeLessThanOrEqual(40_000);
    expect(live.errors.at(-1)?.status).toBe(503);
  });

  test('asks for new headers after a 401 that does not follow another one', async () => {
    const live = record(URL_OF_STREAM, { headers: () => ({}) });
    await pass(0);
    for (const status of [401, 503, 401]) {
      last().answer(status);
      await untilRequest();
    }
    await open();
    expect(live.states.at(-1)).toBe('open');
  });

  test('resumes at an id that has come without an event', async () => {
    const live = record(URL_OF_STREAM);
    await open('data: 1\nid: e.1\n\nid: e.2\n\n');
    last().end();
    await untilRequest();
    expect(last().url.searchParams.get('lastEventId')).toBe('e.2');
    expect(live.received).toEqual([1]);
  });

  test('does not wait for ever for the function headers', async () => {
    const live = record(URL_OF_STREAM, { headers: () => new Promise(() => {}) });
    await pass(30_000);
    expect(live.errors.at(-1)?.message).toBe('headers() timed out');
    expect(live.states).toEqual(['connecting', 'reconnecting']);
    expect(exchanges).toEqual([]);
  });

  test('leaves no timer after close() while the function headers is awaited', async () => {
    let answer: ((headers: Record<string, string>) => void) | undefined;
    const live = record(URL_OF_STREAM, {
      headers: () =>
        new Promise((resolve) => {
          answer = resolve;
        }),
    });
    await pass(0);
    live.connection.close();
    answer?.({});
    await pass(0);
    expect(vi.getTimerCount()).toBe(0);
    expect(exchanges).toEqual([]);
  });

  test('leaves no timer after close() in the function headers', async () => {
    const live = record(URL_OF_STREAM, {
      headers() {
        live.connection.close();
        return {};
      },
    });
    await pass(0);
    expect(vi.getTimerCount()).toBe(0);
    expect(exchanges).toEqual([]);
  });

  test('leaves no timer after close()', async () => {
    const live = record(URL_OF_STREAM);
    await open();
    last().end();
    await pass(0);
    live.connection.close();
    expect(vi.getTimerCount()).toBe(0);
    await pass(100_000);
    expect(exchanges).toHaveLength(1);
  });
});
