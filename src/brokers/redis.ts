/** A broker for many nodes: the log is in Redis, and every node hears of it. */
import { SseError } from '../common/errors.ts';
import { assertOptions, millisecondsRule, type OptionRule } from '../common/options.ts';
import type { Broker } from './broker.ts';
import { connectionOf, ownConnection, type RedisClient } from './redis/redis-connection.ts';
import { RedisBroker } from './redis/redis-broker.ts';

export type { RedisClient } from './redis/redis-connection.ts';

/** The options of `redisBroker()`: a `client` or a `url`. */
export interface RedisBrokerOptions {
  /**
   * The application's own client of node-redis, from `createClient()`, `createCluster()` or `createSentinel()`. It is used for
   * commands, duplicated for listening, and never closed. A connection that hangs is its own to find: give it a `pingInterval`,
   * a `socketTimeout`, and a `reconnectStrategy`, without which node-redis gives up for good after such a timeout.
   */
  client?: RedisClient | undefined;
  /** Where Redis is, `redis[s]://[[user][:password]@]host[:port][/database]`: a client of the broker's own. */
  url?: string | undefined;
  /** What all keys and topics of the registry begin with; two registries need two. Without braces. @defaultValue `'res-sse'` */
  prefix?: string | undefined;
  /** Time in ms that Redis has to answer, and after which a publish rejects. @defaultValue `5_000` */
  timeout?: number | undefined;
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
};

const PROBE = 10_000;

/**
 * Keeps the log in Redis 6.2 and later, or Valkey: standalone, behind Sentinel, or on a Cluster of Redis 7 and later, where one
 * registry lives in one shard. The user needs the keys and the Pub/Sub channels `{prefix}:*`, and the commands of the script,
 * INFO among them: without it a log that has gone back unnoticed may use an id twice.
 * @throws {SseError} `ERR_SSE_OPTION`
 * @example
 * const channels = createChannels({ broker: redisBroker({ url: process.env.REDIS_URL }) });
 */
export function redisBroker(options: RedisBrokerOptions): Broker {
  const {
    client,
    url,
    prefix = 'res-sse',
    timeout = 5_000,
  } = assertOptions('redisBroker()', options, rules);
  const timing = { timeout, probe: PROBE, linger: 10_000, wait: { min: 50, max: 10_000 } };
  if (client !== undefined && url === undefined) {
    return new RedisBroker(connectionOf(client, prefix), prefix, timing);
  }
  if (url === undefined || client !== undefined) {
    throw new SseError('ERR_SSE_OPTION', 'redisBroker() needs either a `client` or a `url`');
  }
  const node: RedisBroker = new RedisBroker(
    ownConnection(url, PROBE, (error) => node.report(error)),
    prefix,
    timing,
  );
  return node;
}

function isUrl(value: unknown): boolean {
  return (
    typeof value === 'string' && URL.canParse(value) && /^rediss?:$/.test(new URL(value).protocol)
  );
}
