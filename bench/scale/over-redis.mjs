/** Cases over Redis: the commands of a node, and the work of Redis for them. */
import { setTimeout as sleep } from 'node:timers/promises';
import { payload } from '../servers/control.mjs';
import { megabytes, verdict } from './fan-out.mjs';
import { CHANNEL, inBatches, LONG, redisStage, Stage, until } from './stage.mjs';

/** @type {import('./cases.mjs').Case[]} */
export const overRedis = [
  {
    name: 'e9',
    title: 'E9: maxChannels is N and reached, N / 2 new channels are published to',
    item: 'new channel',
    sizes: [1_000, 10_000, 20_000],
    prepare: sweep,
  },
  {
    name: 'e10a',
    title:
      'E10: one client with an unknown id subscribes to N rooms of 1 MB, until live or for ' +
      '20 s; N + 10 other rooms of 1 MB fill the cache',
    item: 'room',
    fakeSizes: [15, 30, 60],
    prepare: coldRooms,
  },
  {
    name: 'e10b',
    title: 'E10: N clients with an unknown id subscribe to one room that is not in the full cache',
    item: 'client',
    fakeSizes: [20, 200],
    prepare: coldReaders,
  },
  {
    name: 'mirror',
    title:
      'Low: N subscribed channels without events in the cache, 1,000 events to another channel',
    item: 'event',
    fakeSizes: [100, 1_000, 10_000, 100_000],
    prepare: emptiedChannels,
  },
  {
    name: 'interrupt',
    title: 'Low: N live streams, CLIENT KILL TYPE pubsub, until an event reaches all of them',
    item: 'stream',
    sizes: [100, 1_000, 10_000],
    fakeSizes: [10_000, 100_000],
    prepare: interruption,
  },
];

/** A room has 1 MB: bytes of an event, and number of events. */
const ROOM_EVENT = 1_000;
const ROOM_EVENTS = 1_000;

/** Measures the work of Redis between `start()` and `stop()`. */
class RedisMeter {
  #redis;
  #before;

  constructor(redis) {
    this.#redis = redis;
  }

  async start() {
    await this.#redis.client.sendCommand(['CONFIG', 'SET', 'slowlog-log-slower-than', '1000']);
    await this.#redis.client.sendCommand(['SLOWLOG', 'RESET']);
    this.#before = await this.#totals();
  }

  async stop() {
    const after = await this.#totals();
    const slow = await this.#redis.client.sendCommand(['SLOWLOG', 'GET', '-1']);
    const longestMs = Math.max(0, ...slow.map(([, , us]) => us)) / 1e3;
    const since = Object.fromEntries(
      Object.entries(after).map(([name, value]) => [name, value - this.#before[name]]),
    );
    return { ...since, longestMs };
  }

  /** @returns the counters of Redis: CPU time in ms, bytes sent, calls of the script */
  async #totals() {
    const cpu = await this.#redis.info('cpu');
    const { total_net_output_bytes: sent } = await this.#redis.info('stats');
    const { cmdstat_evalsha: scripts = '' } = await this.#redis.info('commandstats');
    return {
      cpuMs: (Number(cpu.used_cpu_user) + Number(cpu.used_cpu_sys)) * 1e3,
      bytes: Number(sent),
      calls: Number(/calls=(\d+)/.exec(scripts)?.[1] ?? 0),
    };
  }
}

/** Measures publishes to new channels, each of which makes Redis forget an old channel. */
async function sweep(n) {
  const { redis, registry } = await redisStage();
  const stage = new Stage({ registry: registry({ ...LONG, maxChannels: n }) });
  const publish = (at) => stage.channels.publish(`room:${at}`, 'x');
  await inBatches(n, 100, publish);
  const meter = new RedisMeter(redis);
  await meter.start();
  const fresh = n / 2;
  let done;
  let refused = 0;
  return {
    items: fresh,
    async act() {
      await inBatches(fresh, 100, (at) => publish(n + at).catch(() => refused++));
      done = await meter.stop();
    },
    note() {
      const work = `Redis: CPU ${Math.round(done.cpuMs)} ms`;
      const longest = `longest command ${done.longestMs.toFixed(1)} ms`;
      return `${work}, ${longest}${refused > 0 ? `; ${refused} publishes refused` : ''}`;
    },
  };
}

/**
 * Fills the cache of the node with rooms that have subscribers, and publishes to rooms without
 * subscribers, which are then not in the cache.
 */
async function fullCache(stage, publisher, before, rooms) {
  const fill = (name) =>
    inBatches(ROOM_EVENTS, 100, () => publisher.publish(name, payload(ROOM_EVENT)));
  const old = [];
  for (let at = 0; at < before; at++) {
    old.push(await stage.fake((stream) => stage.channels.subscribe(stream, `old:${at}`)));
    await fill(`old:${at}`);
  }
  const names = Array.from({ length: rooms }, (unused, at) => `room:${at}`);
  for (const name of names) await fill(name);
  return { names, old };
}

/** Measures one client that reads many rooms, which are not in the cache. */
async function coldRooms(n) {
  const { redis, registry, elsewhere } = await redisStage();
  const stage = new Stage({ registry: registry({}) });
  const publisher = elsewhere({});
  const { names, old } = await fullCache(stage, publisher, n + 10, n);
  for (const res of old) res.destroy();
  const { events } = await countEvents(redis, names);
  const meter = new RedisMeter(redis);
  await meter.start();
  let done;
  let taken;
  return {
    async act() {
      const cold = (stream) => stage.channels.subscribe(stream, names);
      const res = await stage.fake(cold, { 'last-event-id': 'x' });
      const deadline = performance.now() + 20_000;
      await until(() => performance.now() > deadline || stage.channels.stats().behind === 0, 20);
      done = await meter.stop();
      ({ taken } = res);
    },
    note: () => describeReads(done, taken, `the log contains ${events} of their events`),
  };
}

/** Measures many clients that read the same room, which is not in the cache. */
async function coldReaders(n) {
  const { redis, registry, elsewhere } = await redisStage();
  const stage = new Stage({ registry: registry({ maxHistory: 8_388_608 }) });
  const publisher = elsewhere({});
  const { names } = await fullCache(stage, publisher, 10, 1);
  const cold = (stream) => stage.channels.subscribe(stream, names);
  const meter = new RedisMeter(redis);
  await meter.start();
  let done;
  let taken = 0;
  return {
    async act() {
      const readers = await Promise.all(
        Array.from({ length: n }, () => stage.fake(cold, { 'last-event-id': 'x' })),
      );
      const deadline = performance.now() + 20_000;
      await until(() => performance.now() > deadline || stage.channels.stats().behind === 0, 20);
      done = await meter.stop();
      for (const reader of readers) taken += reader.taken;
    },
    note: () => describeReads(done, taken, `${n} clients`),
  };
}

/** @returns the number of events of the channels in Redis */
async function countEvents(redis, names) {
  const lengths = await Promise.all(
    names.map((name) => redis.client.sendCommand(['XLEN', `{res-sse}:s:${name}`])),
  );
  return { events: lengths.reduce((sum, length) => sum + length, 0) };
}

/** @returns the bytes that were read from Redis, compared with the bytes that were delivered */
function describeReads({ bytes, calls }, taken, more) {
  const ratio = taken === 0 ? '∞' : (bytes / taken).toFixed(1);
  const read = `${megabytes(bytes)} read from Redis`;
  return `${read}, ${megabytes(taken)} delivered (${ratio} ×), ${calls} script calls; ${more}`;
}

/** Measures events of one channel while the cache has many channels without events. */
async function emptiedChannels(n) {
  const { registry, elsewhere } = await redisStage();
  const names = Array.from({ length: n }, (unused, at) => `quiet:${at}`);
  // The limits of this node apply to its cache. The limits of the publisher apply to the log.
  const stage = new Stage({ registry: registry({ maxHistory: 65_536, maxChannels: 10_000_000 }) });
  const publisher = elsewhere({ ...LONG, maxChannels: 10_000_000 });
  for (let at = 0; at < n; at += 100) {
    await stage.fake((stream) => stage.channels.subscribe(stream, names.slice(at, at + 100)));
  }
  const loud = await stage.fake((stream) => stage.channels.subscribe(stream, 'loud'));
  await inBatches(n, 100, (at) => publisher.publish(names[at], payload(200)));
  const publishLoud = async (events) => {
    const before = loud.taken;
    await inBatches(events, 10, () => publisher.publish('loud', payload(200)));
    await until(() => loud.taken >= before + events * 200, 1);
  };
  // After these events, the cache contains no events of the other channels.
  await publishLoud(400);
  const events = 1_000;
  return { items: events, act: () => publishLoud(events) };
}

/** Measures the recovery of live streams after the subscribing connection was killed. */
async function interruption(n, isFake) {
  const { redis, registry, elsewhere } = await redisStage();
  const stage = new Stage({ registry: registry() });
  const publisher = elsewhere();
  const readers = await stage.readers(n, isFake);
  await until(() => stage.channels.stats().behind === 0);
  const counted = await readers.expect(1, 200);
  let result;
  return {
    async act() {
      await redis.client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
      await sleep(20);
      await publisher.publish(CHANNEL, payload(200));
      result = await counted();
    },
    note: () => verdict(result, stage),
  };
}
