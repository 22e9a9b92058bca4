/** A Redis, some nodes and their clients, and somebody who publishes all the time. */
import { setTimeout as delay } from 'node:timers/promises';
import { startRelay, type Relay } from '../support/relay.ts';
import { startRedis, type RedisOptions, type RedisServer } from '../support/redis-server.ts';
import { Resources } from '../support/resources.ts';
import { until as untilWithin } from '../support/wait.ts';
import { Client } from './client.ts';
import { Ledger, type PublishOptions, type SettleOptions } from './ledger.ts';
import { startNode, type NodeConfig, type TestNode } from './nodes.ts';

export interface SceneOptions extends Omit<NodeConfig, 'redis'> {
  /** How many. */
  nodes?: number;
  server?: RedisOptions;
  /** What the nodes work over, where it is not the scene's own Redis. */
  redis?: NodeConfig['redis'];
}

// Of a command to Redis, in ms: no test wants to wait for five seconds.
const TIMEOUT = 1_000;

/** Resolves as soon as the condition is true. So many processes need time on a machine that has other things to do. */
export function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  ms = 40_000,
): Promise<void> {
  return untilWithin(what, condition, ms);
}

export class Scene implements AsyncDisposable {
  /** All that were started, in order. */
  readonly nodes: TestNode[] = [];
  readonly clients: Client[] = [];
  readonly ledger: Ledger = new Ledger();
  readonly #options: SceneOptions;
  readonly #resources = new Resources();
  readonly #relays = new Map<TestNode, Relay>();
  #redis: RedisServer | undefined;
  #turn = 0;
  // What is published all the time, until it is aborted.
  readonly #publishing: { abort: AbortController; done: Promise<void> }[] = [];

  private constructor(options: SceneOptions) {
    this.#options = options;
  }

  /** @example await using scene = await Scene.start({ nodes: 3 }); */
  static async start(options: SceneOptions = {}): Promise<Scene> {
    const scene = new Scene(options);
    try {
      if (options.redis === undefined) {
        scene.#redis = scene.#resources.use(await startRedis(options.server));
      }
      scene.nodes.push(
        ...(await Promise.all(
          Array.from({ length: options.nodes ?? 2 }, () => scene.#startNode()),
        )),
      );
    } catch (error) {
      await scene[Symbol.asyncDispose]();
      throw error;
    }
    return scene;
  }

  get redis(): RedisServer {
    if (this.#redis === undefined) {
      throw new Error('the nodes of this scene work over another Redis');
    }
    return this.#redis;
  }

  /** The wire that leads from the node to Redis. */
  relayOf(node: TestNode): Relay {
    return this.#relays.get(node) as Relay;
  }

  async addNode(): Promise<TestNode> {
    const node = await this.#startNode();
    this.nodes.push(node);
    return node;
  }

  /** One after the other of the nodes that run, as a proxy in front chooses. */
  choose = (): TestNode | undefined => {
    const running = this.nodes.filter((node) => node.isRunning);
    return running[this.#turn++ % running.length];
  };

  /** So many clients that follow these channels; resolves when all have their place. */
  async connect(
    count: number,
    channels: readonly string[],
    choose: () => TestNode | undefined = this.choose,
  ): Promise<Client[]> {
    const clients = Array.from({ length: count }, () => new Client(channels, { choose }));
    this.clients.push(...clients);
    await until(`${count} clients to be placed`, () => clients.every((client) => client.isPlaced));
    return clients;
  }

  /** A client that follows these channels, from some moment on. */
  come(channels: readonly string[]): void {
    this.clients.push(new Client(channels, { choose: this.choose }));
  }

  /** Publishes to one after the other of the channels, on one node after the other, until `quiet()`. */
  publishAllTheTime(
    channels: readonly string[],
    { pause = 5, ...options }: PublishOptions & { pause?: number } = {},
  ): void {
    const abort = new AbortController();
    const publish = async (): Promise<void> => {
      const waiting = new Set<Promise<unknown>>();
      for (let count = 0; !abort.signal.aborted; count++) {
        const node = this.choose();
        // A node that waits for Redis holds up nobody who publishes elsewhere; but not thousands are to wait there.
        if (node !== undefined && waiting.size < 50) {
          const asked = this.ledger.publish(
            node,
            channels[count % channels.length] as string,
            1 + (count % 3),
            options,
          );
          waiting.add(asked);
          void asked.finally(() => waiting.delete(asked));
        }
        await delay(pause);
      }
      await Promise.all(waiting);
    };
    this.#publishing.push({ abort, done: publish() });
  }

  /** Nobody publishes any more, and everybody who did was told what became of it. */
  async quiet(): Promise<void> {
    for (const { abort } of this.#publishing) abort.abort();
    await Promise.all(this.#publishing.splice(0).map(({ done }) => done));
  }

  /** Resolves when so many more publishes were accepted. */
  async untilPublished(count: number, ms?: number): Promise<void> {
    const before = this.ledger.count('accepted');
    await until(
      `${count} more publishes`,
      () => this.ledger.count('accepted') >= before + count,
      ms,
    );
  }

  /** Waits until all is well again and everybody has everything. @throws {Violation} where the id rule was not kept for somebody */
  async settle(options?: SettleOptions): Promise<void> {
    await this.quiet();
    await this.ledger.settle(this.clients, this.choose, options);
  }

  /** How many gaps the clients were told. */
  get gaps(): number {
    return this.clients.reduce((sum, client) => sum + client.gaps, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { abort } of this.#publishing) abort.abort();
    for (const client of this.clients) client[Symbol.dispose]();
    await this.#resources[Symbol.asyncDispose]();
  }

  async #startNode(): Promise<TestNode> {
    const { nodes: _nodes, server: _server, redis: elsewhere, ...config } = this.#options;
    if (elsewhere !== undefined) {
      return this.#resources.use(
        await startNode({ timeout: TIMEOUT, ...config, redis: elsewhere }),
      );
    }
    const relay = this.#resources.use(await startRelay(this.redis.port));
    const node = this.#resources.use(
      await startNode({ timeout: TIMEOUT, ...config, redis: { url: relay.url } }),
    );
    this.#relays.set(node, relay);
    return node;
  }
}
