/**
 * Random test of several nodes: clients connect and disconnect, nodes exit, connections break, and
 * Redis fails. In each schedule the id rule must hold for every client.
 *
 * `SEED=… npx vitest run test/nodes/schedule.test.ts` repeats a schedule.
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

/** Draws and runs random actions. */
class Schedule {
  readonly steps: string[] = [];
  readonly #scene: Scene;
  readonly #random: () => number;
  readonly #disconnected = new Set<Client>();

  constructor(scene: Scene, random: () => number) {
    this.#scene = scene;
    this.#random = random;
  }

  async step(): Promise<void> {
    const kinds = Object.entries(this.#actions);
    const total = kinds.reduce((sum, [, { weight }]) => sum + weight, 0);
    let remainingWeight = this.#random() * total;
    const [name, kind] = kinds.find(([, { weight }]) => (remainingWeight -= weight) < 0) as [
      string,
      Action,
    ];
    this.steps.push(name);
    await kind.run();
  }

  /** Reconnects all disconnected clients. */
  resumeClients(): void {
    for (const client of this.#disconnected) client.resume();
  }

  readonly #actions: Readonly<Record<string, Action>> = {
    publish: { weight: 30, run: () => this.#publish(this.#pick(this.#running())) },
    'publish without waiting': {
      weight: 20,
      run: async () => void this.#publish(this.#pick(this.#running())),
    },
    'a client connects': { weight: 8, run: async () => this.#addClient() },
    'a client reconnects': { weight: 8, run: async () => this.#pick(this.#scene.clients).drop() },
    'all clients reconnect': {
      weight: 2,
      run: async () => this.#scene.clients.forEach((client) => client.drop()),
    },
    'a client disconnects': { weight: 4, run: async () => this.#disconnectClient() },
    'a client resumes': { weight: 4, run: async () => this.#resumeClient() },
    'a node is killed, another starts': {
      weight: 2,
      run: () => this.#replaceNode((node) => node.kill9()),
    },
    'a node is stopped, another starts': {
      weight: 2,
      run: () => this.#replaceNode((node) => node.stop()),
    },
    'a node is paused': { weight: 2, run: () => this.#pauseNode() },
    'a message is lost': { weight: 6, run: async () => this.#relay().dropNext(() => true) },
    'a connection is cut': { weight: 4, run: async () => this.#relay().cut() },
    'a connection is stalled': { weight: 4, run: () => this.#stallRelay() },
    'a node is disconnected from Redis': { weight: 3, run: () => this.#severRelay() },
    'subscriber connections are killed': {
      weight: 3,
      run: () => this.#sendCommand('CLIENT', 'KILL', 'TYPE', 'pubsub'),
    },
    'command connections are killed': {
      weight: 2,
      run: () => this.#sendCommand('CLIENT', 'KILL', 'TYPE', 'normal'),
    },
    'Redis pauses': {
      weight: 3,
      run: () => this.#sendCommand('CLIENT', 'PAUSE', '200', this.#pick(['ALL', 'WRITE'])),
    },
    'Redis removes its scripts': { weight: 3, run: () => this.#sendCommand('SCRIPT', 'FLUSH') },
    'Redis removes all keys': { weight: 1, run: () => this.#sendCommand('FLUSHALL') },
    'Redis removes a key': { weight: 3, run: () => this.#deleteKey() },
    'Redis is killed and restarts': { weight: 2, run: () => this.#restartRedis() },
    'Redis is paused': { weight: 2, run: () => this.#pauseRedis() },
    'a channel is cleared': { weight: 2, run: () => this.#clearChannel() },
  };

  async #publish(node: TestNode): Promise<void> {
    await this.#scene.ledger.publish(node, this.#pick(CHANNELS), 1 + this.#randomBelow(20), {
      padding: this.#pick([0, 0, 0, 5_000]),
    });
  }

  #addClient(): void {
    const channels = CHANNELS.filter(() => this.#random() < 0.5);
    this.#scene.addClient(channels.length === 0 ? ['a'] : channels);
  }

  #disconnectClient(): void {
    const client = this.#pick(this.#scene.clients);
    client.leave();
    this.#disconnected.add(client);
  }

  #resumeClient(): void {
    const [client] = this.#disconnected;
    if (client === undefined) return;
    this.#disconnected.delete(client);
    client.resume();
  }

  async #replaceNode(end: (node: TestNode) => Promise<void>): Promise<void> {
    await end(this.#pick(this.#running()));
    await this.#scene.addNode();
  }

  async #pauseNode(): Promise<void> {
    const node = this.#pick(this.#running());
    node.pause();
    await delay(300);
    node.resume();
  }

  async #stallRelay(): Promise<void> {
    const relay = this.#relay();
    relay.stall(this.#pick(['replies', 'commands']));
    await this.#publish(this.#pick(this.#running()));
    relay.flow();
  }

  async #severRelay(): Promise<void> {
    const relay = this.#relay();
    relay.sever();
    await this.#publish(this.#pick(this.#running()));
    relay.mend();
  }

  async #deleteKey(): Promise<void> {
    const redis = await this.#scene.redis.client();
    const keys = await redis.keys('*');
    if (keys.length > 0) await redis.del(this.#pick(keys.toSorted()));
    redis.destroy();
  }

  async #restartRedis(): Promise<void> {
    await this.#scene.redis.kill9();
    await this.#publish(this.#pick(this.#running()));
    await this.#scene.redis.restart();
  }

  async #pauseRedis(): Promise<void> {
    this.#scene.redis.pause();
    await this.#publish(this.#pick(this.#running()));
    this.#scene.redis.resume();
  }

  async #clearChannel(): Promise<void> {
    // Rejects like a publish if Redis is unreachable.
    await this.#pick(this.#running())
      .clear(this.#pick(CHANNELS))
      .catch(() => {});
  }

  async #sendCommand(...words: string[]): Promise<void> {
    const redis = await this.#scene.redis.client();
    await redis.sendCommand(words).catch(() => {});
    redis.destroy();
  }

  #running(): TestNode[] {
    return this.#scene.nodes.filter((node) => node.isRunning);
  }

  #relay(): ReturnType<Scene['relayOf']> {
    return this.#scene.relayOf(this.#pick(this.#running()));
  }

  #randomBelow(count: number): number {
    return Math.floor(this.#random() * count);
  }

  #pick<T>(all: readonly T[]): T {
    return all[this.#randomBelow(all.length)] as T;
  }
}

/** Draws limits. With a probability of one half, each limit is so low that it takes effect. */
function boundsOf(random: () => number): Partial<SceneOptions> {
  return {
    timeout: 500,
    ...(random() < 0.5 ? { history: { events: 60 } } : {}),
    ...(random() < 0.5 ? { maxHistory: 300_000 } : {}),
    ...(random() < 0.5 ? { maxChannels: CHANNELS.length - 1 } : {}),
    ...(random() < 0.5 ? { probe: 200 } : {}),
  };
}

interface Action {
  readonly weight: number;
  run(): Promise<void>;
}

describe('the id rule holds for every client in random schedules', () => {
  test.each(seeds)('seed %i', async (seed) => {
    // The seed determines the schedule. The timing depends on the machine.
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
      schedule.resumeClients();
      const fresh = await scene.addNode();
      await scene.verify({ fresh, ms: 60_000 });
    } catch (error) {
      throw new Error(`SEED=${seed}: ${schedule.steps.join('; ')}`, { cause: error });
    }
    expect(scene.ledger.count('pending')).toBe(0);
  });
});
