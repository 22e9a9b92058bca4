/**
 * Redis at its limits: a Redis that is full, rejects writes, or holds more than the limits allow,
 * and a user that may not run all commands.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { HistoryLimits, SseError } from '../../src/index.ts';
import { ownConnection, type RedisConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { redisBroker } from '../../src/brokers/redis.ts';
import type { LogBounds } from '../../src/brokers/broker.ts';
import { startRedis, type RedisClient } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import { LIMITS, Node } from './contract.ts';

const TIMING = {
  timeout: 2_000,
  probe: 200,
  linger: 60_000,
  wait: { min: 5, max: 100 },
  inUse: 100,
};

function nodeOn(connection: RedisConnection, bounds?: Partial<LogBounds>): Node {
  return new Node(new RedisBroker(connection, 'limits', TIMING), bounds);
}

function nodeAt(url: string, bounds?: Partial<LogBounds>): Node {
  return nodeOn(
    ownConnection(url, 1_000, () => {}),
    bounds,
  );
}

const errors: string[] = [];
function note(message: unknown): void {
  errors.push(String((message as { error: unknown }).error));
}

beforeEach(() => {
  errors.length = 0;
  subscribe('res-sse:error', note);
});

afterEach(() => {
  unsubscribe('res-sse:error', note);
});

/** The outcome of each publish: `'published'`, or `delivery` of the error. */
async function outcomes(published: readonly Promise<unknown>[]): Promise<string[]> {
  return Promise.all(
    published.map((one) =>
      one.then(
        () => 'published',
        (error: SseError) => error.delivery ?? 'no delivery',
      ),
    ),
  );
}

/** Fills Redis up to its `maxmemory`. */
async function fill(client: RedisClient): Promise<void> {
  for (let index = 0; ; index++) {
    try {
      await client.set(`filler-${index}`, 'x'.repeat(10_000));
    } catch {
      return;
    }
  }
}

/** Makes Redis reject writes, because it has no replica. */
const UNWRITABLE = ['CONFIG', 'SET', 'min-replicas-to-write', '1'];
const WRITABLE = ['CONFIG', 'SET', 'min-replicas-to-write', '0'];

describe('a Redis that rejects writes can be read', () => {
  test.each([
    ['it is full', { maxmemory: '6mb' }, fill],
    ['it has too few replicas', {}, (client: RedisClient) => client.sendCommand(UNWRITABLE)],
  ])(
    'if %s: nodes start, and channels with expired events can be read',
    async (_what, options, stop) => {
      await using redis = await startRedis(options);
      const client = await redis.client();
      await using there = nodeAt(redis.url);
      const history = { ...LIMITS, age: 300 };
      // The stream of `old` stays in Redis longer than the age limit of its events.
      await there.publish('old', '1', { history: { ...history, age: 10_000 } });
      // When the stream of `gone` has expired, the event before it is too old, too.
      await there.publish('gone', '1', { history });
      await client.hSet(
        '{limits}:log',
        't:old',
        (await client.hGet('{limits}:log', 't:old'))!.replace(':10000:', ':1:'),
      );
      await there.publish('a', '2');
      await until(
        'the stream of "gone" to expire',
        async () => (await client.exists('{limits}:s:gone')) === 0,
      );
      await stop(client);
      await using here = nodeAt(redis.url);
      await Promise.all(['gone', 'old', 'a'].map((channel) => here.listen(channel)));
      const page = await here.read(['gone', 'old', 'a']);
      expect([page.entries.map(({ data }) => data), page.trimmed]).toEqual([['2'], [2, 1, 0]]);
      expect(await outcomes([there.publish('a', '3'), there.publish('new', '3')])).toEqual([
        'none',
        'none',
      ]);
      await client.sendCommand(WRITABLE);
      await client.sendCommand(['CONFIG', 'SET', 'maxmemory', '0']);
      await there.publish('a', '4');
      await until('an event', () => here.received.length === 1);
      expect([here.received[0]?.data, here.interruptions, here.broker.state]).toEqual([
        '4',
        0,
        'open',
      ]);
    },
  );

  test('before a log exists: nodes start, and receive the first event later', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await client.sendCommand(UNWRITABLE);
    await using node = nodeAt(redis.url);
    await node.listen('a');
    expect((await node.read(['a'])).entries).toEqual([]);
    expect(node.broker.state).toBe('open');
    await client.sendCommand(WRITABLE);
    await node.publish('a', '1');
    await until('the event to be readable', async () => (await node.data('a')).length === 1);
  });

  test('after a restart: existing events are read, and no id is used twice', async () => {
    await using redis = await startRedis({ appendonly: true });
    await using node = nodeAt(redis.url);
    await node.listen('a');
    await node.publish('a', '1');
    await redis.kill9();
    await redis.restart();
    const client = await redis.client();
    await client.sendCommand(UNWRITABLE);
    await until('the node to be open', () => node.broker.state === 'open');
    expect(await node.data('a')).toEqual(['1']);
    await client.sendCommand(WRITABLE);
    const { id } = await node.publish('a', '2');
    expect(Number(id.split('.')[1])).toBeGreaterThan(2 ** 32);
    await until('two events', async () => (await node.data('a')).length === 2);
  });

  test('a full Redis rejects publishes to new channels', async () => {
    await using redis = await startRedis({ maxmemory: '6mb' });
    const client = await redis.client();
    await using node = nodeAt(redis.url);
    await node.publish('a', '1');
    await fill(client);
    const published = Array.from({ length: 300 }, (_, index) =>
      node.publish(`new-${index}`, 'x'.repeat(10_000)),
    );
    expect(new Set(await outcomes(published))).toEqual(new Set(['none']));
    expect(await client.keys('{limits}:s:new-*')).toEqual([]);
  });
});

describe('a Redis user without all required permissions', () => {
  const PERMISSIONS =
    '+eval +evalsha +info +time +hget +hset +hdel +hlen +hmget +hscan +del +unlink +pexpire +get ' +
    '+set +xadd +xdel +xlen +xrange +publish +pubsub|numsub +subscribe +unsubscribe +hello +auth ' +
    '+ping';

  async function startNodeWithout(permission: string): Promise<AsyncDisposable & { node: Node }> {
    const permissions = PERMISSIONS.replace(`${permission} `, '');
    const acl = `user limited on >secret ~{limits}:* &{limits}:* -@all ${permissions}`;
    const redis = await startRedis({ acl: [acl] });
    const node = nodeAt(redis.url.replace('//', '//limited:secret@'));
    return {
      node,
      async [Symbol.asyncDispose]() {
        await node.broker.close();
        await redis[Symbol.asyncDispose]();
      },
    };
  }

  test.each(['+hset', '+xadd', '+set', '+xlen'])(
    'cannot publish without %s, and nothing is written',
    async (permission) => {
      await using limited = await startNodeWithout(permission);
      const { node } = limited;
      expect(await outcomes([node.publish('a', '1', { key: 'k' })])).toEqual(['none']);
    },
  );

  test.each(['+xdel', '+xrange', '+hscan', '+pexpire'])(
    'can publish without %s, and an error reports unkept limits',
    async (permission) => {
      await using limited = await startNodeWithout(permission);
      const { node } = limited;
      await node.listen('a');
      const history = { ...LIMITS, events: 2 };
      for (const data of ['1', '2', '3', '4']) await node.publish('a', data, { history });
      await until('four events', () => node.received.length === 4);
      expect(
        errors.some((error) => error.includes('the limits of the history cannot be enforced')),
      ).toBe(['+xdel', '+xrange'].includes(permission));
    },
  );
});

describe('one call of the script does a bounded amount of work', () => {
  const LARGE: HistoryLimits = {
    events: 1_000_000,
    bytes: 1_000_000_000,
    age: Infinity,
    latest: false,
  };

  async function publishMany(
    node: Node,
    channel: string,
    count: number,
    history: HistoryLimits,
  ): Promise<void> {
    await Promise.all(
      Array.from({ length: count }, (_, index) =>
        node.publish(channel, `${index + 1}`, { history }),
      ),
    );
  }

  test('when channel limits are lowered: up to 1,000 deletions, reported to reads', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using node = nodeAt(redis.url, { maxHistory: 1_000_000_000 });
    await publishMany(node, 'a', 4_500, LARGE);
    let [length, calls] = [await client.xLen('{limits}:s:a'), 0];
    while (length > 10) {
      await node.publish('a', 'x', { history: { ...LARGE, events: 10 } });
      expect(length + 1 - (await client.xLen('{limits}:s:a'))).toBeLessThanOrEqual(1_000);
      calls++;
      const page = await node.read(['a'], 0, 300);
      length = await client.xLen('{limits}:s:a');
      // The oldest event of the page is the first event after the deleted events.
      expect(page.entries[0]?.offset).toBe((page.trimmed[0] as number) + 1);
    }
    expect(calls).toBe(3);
  });

  test('when events expire: none is read, although most are not deleted yet', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using node = nodeAt(redis.url, { maxHistory: 1_000_000_000 });
    await publishMany(node, 'a', 3_500, { ...LARGE, age: 60_000 });
    const published = performance.now();
    await until('the events to be older than 1 ms', () => performance.now() - published > 5);
    const field = await client.hGet('{limits}:log', 't:a');
    await client.hSet('{limits}:log', 't:a', field!.replace(':60000:', ':1:'));
    const page = await node.read(['a']);
    expect([page.entries, page.trimmed, await client.xLen('{limits}:s:a')]).toEqual([
      [],
      [3_500],
      2_500,
    ]);
    // Later events are read, and later calls delete the remaining expired events.
    await client.hSet(
      '{limits}:log',
      't:a',
      (await client.hGet('{limits}:log', 't:a'))!.replace(':1:', ':60000:'),
    );
    await node.publish('a', 'new', { history: { ...LARGE, age: 60_000 } });
    expect(await node.data('a')).toEqual(['new']);
    for (let times = 0; times < 2; times++) {
      await node.publish('a', 'newer', { history: { ...LARGE, age: 60_000 } });
    }
    expect(await client.xLen('{limits}:s:a')).toBeLessThan(1_000);
    expect((await node.read(['a'])).trimmed).toEqual([3_500]);
  });

  test('when channels are too many: it examines hundreds and keeps followed ones', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using node = nodeAt(redis.url, { maxChannels: 2_000 });
    for (let index = 0; index < 50; index++) {
      await node.listen(`followed-${index}`);
      await node.publish(`followed-${index}`, 'x');
    }
    const channels = async (): Promise<string[]> =>
      (await client.hKeys('{limits}:log')).filter((name) => name.startsWith('t:'));
    const scans = async (): Promise<number> =>
      Number(/cmdstat_hscan:calls=(\d+)/.exec(await client.info('commandstats'))?.[1] ?? 0);
    for (let round = 0; round < 50; round++) {
      const before = await scans();
      await Promise.all(
        Array.from({ length: 100 }, (_, index) => node.publish(`c-${round}-${index}`, 'x')),
      );
      // One HSCAN call for each batch of publishes.
      expect((await scans()) - before).toBeLessThanOrEqual(8);
    }
    const remaining = await channels();
    expect(remaining.length).toBeLessThanOrEqual(2_100);
    expect(remaining.filter((name) => name.startsWith('t:followed-'))).toHaveLength(50);
    expect(await client.hGetAll('{limits}:log')).not.toHaveProperty('all');
    const { trimmed } = await node.read(['c-0-0', 'never']);
    expect(trimmed[1]).toBeGreaterThan(0);
  });

  test('when registry limits are lowered: later calls delete until they are kept', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    {
      await using before = nodeAt(redis.url);
      for (let round = 0; round < 15; round++) {
        await Promise.all(
          Array.from({ length: 100 }, (_, index) =>
            before.publish(`c-${round}-${index}`, 'x'.repeat(1_000)),
          ),
        );
      }
    }
    await using node = nodeAt(redis.url, { maxChannels: 100, maxHistory: 50_000 });
    const areLimitsKept = async () => {
      const fields = await client.hGetAll('{limits}:log');
      const channels = Object.keys(fields).filter((name) => name.startsWith('t:')).length;
      return channels <= 100 && Number(fields['held']) <= 50_000;
    };
    let calls = 0;
    while (!(await areLimitsKept())) {
      await node.publish('a', 'x');
      calls++;
    }
    expect(calls).toBeGreaterThan(3);
    expect(calls).toBeLessThan(40);
    expect((await node.read(['a'])).entries.length).toBeGreaterThan(0);
  });
});

describe('a node reads from Redis only what it needs', () => {
  /** Number of bytes that Redis has sent to all clients. */
  async function readSentBytes(client: RedisClient): Promise<number> {
    return Number(/total_net_output_bytes:(\d+)/.exec(await client.info('stats'))![1]);
  }

  test('once for 200 readers of a channel, although its cache is full', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using there = nodeAt(redis.url);
    for (const channel of ['a', 'b', 'c', 'd']) {
      await Promise.all(
        Array.from({ length: 100 }, () => there.publish(channel, 'x'.repeat(1_000))),
      );
    }
    await using node = nodeAt(redis.url, { maxHistory: 450_000 });
    for (const channel of ['a', 'b', 'c']) {
      await node.listen(channel);
      await node.read([channel], 0, 1_000);
    }
    expect(node.broker.held.events).toBe(300);
    await node.listen('d');
    // The node may drop other channels from its cache after they were unused for a while.
    await until('channel d to be in the cache', async () => {
      await Promise.all(Array.from({ length: 200 }, () => node.read(['d'], 0, 60_000)));
      return !(node.broker.read(['d'], 0, 60_000) instanceof Promise);
    });
    const before = await readSentBytes(client);
    await Promise.all(Array.from({ length: 200 }, () => node.read(['d'], 0, 60_000)));
    expect((await readSentBytes(client)) - before).toBeLessThan(20_000);
  });

  test('page by page, if the channels do not fit into its cache', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using node = nodeAt(redis.url, { maxHistory: 300_000 });
    const channels = Array.from({ length: 20 }, (_, index) => `c${index}`);
    await using there = nodeAt(redis.url);
    for (let times = 0; times < 50; times++) {
      await Promise.all(channels.map((channel) => there.publish(channel, 'x'.repeat(1_000))));
    }
    await Promise.all(channels.map((channel) => node.listen(channel)));
    const before = await readSentBytes(client);
    const offsets: number[] = [];
    for (let after = 0, complete = false; !complete;) {
      const page = await node.read(channels, after, 65_536);
      for (const { offset } of page.entries) offsets.push(offset);
      after = offsets.at(-1) as number;
      complete = page.complete;
    }
    expect(offsets).toEqual(Array.from({ length: 1_000 }, (_, index) => index + 1));
    // The events have about 1 MB.
    expect((await readSentBytes(client)) - before).toBeLessThan(1_600_000);
  });
});

describe('two databases of one Redis are two logs', () => {
  test.each([
    ['by url', (url: string, database: number) => redisBroker({ url: `${url}/${database}` })],
  ])(
    '%s: neither delivers events of the other or interrupts the other',
    async (_what, brokerOf) => {
      await using redis = await startRedis();
      await using zero = new Node(brokerOf(redis.url, 0));
      await using one = new Node(brokerOf(redis.url, 1));
      await using another = new Node(brokerOf(redis.url, 1));
      await Promise.all([zero, one, another].map((node) => node.listen('a')));
      for (const [node, data] of [
        [zero, 'zero'],
        [one, 'one'],
      ] as const) {
        for (let times = 0; times < 20; times++) {
          await node.publish('a', data);
          await node.publish('a', `${data}, live`, { history: false });
        }
      }
      await until('the events', () =>
        [zero, one, another].every(({ received }) => received.length === 40),
      );
      const receivedData = ({ received }: Node): string[] => [
        ...new Set(received.map(({ data }) => data)),
      ];
      expect([receivedData(zero), receivedData(one), receivedData(another)]).toEqual([
        ['zero', 'zero, live'],
        ['one', 'one, live'],
        ['one', 'one, live'],
      ]);
      expect([zero, one, another].map(({ interruptions }) => interruptions)).toEqual([0, 0, 0]);
      expect(errors).toEqual([]);
    },
  );

  test('by a client of the application that has selected a database', async () => {
    await using redis = await startRedis();
    const [client, other] = [await redis.client(), await redis.client()];
    await client.select(3);
    await using three = new Node(redisBroker({ client }));
    await using zero = new Node(redisBroker({ client: other }));
    await using named = new Node(redisBroker({ url: `${redis.url}/3` }));
    await Promise.all([three, zero, named].map((node) => node.listen('a')));
    await three.publish('a', '1', { history: false });
    await zero.publish('a', '2', { history: false });
    await until('the events', () =>
      [three, zero, named].every(({ received }) => received.length > 0),
    );
    expect([three, zero, named].map(({ received }) => received.map(({ data }) => data))).toEqual([
      ['1'],
      ['2'],
      ['1'],
    ]);
  });

  test('a header of another log is ignored and reported, without an interruption', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    await using node = nodeAt(redis.url);
    await node.listen('a');
    for (let times = 0; times < 1_000; times++) {
      await client.publish('{limits}:spine', `1 other ${times} ${times + 1} \n+${times + 1} a`);
    }
    await node.publish('a', '1');
    await until('an event', () => node.received.length === 1);
    await until('an error report', () => errors.some((error) => error.includes('another log')));
    expect(node.interruptions).toBe(0);
    expect(errors.length).toBeLessThan(50);
  });
});

test('events do not expire early when the clock of Redis is set back', async () => {
  await using redis = await startRedis();
  const client = await redis.client();
  await using node = nodeAt(redis.url);
  await node.listen('a');
  const history = { ...LIMITS, age: 60_000 };
  await node.publish('a', '1', { history });
  await until('the first event', () => node.received.length === 1);
  const { epoch, offset } = await node.broker.position();
  // Append an event as a Redis does whose clock was set back by one hour.
  const at = Date.now() - 3_600_000;
  await client.sendCommand([
    'XADD',
    '{limits}:s:a',
    `${offset + 1}-0`,
    'm',
    `${at}`,
    's',
    '1',
    'b',
    '1 \n\n2',
  ]);
  await client.hSet('{limits}:log', {
    head: `${offset + 1}`,
    't:a': `${offset + 1}:0:1000:1000:1000000:60000:0`,
  });
  await client.publish(
    '{limits}:c:a',
    `1 ${epoch} ${offset + 1} ${offset} ${at} 0 1000 1000000 60000 0\n1 \n\n2`,
  );
  await client.publish('{limits}:spine', `1 ${epoch} ${offset} ${offset + 1} \n+${offset + 1} a`);
  await until('the second event', () => node.received.length === 2);
  const page = node.broker.read(['a'], offset, 1_000);
  expect(page).not.toBeInstanceOf(Promise);
  const { entries, trimmed } = await page;
  expect([entries.map(({ data }) => data), trimmed]).toEqual([['2'], [0]]);
});

describe('a command that the client of the application repeats', () => {
  test('publishes once, resolves to the same id, and leaves one key for seconds', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    const inner = ownConnection(redis.url, 1_000, () => {});
    let isTwice = false;
    await using node = nodeOn({
      ...inner,
      repeats: true,
      async send(key, args, signal) {
        const first = await inner.send(key, args, signal);
        return isTwice ? inner.send(key, args, signal) : first;
      },
    });
    await node.publish('a', '0');
    isTwice = true;
    const published = await Promise.all([
      ...Array.from({ length: 10 }, (_, index) => node.publish('a', `${index + 1}`)),
      node.publish('a', 'keyed', { key: 'k' }),
    ]);
    isTwice = false;
    expect(await node.data('a')).toEqual([
      '0',
      ...Array.from({ length: 10 }, (_, index) => `${index + 1}`),
      'keyed',
    ]);
    expect(new Set(published.map(({ id }) => id)).size).toBe(11);
    const keys = await client.keys('{limits}:b:*');
    // One key for each call of the script.
    expect(keys.length).toBeLessThanOrEqual(3);
    for (const key of keys) {
      expect(await client.pTTL(key)).toBeLessThanOrEqual(TIMING.timeout + 5_000);
    }
    expect(await client.keys('{limits}:k:*')).toEqual(['{limits}:k:a\nk']);
  });
});

test('pending publishes are limited by bytes', async () => {
  // No server listens on this port.
  await using node = nodeAt('redis://127.0.0.1:1');
  const large = outcomes([
    node.publish('a', 'é'.repeat(17_000_000)),
    node.publish('a', 'x'),
    node.publish('a', 'x'.repeat(1_000_000)),
  ]);
  await expect(node.publish('a', 'x')).rejects.toThrow(/too many publishes wait/);
  expect(await large).toEqual(['none', 'none', 'none']);
});
