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

describe('polling', () => {
  test('begins when no byte of a stream arrives within 10 s, and tells its first answer', async () => {
    const live = record(URL_OF_STREAM);
    await pass(0);
    last().open();
    expect(await untilRequest()).toBeLessThanOrEqual(10_050);
    expect(last().url.searchParams.get('ssePoll')).toBe('1');
    expect(live.states).toEqual(['connecting', 'reconnecting']);
    await pass(25_000);
    await open('retry: 50\ndata: 1\nid: e.1\n\n');
    expect(live.states).toEqual(['connecting', 'reconnecting', 'polling']);
    last().end();
    expect(await untilRequest()).toBe(50);
    expect(last().url.search).toBe('?lastEventId=e.1&ssePoll=1');
    await open('retry: 50\n');
    last().end();
    await untilRequest();
    expect(live.states).toEqual(['connecting', 'reconnecting', 'polling']);
    expect(live.received).toEqual([1]);
  });

  test('begins when the request is not even answered', async () => {
    record(URL_OF_STREAM);
    await pass(0);
    expect(await untilRequest()).toBeLessThanOrEqual(10_050);
    expect(last().url.searchParams.get('ssePoll')).toBe('1');
  });

  test('that is not answered either is followed by a stream', async () => {
    record(URL_OF_STREAM);
    await pass(0);
    await untilRequest();
    const ms = await untilRequest();
    expect(ms).toBeGreaterThanOrEqual(40_000);
    expect(ms).toBeLessThan(43_000);
    expect(last().url.searchParams.has('ssePoll')).toBe(false);
  });

  test('is followed by a stream after ten minutes, because the server may only have been slow', async () => {
    record(URL_OF_STREAM);
    await pass(0);
    await untilRequest();
    const start = Date.now();
    while (last().url.searchParams.has('ssePoll')) {
      expect(Date.now() - start).toBeLessThan(660_000);
      await pass(20_000);
      await open('retry: 50\n');
      last().end();
      await untilRequest();
    }
    expect(Date.now() - start).toBeGreaterThan(590_000);
    await untilRequest();
    expect(last().url.searchParams.has('ssePoll')).toBe(true);
  });

  test('ends when the network changes', async () => {
    const target = new EventTarget();
    vi.stubGlobal('addEventListener', target.addEventListener.bind(target));
    const live = record(URL_OF_STREAM);
    await pass(0);
    await untilRequest();
    await open('retry: 50\ndata: 1\nid: e.1\n\n');
    target.dispatchEvent(new Event('online'));
    await untilRequest();
    await open();
    expect(last().url.search).toBe('?lastEventId=e.1');
    expect(live.states.slice(-3)).toEqual(['polling', 'reconnecting', 'open']);
  });

  test('ends when the network changes before it is answered', async () => {
    const target = new EventTarget();
    vi.stubGlobal('addEventListener', target.addEventListener.bind(target));
    record(URL_OF_STREAM);
    await pass(0);
    await untilRequest();
    target.dispatchEvent(new Event('online'));
    await untilRequest();
    expect(exchanges.map(({ url }) => url.searchParams.get('ssePoll'))).toEqual([null, '1', null]);
  });

  test('does not begin because an open stream falls silent', async () => {
    record(URL_OF_STREAM);
    await open();
    await untilRequest();
    expect(last().url.searchParams.has('ssePoll')).toBe(false);
  });

  test('does not begin because the machine slept during a request', async () => {
    record(URL_OF_STREAM);
    await pass(1_000);
    vi.setSystemTime(Date.now() + 3_600_000);
    await untilRequest();
    expect(last().url.searchParams.has('ssePoll')).toBe(false);
  });

  test('does not begin while the browser is offline', async () => {
    vi.stubGlobal('navigator', { onLine: false });
    record(URL_OF_STREAM);
    await pass(0);
    await untilRequest();
    expect(last().url.searchParams.has('ssePoll')).toBe(false);
  });
});

describe('a page', () => {
  test('that was told `offline` or `online` looks at once whether its connection is alive', async () => {
    const target = new EventTarget();
    vi.stubGlobal('addEventListener', target.addEventListener.bind(target));
    const live = record(URL_OF_STREAM);
    await open();
    target.dispatchEvent(new Event('offline'));
    await pass(0);
    expect(exchanges).toHaveLength(2);
    last().fail();
    await pass(500);
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting']);
    expect(exchanges).toHaveLength(2);
    target.dispatchEvent(new Event('online'));
    await pass(0);
    expect(exchanges).toHaveLength(3);
  });

  test('that comes online does not shorten the time that a server has asked for', async () => {
    const target = new EventTarget();
    vi.stubGlobal('addEventListener', target.addEventListener.bind(target));
    record(URL_OF_STREAM);
    await pass(0);
    last().answer(503, { 'Retry-After': '40' });
    await pass(1_000);
    target.dispatchEvent(new Event('online'));
    await pass(1_000);
    expect(exchanges).toHaveLength(1);
    await untilRequest();
    await open('retry: 40000\n');
    last().end();
    await pass(1_000);
    target.dispatchEvent(new Event('online'));
    await pass(1_000);
    expect(exchanges).toHaveLength(2);
  });

  test('in the back/forward cache has no connection, and resumes when it is shown again', async () => {
    const target = new EventTarget();
    vi.stubGlobal('addEventListener', target.addEventListener.bind(target));
    const live = record(URL_OF_STREAM);
    await open('data: 1\nid: e.1\n\n');
    target.dispatchEvent(new Event('pagehide'));
    expect(last().signal.aborted).toBe(true);
    await pass(100_000);
    expect(exchanges).toHaveLength(1);
    target.dispatchEvent(new Event('pageshow'));
    await open();
    expect(last().url.searchParams.get('lastEventId')).toBe('e.1');
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting', 'open']);
    live.connection.close();
    target.dispatchEvent(new Event('pageshow'));
    await pass(0);
    expect(exchanges).toHaveLength(2);
  });

  test('that is frozen has no connection, and resumes when it goes on', async () => {
    const document = new EventTarget();
    vi.stubGlobal('document', document);
    const live = record(URL_OF_STREAM);
    await open('data: 1\nid: e.1\n\n');
    document.dispatchEvent(new Event('freeze'));
    expect(last().signal.aborted).toBe(true);
    document.dispatchEvent(new Event('resume'));
    await open();
    expect(last().url.searchParams.get('lastEventId')).toBe('e.1');
    expect(live.states).toEqual(['connecting', 'open', 'reconnecting', 'open']);
  });

  test('that is reloaded continues at the stored id', async () => {
    const stored = new Map<string, string>();
    vi.stubGlobal('sessionStorage', {
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, value: string) => stored.set(key, value),
    });
    const before = record(URL_OF_STREAM, { persist: true, lastEventId: 'e.0' });
    await open('data: 1\nid: e.1\n\n');
    before.connection.close();
    record(URL_OF_STREAM, { persist: true, lastEventId: 'e.0' });
    await pass(0);
    expect(last().url.searchParams.get('lastEventId')).toBe('e.1');
    record(`${URL_OF_STREAM}?room=2`, { persist: true });
    await pass(0);
    expect(last().url.searchParams.has('lastEventId')).toBe(false);
  });

  test('whose storage is blocked receives all the same', async () => {
    vi.stubGlobal('sessionStorage', {
      getItem() {
        throw new Error('SecurityError');
      },
      setItem() {
        throw new Error('QuotaExceededError');
      },
    });
    const live = record(URL_OF_STREAM, { persist: true });
    await open('data: 1\nid: e.1\n\n');
    expect(live.received).toEqual([1]);
  });
});
