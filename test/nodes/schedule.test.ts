/**
 * The model across nodes: clients of several nodes, and at random whatever may happen to clients, nodes, wires and Redis. In each
 * schedule the id rule holds for every client. `SEED=… npx vitest run test/nodes/schedule.test.ts` runs one again.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test, vi } from 'vitest';
import { randomFrom } from '../model/random.ts';
import type { Client } from './client.ts';
import type { TestNode } from './nodes.ts';
import { Scene, type SceneOptions } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const CHANNELS = ['a', 'b', 'c', 'd'];
const NODES = 3;
const STEPS = 40;

const { SEED } = process.env;
const seeds =
  SEED === undefined ? [1, 2].map(() => Math.floor(Math.random() * 2 ** 31)) : [Number(SEED)];

/** Draws what happens next, and lets it happen. */
class Schedule {
  readonly steps: string[] = [];
  readonly #scene: Scene;
  readonly #random: () => number;
  readonly #away = new Set<Client>();

  constructor(scene: Scene, random: () => number) {
    this.#scene = scene;
    this.#random = random;
  }

  async step(): Promise<void> {
    const kinds = Object.entries(this.#kinds);
    const total = kinds.reduce((sum, [, { weight }]) => sum + weight, 0);
    let drawn = this.#random() * total;
    const [name, kind] = kinds.find(([, { weight }]) => (drawn -= weight) < 0) as [string, Kind];
    this.steps.push(name);
    await kind.run();
  }

  /** Everybody who is away comes back. */
  end(): void {
    for (const client of this.#away) client.resume();
  }

  readonly #kinds: Readonly<Record<string, Kind>> = {
    publish: { weight: 30, run: () => this.#publish(this.#one(this.#running())) },
    'publish, and do not wait': {
      weight: 20,
      run: async () => void this.#publish(this.#one(this.#running())),
    },
    'a client comes': { weight: 8, run: async () => this.#come() },
    'a client is dropped': { weight: 8, run: async () => this.#one(this.#scene.clients).drop() },
    'all clients are dropped': {
      weight: 2,
      run: async () => this.#scene.clients.forEach((client) => client.drop()),
    },
    'a client goes away': { weight: 4, run: async () => this.#leave() },
    'a client comes back': { weight: 4, run: async () => this.#return() },
    'a node is killed, another comes': {
      weight: 2,
      run: () => this.#replace((node) => node.kill9()),
    },
    'a node is stopped, another comes': {
      weight: 2,
      run: () => this.#replace((node) => node.stop()),
    },
    'a node hangs': { weight: 2, run: () => this.#hang() },
    'a message is lost': { weight: 6, run: async () => this.#relay().dropNext(() => true) },
    'a wire is cut': { weight: 4, run: async () => this.#relay().cut() },
    'a wire is clogged': { weight: 4, run: () => this.#clog() },
    'a node is cut off': { weight: 3, run: () => this.#cutOff() },
    'subscribers are killed': {
      weight: 3,
      run: () => this.#ask('CLIENT', 'KILL', 'TYPE', 'pubsub'),
    },
    'connections are killed': {
      weight: 2,
      run: () => this.#ask('CLIENT', 'KILL', 'TYPE', 'normal'),
    },
    'Redis pauses': {
      weight: 3,
      run: () => this.#ask('CLIENT', 'PAUSE', '200', this.#one(['ALL', 'WRITE'])),
    },
    'Redis forgets its scripts': { weight: 3, run: () => this.#ask('SCRIPT', 'FLUSH') },
    'Redis forgets everything': { weight: 1, run: () => this.#ask('FLUSHALL') },
    'Redis forgets a key': { weight: 3, run: () => this.#evict() },
    'Redis is killed and starts again': { weight: 2, run: () => this.#restart() },
    'Redis hangs': { weight: 2, run: () => this.#stop() },
    'a channel is cleared': { weight: 2, run: () => this.#clear() },
  };

  async #publish(node: TestNode): Promise<void> {
    await this.#scene.ledger.publish(node, this.#one(CHANNELS), 1 + this.#upTo(20), {
      padding: this.#one([0, 0, 0, 5_000]),
    });
  }

  #come(): void {
    const channels = CHANNELS.filter(() => this.#random() < 0.5);
    this.#scene.come(channels.length === 0 ? ['a'] : channels);
  }

  #leave(): void {
    const client = this.#one(this.#scene.clients);
    client.leave();
    this.#away.add(client);
  }

  #return(): void {
    const [client] = this.#away;
    if (client === undefined) return;
    this.#away.delete(client);
    client.resume();
  }

  async #replace(end: (node: TestNode) => Promise<void>): Promise<void> {
    await end(this.#one(this.#running()));
    await this.#scene.addNode();
  }

  async #hang(): Promise<void> {
    const node = this.#one(this.#running());
    node.pause();
    await delay(300);
    node.resume();
  }

  async #clog(): Promise<void> {
    const relay = this.#relay();
    relay.stall(this.#one(['replies', 'commands']));
    await this.#publish(this.#one(this.#running()));
    relay.flow();
  }

  async #cutOff(): Promise<void> {
    const relay = this.#relay();
    relay.sever();
    await this.#publish(this.#one(this.#running()));
    relay.mend();
  }

  async #evict(): Promise<void> {
    const redis = await this.#scene.redis.client();
    const keys = await redis.keys('*');
    if (keys.length > 0) await redis.del(this.#one(keys.toSorted()));
    redis.destroy();
  }

  async #restart(): Promise<void> {
    await this.#scene.redis.kill9();
    await this.#publish(this.#one(this.#running()));
    await this.#scene.redis.restart();
  }

  async #stop(): Promise<void> {
    this.#scene.redis.pause();
    await this.#publish(this.#one(this.#running()));
    this.#scene.redis.resume();
  }

  async #clear(): Promise<void> {
    // Refused like a publish where Redis is not there.
    await this.#one(this.#running())
      .clear(this.#one(CHANNELS))
      .catch(() => {});
  }

  async #ask(...words: string[]): Promise<void> {
    const redis = await this.#scene.redis.client();
    await redis.sendCommand(words).catch(() => {});
    redis.destroy();
  }

  #running(): TestNode[] {
    return this.#scene.nodes.filter((node) => node.isRunning);
  }

  #relay(): ReturnType<Scene['relayOf']> {
    return this.#scene.relayOf(this.#one(this.#running()));
  }

  #upTo(count: number): number {
    return Math.floor(this.#random() * count);
  }

  #one<T>(all: readonly T[]): T {
    return all[this.#upTo(all.length)] as T;
  }
}

/** Half of the time each of them is so tight that it bites. */
function boundsOf(random: () => number): Partial<SceneOptions> {
  return {
    timeout: 500,
    ...(random() < 0.5 ? { history: { events: 60 } } : {}),
    ...(random() < 0.5 ? { maxHistory: 300_000 } : {}),
    ...(random() < 0.5 ? { maxChannels: CHANNELS.length - 1 } : {}),
    ...(random() < 0.5 ? { patience: 200 } : {}),
  };
}

interface Kind {
  readonly weight: number;
  run(): Promise<void>;
}

describe('whatever happens, the id rule holds for every client', () => {
  test.each(seeds)('seed %i', async (seed) => {
    // The schedule is the seed's; what meets what is the machine's.
    const random = randomFrom(seed);
    await using scene = await Scene.start({
      nodes: NODES,
      server: { appendonly: true },
      ...boundsOf(random),
    });
    const schedule = new Schedule(scene, random);
    await scene.connect(6, CHANNELS);
    await scene.connect(4, ['b']);
    try {
      for (let count = 0; count < STEPS; count++) await schedule.step();
      schedule.end();
      const fresh = await scene.addNode();
      await scene.settle({ fresh, ms: 60_000 });
    } catch (error) {
      throw new Error(`SEED=${seed}: ${schedule.steps.join('; ')}`, { cause: error });
    }
    expect(scene.ledger.count('pending')).toBe(0);
  });
});
