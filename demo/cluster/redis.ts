/** The Redis of the cluster: a server that is started for the demo, and the store of the haiku. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';
import type { Haiku } from '../haiku.ts';
import { MAX_HAIKU, type HaikuStore } from '../store.ts';

export type RedisClient = ReturnType<typeof createClient>;

// The key of the list in Redis, which has the newest haiku first.
const LIST_KEY = 'haikus';

/** Stores the latest haiku in Redis, so that all nodes share them. */
export class RedisStore implements HaikuStore {
  readonly #client: RedisClient;

  constructor(client: RedisClient) {
    this.#client = client;
  }

  async add(haiku: Haiku): Promise<void> {
    if ((await this.last()).some(({ id }) => id === haiku.id)) return;
    await this.#client
      .multi()
      .lPush(LIST_KEY, JSON.stringify(haiku))
      .lTrim(LIST_KEY, 0, MAX_HAIKU - 1)
      .exec();
  }

  async last(): Promise<readonly Haiku[]> {
    const texts = await this.#client.lRange(LIST_KEY, 0, -1);
    return texts.map((text) => JSON.parse(text) as Haiku).toReversed();
  }
}

/** Connects to Redis. The client prints its errors, and reconnects when the connection breaks. */
export async function connectTo(url: string): Promise<RedisClient> {
  const client: RedisClient = createClient({ url });
  client.on('error', (error: Error) => console.error(`Redis: ${error.message}`));
  await client.connect();
  return client;
}

/**
 * Starts a Redis server on a free port of 127.0.0.1. The server ends with this process, and its
 * data is not kept.
 * @returns the URL of the server, and a function that stops it
 * @throws {Error} if `redis-server` is not installed
 */
export async function startRedis(): Promise<{ url: string; stop: () => Promise<void> }> {
  const port = await findFreePort();
  const dir = mkdtempSync(join(tmpdir(), 'haiku-redis-'));
  const settings = ['--bind', '127.0.0.1', '--port', `${port}`, '--dir', dir, '--save', ''];
  // A process group of its own: Ctrl-C must not reach Redis before the nodes have ended.
  const server = spawn('redis-server', settings, { stdio: 'ignore', detached: true });
  process.once('exit', () => {
    server.kill();
    rmSync(dir, { recursive: true, force: true });
  });
  try {
    await once(server, 'spawn');
  } catch (cause) {
    throw new Error('the demo needs Redis: install redis-server, or set REDIS_URL', { cause });
  }
  const url = `redis://127.0.0.1:${port}`;
  // The client retries until the server accepts connections.
  const client = createClient({ url }).on('error', () => {});
  await client.connect();
  client.destroy();
  return {
    url,
    async stop() {
      server.kill();
      if (server.exitCode === null) await once(server, 'exit');
    },
  };
}

/** @returns a port that was free a moment ago */
async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
