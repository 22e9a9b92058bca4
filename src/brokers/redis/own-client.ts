/** A client of node-redis that the broker makes, and replaces. */
import type { CommandOptions, SingleClient } from './node-redis.ts';
import { isErrorReply, messageOf, noEffectError } from './redis-errors.ts';

/**
 * The client of an own connection. It is replaced in two cases that node-redis does not notice:
 *
 * - It is connected, and nothing is answered any more: the connection may be dead without being
 *   closed, because a firewall has forgotten it, or the server has lost its power. The socket
 *   timeout of node-redis begins again with each command, and a node sends commands regularly.
 * - Its server is a replica, which refuses commands: a failover may have left the connection open.
 *   A new connection leads to the new primary, if the address does.
 */
export class OwnClient {
  readonly #url: string;
  readonly #heartbeatMs: number;
  readonly #onError: (error: unknown) => void;
  #client: Promise<SingleClient> | undefined;
  #isClosed = false;
  // Time of the first command since the last answer.
  #unansweredSince: number | undefined;
  // Whether the server has refused a command because it is a replica.
  #isReplica = false;
  #refusedAt = 0;
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
      if (REPLICA_ERROR.test(messageOf(error))) this.#onRefused();
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

  /** The server has refused a command, because it is a replica. */
  #onRefused(): void {
    const now = performance.now();
    // A node makes lease calls more often than once in `heartbeatMs`. If none was refused for so
    // long, then the server was a primary until now, and this refusal is a new one.
    const isNew = now - Math.max(this.#refusedAt, this.#replacedAt) >= this.#heartbeatMs;
    if (isNew) this.#pauseMs = 0;
    this.#refusedAt = now;
    // In the pause the answer is ignored: the server may be promoted, or replaced, meanwhile.
    if (now - this.#replacedAt >= this.#pauseMs) this.#isReplica = true;
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
    throw noEffectError('redisBroker({ url }) needs the npm package `redis`', cause);
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
