/** A Redis, nodes and their clients, and continuous publishing. */
import { setTimeout as delay } from 'node:timers/promises';
import { startRelay, type Relay } from '../support/relay.ts';
import { startRedis, type RedisOptions, type RedisServer } from '../support/redis-server.ts';
import { Resources } from '../support/resources.ts';
import { until as untilWithin } from '../support/wait.ts';
import { Client, type ClientPath } from './client.ts';
import { Ledger, type PublishOptions, type VerifyOptions } from './ledger.ts';
import { startNode, type NodeConfig, type TestNode } from './nodes.ts';

export interface SceneOptions extends Omit<NodeConfig, 'redis'> {
  /** Number of nodes. */
  nodes?: number;
  server?: RedisOptions;
  /** The connection of the nodes to Redis. By default the scene starts a Redis. */
  redis?: NodeConfig['redis'];
}

// Time limit of a command to Redis, in ms. The default of five seconds is too long for a test.
const COMMAND_TIMEOUT_MS = 1_000;

/**
 * Resolves as soon as the condition is true. The time limit is long, because several processes
 * share a busy machine.
 */
export function until(
  description: string,
  condition: () => boolean | Promise<boolean>,
  ms = 40_000,
): Promise<void> {
  return untilWithin(description, condition, ms);
}

/** A Redis, nodes and clients of one test. */
export class Scene implements AsyncDisposable {
  /** All nodes, in the order of their starts. */
  readonly nodes: TestNode[] = [];
  readonly clients: Client[] = [];
  readonly ledger: Ledger = new Ledger();
  readonly #options: SceneOptions;
  readonly #resources = new Resources();
  readonly #relays = new Map<TestNode, Relay>();
  #redis: RedisServer | undefined;
  #nextNodeIndex = 0;
  // Continuous publishing, until it is aborted.
  readonly #publishers: { abort: AbortController; done: Promise<void> }[] = [];

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
      throw new Error('this scene has no Redis of its own');
    }
    return this.#redis;
  }

  /** The relay between the node and Redis. */
  relayOf(node: TestNode): Relay {
    return this.#relays.get(node) as Relay;
  }

  async addNode(): Promise<TestNode> {
    const node = await this.#startNode();
    this.nodes.push(node);
    return node;
  }

  /** Chooses the next running node, as a load balancer does. */
  choose = (): TestNode | undefined => {
    const running = this.nodes.filter((node) => node.isRunning);
    return running[this.#nextNodeIndex++ % running.length];
  };

  /** Connects `count` clients that follow the channels. Resolves when all have received an id. */
  async connect(
    count: number,
    channels: readonly string[],
    choose: () => TestNode | undefined = this.choose,
    path?: ClientPath,
  ): Promise<Client[]> {
    const clients = Array.from({ length: count }, () => this.addClient(channels, choose, path));
    await until(`a first id on ${count} clients`, () =>
      clients.every((client) => client.hasPosition),
    );
    return clients;
  }

  /** Adds a client that follows the channels, without waiting for its connection. */
  addClient(
    channels: readonly string[],
    choose: () => TestNode | undefined = this.choose,
    path?: ClientPath,
  ): Client {
    const client = new Client(channels, { choose, path });
    this.clients.push(client);
    return client;
  }

  /** Publishes to the channels in turn, on the nodes in turn, until `stopPublishing()`. */
  publishContinuously(
    channels: readonly string[],
    { pause = 5, ...options }: PublishOptions & { pause?: number } = {},
  ): void {
    const abort = new AbortController();
    const publish = async (): Promise<void> => {
      const waiting = new Set<Promise<unknown>>();
      for (let count = 0; !abort.signal.aborted; count++) {
        const node = this.choose();
        // A node that waits for Redis does not delay publishes on other nodes, but limit the number
        // of pending publishes.
        if (node !== undefined && waiting.size < 50) {
          const publishing = this.ledger.publish(
            node,
            channels[count % channels.length] as string,
            1 + (count % 3),
            options,
          );
          waiting.add(publishing);
          void publishing.finally(() => waiting.delete(publishing));
        }
        await delay(pause);
      }
      await Promise.all(waiting);
    };
    this.#publishers.push({ abort, done: publish() });
  }

  /** Stops continuous publishing. Resolves when all publishes have a result. */
  async stopPublishing(): Promise<void> {
    for (const { abort } of this.#publishers) abort.abort();
    await Promise.all(this.#publishers.splice(0).map(({ done }) => done));
  }

  /** Resolves when `count` more publishes have been accepted. */
  async untilPublished(count: number, ms?: number): Promise<void> {
    const before = this.ledger.count('accepted');
    await until(
      `${count} more publishes`,
      () => this.ledger.count('accepted') >= before + count,
      ms,
    );
  }

  /**
   * Stops publishing, waits until every client has every event, and checks the id rule.
   * @throws {Violation} if the rule was violated for a client
   */
  async verify(options?: VerifyOptions): Promise<void> {
    await this.stopPublishing();
    await this.ledger.verify(this.clients, this.choose, options);
  }

  /** Total number of gaps that the clients received. */
  get gaps(): number {
    return this.clients.reduce((sum, client) => sum + client.gaps, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { abort } of this.#publishers) abort.abort();
    for (const client of this.clients) client[Symbol.dispose]();
    await this.#resources[Symbol.asyncDispose]();
  }

  async #startNode(): Promise<TestNode> {
    const { nodes: _nodes, server: _server, redis: connection, ...config } = this.#options;
    if (connection !== undefined) {
      return this.#resources.use(
        await startNode({ timeout: COMMAND_TIMEOUT_MS, ...config, redis: connection }),
      );
    }
    const relay = this.#resources.use(await startRelay(this.redis.port));
    const node = this.#resources.use(
      await startNode({ timeout: COMMAND_TIMEOUT_MS, ...config, redis: { url: relay.url } }),
    );
    this.#relays.set(node, relay);
    return node;
  }
}
