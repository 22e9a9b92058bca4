import * as jose from 'jose';
import { setTimeout as delay } from 'node:timers/promises';
import { EventSource } from 'eventsource';
import express, { type Request } from 'express';
import session from 'express-session';
import { describe, expect, test } from 'vitest';
import { redisBroker } from '../../src/brokers/redis.ts';
import { createChannels, sse, type Channels, type SseMiddleware } from '../../src/index.ts';
import { read } from '../support/reader.ts';
import { startRedis } from '../support/redis-server.ts';
import { serve, type TestServer } from '../support/server.ts';
import { runSnippet, snippetsOf } from '../support/snippets.ts';
import { until } from '../support/wait.ts';

const page = await snippetsOf('docs/authorisation.md');

test('a logout ends the streams of all tabs, and an EventSource does not reconnect', async () => {
  const app = express();
  const channels = createChannels();
  const events = sse({ channels });
  await runSnippet(
    page.get('session'),
    {},
    { app, channels, events, session, secret: 'for this test' },
  );
  app.post('/login', (req, res) => {
    Object.assign(req.session, { user: 'ann' });
    res.sendStatus(204);
  });
  await using server = await serve(app);
  const login = async (): Promise<string> => {
    const { headers } = await fetch(`${server.url}/login`, { method: 'POST' });
    return headers.get('set-cookie')?.split(';')[0] ?? '';
  };
  const [ann, other] = await Promise.all([login(), login()]);
  expect(
    (await fetch(`${server.url}/events`, { headers: { Accept: 'text/event-stream' } })).status,
  ).toBe(403);

  let requests = 0;
  const source = new EventSource(`${server.url}/events`, {
    fetch: (url, init) => {
      requests++;
      return fetch(url, { ...init, headers: { ...init.headers, Cookie: ann } });
    },
  });
  using tab = await read(`${server.url}/events`, { headers: { Cookie: ann } });
  using kept = await read(`${server.url}/events`, { headers: { Cookie: other } });
  await until('the streams', () => events.streams.size === 3);
  const closed = new Promise<void>((resolve) => {
    source.addEventListener('error', () => {
      if (source.readyState === EventSource.CLOSED) resolve();
    });
  });
  expect(
    (await fetch(`${server.url}/logout`, { method: 'POST', headers: { Cookie: ann } })).status,
  ).toBe(204);
  await tab.end();
  expect(tab.events.at(-1)?.event).toBe('sse:end');
  await closed;
  // The second request was answered 204, which ends the EventSource.
  expect(requests).toBe(2);
  expect(kept.ended).toBe(false);
  expect(events.stats()).toMatchObject({ open: 1, closed: { revoked: 2 } });
  using late = await read(`${server.url}/events`, { headers: { Cookie: ann } });
  expect(late.response.status).toBe(403);
});

const secret = new TextEncoder().encode('a secret of thirty-two bytes, ok');

async function tokenFor(user: string, seconds: number): Promise<string> {
  return new jose.SignJWT()
    .setProtectedHeader({ alg: 'HS256' })
    .setSubject(user)
    .setExpirationTime(Math.floor(Date.now() / 1_000) + seconds)
    .sign(secret);
}

const bearing = (token: string, more = {}) => ({
  headers: { Authorization: `Bearer ${token}`, ...more },
});

test('a stream ends when its token expires; with a new token the client misses no event', async () => {
  const app = express();
  const channels = createChannels();
  const events = sse({ channels });
  const { sweep } = await runSnippet(page.get('jwt'), { jose }, { app, channels, events, secret }, [
    'sweep',
  ]);
  await using server = await serve(app);
  const url = `${server.url}/events`;
  using short = await read(url, bearing(await tokenFor('ann', 2)));
  // As a page with EventSource sends it.
  const cookie = `theme=dark; token=${await tokenFor('ann', 60)}`;
  using long = await read(url, { headers: { Cookie: cookie } });
  await until('the streams', () => events.streams.size === 2);
  const { id } = await channels.publish('user:ann', 'before');
  await short.end();
  expect(events.stats().closed).toEqual({ revoked: 1 });
  await channels.publish('news', 'meanwhile');
  const [expired, none] = await Promise.all([
    read(url, bearing(await tokenFor('ann', -1))),
    read(url),
  ]);
  expect([expired.response.status, none.response.status]).toEqual([401, 401]);
  using again = await read(url, bearing(await tokenFor('ann', 60), { 'Last-Event-ID': id }));
  expect((await again.next()).data).toBe('meanwhile');
  expect((await long.take(2)).map(({ data }) => data)).toEqual(['before', 'meanwhile']);
  clearInterval(sweep);
});

describe('a user who is removed', () => {
  interface Node extends TestServer {
    readonly events: SseMiddleware;
    readonly channels: Channels;
    /** Number of streams that follow the channel. */
    subscribed(): number;
    remove(user: string): Promise<void>;
  }

  /** One of several nodes with the same users and the same Redis. */
  async function startNode(url: string, users: object): Promise<Node> {
    const app = express();
    const channels = createChannels({ broker: redisBroker({ url }) });
    const authenticate = (
      req: Request & { auth?: object },
      _res: unknown,
      next: () => void,
    ): void => {
      req.auth = { sub: req.query['user'] as string };
      next();
    };
    const given = { app, channels, sse, users, authenticate };
    const names = ['remove', 'events'];
    const { remove, events } = await runSnippet(page.get('everywhere'), {}, given, names);
    const server = await serve(app);
    await until('Redis', () => channels.stats().broker.state === 'open');
    return {
      ...server,
      events: events as SseMiddleware,
      channels,
      subscribed: () => channels.stats().subscriptions,
      remove: remove as Node['remove'],
      async [Symbol.asyncDispose]() {
        await channels.close();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  class Users {
    readonly removed = new Set<string>();

    async mayRead(user: string): Promise<boolean> {
      const answer = !this.removed.has(user);
      await this.lookUp();
      return answer;
    }

    /** A look-up waits for this promise after it has read the rights. */
    lookUp: () => Promise<unknown> = () => delay(20);

    async remove(user: string): Promise<void> {
      this.removed.add(user);
    }
  }

  test('gets no event after remove() has resolved, on any node; other users get all', async () => {
    await using redis = await startRedis();
    const users = new Users();
    await using first = await startNode(redis.url, users);
    await using second = await startNode(redis.url, users);
    const readers = await Promise.all(
      [first, second].flatMap(({ url }) =>
        ['ann', 'ann', 'bob'].map((user) => read(`${url}/events?user=${user}`)),
      ),
    );
    await until('all subscriptions', () => first.subscribed() + second.subscribed() === 6);
    await first.channels.publish('news', 'for all');
    await Promise.all(readers.map((reader) => reader.next()));
    await first.remove('ann');
    const forBob = ['one', 'two', 'three'];
    await Promise.all(forBob.map((data) => second.channels.publish('news', data)));
    for (const [index, reader] of readers.entries()) {
      const isAnn = index % 3 !== 2;
      if (isAnn) await reader.end();
      else await reader.take(3);
      expect(reader.events.map(({ data }) => data)).toEqual(
        isAnn ? ['for all'] : ['for all', ...forBob],
      );
      // The client reconnects soon, and is refused.
      expect(reader.retries).toEqual(isAnn ? [1_000] : []);
      expect(reader.text).not.toMatch(/ann|revoked/);
      reader.close();
    }
    const back = await fetch(`${second.url}/events?user=ann`, {
      headers: { Accept: 'text/event-stream' },
    });
    expect(back.status).toBe(403);
  });

  test('between the check of the request and the subscription loses the stream', async () => {
    await using redis = await startRedis();
    const users = new Users();
    let goOn = (): void => {};
    const asked = new Promise<void>((resolve) => {
      users.lookUp = () => {
        resolve();
        return new Promise<void>((answer) => (goOn = answer));
      };
    });
    await using node = await startNode(redis.url, users);
    // The same with an id, which the client may have invented, as without an id.
    const { id } = await node.channels.publish('news', 'before');
    const reading = read(`${node.url}/events?user=ann`, { headers: { 'Last-Event-ID': id } });
    await asked;
    await node.remove('ann');
    await node.channels.publish('news', 'not for ann');
    goOn();
    using reader = await reading;
    await reader.end();
    expect(reader.events).toEqual([]);
  });

  test('and is allowed again resumes with an old id', async () => {
    await using redis = await startRedis();
    const users = new Users();
    await using node = await startNode(redis.url, users);
    const { id } = await node.channels.publish('news', 'seen');
    await node.channels.publish('news', 'before');
    await node.remove('ann');
    users.removed.clear();
    await node.channels.publish('news', 'since');
    using reader = await read(`${node.url}/events?user=ann`, { headers: { 'Last-Event-ID': id } });
    expect((await reader.take(2)).map(({ data }) => data)).toEqual(['before', 'since']);
    await node.channels.publish('news', 'after');
    expect((await reader.next()).data).toBe('after');
    expect(node.events.stats()).toMatchObject({ opened: 1, open: 1 });
  });

  test('loses the stream when the log is lost with the revocation; others get a gap', async () => {
    await using redis = await startRedis();
    const users = new Users();
    await using node = await startNode(redis.url, users);
    using ann = await read(`${node.url}/events?user=ann`);
    using bob = await read(`${node.url}/events?user=bob`);
    await until('all subscriptions', () => node.subscribed() === 2);
    await users.remove('ann');
    await (await redis.client()).flushAll();
    await node.channels.publish('news', 'in another log').catch(() => {});
    await ann.end();
    const gap = await bob.next();
    expect([gap.event, JSON.parse(gap.data).channels]).toEqual(['sse:gap', ['news']]);
    expect(ann.text + bob.text).not.toMatch(/revoked/);
    expect(ann.events.filter(({ event }) => event !== 'sse:gap')).toEqual([]);
  });
});

test('a client that requests the history repeatedly gets what perMinute allows', async () => {
  const channels = createChannels();
  const { events } = await runSnippet(page.get('limits'), {}, { sse, channels }, ['events']);
  const app = express();
  app.use(events as SseMiddleware);
  app.get('/', channels.listen('news', { since: 'start' }));
  await using server = await serve(app);
  // Twice the size of the history.
  for (let n = 0; n < 2_000; n++) await channels.publish('news', 'x'.repeat(1_000));
  const { events: kept } = channels.stats().history;
  let bytes = 0;
  let refused = 0;
  for (let n = 0; n < 40; n++) {
    using reader = await read(server.url);
    await until(
      'the whole history, or the end',
      () => reader.ended || reader.events.length === kept,
    );
    bytes += Buffer.byteLength(reader.text);
    if (reader.ended) refused++;
  }
  expect(refused).toBe(10);
  expect((events as SseMiddleware).stats()).toMatchObject({ opened: 30, rejected: 10 });
  expect(bytes).toBeLessThanOrEqual(30 * 1_048_576);
  // The result is about the figure of the page, not far below it.
  expect(bytes).toBeGreaterThan(15 * 1_048_576);
});
