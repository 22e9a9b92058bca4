import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Model } from './tabs-model.ts';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

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

test.each(['locks', 'channels'])(
  'pages that may not use %s have connections of their own',
  async (blocked) => {
    const model = new Model();
    model.isLockBlocked = blocked === 'locks';
    model.isChannelBlocked = blocked === 'channels';
    const tabs = [model.open(), model.open()];
    await vi.advanceTimersByTimeAsync(1_000);
    model.publish();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(tabs).toMatchObject([
      { isOpen: true, received: [1] },
      { isOpen: true, received: [1] },
    ]);
    expect(model.streams).toBe(2);
    for (const each of tabs) model.close(each);
    expect(model.remains()).toEqual({ streams: 0, channels: 0, locks: 0 });
    expect(vi.getTimerCount()).toBe(0);
  },
);

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
