/** A Redis that goes back to a snapshot more than once: no id is used twice, each loss is reported. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { appendFileSync } from 'node:fs';
import { createChannels, type Cursor } from '../../src/index.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import type { HistoryLimits } from '../../src/log/log.ts';
import { LogClient } from '../../src/brokers/redis/log-client.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { parseCursor } from '../../src/protocol/cursor.ts';
import { serveStreams } from '../support/app.ts';
import { read } from '../support/reader.ts';
import { ReaderNode } from '../support/redis-readers.ts';
import { startRedis, type RedisClient, type RedisServer } from '../support/redis-server.ts';
import { Steps } from '../support/redis-steps.ts';
import { startRelay } from '../support/relay.ts';
import { until } from '../support/wait.ts';
import { LIMITS, Node } from './contract.ts';

const TIMING = { timeout: 2_000, probe: 200, linger: 60_000, wait: { min: 5, max: 100 } };
const LOG = '{restores}:log';
const STREAM = '{restores}:s:a';

function brokerAt(url: string): RedisBroker {
  return new RedisBroker(
    ownConnection(url, 1_000, () => {}),
    'restores',
    TIMING,
  );
}

/** Publishes from a process that has seen nothing of the log. @returns the ids */
async function publishFresh(url: string, ...data: string[]): Promise<string[]> {
  await using node = new Node(brokerAt(url));
  const ids: string[] = [];
  for (const one of data) ids.push((await node.publish('a', one)).id);
  return ids;
}

/** Whether a client that reconnects with this id to a new process has a gap. */
async function isGap(url: string, id: string): Promise<boolean> {
  await using node = new Node(brokerAt(url));
  await node.listen('a');
  const cursor = parseCursor(id) as Cursor;
  const head = await node.broker.position(cursor);
  if (head.epoch !== cursor.epoch || head.offset < cursor.offset) return true;
  const page = await node.read(['a'], cursor.offset);
  return page.position.epoch !== cursor.epoch || Number(page.trimmed[0]) > cursor.offset;
}

let redis: RedisServer;

beforeEach(async () => {
  redis = await startRedis();
});

afterEach(async () => {
  await redis[Symbol.asyncDispose]();
});

async function save(): Promise<void> {
  const client = await redis.client();
  await client.sendCommand(['SAVE']);
}

async function crash(): Promise<void> {
  await redis.kill9();
  await redis.restart();
}

describe('Redis goes back twice to the same snapshot', () => {
  test('and no node survives: no id is used twice, clients of the first time get a gap', async () => {
    const kept = await publishFresh(redis.url, 'kept');
    await save();
    await crash();
    const first = await publishFresh(redis.url, 'A1', 'A2', 'A3');
    await crash();
    const second = await publishFresh(redis.url, 'B1', 'B2', 'B3', 'B4');
    expect(new Set([...kept, ...first, ...second]).size).toBe(8);
    for (const id of first) expect([id, await isGap(redis.url, id)]).toEqual([id, true]);
    for (const id of kept) expect([id, await isGap(redis.url, id)]).toEqual([id, false]);
    for (const id of second) expect([id, await isGap(redis.url, id)]).toEqual([id, false]);
  });

  test('and a node survives: its reader gets each event once, and a gap for each loss', async () => {
    await using relay = await startRelay(redis.port);
    await using node = new ReaderNode(brokerAt(relay.url));
    const reader = await node.follow('a');
    await publishFresh(redis.url, 'kept');
    await until('the first event', () => reader.delivered.length === 1);
    await save();
    for (const data of [
      ['A1', 'A2', 'A3'],
      ['B1', 'B2', 'B3', 'B4'],
    ]) {
      relay.sever();
      await crash();
      await publishFresh(redis.url, ...data);
      relay.mend();
      await until('the node to be open', () => node.broker.state === 'open' && reader.isLive);
    }
    expect(reader.gaps).toBe(1);
    expect(await node.data('a')).toEqual(['kept', 'B1', 'B2', 'B3', 'B4']);
    await publishFresh(redis.url, 'last');
    await until('the last event', () => reader.delivered.at(-1) === 'last');
    const lost = reader.delivered.filter((data) => data.startsWith('B'));
    // Events of the log that the reader has not received are before a gap that was reported to it.
    expect([[], ['B1', 'B2', 'B3', 'B4']]).toContainEqual(lost);
    expect(reader.delivered.filter((data) => !data.startsWith('B'))).toEqual(
      'kept A1 A2 A3 last'.split(' '),
    );
  });
});

interface Snapshot {
  readonly log: Record<string, string>;
  readonly stream: string;
}

async function restore(client: RedisClient, { log, stream }: Snapshot): Promise<void> {
  await client.del([LOG, STREAM]);
  // Another server has it now.
  await client.hSet(LOG, { ...log, run: '0123456789abcdef' });
  await client.xAdd(STREAM, stream, { m: '0', s: '100', b: '1 \n\nkept' });
}

test('Redis goes back a hundred times to the same snapshot: no id is used twice, losses are gaps', async () => {
  const client = await redis.client();
  const [kept = ''] = await publishFresh(redis.url, 'kept');
  const snapshot = { log: await client.hGetAll(LOG), stream: '1-0' };
  const lost: string[] = [];
  for (let times = 0; times < 100; times++) {
    await restore(client, snapshot);
    lost.push(...(await publishFresh(redis.url, 'x', 'y')));
  }
  await restore(client, snapshot);
  const last = await publishFresh(redis.url, ...Array.from({ length: 100 }, String));
  expect(new Set([kept, ...lost, ...last]).size).toBe(301);
  for (const id of lost) expect([id, await isGap(redis.url, id)]).toEqual([id, true]);
  for (const id of [kept, ...last.slice(-2)]) {
    expect([id, await isGap(redis.url, id)]).toEqual([id, false]);
  }
});

test('Redis restarts a hundred times: ids grow, stay safe integers, and the log keeps its name', async () => {
  const client = await redis.client();
  const cursors: Cursor[] = [];
  for (let times = 0; times < 100; times++) {
    const [id = ''] = await publishFresh(redis.url, `${times}`);
    cursors.push(parseCursor(id) as Cursor);
    // The next call is answered by another server.
    await client.hSet(LOG, 'run', '0123456789abcdef');
  }
  const offsets = cursors.map(({ offset }) => offset);
  expect(new Set(cursors.map(({ epoch }) => epoch)).size).toBe(1);
  expect(offsets).toEqual(offsets.toSorted((one, other) => one - other));
  expect(new Set(offsets).size).toBe(100);
  expect(offsets.every((offset) => Number.isSafeInteger(offset))).toBe(true);
});

test('if the offset cannot jump any further, a log with another name is created', async () => {
  const client = await redis.client();
  const [before = ''] = await publishFresh(redis.url, 'before');
  await client.hSet(LOG, { run: '0123456789abcdef', head: `${2 ** 53 - 2 ** 47}` });
  const [after = ''] = await publishFresh(redis.url, 'after');
  expect(after.split('.')[0]).not.toBe(before.split('.')[0]);
  expect(await isGap(redis.url, before)).toBe(true);
});

describe('the first call of the script announces to the nodes, before anything else,', () => {
  const loses = {
    'that the log has gone back': (client: RedisClient) =>
      client.hSet(LOG, 'run', '0123456789abcdef'),
    'that there is a new log': (client: RedisClient) => client.del(LOG),
  };
  const calls: Record<string, (log: LogClient) => Promise<unknown>> = {
    'publishes without history': (log) => append(log, 'x', false),
    publishes: (log) => append(log, 'a', LIMITS),
    'clears a channel': (log) => log.clear('unknown'),
    'renews leases': (log) =>
      log.lease({ owner: 'o', leaseMs: 30_000, endsNow: false, leases: [] }),
    'queries channels': (log) => log.look([]),
    'reads a page': (log) => log.page(['a'], 0, 1_000),
  };

  function append(
    log: LogClient,
    channel: string,
    history: HistoryLimits | false,
  ): Promise<unknown> {
    const publication = { channel, data: '', event: undefined, retry: undefined, key: undefined };
    const item = log.toAppendItem({ ...publication, history }, '');
    return log.append([item], new AbortController().signal);
  }

  test.each(
    Object.entries(loses).flatMap(([loss, lose]) =>
      Object.entries(calls).map(([what, call]) => [loss, what, lose, call] as const),
    ),
  )('%s, if it %s', async (_loss, _what, lose, call) => {
    const connection = ownConnection(redis.url, 1_000, () => {});
    const log = new LogClient(
      connection,
      'restores',
      2_000,
      () => ({ epoch: '', offset: 0 }),
      () => {},
    );
    log.bounds = { maxHistory: 1_000_000, maxChannels: 1_000 };
    await append(log, 'a', LIMITS);
    const [client, subscriber] = [await redis.client(), await redis.client()];
    const messages: string[] = [];
    await subscriber.pSubscribe('{restores}:*', (message) => messages.push(message));
    await lose(client);
    await call(log);
    const [epoch, head] = await client.hmGet(LOG, ['epoch', 'head']);
    await until('a message', () => messages.length > 0);
    const offset = `${Number(head) - (call === calls['publishes'] ? 1 : 0)}`;
    expect(messages[0]).toBe(`1 ${epoch} ${offset} ${offset} `);
    // The same call does not announce it again.
    const { length } = messages;
    await call(log);
    await client.publish('{restores}:last', 'last');
    await until('the last message', () => messages.at(-1) === 'last');
    const announcements = messages.slice(length).filter((message) => / (\d+) \1 $/.test(message));
    expect(announcements).toEqual([]);
    log.close();
    connection.close();
  });
});

test('a reader beyond the head of a restored, read-only log gets the gap later', async () => {
  await using relay = await startRelay(redis.port);
  await using node = new ReaderNode(brokerAt(relay.url));
  const reader = await node.follow('a');
  await publishFresh(redis.url, 'kept');
  await save();
  const client = await redis.client();
  // As after a jump that is farther than the next one will be.
  await client.hSet(LOG, 'head', `${2 ** 50}`);
  await publishFresh(redis.url, 'lost 1', 'lost 2');
  await until('three events', () => reader.delivered.length === 3);
  relay.sever();
  await crash();
  await client.sendCommand(['CONFIG', 'SET', 'min-replicas-to-write', '1']);
  relay.mend();
  await until('the node to be open', () => node.broker.state === 'open' && reader.isLive);
  await client.sendCommand(['CONFIG', 'SET', 'min-replicas-to-write', '0']);
  await until('the loss to be told', async () => {
    await publishFresh(redis.url, 'new');
    return reader.gaps > 0;
  });
  await publishFresh(redis.url, 'newest');
  await until('the newest event', () => reader.delivered.at(-1) === 'newest');
});

test('streams are live again, also if a heal that failed had passed on what Redis lost', async () => {
  await using relay = await startRelay(redis.port);
  const steps = new Steps();
  const connection = ownConnection(relay.url, 1_000, () => {});
  const broker = new RedisBroker(steps.connection(connection), 'restores', TIMING);
  const channels = createChannels({ broker });
  await using node = new Node(brokerAt(redis.url));
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels });
  const reader = await read(server.url);
  // With more channels than one query has, the heal makes two queries.
  for (let index = 0; index < 1_500; index++) void broker.listen(`c${index}`);
  await until('the node to be open', () => broker.state === 'open');
  await node.publish('a', 'kept');
  await until('the event', () => reader.events.length === 1);
  await save();
  await node.publish('a', 'lost 1');
  await until('the lost event', () => reader.events.length === 2);
  let crashed: Promise<void> | undefined;
  steps.watch(async (index, phase) => {
    const isSecondQuery = steps.made[index]?.startsWith('send 50') === true && phase === 'before';
    if (!isSecondQuery || crashed !== undefined) return;
    // The heal passes on the first event. It waits for the message of the second one, and fails.
    const { id } = await node.publish('a', 'lost 2');
    const { offset } = parseCursor(id) as Cursor;
    relay.dropAll(({ payload }) => payload.includes(`+${offset + 1} a`));
    await node.publish('a', 'lost 3');
    crashed = (async () => {
      await until('the first event', () => broker.head > headBefore);
      // Redis comes back older, and refuses writes: nobody can record that it has gone back.
      await redis.kill9();
      appendFileSync(`${redis.dir}/redis.conf`, '\nmin-replicas-to-write 1\n');
      relay.dropNone();
      await redis.restart();
    })();
  });
  const headBefore = broker.head;
  const client = await redis.client();
  await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
  await until('the crash', () => crashed !== undefined);
  await crashed;
  await until('the stream to be live', () => {
    const { state } = channels.stats().broker;
    return state === 'open' && channels.stats().behind === 0;
  });
  await channels.close();
});
