/** The two connections to Redis: one for commands, and one line, made anew whenever it breaks, on which a node hears of events. */
import { SseError } from '../../common/errors.ts';
import { withLimits } from '../../common/async.ts';

/** A client of node-redis: what `createClient()`, `createCluster()` or `createSentinel()` returns. */
export interface RedisClient {
  duplicate(...overrides: never[]): unknown;
  sendCommand(...command: never[]): Promise<unknown>;
}

// What is used of node-redis, 5 and later, which is not imported: its types differ between the three and from version to version.

interface CommandOptions {
  readonly abortSignal: AbortSignal;
  // The application's own would change the answers.
  readonly typeMapping: object;
  // Ours counts from the call, not from when it is queued.
  readonly timeout: undefined;
}

type Listener = (message: string, topic: string) => void;

interface Emitter {
  on(event: string, listener: (value: unknown) => void): unknown;
}

interface Subscriber extends Emitter {
  connect(): Promise<unknown>;
  destroy(): void | Promise<void>;
  subscribe(topics: string[], listener: Listener): Promise<void>;
  unsubscribe(topics: string[], listener: Listener): Promise<void>;
  sSubscribe(topics: string[], listener: Listener): Promise<void>;
  sUnsubscribe(topics: string[], listener: Listener): Promise<void>;
}

interface SocketOptions {
  readonly host?: string | undefined;
  readonly port?: number | string | undefined;
  readonly path?: string | undefined;
}

interface Single extends Subscriber {
  readonly options?: { readonly socket?: SocketOptions; readonly database?: number };
  sendCommand(args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(overrides: object): Subscriber;
}

interface Cluster {
  readonly slots: readonly ({ readonly master: object } | undefined)[];
  nodeClient(node: object): Promise<Single>;
  sendCommand(
    key: string,
    isReadonly: boolean,
    args: string[],
    options: CommandOptions,
  ): Promise<unknown>;
}

interface Sentinel {
  sendCommand(isReadonly: boolean, args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(): Subscriber;
}

/** How Redis is reached. */
export interface RedisConnection {
  /** Where Redis is, for people. */
  readonly address: string;
  /** Whether it is a Cluster, where all that belongs together is in one shard. */
  readonly isSharded: boolean;
  /** Whether a command may be sent again by itself when its answer got lost. */
  readonly repeats: boolean;
  /**
   * The number of the database that it uses.
   * @param isAnew whether to ask again: the application may have selected another
   */
  database(signal?: AbortSignal, isAnew?: boolean): Promise<number>;
  /** Sends a command; an abort takes it back if it has not been written yet. */
  send(key: string, args: string[], signal: AbortSignal): Promise<unknown>;
  /** A connection of our own that will listen, not connected yet. */
  subscriber(): Promise<Subscriber>;
  close(): void;
}

/** @param prefix the hash tag of all keys */
export function connectionOf(client: RedisClient, prefix: string): RedisConnection {
  if ('slots' in client && 'nodeClient' in client) {
    return clusterConnection(client as unknown as Cluster, prefix);
  }
  if ('getMasterNode' in client) return sentinelConnection(client as unknown as Sentinel);
  const single = client as unknown as Single;
  return {
    ...singleConnection(
      addressOf(single.options?.socket ?? {}),
      () => Promise.resolve(single),
      () => {},
    ),
    database: databaseOf(
      (args, options) => single.sendCommand(args, options),
      single.options?.database ?? 0,
    ),
  };
}

/**
 * A client of our own, made when it is first needed.
 * @param report what it says of itself
 */
export function ownConnection(
  url: string,
  heartbeat: number,
  report: (error: unknown) => void,
): RedisConnection {
  let made: Promise<Single & { destroy(): void }> | undefined;

  async function make(): Promise<Single & { destroy(): void }> {
    // An optional peer, and needed by nobody who brings a client.
    const { createClient } = await import('redis').catch((cause: unknown) => {
      throw refused('redisBroker({ url }) needs the npm package `redis`', cause);
    });
    // A peer that answers nothing is found, and what waits for it rejected.
    const client = createClient({
      url,
      pingInterval: heartbeat,
      // By itself node-redis would give up for good on a socket that was silent for too long.
      socket: {
        socketTimeout: 3 * heartbeat,
        reconnectStrategy: (tries) => Math.min(50 * 2 ** tries, 2_000) + Math.random() * 200,
      },
    });
    client.on('error', report);
    // It tries again by itself, and says so.
    client.connect().catch(() => {});
    return client as unknown as Single & { destroy(): void };
  }

  const { hostname: host, port } = new URL(url);
  return singleConnection(
    addressOf({ host, port }),
    () => (made ??= make()),
    () => {
      made?.then((client) => client.destroy()).catch(() => {});
    },
  );
}

/** Where node-redis connects to with these options. */
function addressOf({ host, port, path }: SocketOptions): string {
  return (
    path ??
    `${host === undefined || host === '' ? 'localhost' : host}:${port === undefined || port === '' ? 6_379 : port}`
  );
}

function singleConnection(
  address: string,
  client: () => Promise<Single>,
  close: () => void,
): RedisConnection {
  return {
    address,
    isSharded: false,
    repeats: false,
    database: async () => (await client()).options?.database ?? 0,
    send: async (_key, args, signal) => (await client()).sendCommand(args, optionsFor(signal)),
    subscriber: async () => listenerLike(await client()),
    close,
  };
}

function clusterConnection(cluster: Cluster, prefix: string): RedisConnection {
  const slot = slotOf(prefix);
  return {
    address: 'the nodes of the Cluster',
    isSharded: true,
    repeats: false,
    // A Cluster has one.
    database: () => Promise.resolve(0),
    send: (key, args, signal) => cluster.sendCommand(key, false, args, optionsFor(signal)),
    async subscriber() {
      const master = cluster.slots[slot]?.master;
      if (master === undefined) {
        throw refused('the Cluster has nobody for our slot now, or its client is not connected');
      }
      return listenerLike(await cluster.nodeClient(master));
    },
    close: () => {},
  };
}

function sentinelConnection(sentinel: Sentinel): RedisConnection {
  return {
    address: 'the primary that Sentinel names',
    isSharded: false,
    repeats: true,
    database: databaseOf((args, options) => sentinel.sendCommand(false, args, options), 0),
    send: (_key, args, signal) => sentinel.sendCommand(false, args, optionsFor(signal)),
    subscriber: () => Promise.resolve(sentinel.duplicate()),
    close: () => {},
  };
}

/**
 * Asks Redis which database the application's client has selected, since the client does not say.
 * @param given what its options say, for users who may not ask (`CLIENT INFO`)
 */
function databaseOf(
  send: (args: string[], options: CommandOptions) => Promise<unknown>,
  given: number,
): (signal?: AbortSignal, isAnew?: boolean) => Promise<number> {
  let known: number | undefined;

  async function ask(signal: AbortSignal): Promise<number> {
    try {
      const digits = /\bdb=(\d+)/.exec(
        String(await send(['CLIENT', 'INFO'], optionsFor(signal))),
      )?.[1];
      return digits === undefined ? given : Number(digits);
    } catch (error) {
      if (/^(NOPERM|ERR) /.test(textOf(error))) return given;
      throw error;
    }
  }

  return async (signal = new AbortController().signal, isAnew = false) => {
    if (known === undefined || isAnew) known = await ask(signal);
    return known;
  };
}

/** It must not connect again by itself: what was missed meanwhile would go unnoticed. */
function listenerLike(client: Single): Subscriber {
  return client.duplicate({ socket: { ...client.options?.socket, reconnectStrategy: false } });
}

function optionsFor(abortSignal: AbortSignal): CommandOptions {
  return { abortSignal, typeMapping: {}, timeout: undefined };
}

/** The hash slot of a key or hash tag, as Redis computes it: CRC16 (XMODEM) modulo 16384. */
function slotOf(tag: string): number {
  let crc = 0;
  for (const byte of Buffer.from(tag)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) {
      crc = ((crc << 1) ^ ((crc & 0x80_00) === 0 ? 0 : 0x10_21)) & 0xff_ff;
    }
  }
  return crc % 16_384;
}

/** A connection that listens. When it breaks it is done with. */
export class SubscriberConnection {
  readonly #connection: RedisConnection;
  readonly #listener: Listener;
  readonly #timeout: number;
  readonly #end = new AbortController();
  #client: Subscriber | undefined;

  /** @param timeout ms that Redis has to answer */
  constructor(connection: RedisConnection, timeout: number, listener: Listener) {
    this.#connection = connection;
    this.#timeout = timeout;
    // Nothing comes from a line that is closed.
    this.#listener = (message, topic) => {
      if (!this.broken.aborted) listener(message, topic);
    };
  }

  /** Aborted when it breaks or is closed, with the error. */
  get broken(): AbortSignal {
    return this.#end.signal;
  }

  async connect(): Promise<void> {
    const client = await this.#answered(this.#connection.subscriber());
    this.#client = client;
    // For good: an 'error' without a listener would end the process.
    client.on('error', (error) => this.#break(error));
    const connecting = client.connect();
    // A line that was closed meanwhile would stay connected.
    connecting.then(() => this.broken.aborted && this.#destroy()).catch(() => {});
    await this.#answered(connecting);
    for (const event of ['end', 'reconnecting', 'topology-change', 'sharded-channel-moved']) {
      client.on(event, () =>
        this.#break(new Error(`the connection to Redis has changed: ${event}`)),
      );
    }
  }

  /** Resolves when Redis has said that they are listened to. */
  async subscribe(topics: string[]): Promise<void> {
    const client = this.#client as Subscriber;
    await this.#answered(
      this.#connection.isSharded
        ? client.sSubscribe(topics, this.#listener)
        : client.subscribe(topics, this.#listener),
    );
  }

  unsubscribe(topics: string[]): void {
    const client = this.#client;
    if (client === undefined || this.broken.aborted) return;
    const done = this.#connection.isSharded
      ? client.sUnsubscribe(topics, this.#listener)
      : client.unsubscribe(topics, this.#listener);
    done.catch((error: unknown) => this.#break(error));
  }

  close(): void {
    // Also one that has broken by itself: its client still has timers.
    this.#break(new Error('the line is closed'));
    this.#destroy();
  }

  #break(error: unknown): void {
    this.#end.abort(
      error instanceof Error
        ? error
        : new Error('the connection to Redis has failed', { cause: error }),
    );
  }

  #destroy(): void {
    const client = this.#client;
    if (client === undefined) return;
    // One that is closed already says so by an error, at once or later.
    Promise.resolve()
      .then(() => client.destroy())
      .catch(() => {});
  }

  #answered<T>(answer: Promise<T>): Promise<T> {
    return withLimits(answer, {
      signal: this.broken,
      timeoutMs: this.#timeout,
      createTimeoutError: late,
    });
  }
}

/** An error after which nothing has happened. */
export function refused(message: string, cause?: unknown): SseError {
  return new SseError('ERR_SSE_BROKER', message, { cause, delivery: 'none' });
}

// Redis says what it refuses in a line that begins with a code in capitals.
const REPLY = /^[A-Z]{2,} /;

// Errors of node-redis about a command that it has never sent.
const UNSENT = /^The client is |^The queue is full|aborted/;

/** Whether Redis itself has answered with the error, so that the connection is well. */
export function isReply(error: unknown): boolean {
  const cause = error instanceof SseError && error.cause !== undefined ? error.cause : error;
  return !isSystemError(cause) && REPLY.test(textOf(cause));
}

/** An error of a command as ours, which says whether it may have had an effect. */
export function asBrokerError(error: unknown): SseError {
  if (error instanceof SseError) return error;
  const text = textOf(error);
  // The script returns what it refuses. An error that was raised inside it may have come after an effect.
  const isRaised = text.includes('user_script');
  const isNone = !isSystemError(error) && !isRaised && (REPLY.test(text) || UNSENT.test(text));
  const delivery = isNone ? 'none' : 'unknown';
  return new SseError('ERR_SSE_BROKER', `Redis has not accepted it: ${text}`, {
    cause: error,
    delivery,
  });
}

function isSystemError(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'code' in error;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function late(ms: number): Error {
  return new Error(`Redis has not answered within ${ms} ms`);
}
