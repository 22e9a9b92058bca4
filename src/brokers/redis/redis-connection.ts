/**
 * Access to Redis by node-redis: one server, a Sentinel or a Cluster, with the client of the
 * application or a client that the broker makes.
 *
 *     RedisConnection ─┬─ send()         commands, on the client itself
 *                      └─ subscriber()   a second client, which SubscriberConnection owns
 */
import { isErrorReply, messageOf, refusedError } from './redis-errors.ts';

/** A client of node-redis, from `createClient()`, `createCluster()` or `createSentinel()`. */
export interface RedisClient {
  duplicate(...overrides: never[]): unknown;
  sendCommand(...command: never[]): Promise<unknown>;
}

// The parts of node-redis 5 and later that are used. Its own types are not imported, because they
// differ between the three kinds of clients and between versions.

/** Options of one command, in place of the application's. */
interface CommandOptions {
  readonly abortSignal: AbortSignal;
  // The type mapping of the application would change the answers.
  readonly typeMapping: object;
  // The timeout of the application counts from the time when a command is queued.
  readonly timeout: undefined;
}

/** Called with a message of Pub/Sub. */
export type RedisListener = (text: string, topic: string) => void;

interface Emitter {
  on(event: string, listener: (value: unknown) => void): unknown;
}

/** A client that subscribes. */
export interface RedisSubscriber extends Emitter {
  connect(): Promise<unknown>;
  destroy(): void | Promise<void>;
  subscribe(topics: string[], listener: RedisListener): Promise<void>;
  unsubscribe(topics: string[], listener: RedisListener): Promise<void>;
  sSubscribe(topics: string[], listener: RedisListener): Promise<void>;
  sUnsubscribe(topics: string[], listener: RedisListener): Promise<void>;
}

interface SocketOptions {
  readonly host?: string | undefined;
  readonly port?: number | string | undefined;
  readonly path?: string | undefined;
}

/** A client of one server. */
interface SingleClient extends RedisSubscriber {
  readonly options?: { readonly socket?: SocketOptions; readonly database?: number };
  /** Whether the client is connected. */
  readonly isReady: boolean;
  sendCommand(args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(overrides: object): RedisSubscriber;
}

/** A client of a Cluster. */
interface ClusterClient {
  readonly slots: readonly ({ readonly master: object } | undefined)[];
  nodeClient(node: object): Promise<SingleClient>;
  sendCommand(
    key: string,
    isReadonly: boolean,
    args: string[],
    options: CommandOptions,
  ): Promise<unknown>;
}

/** A client of servers behind a Sentinel. */
interface SentinelClient {
  sendCommand(isReadonly: boolean, args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(): RedisSubscriber;
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

/**
 * The client of an own connection. It is replaced in two cases that node-redis does not notice:
 *
 * - It is connected, and nothing is answered any more: the connection may be dead without being
 *   closed, because a firewall has forgotten it, or the server has lost its power. The socket
 *   timeout of node-redis begins again with each command, and a node sends commands regularly.
 * - Its server is a replica, which refuses commands: a failover may have left the connection open.
 *   A new connection leads to the new primary, if the address does.
 */
class OwnClient {
  readonly #url: string;
  readonly #heartbeatMs: number;
  readonly #onError: (error: unknown) => void;
  #client: Promise<SingleClient> | undefined;
  #isClosed = false;
  // Time of the first command since the last answer.
  #unansweredSince: number | undefined;
  // Whether the server has refused a command because it is a replica.
  #isReplica = false;
  #replacedAt = 0;
  // Time after a replacement before the client of a replica is replaced again.
  #pauseMs = 0;
  /** Called when the client was replaced. */
  onReplaced: (() => void) | undefined;

  constructor(url: string, heartbeatMs: number, onError: (error: unknown) => void) {
    this.#url = url;
    this.#heartbeatMs = heartbeatMs;
    this.#onError = onError;
  }

  get(): Promise<SingleClient> {
    return (this.#client ??= this.#create());
  }

  async send(args: string[], options: CommandOptions): Promise<unknown> {
    const client = await this.#getUsable();
    this.#unansweredSince ??= performance.now();
    try {
      const answer = await client.sendCommand(args, options);
      this.#unansweredSince = undefined;
      return answer;
    } catch (error) {
      if (isErrorReply(error)) this.#unansweredSince = undefined;
      // In the pause the answer is ignored: the server may be promoted, or replaced, meanwhile.
      const mayReplace = performance.now() - this.#replacedAt >= this.#pauseMs;
      if (mayReplace && REPLICA_ERROR.test(messageOf(error))) this.#isReplica = true;
      throw error;
    }
  }

  close(): void {
    this.#isClosed = true;
    destroyClient(this.#client);
  }

  async #create(): Promise<SingleClient> {
    const client = await createOwnClient(this.#url, this.#heartbeatMs, this.#onError);
    // The client has connected, perhaps again.
    client.on('ready', () => {
      this.#unansweredSince = undefined;
      this.#isReplica = false;
    });
    return client;
  }

  /** @returns the client, or a new one if the client must be replaced */
  async #getUsable(): Promise<SingleClient> {
    for (;;) {
      const current = this.get();
      const client = await current;
      if (current !== this.#client) continue;
      const problem = client.isReady && !this.#isClosed ? this.#findProblem() : undefined;
      if (problem === undefined) return client;
      this.#onError(new Error(`${problem}; connecting again`));
      this.#replace(current);
    }
  }

  /** @returns why the client must be replaced; `undefined` if it need not be */
  #findProblem(): string | undefined {
    const waitedMs = performance.now() - (this.#unansweredSince ?? Infinity);
    if (waitedMs >= 3 * this.#heartbeatMs) return 'Redis does not answer any more';
    return this.#isReplica ? 'Redis is a replica' : undefined;
  }

  #replace(current: Promise<SingleClient>): void {
    const now = performance.now();
    // The pauses grow as long as the server remains a replica.
    const isAgain = this.#isReplica && now - this.#replacedAt < 3 * this.#pauseMs;
    this.#pauseMs = isAgain ? Math.min(2 * this.#pauseMs, MAX_PAUSE_MS) : this.#heartbeatMs;
    this.#replacedAt = now;
    this.#unansweredSince = undefined;
    this.#isReplica = false;
    this.#client = undefined;
    // Its pending commands reject.
    destroyClient(current);
    this.onReplaced?.();
  }
}

// The replies of a replica to a write, and to any command while it cannot reach its primary and
// `replica-serve-stale-data` is `no`.
const REPLICA_ERROR = /^(READONLY|MASTERDOWN) /;

// Maximum time in ms between two replacements of the client of a replica.
const MAX_PAUSE_MS = 300_000;

function destroyClient(client: Promise<SingleClient> | undefined): void {
  client?.then((created) => created.destroy()).catch(() => {});
}

async function createOwnClient(
  url: string,
  heartbeatMs: number,
  onError: (error: unknown) => void,
): Promise<SingleClient> {
  // The package is an optional peer: an application that passes a client may not have it here.
  const { createClient } = await import('redis').catch((cause: unknown) => {
    throw refusedError('redisBroker({ url }) needs the npm package `redis`', cause);
  });
  const client = createClient({
    url,
    pingInterval: heartbeatMs,
    socket: {
      socketTimeout: 3 * heartbeatMs,
      // Without a strategy, node-redis does not connect again after a socket timeout.
      reconnectStrategy: (tries) => Math.min(50 * 2 ** tries, 2_000) + Math.random() * 200,
    },
  });
  client.on('error', onError);
  // A failure is reported as an 'error' event too, and the client tries again.
  client.connect().catch(() => {});
  return client as unknown as SingleClient;
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
        throw refusedError(
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
