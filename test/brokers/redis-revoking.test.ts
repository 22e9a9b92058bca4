/** Revoking, on two nodes that share a log in Redis. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { appendFileSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LocalLog } from '../../src/brokers/redis/local-log.ts';
import { LogCheck, type LogCheckHost } from '../../src/brokers/redis/log-check.ts';
import { LogClient } from '../../src/brokers/redis/log-client.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import type { SubscriberConnection } from '../../src/brokers/redis/subscriber-connection.ts';
import type { Timing } from '../../src/brokers/redis/timing.ts';
import { deferred } from '../../src/common/async.ts';
import { parseCursor } from '../../src/protocol/cursor.ts';
import {
  createChannels,
  type Channels,
  type ChannelsOptions,
  type Cursor,
  type SseOptions,
} from '../../src/index.ts';
import { serveUsers, testRevoking } from '../promises/revoking.ts';
import { RedisNodes } from '../promises/nodes.ts';
import { serveStreams } from '../support/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { Steps } from '../support/redis-steps.ts';
import { startRelay, type Relay } from '../support/relay.ts';
import { until } from '../support/wait.ts';

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testRevoking(nodes.make);

const TIMING = { timeout: 2_000, probe: 200, linger: 60_000, wait: { min: 5, max: 100 } };

function makeNode(
  url: string,
  options: ChannelsOptions = {},
  timing: Timing = TIMING,
  steps: Steps = new Steps(),
): Channels {
  const connection = steps.connection(ownConnection(url, 500, () => {}));
  return createChannels({ ...options, broker: new RedisBroker(connection, 'revoking', timing) });
}

async function untilState(node: Channels, state: 'open' | 'broken'): Promise<void> {
  await until(`a node to be ${state}`, () => node.stats().broker.state === state);
}

describe('a node that was cut off', () => {
  let redis: RedisServer;
  let relay: Relay;

  beforeEach(async () => {
    redis = await startRedis();
    relay = await startRelay(redis.port);
  });

  afterEach(async () => {
    await relay[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
  });

  async function save(): Promise<void> {
    const client = await redis.client();
    await client.sendCommand(['SAVE']);
  }

  test.each<[string, boolean, SseOptions['authorize']]>([
    ['received the newest event of the snapshot, and asks', false, () => false],
    ['received a later event, and asks', true, () => false],
    ['has no authorize', false, undefined],
  ])(
    'ends the streams of a revocation that Redis loses when it goes back to a snapshot, if it %s',
    async (_what, hasSeenMore, authorize) => {
      const [node, cutOff] = [makeNode(redis.url), makeNode(relay.url)];
      await using here = await serveUsers(node);
      await using there = await serveUsers(cutOff, { authorize });
      const reader = await read(`${there.url}/?user=ann`);
      await until('the stream', () => cutOff.stats().subscriptions >= 2);
      await node.publish('a', 'kept');
      await save();
      if (hasSeenMore) await node.publish('a', 'lost');
      await until('the events', () => reader.events.length === (hasSeenMore ? 2 : 1));
      relay.sever();
      await untilState(cutOff, 'broken');
      await here.events.revoke('ann');
      await redis.kill9();
      await redis.restart();
      await untilState(node, 'open');
      relay.mend();
      await untilState(cutOff, 'open');
      await node.publish('a', 'secret');
      await reader.end();
      expect(there.events.stats().closed).toEqual({ revoked: 1 });
      expect(reader.text).not.toContain('secret');
      await Promise.all([node.close(), cutOff.close()]);
    },
  );

  test('asks about no stream if all revocations are in the log, however many channels it has forgotten', async () => {
    const limits = { maxChannels: 100 };
    const [node, cutOff] = [makeNode(redis.url, limits), makeNode(relay.url, limits)];
    let asked = 0;
    await using server = await serveUsers(cutOff, {
      authorize: () => {
        asked++;
        return true;
      },
    });
    using reader = await read(`${server.url}/?user=ann`);
    await until('the stream', () => cutOff.stats().subscriptions >= 2);
    for (let index = 0; index < 400; index++) await node.publish(`other:${index}`, '');
    await node.publish('a', 'before');
    expect((await reader.next()).data).toBe('before');
    for (const name of ['first', 'second']) {
      relay.sever();
      await untilState(cutOff, 'broken');
      await node.publish('a', name);
      relay.mend();
      expect((await reader.next()).data).toBe(name);
    }
    expect(asked).toBe(0);
    expect(reader.ended).toBe(false);
    await Promise.all([node.close(), cutOff.close()]);
  });
});

describe('an event of a channel without history', () => {
  const options: ChannelsOptions = {
    historyFor: (name) => (name === 'x' ? false : undefined),
  };
  const steps = new Steps();
  const errors: string[] = [];
  let redis: RedisServer;
  let node: Channels;
  let other: Channels;

  function note(message: unknown): void {
    errors.push(String((message as { error: unknown }).error));
  }

  beforeEach(async () => {
    steps.watch(() => {});
    errors.length = 0;
    subscribe('res-sse:error', note);
    redis = await startRedis();
    node = makeNode(redis.url, options);
  });

  afterEach(async () => {
    unsubscribe('res-sse:error', note);
    await Promise.all([node.close(), other.close()]);
    await redis[Symbol.asyncDispose]();
  });

  /** Makes a node that sends no probe within a test. */
  function makeOther(maxPause: number): void {
    const timing = { ...TIMING, probe: 60_000, wait: { min: maxPause, max: maxPause } };
    other = makeNode(redis.url, options, timing, steps);
  }

  async function untilError(text: string): Promise<void> {
    await until(text, () => errors.some((error) => error.includes(text)));
  }

  /** Publishes to the channel without history, and waits until a stream without identity has it. */
  async function publishAndSee(data: string, anyone: Reader): Promise<void> {
    await node.publish('x', data);
    await until(data, () => anyone.events.some((event) => event.data === data));
  }

  /** Publishes a header as another registry does, and waits until the node has found that out. */
  async function publishForeignHeader(): Promise<void> {
    const client = await redis.client();
    await client.publish('{revoking}:spine', '1 foreign 4 5 \n+5 a');
    await untilError('does another registry use this prefix?');
  }

  test.each([
    ['before the node has asked for the log', false, false],
    ['if the first question for the log fails', true, false],
    ['if another registry has used the prefix before', false, true],
  ])(
    'does not reach an identity that was revoked in a new log, %s',
    async (_what, isFailing, isForeign) => {
      makeOther(isFailing ? 50 : 60_000);
      await using here = await serveUsers(node);
      await using there = await serveUsers(other, { authorize: () => false });
      await using open = await serveStreams((stream) => other.subscribe(stream, 'x'));
      const reader = await read(`${there.url}/?user=ann`);
      using anyone = await read(open.url);
      await until('the streams', () => other.stats().subscriptions >= 3);
      if (isForeign) await publishForeignHeader();
      await publishAndSee('before', anyone);
      await until('the event', () => reader.events.length === 1);
      const gate = deferred();
      let failures = isFailing ? 1 : 0;
      steps.watch(async (_index, phase) => {
        if (phase !== 'before') return;
        if (failures-- > 0) throw new Error('the question fails');
        await gate.promise;
      });
      const client = await redis.client();
      await client.sendCommand(['FLUSHALL']);
      await here.events.revoke('ann');
      await publishAndSee('secret 1', anyone);
      if (isFailing) await untilError('the question fails');
      await publishAndSee('secret 2', anyone);
      gate.resolve();
      await reader.end();
      expect(reader.text).not.toContain('secret');
      expect(there.events.stats().closed).toEqual({ revoked: 1 });
    },
  );

  test('does not reach an identity whose revocation Redis has lost, if it is the first to record the loss', async () => {
    await using relay = await startRelay(redis.port);
    const timing = { ...TIMING, probe: 60_000 };
    await node.close();
    node = makeNode(redis.url, options, timing);
    other = makeNode(relay.url, options, timing);
    await using here = await serveUsers(node);
    await using there = await serveUsers(other, { authorize: () => false });
    await using open = await serveStreams((stream) => other.subscribe(stream, 'x'));
    const reader = await read(`${there.url}/?user=ann`);
    using anyone = await read(open.url);
    await until('the streams', () => other.stats().subscriptions >= 3);
    await node.publish('a', 'kept');
    await until('the event', () => reader.events.length === 1);
    const client = await redis.client();
    await client.sendCommand(['SAVE']);
    relay.sever();
    await untilState(other, 'broken');
    await here.events.revoke('ann');
    // Redis comes back older, and refuses writes: nobody can record that it has gone back.
    await redis.kill9();
    appendFileSync(`${redis.dir}/redis.conf`, '\nmin-replicas-to-write 1\n');
    await redis.restart();
    await untilState(node, 'open');
    relay.mend();
    await untilState(other, 'open');
    await until('the stream to be live', () => other.stats().behind === 0);
    expect(reader.ended).toBe(false);
    await client.sendCommand(['CONFIG', 'SET', 'min-replicas-to-write', '0']);
    await publishAndSee('secret', anyone);
    await reader.end();
    expect(reader.text).not.toContain('secret');
    expect(there.events.stats().closed).toEqual({ revoked: 1 });
  });

  test('does not reach an identity before the node has healed, if a header of a new log arrives during a heal', async () => {
    other = makeNode(redis.url, options);
    const { epoch } = parseCursor(await other.cursor()) as Cursor;
    const connection = ownConnection(redis.url, 500, () => {});
    const seen = (): Cursor => ({ epoch: '', offset: 0 });
    const client = new LogClient(connection, 'revoking', 2_000, seen, () => {});
    const log = new LocalLog(
      0,
      () => false,
      () => {},
    );
    // The heal has read the log before it was replaced.
    log.tracker.reset('before', 5);
    const healed: string[] = [];
    let pauses = 0;
    const host: Mutable<LogCheckHost> = {
      openConnection: undefined,
      onOtherLog: (name) => void (host.openConnection !== undefined && healed.push(name)),
      report: () => {},
      pause: async () => {
        pauses++;
        await nextTurn();
      },
    };
    const check = new LogCheck(client, log.tracker, new AbortController().signal, host);
    const running = check.run(epoch);
    await until('an answer', () => pauses > 0);
    expect([check.isInDoubt, healed]).toEqual([true, []]);
    host.openConnection = {} as SubscriberConnection;
    await running;
    expect([check.isInDoubt, healed]).toEqual([false, [epoch]]);
    connection.close();
  });

  test('a doubt ends when the node is open, also in the middle of a pause', async () => {
    const connection = ownConnection(redis.url, 500, () => {});
    const log = new LocalLog(
      1_000,
      () => true,
      () => {},
    );
    const client = new LogClient(
      connection,
      'revoking',
      2_000,
      () => log.tracker.position(),
      () => {},
    );
    const { epoch, head } = await client.look([]);
    log.tracker.reset(epoch, head);
    const look = vi.spyOn(client, 'look').mockRejectedValueOnce(new Error('the link is cut'));
    let pauses = 0;
    const check = new LogCheck(client, log.tracker, new AbortController().signal, {
      openConnection: undefined,
      onOtherLog: () => {},
      report: () => {},
      // The pause after a failure does not end.
      pause: () => (pauses++ === 0 ? new Promise(() => {}) : Promise.resolve()),
    });
    const running = check.run('another');
    await until('the pause', () => pauses === 1);
    expect(check.isInDoubt).toBe(true);
    check.onOpened();
    await running;
    expect([check.isInDoubt, look.mock.calls.length]).toEqual([false, 2]);
    connection.close();
  });

  test('reaches a stream with identity while another registry uses the prefix', async () => {
    makeOther(60_000);
    await using there = await serveUsers(other);
    using reader = await read(`${there.url}/?user=ann`);
    await until('the stream', () => other.stats().subscriptions >= 2);
    await publishForeignHeader();
    // The node does not ask again before a long pause has ended.
    await publishForeignHeader();
    await node.publish('x', 'now');
    expect((await reader.next()).data).toBe('now');
  });
});
