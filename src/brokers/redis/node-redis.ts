/**
 * The parts of node-redis 5 and later that are used. Its own types are not imported, because they
 * differ between the three kinds of clients and between versions.
 */

/** Options of one command, in place of the application's. */
export interface CommandOptions {
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

/** Where a client connects to. */
export interface SocketOptions {
  readonly host?: string | undefined;
  readonly port?: number | string | undefined;
  readonly path?: string | undefined;
}

/** A client of one server. */
export interface SingleClient extends RedisSubscriber {
  readonly options?: { readonly socket?: SocketOptions; readonly database?: number };
  /** Whether the client is connected. */
  readonly isReady: boolean;
  sendCommand(args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(overrides: object): RedisSubscriber;
}

/** A client of a Cluster. */
export interface ClusterClient {
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
export interface SentinelClient {
  sendCommand(isReadonly: boolean, args: string[], options: CommandOptions): Promise<unknown>;
  duplicate(): RedisSubscriber;
}
