/** What the cases stand on: an HTTP server with streams of real clients, or streams without sockets. */
import { once } from 'node:events';
import http from 'node:http';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { createChannels, redisBroker, sse } from '../library.mjs';
import { Bench } from '../processes.mjs';
import { startRedis } from '../redis.mjs';
import { LISTEN, payload } from '../servers/control.mjs';
import { FakeResponse } from './fake-response.mjs';

/** A history that no case outgrows, so that a stream that falls behind is not told a gap. */
export const LONG = {
  history: { events: 1_000_000, bytes: 1_073_741_824 },
  maxHistory: 1_073_741_824,
};

export const CHANNEL = 'news';

/** An `sse()` with a registry, and its streams. */
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
   * @param {(stream: any, channels: any) => unknown} [options.handler] what a request for a stream does; it follows a channel by default
   */
  constructor({ registry = LONG, streams = {}, handler = follow } = {}) {
    this.channels = createChannels(registry);
    this.events = sse({ channels: this.channels, warnings: false, ...streams });
    this.#handler = handler;
  }

  /**
   * Opens streams of clients in another process.
   * @param {number} n
   * @param {object} [how] as `Bench.connect` has it
   */
  async connect(n, how = {}) {
    if (this.#server === undefined) {
      this.#server = http.createServer((req, res) =>
        this.events(req, res, () => void this.#handler(res.sse, this.channels)),
      );
      this.#server.listen(LISTEN);
      await once(this.#server, 'listening');
      this.#bench = new Bench(false, process.env.SCALE_CLIENT);
    }
    return this.#bench.connect(this.#server.address(), { n, ...how });
  }

  /** Opens a stream without a socket. @param {(stream: any) => unknown} [use] */
  async fake(use = (stream) => this.#handler(stream, this.channels), headers = {}) {
    const res = new FakeResponse(headers);
    this.events(res.req, res, () => {});
    await use(res.sse);
    return res;
  }

  /**
   * Opens streams, of clients in another process or without sockets.
   * @param {number} n @param {boolean} isFake
   */
  async readers(n, isFake) {
    if (!isFake) return this.connect(n);
    const all = [];
    for (let at = 0; at < n; at++) all.push(await this.fake());
    return new FakeReaders(all);
  }

  /** Publishes so many events of so many bytes in one turn. */
  burst(events, size) {
    return Promise.all(
      Array.from({ length: events }, () => this.channels.publish(CHANNEL, payload(size))),
    );
  }
}

/** Counts bytes where a client counts events. */
class FakeReaders {
  #all;

  constructor(all) {
    this.#all = all;
  }

  /** Begins to count. @returns what waits until each stream has got so many events of so many bytes */
  expect(events, size) {
    const wanted = this.#all.map(({ taken }) => taken + events * size);
    return async () => {
      await until(() => this.#all.every(({ taken }, at) => taken >= wanted[at]), 2);
      return { ok: true };
    };
  }
}

function follow(stream, channels) {
  return channels.subscribe(stream, CHANNEL);
}

/** Redis, and what makes registries over it. */
export async function redisStage() {
  const redis = await startRedis();
  // A user of its own for the node that is measured, so that it can be shut out.
  await redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'on', '>node', '~*', '&*', '+@all']);
  const url = redis.url.replace('//', '//node:node@');
  return {
    redis,
    registry: (options = LONG) => ({ broker: redisBroker({ url }), ...options }),
    /** A registry that is another node's: it stays connected when the measured one is shut out. */
    elsewhere: (options = LONG) =>
      createChannels({ broker: redisBroker({ url: redis.url }), ...options }),
    shutOut: async () => {
      await redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'off']);
      await redis.client.sendCommand(['CLIENT', 'KILL', 'USER', 'node']);
    },
    letIn: () => redis.client.sendCommand(['ACL', 'SETUSER', 'node', 'on']),
  };
}

export async function until(condition, every = 10) {
  while (!(await condition())) await sleep(every);
}

/** Calls an async function for each number below `count`, so many at a time. */
export async function inBatches(count, size, callback) {
  for (let at = 0; at < count; at += size) {
    await Promise.all(
      Array.from({ length: Math.min(size, count - at) }, (unused, index) => callback(at + index)),
    );
  }
}
