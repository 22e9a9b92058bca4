/**
 * Access to Redis by node-redis: one server, a Sentinel or a Cluster, with the client of the
 * application or a client that the broker makes.
 *
 *     RedisConnection ─┬─ send()         commands, on the client itself
 *                      └─ subscriber()   a second client, which SubscriberConnection owns
 */
import type {
  ClusterClient,
  CommandOptions,
  RedisSubscriber,
  SentinelClient,
  SingleClient,
  SocketOptions,
} from './node-redis.ts';
import { OwnClient } from './own-client.ts';
import { messageOf, noEffectError } from './redis-errors.ts';

/** A client of node-redis, from `createClient()`, `createCluster()` or `createSentinel()`. */
export interface RedisClient {
  duplicate(...overrides: never[]): unknown;
  sendCommand(...command: never[]): Promise<unknown>;
}

/** Access to Redis. */
export interface RedisConnection {
  /** The address of Redis, for messages. */
  readonly address: string;
  /** Whether Redis is a Cluster. All keys and topics of a registry are in one shard. */
  readonly isSharded: boolean;
  /** Whether the client sends a command again by itself when the answer was lost. */
  readonly repeats: boolean;
  /**
   * @param isForced whether to ask Redis again, because the application may have selected another
   * database
   * @returns the number of the database
   */
  database(signal?: AbortSignal, isForced?: boolean): Promise<number>;
  /** Sends a command. The signal removes a command that has not been written yet. */
  send(key: string, args: string[], signal: AbortSignal): Promise<unknown>;
  /** Makes a client for subscriptions, which is not connected yet. */
  subscriber(): Promise<RedisSubscriber>;
  /**
   * Calls back when the client for commands was replaced, so that the subscriptions move as well.
   * `undefined` for a client of the application, which is never replaced.
   */
  onReplaced?(listener: () => void): void;
  /** Closes the client if the broker has made it. A client of the application is never closed. */
  close(): void;
}

/**
 * Makes a connection that uses the application's client.
 * @param prefix the hash tag of all keys
 */
export function connectionOf(client: RedisClient, prefix: string): RedisConnection {
  if ('slots' in client && 'nodeClient' in client) {
    return clusterConnection(client as unknown as ClusterClient, prefix);
  }
  if ('getMasterNode' in client) return sentinelConnection(client as unknown as SentinelClient);
  const single = client as unknown as SingleClient;
  return {
    ...singleConnection(
      formatAddress(single.options?.socket ?? {}),
      () => Promise.resolve(single),
      () => {},
    ),
    database: databaseQuery(
      (args, options) => single.sendCommand(args, options),
      single.options?.database ?? 0,
    ),
  };
}

/**
 * Makes a connection with a new client, which connects when it is first used.
 * @param heartbeatMs interval of pings; a server that does not answer for three of them is
 * disconnected, so that pending commands reject
 * @param onError called with errors of the client, which connects again by itself
 */
export function ownConnection(
  url: string,
  heartbeatMs: number,
  onError: (error: unknown) => void,
): RedisConnection {
  const own = new OwnClient(url, heartbeatMs, onError);
  const { hostname: host, port } = new URL(url);
  return {
    ...singleConnection(
      formatAddress({ host, port }),
      () => own.get(),
      () => own.close(),
    ),
    send: (_key, args, signal) => own.send(args, commandOptions(signal)),
    onReplaced: (listener) => {
      own.onReplaced = listener;
    },
  };
}

/** Formats the address to which node-redis connects with these options. */
function formatAddress({ host, port, path }: SocketOptions): string {
  if (path !== undefined) return path;
  const hostOrDefault = host === undefined || host === '' ? 'localhost' : host;
  return `${hostOrDefault}:${port === undefined || port === '' ? 6_379 : port}`;
}

function singleConnection(
  address: string,
  client: () => Promise<SingleClient>,
  close: () => void,
): RedisConnection {
  return {
    address,
    isSharded: false,
    repeats: false,
    database: async () => (await client()).options?.database ?? 0,
    send: async (_key, args, signal) => (await client()).sendCommand(args, commandOptions(signal)),
    subscriber: async () => duplicateForSubscriptions(await client()),
    close,
  };
}

function clusterConnection(cluster: ClusterClient, prefix: string): RedisConnection {
  const slot = hashSlot(prefix);
  return {
    address: 'the nodes of the Cluster',
    isSharded: true,
    repeats: false,
    // A Cluster has one database.
    database: () => Promise.resolve(0),
    send: (key, args, signal) => cluster.sendCommand(key, false, args, commandOptions(signal)),
    async subscriber() {
      const master = cluster.slots[slot]?.master;
      if (master === undefined) {
        throw noEffectError(
          'no node of the Cluster serves the hash slot of the prefix, or the client is not ' +
            'connected',
        );
      }
      return duplicateForSubscriptions(await cluster.nodeClient(master));
    },
    close: () => {},
  };
}

function sentinelConnection(sentinel: SentinelClient): RedisConnection {
  return {
    address: 'the primary that Sentinel names',
    isSharded: false,
    repeats: true,
    database: databaseQuery((args, options) => sentinel.sendCommand(false, args, options), 0),
    send: (_key, args, signal) => sentinel.sendCommand(false, args, commandOptions(signal)),
    subscriber: () => Promise.resolve(sentinel.duplicate()),
    close: () => {},
  };
}

/**
 * Makes a function that asks Redis which database the application's client has selected. The client
 * has no property that shows this.
 * @param configured the database in the options of the client, for users without the permission for
 * `CLIENT INFO`
 */
function databaseQuery(
  send: (args: string[], options: CommandOptions) => Promise<unknown>,
  configured: number,
): (signal?: AbortSignal, isForced?: boolean) => Promise<number> {
  let database: number | undefined;

  async function query(signal: AbortSignal): Promise<number> {
    try {
      const info = String(await send(['CLIENT', 'INFO'], commandOptions(signal)));
      const digits = /\bdb=(\d+)/.exec(info)?.[1];
      return digits === undefined ? configured : Number(digits);
    } catch (error) {
      if (/^(NOPERM|ERR) /.test(messageOf(error))) return configured;
      throw error;
    }
  }

  return async (signal = new AbortController().signal, isForced = false) => {
    if (database === undefined || isForced) database = await query(signal);
    return database;
  };
}

/**
 * Duplicates a client for subscriptions. If the duplicate connected again by itself, the node would
 * not notice that it has missed messages.
 */
function duplicateForSubscriptions(client: SingleClient): RedisSubscriber {
  return client.duplicate({ socket: { ...client.options?.socket, reconnectStrategy: false } });
}

function commandOptions(abortSignal: AbortSignal): CommandOptions {
  return { abortSignal, typeMapping: {}, timeout: undefined };
}

/** Computes the hash slot of a hash tag as Redis does: CRC16 (XMODEM) modulo 16384. */
function hashSlot(tag: string): number {
  let crc = 0;
  for (const byte of Buffer.from(tag)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) {
      crc = ((crc << 1) ^ ((crc & 0x80_00) === 0 ? 0 : 0x10_21)) & 0xff_ff;
    }
  }
  return crc % 16_384;
}
