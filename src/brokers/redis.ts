/** The entry `res-sse/redis`: a broker for many nodes, whose log is in Redis. */
import { SseError } from '../common/errors.ts';
import {
  assertOptions,
  booleanRule,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';
import type { Broker } from './broker.ts';
import { connectionOf, ownConnection, type RedisClient } from './redis/redis-connection.ts';
import { PublishOnlyBroker } from './redis/publish-only-broker.ts';
import { RedisBroker } from './redis/redis-broker.ts';

export type { RedisClient } from './redis/redis-connection.ts';

/** The options of `redisBroker()`: either a `client` or a `url`. */
export interface RedisBrokerOptions {
  /**
   * The application's client of node-redis, from `createClient()`, `createCluster()` or
   * `createSentinel()`. The broker uses the client for commands, duplicates it for subscriptions,
   * and never closes it.
   *
   * Give the client a `reconnectStrategy`: without one, node-redis does not connect again after a
   * socket timeout. The broker cannot replace a command connection of this client that is dead and
   * was not closed. A `socketTimeout` ends such a connection only if nothing is sent for that time,
   * and a node sends a command every 5 s. With a `url` the broker replaces the connection.
   */
  client?: RedisClient | undefined;
  /**
   * The URL of Redis, `redis[s]://[[user][:password]@]host[:port][/database]`. The broker makes its
   * own client, replaces it if it has not answered for 30 s or its server has become a replica, and
   * closes it in `close()`.
   */
  url?: string | undefined;
  /**
   * The beginning of all keys and Pub/Sub channels of the registry, without braces and control
   * characters. Each registry needs its own prefix.
   * @defaultValue `'res-sse'`
   */
  prefix?: string | undefined;
  /**
   * Time in ms within which Redis must answer. After this time a publish rejects.
   * @defaultValue `5_000`
   */
  timeout?: number | undefined;
  /**
   * Whether this process only publishes, as a worker or a cron job does: it listens to nothing and
   * has one connection to Redis. Streams cannot follow its channels.
   * @defaultValue `false`
   */
  publishOnly?: boolean | undefined;
}

const rules: Readonly<Record<keyof RedisBrokerOptions, OptionRule>> = {
  client: {
    expected: 'a client of node-redis',
    test: (value) =>
      typeof value === 'object' && value !== null && 'sendCommand' in value && 'duplicate' in value,
  },
  url: { expected: 'a redis: or rediss: URL', test: isUrl },
  prefix: {
    expected: 'a non-empty string of at most 64 UTF-8 bytes without braces and control characters',
    test: (value) =>
      typeof value === 'string' &&
      /^[^{}\p{Cc}\p{Cs}]+$/u.test(value) &&
      Buffer.byteLength(value) <= 64,
  },
  timeout: millisecondsRule(1),
  publishOnly: booleanRule,
};

// Time in ms without a message after which a probe is sent, and interval of pings.
const PROBE_MS = 10_000;

// Time in ms for which a channel stays subscribed after its last stream has left.
const LINGER_MS = 10_000;

// Pauses in ms between attempts to connect.
const RETRY_MS = { min: 50, max: 10_000 };

/**
 * Makes a broker whose log is in Redis 6.2 or later, or in Valkey: one server, a Sentinel, or a
 * Cluster of Redis 7 or later. On a Cluster, all keys of one registry are in one shard.
 *
 * The user of Redis needs the keys and the Pub/Sub channels `{prefix}:*`, and the commands of the
 * script, including INFO. Without INFO, an id may be used twice after a failover to a replica that
 * had not received the last events.
 * @returns a broker for one `createChannels()`
 * @throws {SseError} `ERR_SSE_OPTION` for a wrong or unknown option, and for both or neither of
 * `client` and `url`
 * @example
 * const channels = createChannels({ broker: redisBroker({ url: process.env.REDIS_URL }) });
 */
export function redisBroker(options: RedisBrokerOptions): Broker {
  const {
    client,
    url,
    prefix = 'res-sse',
    timeout = 5_000,
    publishOnly = false,
  } = assertOptions('redisBroker()', options, rules);
  const timing = { timeout, probe: PROBE_MS, linger: LINGER_MS, wait: RETRY_MS };
  const BrokerClass = publishOnly ? PublishOnlyBroker : RedisBroker;
  if (client !== undefined && url === undefined) {
    return new BrokerClass(connectionOf(client, prefix), prefix, timing);
  }
  if (url === undefined || client !== undefined) {
    throw new SseError('ERR_SSE_OPTION', 'redisBroker() needs either a `client` or a `url`');
  }
  const broker: RedisBroker | PublishOnlyBroker = new BrokerClass(
    ownConnection(url, PROBE_MS, (error) => broker.report(error)),
    prefix,
    timing,
  );
  return broker;
}

function isUrl(value: unknown): boolean {
  return (
    typeof value === 'string' && URL.canParse(value) && /^rediss?:$/.test(new URL(value).protocol)
  );
}
