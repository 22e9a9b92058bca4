/** The common part of the cases: streams of clients in another process, or without sockets. */
import { once } from 'node:events';
import http from 'node:http';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { createChannels, redisBroker, sse } from '../library.mjs';
import { Bench } from '../processes.mjs';
import { startRedis } from '../redis.mjs';
import { LISTEN, payload } from '../servers/control.mjs';
import { FakeResponse } from './fake-response.mjs';

/** Options with a history that is larger than the data of any case, so that no gap occurs. */
export const LONG = {
  history: { events: 1_000_000, bytes: 1_073_741_824 },
  maxHistory: 1_073_741_824,
};

export const CHANNEL = 'news';

/** A middleware with a registry, and its streams. */
export class Stage {
  channels;
  events;
  #handler;
  #server;
  #bench;

  /**
   * @param {object} [options]
   * @param {object} [options.registry] options of `createChannels()`
   * @param {object} [options.streams] options of `sse()`
   * @param {(stream: any, channels: any) => unknown} [options.handler] the handler of a request for
   * a stream. @defaultValue subscribes to {@link CHANNEL}
   */
  constructor({ registry = LONG, streams = {}, handler = subscribe } = {}) {
    this.channels = createChannels(registry);
    this.events = sse({ channels: this.channels, warnings: false, ...streams });
    this.#handler = handler;
  }

  /**
   * Opens streams of clients in another process.
   * @param {number} n
   * @param {object} [options] options of `Bench.connect()`
   */
  async connect(n, options = {}) {
    if (this.#server === undefined) {
      this.#server = http.createServer((req, res) =>
        this.events(req, res, () => void this.#handler(res.sse, this.channels)),
      );
      this.#server.listen(LISTEN);
      await once(this.#server, 'listening');
      this.#bench = new Bench(false, process.env.SCALE_CLIENT);
    }
    return this.#bench.connect(this.#server.address(), { n, ...options });
  }

  /** Opens a stream without a socket. @param {(stream: any) => unknown} [use] */
  async fake(use = (stream) => this.#handler(stream, this.channels), headers = {}) {
    const res = new FakeResponse(headers);
    this.events(res.req, res, () => {});
    await use(res.sse);
    return res;
  }

  /**
   * Opens streams.
   * @param {number} n number of streams
   * @param {boolean} isFake whether the streams have no sockets; else their clients are in another
   * process
   */
  async readers(n, isFake) {
    if (!isFake) return this.connect(n);
    const all = [];
    for (let at = 0; at < n; at++) all.push(await this.fake());
    return new FakeReaders(all);
  }

  /**
   * Publishes events in one turn of the event loop.
   * @param {number} events number of events
   * @param {number} size bytes of each event
   */
  burst(events, size) {
    return Promise.all(
      Array.from({ length: events }, () => this.channels.publish(CHANNEL, payload(size))),
    );
  }
}

/** The counterpart of a load client for streams without sockets. Counts bytes instead of events. */
class FakeReaders {
  #all;

  constructor(all) {
    this.#all = all;
  }

  /**
   * Starts to count.
   * @returns a function that waits until each stream has received the given number of events
   */
  expect(events, size) {
    const wanted = this.#all.map(({ taken }) => taken + events * size);
    return async () => {
      await until(() => this.#all.every(({ taken }, at) => taken >= wanted[at]), 2);
      return { ok: true };
    };
  }
}

/** The default handler of a request for a stream. */
function subscribe(stream, channels) {
  return channels.subscribe(stream, CHANNEL);
}

/** Starts Redis, and returns functions that create registries over Redis. */
export async function redisStage() {
  const redis = await startRedis();
  // The node that is measured has a Redis user of its own, so that its access can be revoked.
  await redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'on', '>node', '~*', '&*', '+@all']);
  const url = redis.url.replace('//', '//node:node@');
  return {
    redis,
    registry: (options = LONG) => ({ broker: redisBroker({ url }), ...options }),
    /** Creates the registry of another node, which keeps its access to Redis. */
    elsewhere: (options = LONG) =>
      createChannels({ broker: redisBroker({ url: redis.url }), ...options }),
    shutOut: async () => {
      await redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'off']);
      await redis.client.sendCommand(['CLIENT', 'KILL', 'USER', 'node']);
    },
    letIn: () => redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'on']),
  };
}

/** Waits until the condition is true. @param {number} every interval of the checks in ms */
export async function until(condition, every = 10) {
  while (!(await condition())) await sleep(every);
}

/** Calls an async function for each number below `count`, in batches of `size`. */
export async function inBatches(count, size, callback) {
  for (let at = 0; at < count; at += size) {
    await Promise.all(
      Array.from({ length: Math.min(size, count - at) }, (unused, index) => callback(at + index)),
    );
  }
}
