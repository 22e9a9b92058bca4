/**
 * Recovery of a Redis node ("healing"). A node may be interrupted at any step of its recovery, any
 * number of times. After Redis has been reachable for a while, the node must be open and every
 * reader must have every event.
 *
 * `RES_SSE_HEALING_MS` sets the duration of the random test, `RES_SSE_SEED` repeats a run.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { createSentinel } from 'redis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  connectionOf,
  ownConnection,
  type RedisConnection,
  type RedisClient,
} from '../../src/brokers/redis/redis-connection.ts';
import { LocalLog } from '../../src/brokers/redis/local-log.ts';
import { LogSubscription } from '../../src/brokers/redis/log-subscription.ts';
import type { Timing } from '../../src/brokers/redis/timing.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { LogClient } from '../../src/brokers/redis/log-client.ts';
import { startRedisCluster } from '../support/redis-cluster.ts';
import { ReaderNode } from '../support/redis-readers.ts';
import { startRedisSentinel } from '../support/redis-sentinel.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { Steps, type Phase } from '../support/redis-steps.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { until } from '../support/wait.ts';

const RUN_MS = Number(process.env['RES_SSE_HEALING_MS'] ?? 10_000);
const SEED = Number(process.env['RES_SSE_SEED'] ?? Date.now());

const TIMING: Timing = { timeout: 1_000, probe: 300, linger: 60_000, wait: { min: 5, max: 100 } };

// Limits that are large enough to keep every event of a test.
const HISTORY = { events: 1_000_000, bytes: 67_108_864, age: Infinity, latest: false };

let redis: RedisServer;
let prefixes = 0;

beforeAll(async () => {
  redis = await startRedis();
});

afterAll(async () => {
  await redis[Symbol.asyncDispose]();
});

function nodeOn(
  connection: RedisConnection,
  prefix: string,
  timing: Partial<Timing> = {},
): ReaderNode {
  return new ReaderNode(new RedisBroker(connection, prefix, { ...TIMING, ...timing }));
}

const own = (url: string): RedisConnection => ownConnection(url, 1_000, () => {});

/** Names of channels: `c0`, `c1`, … */
function channels(count: number, from: number = 0): string[] {
  return Array.from({ length: count }, (_, index) => `c${from + index}`);
}

/**
 * A node that is interrupted (`here`), a node that publishes (`there`), and a record of the
 * published events.
 */
class Site implements AsyncDisposable {
  readonly relay: Relay;
  readonly steps = new Steps();
  readonly here: ReaderNode;
  readonly there: ReaderNode;
  readonly published: { channel: string; data: string }[] = [];

  constructor(relay: Relay, timing?: Partial<Timing>) {
    const prefix = `healing-${++prefixes}`;
    this.relay = relay;
    this.here = nodeOn(this.steps.connection(own(relay.url)), prefix, timing);
    // A long time limit, so that publishes are accepted on a slow machine, too.
    this.there = nodeOn(own(redis.url), prefix, { timeout: 30_000 });
  }

  /** Publishes `count` events, on the channels in turn. */
  async publish(names: readonly string[], count: number): Promise<void> {
    await Promise.all(
      Array.from({ length: count }, (_, index) => {
        const channel = names[index % names.length] as string;
        const data = `${this.published.length}`;
        this.published.push({ channel, data });
        return this.there.publish(channel, data, { history: HISTORY });
      }),
    );
  }

  /**
   * Resolves when the node is open and every reader has all events that were published on its
   * channels since the reader started.
   */
  async isWhole(description: string): Promise<void> {
    const isWhole = (): boolean =>
      this.here.broker.state === 'open' &&
      this.here.readers.every(
        (reader) => reader.delivered.length >= this.#expectedData(reader).length,
      );
    try {
      await until('the node to recover', isWhole, 8_000);
    } catch (cause) {
      const counts = this.here.readers.map((reader) => [
        reader.delivered.length,
        this.#expectedData(reader).length,
        reader.isLive,
      ]);
      throw new Error(
        `${description}: node ${this.here.broker.state}, readers have ${JSON.stringify(counts)}`,
        { cause },
      );
    }
  }

  /** The events that each reader received. */
  get delivered(): { data: string[]; gaps: number }[] {
    return this.here.readers.map(({ delivered, gaps }) => ({ data: delivered, gaps }));
  }

  /** The events that each reader must receive. */
  get expected(): { data: string[]; gaps: number }[] {
    return this.here.readers.map((reader) => ({ data: this.#expectedData(reader), gaps: 0 }));
  }

  #expectedData(reader: { follows(channel: string): boolean }): string[] {
    return this.published.filter(({ channel }) => reader.follows(channel)).map(({ data }) => data);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.steps.watch(() => {});
    await this.here[Symbol.asyncDispose]();
    await this.there[Symbol.asyncDispose]();
    await this.relay[Symbol.asyncDispose]();
  }
}

async function makeSite(timing?: Partial<Timing>): Promise<Site> {
  return new Site(await startRelay(redis.port), timing);
}

const KINDS = {
  // node-redis opens the subscriber connection last.
  'the subscriber connection': (relay: Relay) => relay.closeNewest(),
  'both connections': (relay: Relay) => relay.closeAll(),
};

/** Cuts connections, and resolves when the node has had time to notice. */
async function cut(site: Site, kind: keyof typeof KINDS): Promise<void> {
  await KINDS[kind](site.relay);
  for (let turn = 0; turn < 5; turn++) await nextTurn();
}

describe('a node recovers although it is interrupted twice more, at any step', () => {
  test.each(
    (['connecting', 'broken'] as const).flatMap((state) =>
      (Object.keys(KINDS) as (keyof typeof KINDS)[]).map((kind) => [state, kind] as const),
    ),
  )("in state '%s', by the end of %s", { timeout: 120_000 }, async (state, kind) => {
    // More channels than one query can ask for.
    const names = channels(1_200);
    let steps = Infinity;
    for (let step = 0; step < steps; step++) {
      for (const phase of ['before', 'during', 'after'] as const) {
        await using site = await makeSite();
        const { here } = site;
        let left = 2;
        const interrupt = async (index: number, now: Phase): Promise<void> => {
          if (index !== step || now !== phase || left === 0) return;
          left--;
          // Interrupt the next attempt at the same step.
          site.steps.watch(interrupt);
          await cut(site, kind);
          await site.publish(['c0', 'c1199'], 2);
        };
        if (state === 'broken') {
          for (const name of names) void here.listen(name);
          await here.follow('c0', 'c1199');
          await until('the node to be open', () => here.broker.state === 'open');
          await site.publish(['c0'], 1);
          site.steps.watch(interrupt);
          await cut(site, kind);
          await until('an interruption', () => here.interruptions > 0);
        } else {
          for (const name of names) void here.listen(name);
          site.steps.watch(interrupt);
          // The reader starts at the head of the log after the recovery.
          await here.follow('c0', 'c1199');
          // The reader must not get earlier events.
          site.published.length = 0;
        }
        await site.publish(['c0', 'c1199'], 4);
        await site.isWhole(`interrupted ${phase} step ${step} (${site.steps.made.join(', ')})`);
        expect(site.delivered).toEqual(site.expected);
        if (left > 0) steps = step;
      }
    }
    // Steps: connect, subscribe with three commands, two queries.
    expect(steps).toBeGreaterThanOrEqual(6);
  });
});

test('a node that gets too many early messages queries only their channels again', async () => {
  // A long time limit, because the test delays the second query.
  await using site = await makeSite({ timeout: 15_000 });
  const { here, there, steps } = site;
  const names = channels(2_500);
  for (const name of names) void here.listen(name);
  await here.follow('c0', 'c1', 'c2');
  await until('the node to be open', () => here.broker.state === 'open');
  let floods = 0;
  steps.watch(async (index, phase) => {
    // The second query. The answer to the first query does not contain events from here on.
    if (steps.made[index] !== 'send 1001' || phase !== 'before' || ++floods !== 2) return;
    for (let times = 0; times < 42; times++) await site.publish(['c0', 'c1', 'c2'], 1_000);
    await there.publish('c0', 'the last', { history: false });
    await until('the node to receive "the last"', () => here.passed.length === 1);
  });
  await cut(site, 'the subscriber connection');
  await until('an interruption', () => here.interruptions > 0);
  await site.isWhole('after too many early messages');
  expect(site.delivered).toEqual(site.expected);
  expect(steps.made.filter((name) => name === 'send 1001' || name === 'send 501')).toHaveLength(3);
  expect(here.interruptions).toBe(1);
});

test('an event that arrives before the repeated query of a node is not lost', async () => {
  await using site = await makeSite({ timeout: 15_000 });
  const { here, there, steps } = site;
  for (const name of channels(1_500)) void here.listen(name);
  await here.follow('c0', 'quiet');
  await until('the node to be open', () => here.broker.state === 'open');
  let queries = 0;
  let isQuietDue = false;
  steps.watch(async (index, phase) => {
    if (phase !== 'before' || !steps.made[index]?.startsWith('send ')) return;
    queries++;
    if (queries === 2) {
      // More messages than a node keeps arrive after the answer to the first query.
      for (let times = 0; times < 42; times++) await site.publish(['c0'], 1_000);
      isQuietDue = true;
    } else if (isQuietDue) {
      // The node is about to query the head of the log for its second round.
      isQuietDue = false;
      await site.publish(['quiet'], 1);
      await there.publish('c0', 'the last', { history: false });
      await until('the node to receive "the last"', () => here.passed.length === 1);
    }
  });
  await cut(site, 'the subscriber connection');
  await until('an interruption', () => here.interruptions > 0);
  await site.isWhole('after the repeated query');
  await until('the event of the quiet channel', () => !isQuietDue && queries > 2);
  expect(site.delivered).toEqual(site.expected);
  expect(site.published.some(({ channel }) => channel === 'quiet')).toBe(true);
});

test('a node stops waiting for a promise of node-redis that never settles', async () => {
  const errors: string[] = [];
  const note = (message: unknown): void =>
    void errors.push(String((message as { error: unknown }).error));
  subscribe('res-sse:error', note);
  await using relay = await startRelay(redis.port);
  const inner = own(relay.url);
  // The promise of node-redis never settles, and node-redis has no time limit for it.
  let isStuck = true;
  await using node = nodeOn(
    {
      ...inner,
      database: () => (isStuck ? new Promise(() => {}) : inner.database()),
      subscriber: () => (isStuck ? new Promise(() => {}) : inner.subscriber()),
    },
    `healing-${++prefixes}`,
    { timeout: 50, probe: 20 },
  );
  await until('an error report', () =>
    errors.some((error) => error.includes('no answer') || error.includes('made no progress')),
  );
  isStuck = false;
  await until('the node to be open', () => node.broker.state === 'open');
  unsubscribe('res-sse:error', note);
});

test('the watchdog reports a node that makes no progress and restarts it', async () => {
  const errors: string[] = [];
  // On a busy machine an answer takes its time.
  const timeout = 300;
  const timing = { ...TIMING, timeout, probe: 20 };
  const connection = own(redis.url);
  const client = new LogClient(
    connection,
    `healing-${++prefixes}`,
    timeout,
    () => ({ epoch: '', offset: 0 }),
    () => {},
  );
  client.bounds = { maxHistory: 1_000, maxChannels: 10 };
  const report = (error: unknown): void => void errors.push(String(error));
  const log = new LocalLog(0, () => subscription.isOpen, report);
  const subscription: LogSubscription = new LogSubscription(connection, client, log, timing, {
    failures: { report, warnUnreachable: () => {} },
    onOpened: () => {},
    onHeader: () => {},
    onInterrupted: () => {},
  });
  const running = subscription.run();
  await until('the subscription to be open', () => subscription.isOpen);
  // Simulates a defect: no code of the library sets the state like this.
  subscription.state = 'broken';
  await until('the subscription to be open again', () => subscription.isOpen);
  expect(errors).toEqual([expect.stringContaining('made no progress')]);
  subscription.close();
  client.close();
  connection.close();
  await running;
});

// Random actions: publishes, interruptions, and the step at which each interruption happens.
const action = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      count: fc.integer({ min: 1, max: 400 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant('break' as const),
      step: fc.nat(9),
      phase: fc.constantFrom<Phase>('before', 'during', 'after'),
      kind: fc.constantFrom<keyof typeof KINDS>('the subscriber connection', 'both connections'),
      isAwaited: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('burst' as const),
      count: fc.integer({ min: 2, max: 8 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('refuse' as const),
      step: fc.nat(9),
      error: fc.constantFrom(
        'LOADING Redis is loading the dataset in memory',
        'BUSY Redis is busy',
        'Socket closed unexpectedly',
      ),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('slow' as const),
      turns: fc.integer({ min: 1, max: 200 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('listen' as const),
      count: fc.integer({ min: 1, max: 1_500 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('flood' as const), step: fc.nat(9) }) },
);

type Action = typeof action extends fc.Arbitrary<infer T> ? T : never;

async function play(
  site: Site,
  actions: readonly Action[],
  names: readonly string[],
): Promise<void> {
  const admin = await redis.client();
  const pending: { one: Action; from: number }[] = [];
  let turns = 0;
  site.steps.watch(async (index, phase) => {
    for (let turn = 0; turn < turns; turn++) await nextTurn();
    const at = pending.findIndex(
      ({ one, from }) =>
        'step' in one &&
        from + one.step <= index &&
        (one.do === 'break' ? one.phase === phase : phase === 'before'),
    );
    const next = at === -1 ? undefined : pending.splice(at, 1)[0]?.one;
    if (next?.do === 'break') {
      if (next.isAwaited) await cut(site, next.kind);
      else void KINDS[next.kind](site.relay);
    } else if (next?.do === 'flood') {
      for (let times = 0; times < 5; times++) await site.publish(names, 2_500);
    } else if (next?.do === 'refuse') {
      throw new Error(next.error);
    }
  });
  let listenedCount = 0;
  for (const one of actions) {
    if (one.do === 'publish') await site.publish(names, one.count);
    else if (one.do === 'slow') turns = one.turns;
    else if (one.do === 'burst') {
      for (let times = 0; times < one.count; times++) {
        await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
        await nextTurn();
      }
    } else if (one.do === 'listen') {
      for (const name of channels(one.count, 1_000 + listenedCount)) void site.here.listen(name);
      listenedCount += one.count;
    } else {
      pending.push({ one, from: site.steps.made.length });
      // Start a recovery, so that there are steps to interrupt.
      if (site.here.broker.state === 'open') {
        await admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
      }
      if (one.do === 'break' && one.isAwaited) {
        // The limit is longer than elsewhere, because other test files run at the same time.
        await until('the node to be open', () => site.here.broker.state === 'open', 30_000);
      }
    }
    await nextTurn();
  }
  await site.publish(names, 10);
  await until(
    'the node to be open or all interruptions to be done',
    () => pending.length === 0 || site.here.broker.state === 'open',
    30_000,
  );
  pending.length = 0;
  turns = 0;
  admin.destroy();
}

test(
  'a node recovers from random interruptions, and every reader has every event',
  { timeout: RUN_MS + 60_000 },
  async () => {
    const deadline = performance.now() + RUN_MS;
    await fc.assert(
      fc.asyncProperty(fc.array(action, { minLength: 3, maxLength: 25 }), async (actions) => {
        // Do not abort a run that has started: it may be the run that does not end.
        if (performance.now() > deadline) return;
        await using site = await makeSite();
        const names = channels(40);
        await site.here.follow(...names.slice(0, 20));
        await site.here.follow(...names.slice(10));
        await site.here.follow('c0');
        await play(site, actions, names);
        await site.isWhole('after random interruptions');
        expect(site.delivered).toEqual(site.expected);
      }),
      { numRuns: 5_000, seed: SEED, endOnFailure: true },
    );
  },
);

/** Publishes an event once, and retries with a key until Redis accepts the event. */
async function publishSurely(node: ReaderNode, data: string): Promise<void> {
  await until(
    `event ${data} to be published`,
    async () => {
      try {
        await node.publish('c0', data, { key: data });
        return true;
      } catch {
        return false;
      }
    },
    20_000,
  );
}

describe('a node recovers from random interruptions', () => {
  async function interruptAtRandom(
    client: () => Promise<RedisClient & { destroy(): unknown }>,
    kill: () => Promise<unknown>,
  ): Promise<{ delivered: readonly string[]; expected: readonly string[] }> {
    const prefix = `res-sse`;
    const [one, other] = [await client(), await client()];
    const steps = new Steps();
    await using here = nodeOn(steps.connection(connectionOf(one, prefix)), prefix);
    await using there = nodeOn(connectionOf(other, prefix), prefix);
    const names = channels(1_200);
    for (const name of names) void here.listen(name);
    const reader = await here.follow('c0', 'c1199');
    await until('the node to be open', () => here.broker.state === 'open');
    let published = 0;
    for (let step = 0; step < 8; step++) {
      let left = 2;
      const interrupt = async (index: number): Promise<void> => {
        if (index !== step || left-- <= 0) return;
        steps.watch(interrupt);
        await kill();
      };
      steps.watch(interrupt);
      await kill();
      for (let times = 0; times < 10; times++) await publishSurely(there, `${published++}`);
      await until('the node to be open', () => here.broker.state === 'open', 20_000);
    }
    // On a busy machine a replica may take over and lose the events that were accepted last, so the
    // expected events are read from the log.
    steps.watch(() => {});
    await until(
      'an event after the interruptions',
      async () => {
        const last = `${published++}`;
        await publishSurely(there, last);
        return until('the event', () => reader.delivered.includes(last), 1_000).then(
          () => true,
          () => false,
        );
      },
      20_000,
    );
    const expected = (await there.broker.read(['c0'], 0, 10_000_000, here.signal)).entries.map(
      ({ data }) => data,
    );
    if (here.interruptions === 0) throw new Error('expected at least one interruption');
    await here.broker.close();
    await there.broker.close();
    one.destroy();
    other.destroy();
    return { delivered: reader.delivered, expected };
  }

  test('on a Cluster', { timeout: 60_000 }, async () => {
    await using cluster = await startRedisCluster('{res-sse}:log');
    const admins = await Promise.all(cluster.masters.map((master) => master.client()));
    const { delivered, expected } = await interruptAtRandom(
      () => cluster.client(),
      () =>
        Promise.all(admins.map((admin) => admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']))),
    );
    const numbers = delivered.map(Number);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    expect(expected.filter((data) => !delivered.includes(data))).toEqual([]);
    expect(expected.length).toBeGreaterThan(0);
  });

  test('behind Sentinel', { timeout: 60_000 }, async () => {
    await using sentinel = await startRedisSentinel();
    const admin = await sentinel.primary.client();
    const { delivered, expected } = await interruptAtRandom(
      async () => {
        const client = createSentinel({
          name: sentinel.name,
          sentinelRootNodes: sentinel.rootNodes,
        });
        client.on('error', () => {});
        await client.connect();
        return client;
      },
      () => admin.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']),
    );
    const numbers = delivered.map(Number);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    expect(expected.filter((data) => !delivered.includes(data))).toEqual([]);
    expect(expected.length).toBeGreaterThan(0);
  });
});
