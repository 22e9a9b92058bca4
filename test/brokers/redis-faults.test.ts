import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { LogEntry, SseError } from '../../src/index.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import type { Timing } from '../../src/brokers/redis/timing.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import {
  startRedis,
  type RedisClient,
  type RedisOptions,
  type RedisServer,
} from '../support/redis-server.ts';
import { startRelay } from '../support/relay.ts';
import { until, within } from '../support/wait.ts';
import { LIMITS, Node } from './contract.ts';

const TIMING: Timing = {
  timeout: 2_000,
  probe: 200,
  linger: 60_000,
  wait: { min: 5, max: 100 },
  inUse: 100,
};
const PREFIX = 'faults';
const LOG = '{faults}:log';

/** A node with one reader that follows channel `a` as a stream does: live, or reading pages. */
class ReaderNode extends Node {
  readonly delivered: string[] = [];
  // The reader waits for the broker without a time limit.
  readonly #signal = new AbortController().signal;
  gaps = 0;
  #cursor = 0;
  #epoch = '';
  #isLive = false;
  #newest = 0;
  #reading: Promise<void> | undefined;

  constructor(url: string, timing: Partial<Timing> = {}) {
    super(
      new RedisBroker(
        ownConnection(url, 1_000, () => {}),
        PREFIX,
        { ...TIMING, ...timing },
      ),
    );
  }

  get isLive(): boolean {
    return this.#isLive;
  }

  async follow(): Promise<this> {
    await this.listen('a');
    const { epoch, offset } = await this.broker.position(undefined, this.#signal);
    this.#epoch = epoch;
    this.#cursor = offset;
    this.#go();
    await until('the reader to be live', () => this.#isLive);
    return this;
  }

  override receive(entry: LogEntry): void {
    super.receive(entry);
    this.#newest = entry.offset;
    if (this.#isLive && entry.offset > this.#cursor) this.#deliver([entry]);
  }

  override interrupted(): void {
    super.interrupted();
    this.#isLive = false;
    this.#newest = 0;
    this.#go();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#reading;
  }

  #go(): void {
    this.#reading ??= this.#read()
      // The read rejects when the broker closes.
      .catch(() => {})
      .finally(() => {
        this.#reading = undefined;
      });
  }

  async #read(): Promise<void> {
    while (!this.#isLive) {
      const { interruptions } = this;
      const reading = this.broker.read(['a'], this.#cursor, 64, this.#signal);
      const page = await reading;
      if (page.position.epoch !== this.#epoch) {
        this.#epoch = page.position.epoch;
        this.#cursor = 0;
        this.gaps++;
        continue;
      }
      const [trimmed] = page.trimmed as [number];
      if (trimmed > this.#cursor) {
        this.gaps++;
        this.#cursor = trimmed;
      }
      this.#deliver(page.entries.filter((entry) => entry.offset > this.#cursor));
      if (page.complete) this.#cursor = Math.max(this.#cursor, page.position.offset);
      this.#isLive =
        page.complete && interruptions === this.interruptions && this.#newest <= this.#cursor;
    }
  }

  #deliver(entries: readonly LogEntry[]): void {
    for (const entry of entries) {
      this.delivered.push(entry.data);
      this.#cursor = entry.offset;
    }
  }
}

/** Publishes each event once, and retries with a key until Redis has accepted the event. */
async function publishAll(node: Node, ...data: string[]): Promise<void> {
  for (const each of data) {
    await until(`event ${each} to be published`, async () => {
      try {
        await node.publish('a', each, { key: each });
        return true;
      } catch {
        return false;
      }
    });
  }
}

const errors: unknown[] = [];
function note(message: unknown): void {
  const { broker, error } = message as { broker?: unknown; error: unknown };
  if (broker !== undefined) errors.push(error);
}

beforeEach(() => {
  errors.length = 0;
  subscribe('res-sse:error', note);
});

afterEach(() => {
  unsubscribe('res-sse:error', note);
});

interface Site extends AsyncDisposable {
  readonly redis: RedisServer;
  readonly client: RedisClient;
  /** The node with the reader. */
  readonly here: ReaderNode;
  /** The node that publishes. */
  readonly there: ReaderNode;
}

async function openSite(options: RedisOptions = {}, timing: Partial<Timing> = {}): Promise<Site> {
  const redis = await startRedis(options);
  const client = await redis.client();
  const there = new ReaderNode(redis.url, timing);
  const here = await new ReaderNode(redis.url, timing).follow();
  return {
    redis,
    client,
    here,
    there,
    async [Symbol.asyncDispose]() {
      await Promise.all([here.broker.close(), there.broker.close()]);
      await redis[Symbol.asyncDispose]();
    },
  };
}

describe('a node of a Redis registry misses no event', () => {
  test('when Redis forgets the script during publishes, and keeps the order', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    const published: Promise<unknown>[] = [];
    for (let round = 0; round < 20; round++) {
      for (let index = 0; index < 20; index++) {
        published.push(there.publish('a', `${published.length}`));
      }
      await client.sendCommand(['SCRIPT', 'FLUSH']);
    }
    await Promise.all(published);
    await until('all events', () => here.delivered.length === 400);
    expect(here.delivered).toEqual(Array.from({ length: 400 }, (_, index) => `${index}`));
    expect([here.gaps, here.interruptions]).toEqual([0, 0]);
  });

  test('when Redis kills its subscriber connection while another node publishes', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    const data = Array.from({ length: 300 }, (_, index) => `${index}`);
    for (const [index, each] of data.entries()) {
      if (index % 60 === 30) await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
      await there.publish('a', each);
    }
    await until('all events', () => here.delivered.length >= data.length);
    expect(here.delivered).toEqual(data);
    expect(here.gaps).toBe(0);
    expect(here.interruptions).toBeGreaterThan(0);
  });

  test('when Redis restarts with its data, and no id is used twice', async () => {
    await using all = await openSite({ appendonly: true });
    const { redis, here, there } = all;
    const { id: before } = await there.publish('a', '1');
    await redis.kill9();
    await redis.restart();
    await publishAll(there, '2');
    await until('two events', () => here.delivered.length === 2);
    const after = await there.broker.position();
    expect([here.delivered, here.gaps]).toEqual([['1', '2'], 0]);
    expect(before.split('.')[0]).toBe(after.epoch);
    expect(after.offset).toBeGreaterThan(2 ** 32);
  });

  test('when Redis does not answer for one second', async () => {
    await using all = await openSite({}, { timeout: 300 });
    const { client, here, there } = all;
    await there.publish('a', '1');
    await client.sendCommand(['CLIENT', 'PAUSE', '1000', 'ALL']);
    const refused = await there.publish('a', '2').catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: 'ERR_SSE_BROKER', delivery: 'unknown' });
    await publishAll(there, '3');
    await until('event 3', () => here.delivered.at(-1) === '3');
    // The publish of event 2 timed out with `delivery: 'unknown'`. Redis executed it later.
    expect(here.delivered).toEqual(['1', '2', '3']);
    expect(here.gaps).toBe(0);
  });

  test('when a message to it is lost, on its channel or on the header channel', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(redis.url);
    await using here = await new ReaderNode(relay.url).follow();
    await there.publish('a', '1');
    relay.dropNext(({ topic }) => topic.endsWith(':c:a'));
    await there.publish('a', '2');
    await there.publish('b', 'elsewhere');
    await there.publish('a', '3');
    await until('three events', () => here.delivered.length === 3);
    expect(here.interruptions).toBe(1);
    // No later header follows, so only a probe can detect the loss.
    relay.dropNext(({ topic }) => topic.endsWith(':spine'));
    await there.publish('a', '4');
    await until('four events', () => here.delivered.length === 4);
    expect([here.delivered, here.gaps]).toEqual([['1', '2', '3', '4'], 0]);
    expect(relay.dropped).toHaveLength(2);
  });

  test('when a header is lost, while events without history arrive all the time', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(redis.url, { probe: 60_000 });
    await using here = await new ReaderNode(relay.url).follow();
    // The node does not follow the channel any more, and receives its events for a while.
    await here.broker.listen('b');
    here.broker.unlisten('b');
    relay.dropNext(({ topic }) => topic.endsWith(':spine'));
    await there.publish('a', '1');
    await until('the event', async () => {
      await there.publish('b', 'now', { history: false });
      return here.delivered.includes('1');
    });
    expect([here.delivered, here.gaps]).toEqual([['1'], 0]);
  });

  test('when its connection is open but receives nothing', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(redis.url);
    await using here = await new ReaderNode(relay.url, { timeout: 300 }).follow();
    relay.dropAll(() => true);
    await there.publish('a', '1');
    await until('the node to detect the failure', () => here.broker.state === 'broken');
    relay.dropNone();
    await until('the event', () => here.delivered.length === 1);
    expect([here.delivered, here.gaps]).toEqual([['1'], 0]);
  });

  test('when its connections are dead and were not closed', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(redis.url);
    // The lease calls are frequent, so that each command follows the previous one at once.
    await using here = await new ReaderNode(relay.url, { timeout: 300, lease: 600 }).follow();
    relay.silence();
    await there.publish('a', '1');
    const isAccepted = (): Promise<boolean> =>
      here.publish('a', '2').then(
        () => true,
        () => false,
      );
    await until('a publish to be accepted', isAccepted);
    // A publish whose answer came too late is repeated, without a key.
    await until('the events', () => new Set(here.delivered).size === 2);
    expect([here.delivered[0], here.gaps]).toEqual(['1', 0]);
  });

  test('when Redis is unreachable for a while, and pending calls resolve later', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(redis.url);
    await using here = await new ReaderNode(relay.url).follow();
    relay.sever();
    await until('the node to detect the failure', () => here.broker.state === 'broken');
    await there.publish('a', '1');
    const position = here.broker.position();
    const page = here.broker.read(['a'], 0, 1_000);
    const listened = here.listen('b');
    relay.mend();
    expect((await within('the position', Promise.resolve(position))).offset).toBe(1);
    expect(
      (await within('the page', Promise.resolve(page))).entries.map(({ data }) => data),
    ).toEqual(['1']);
    await within('listen', listened);
    await until('the event', () => here.delivered.length === 1);
    expect(here.gaps).toBe(0);
  });
});

describe('a loss in Redis is reported as a gap', () => {
  test('when Redis restarts without its data', async () => {
    await using all = await openSite();
    const { redis, here, there } = all;
    await there.publish('a', '1');
    await until('event 1', () => here.delivered.length === 1);
    await redis.kill9();
    await redis.restart();
    await publishAll(there, '2');
    await until('event 2', () => here.delivered.at(-1) === '2');
    expect([here.delivered, here.gaps]).toEqual([['1', '2'], 1]);
  });

  test('when all keys are deleted', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    await there.publish('a', '1');
    await until('event 1', () => here.delivered.length === 1);
    await client.sendCommand(['FLUSHALL']);
    await there.publish('a', '2');
    await until('event 2', () => here.delivered.at(-1) === '2');
    expect([here.delivered, here.gaps]).toEqual([['1', '2'], 1]);
  });

  test('when the log is deleted, without another publish', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    await there.publish('a', '1');
    await until('event 1', () => here.delivered.length === 1);
    await client.del(LOG);
    await until('a gap', () => here.gaps === 1);
    expect(here.delivered).toEqual(['1']);
  });

  test('when Redis evicts the stream of a channel', async () => {
    await using all = await openSite();
    const { client, there } = all;
    await there.publish('b', '1');
    const { offset } = await there.broker.position();
    await client.del('{faults}:s:b');
    const page = await there.read(['b']);
    expect([page.entries, page.trimmed]).toEqual([[], [offset]]);
  });

  test('when Redis restarts with an older copy of the log', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    await there.publish('a', '1');
    const short = await client.hGetAll(LOG);
    await publishAll(there, '2', '3');
    await until('three events', () => here.delivered.length === 3);
    const seen = await here.broker.position();
    // Restore an older copy, as an append-only file does that misses the last writes.
    await client.del(LOG);
    await client.hSet(LOG, short);
    await client.sendCommand(['XTRIM', '{faults}:s:a', 'MAXLEN', '0']);
    await client.sendCommand(['XSETID', '{faults}:s:a', '1-0']);
    await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
    await publishAll(there, '4');
    await until('event 4', () => here.delivered.at(-1) === '4');
    expect(here.delivered).toEqual(['1', '2', '3', '4']);
    expect(here.gaps).toBe(1);
    const now = await here.broker.position();
    expect(now.epoch).toBe(seen.epoch);
    expect(now.offset).toBeGreaterThan(2 ** 32);
  });
});

test('a node does not serve events from its cache that Redis lost meanwhile', async () => {
  await using redis = await startRedis();
  await using relay = await startRelay(redis.port);
  const client = await redis.client();
  await using there = new ReaderNode(redis.url);
  await using here = await new ReaderNode(relay.url).follow();
  await there.publish('a', '1');
  const short = await client.hGetAll(LOG);
  const kept = await client.xRange('{faults}:s:a', '-', '+');
  await publishAll(there, '2', '3');
  await until('three events', () => here.delivered.length === 3);
  relay.sever();
  await until('the node to detect the failure', () => here.broker.state === 'broken');
  // Restore an older copy, as an append-only file does that misses the last writes.
  await client.del([LOG, '{faults}:s:a']);
  await client.hSet(LOG, short);
  await client.xAdd('{faults}:s:a', '1-0', kept?.[0]?.message ?? {});
  await there.publish('a', '4');
  relay.mend();
  await until('event 4', () => here.delivered.at(-1) === '4');
  expect(await here.data('a')).toEqual(await there.data('a'));
  expect(await here.data('a')).toEqual(['1', '4']);
  expect([here.delivered, here.gaps]).toEqual([['1', '2', '3', '4'], 1]);
});

describe('a node survives data that other programs write into Redis', () => {
  test('an invalid event is reported as an error and a gap; later events arrive', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    await there.publish('a', '1');
    const { epoch, offset } = await there.broker.position();
    const hostile = [
      '',
      '1 x\n\nx',
      '1 \nevil\rid: 9\nx',
      '1 \nsse:end\nx',
      `1 ${'9'.repeat(16)}\n\nx`,
      '2 \n\nx',
    ];
    for (const [index, body] of hostile.entries()) {
      const next = offset + index + 1;
      await client.sendCommand([
        'XADD',
        '{faults}:s:a',
        `${next}-0`,
        'm',
        '1',
        's',
        '1',
        'b',
        body,
      ]);
      await client.sendCommand([
        'HSET',
        LOG,
        'head',
        `${next}`,
        't:a',
        `${next}:0:1000:1000:1000000:0:0`,
      ]);
      const payload = `1 ${epoch} ${next} ${next - 1} 1 0 1000 1000000 0 0\n${body}`;
      await client.publish('{faults}:c:a', payload);
      await client.publish('{faults}:spine', `1 ${epoch} ${next - 1} ${next} \n+${next} a`);
    }
    await there.publish('a', '2');
    await until('event 2', () => here.delivered.at(-1) === '2');
    expect(here.delivered).toEqual(['1', '2']);
    expect(here.gaps).toBeGreaterThan(0);
    expect(errors.length).toBeGreaterThanOrEqual(hostile.length);
  });

  test('a node recovers from invalid messages, with growing delays', async () => {
    await using all = await openSite();
    const { client, here, there } = all;
    await there.publish('a', '1');
    const { epoch, offset } = await there.broker.position();
    const noise = [
      '',
      'x'.repeat(100_000),
      `1 ${epoch}`,
      `1 ${epoch} 0 ${'9'.repeat(16)} `,
      `1 ${epoch} ${offset} ${offset + 1} \n+${offset + 1} a`,
      `1 ${epoch} ${offset} ${offset + 1} \n+${offset + 2} a`,
      `1 ${epoch} ${offset} ${offset + 1} `,
      '1 other 0 0 ',
      '\0\n\n\n',
    ];
    for (const text of noise) {
      await client.publish('{faults}:spine', text);
      await client.publish('{faults}:c:a', text);
    }
    await publishAll(there, '2', '3');
    await until('three events', () => here.delivered.length === 3);
    expect([here.delivered, here.gaps]).toEqual([['1', '2', '3'], 0]);
    expect(errors.length).toBeGreaterThan(0);
    expect(here.interruptions).toBeLessThanOrEqual(noise.length);
  });

  test('a key of another type rejects the publish with delivery: none', async () => {
    await using all = await openSite();
    const { client, there } = all;
    await client.set('{faults}:s:b', 'x');
    await there.publish('b', '1');
    await client.set('{faults}:s:b', 'x');
    await expect(there.publish('b', '2')).rejects.toMatchObject({
      code: 'ERR_SSE_BROKER',
      delivery: 'none',
    });
    expect((await there.read(['b'])).entries).toEqual([]);
    await client.set(LOG, 'x');
    await expect(there.publish('b', '3')).rejects.toMatchObject({
      code: 'ERR_SSE_BROKER',
      delivery: 'none',
    });
    await client.del(LOG);
    await publishAll(there, '4');
  });

  test('a stream that another program wrote to works again; the loss is reported', async () => {
    await using all = await openSite();
    const { client, there } = all;
    await there.publish('b', '1');
    await client.sendCommand(['XADD', '{faults}:s:b', '99999-0', 'x', 'y']);
    await there.publish('b', '2');
    const page = await there.read(['b']);
    expect([page.entries.map(({ data }) => data), page.trimmed]).toEqual([['2'], [1]]);
  });
});

describe('limits of a Redis registry', () => {
  test('a key is published once, also if two nodes publish at the same time', async () => {
    await using all = await openSite();
    const { here, there } = all;
    const ids = await Promise.all(
      [here, there, here, there].map((node) => node.publish('a', 'x', { key: 'k' })),
    );
    expect(new Set(ids.map(({ id }) => id)).size).toBe(1);
    await there.publish('a', 'y');
    await until('two events', () => here.delivered.length === 2);
    expect(here.delivered).toEqual(['x', 'y']);
  });

  test('publishes reject while Redis is unreachable, and are not delivered later', async () => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    await using there = new ReaderNode(relay.url, { timeout: 300 });
    await there.broker.position();
    relay.sever();
    await until('the node to detect the failure', () => there.broker.state === 'broken');
    const results = await Promise.all(
      Array.from({ length: 11_000 }, (_, index) =>
        there.publish('b', `${index}`).catch((error: unknown) => error),
      ),
    );
    for (const result of results) expect(result).toMatchObject({ code: 'ERR_SSE_BROKER' });
    // The other publishes were written to the connection before the node noticed that it was cut.
    const undelivered = results.flatMap((result, index) =>
      (result as SseError).delivery === 'none' ? [`${index}`] : [],
    );
    expect(undelivered.length).toBeGreaterThan(10_000);
    relay.mend();
    await until('the node to be open', () => there.broker.state === 'open');
    await publishAll(there, 'next');
    const kept = await there.broker.read(['a', 'b'], 0, 10_000_000);
    expect(kept.entries.at(-1)?.data).toBe('next');
    expect(kept.entries.filter(({ data }) => undelivered.includes(data))).toEqual([]);
  });

  test('clear() removes the events on every node and reports the loss', async () => {
    await using all = await openSite();
    const { here, there } = all;
    await publishAll(there, '1', '2');
    await until('two events', () => here.delivered.length === 2);
    const before = await here.read(['a']);
    expect(before.entries).toHaveLength(2);
    await there.broker.clear('a');
    await until('channel a to be empty', async () => (await here.read(['a'])).entries.length === 0);
    expect((await here.read(['a'])).trimmed).toEqual([2]);
    expect(here.interruptions).toBe(0);
    await publishAll(there, '3');
    await until('event 3', () => here.delivered.length === 3);
    expect((await here.read(['a'])).entries.map(({ data }) => data)).toEqual(['3']);
  });

  test('a node does not serve events from its cache after their age limit', async () => {
    await using all = await openSite();
    const { here, there } = all;
    const history = { ...LIMITS, age: 50 };
    await there.publish('a', '1', { history });
    await until('event 1', () => here.delivered.length === 1);
    await until('event 1 to expire', async () => (await here.read(['a'])).entries.length === 0);
    expect((await here.read(['a'])).trimmed).toEqual([1]);
  });

  test('a node caches only the newest event of a newest-only channel, without a gap', async () => {
    await using all = await openSite();
    const { here, there } = all;
    const history = { ...LIMITS, events: 1, latest: true };
    for (const data of ['1', '2', '3']) await there.publish('a', data, { history });
    await until('event 3', () => here.delivered.at(-1) === '3');
    const page = here.broker.read(['a'], 0, 1_000);
    expect(page).not.toBeInstanceOf(Promise);
    const { entries, trimmed } = await page;
    expect([entries.map(({ data }) => data), trimmed]).toEqual([['3'], [0]]);
  });

  test('Redis keeps at most maxHistory bytes and maxChannels channels', async () => {
    await using redis = await startRedis();
    await using node = new Node(
      new RedisBroker(
        ownConnection(redis.url, 1_000, () => {}),
        PREFIX,
        TIMING,
      ),
      {
        maxHistory: 20_000,
        maxChannels: 8,
      },
    );
    const client = await redis.client();
    for (let index = 0; index < 200; index++) {
      await node.publish(`${index % 20}`, 'x'.repeat(1_000));
    }
    const fields = await client.hGetAll(LOG);
    expect(Object.keys(fields).filter((name) => name.startsWith('t:')).length).toBeLessThanOrEqual(
      8,
    );
    expect(Number(fields['held'])).toBeLessThanOrEqual(20_000);
    const keys = await client.keys('{faults}:s:*');
    let bytes = 0;
    for (const key of keys) bytes += 1_430 * (await client.xLen(key));
    expect(bytes).toBeLessThanOrEqual(21_000);
    const { trimmed } = await node.read(['0', 'never']);
    expect(trimmed[1]).toBeGreaterThan(0);
  });

  test('ten thousand returning readers need one read from Redis', async () => {
    await using all = await openSite({}, { probe: 60_000 });
    const { client, here, there } = all;
    await there.publish('b', '0');
    await Promise.all(
      Array.from({ length: 500 }, (_, index) => there.publish('b', `${index + 1}`)),
    );
    await here.listen('b');
    const calls = async () =>
      Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1]);
    const before = await calls();
    const pages = await Promise.all(
      Array.from({ length: 10_000 }, async (_, index) => here.read(['b'], index % 400, 100_000)),
    );
    expect(
      pages.every((page, index) => page.complete && page.entries.length === 501 - (index % 400)),
    ).toBe(true);
    // One call for the positions of the channels, one call for the events.
    expect((await calls()) - before).toBeLessThanOrEqual(2);
  });

  test('a node stops listening to a channel some time after its last stream left', async () => {
    await using all = await openSite({}, { linger: 50 });
    const { client, here, there } = all;
    await here.listen('b');
    here.unlisten('b');
    await until(
      'the end of the subscription',
      async () => (await client.pubSubNumSub('{faults}:c:b'))['{faults}:c:b'] === 0,
    );
    await there.publish('b', '1');
    await here.listen('b');
    await there.publish('b', '2');
    await until('event 2', () => here.received.some(({ data }) => data === '2'));
    expect(await here.data('b')).toEqual(['1', '2']);
    expect(here.interruptions).toBe(0);
  });

  test('close() closes both connections and rejects pending calls', async () => {
    await using redis = await startRedis();
    const client = await redis.client();
    const clients = async () => (await client.clientList()).length;
    const before = await clients();
    const node = await new ReaderNode(redis.url).follow();
    await until('two connections', async () => (await clients()) === before + 2);
    redis.pause();
    const { epoch } = await node.broker.position();
    const waiting = Promise.resolve(node.broker.position({ epoch, offset: 99 })).catch(
      (error: unknown) => error,
    );
    await node.broker.close();
    expect(await within('the rejection', waiting)).toMatchObject({ code: 'ERR_SSE_CLOSED' });
    redis.resume();
    await until('both connections to close', async () => (await clients()) === before);
  });
});
