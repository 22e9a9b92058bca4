/**
 * The registries on which a promise is tested: one registry with the memory broker, or two nodes
 * that share a log in a real Redis.
 */
import { createChannels, type Channels, type ChannelsOptions } from '../../src/index.ts';
import { redisBroker } from '../../src/brokers/redis.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';

/** The nodes of one test. */
export interface Nodes extends AsyncDisposable {
  /** The node that publishes. */
  readonly publisher: Channels;
  /** The node whose streams and consumers read; the same registry with the memory broker. */
  readonly reader: Channels;
}

/** Makes the nodes of one test. */
export type MakeNodes = (options?: ChannelsOptions) => Nodes;

/** A registry in this process. */
export function memoryNodes(options: ChannelsOptions = {}): Nodes {
  const channels = createChannels(options);
  return {
    publisher: channels,
    reader: channels,
    [Symbol.asyncDispose]: () => channels.close(),
  };
}

/** Two nodes on one Redis, with a log of their own for each test. */
export class RedisNodes {
  #redis: RedisServer | undefined;
  #tests = 0;

  /** The Redis. Only after {@link start}. */
  get redis(): RedisServer {
    return this.#redis as RedisServer;
  }

  async start(): Promise<void> {
    this.#redis = await startRedis();
  }

  async stop(): Promise<void> {
    await this.#redis?.[Symbol.asyncDispose]();
  }

  /** The options of a further node of the newest test. */
  broker(): ReturnType<typeof redisBroker> {
    return redisBroker({ url: this.redis.url, prefix: `promises-${this.#tests}` });
  }

  readonly make: MakeNodes = (options = {}) => {
    this.#tests++;
    const [publisher, reader] = [1, 2].map(() =>
      createChannels({ ...options, broker: this.broker() }),
    ) as [Channels, Channels];
    return {
      publisher,
      reader,
      [Symbol.asyncDispose]: async () => {
        await Promise.all([publisher.close(), reader.close()]);
      },
    };
  };
}
