/** The Redis that all nodes share: that of `REDIS_URL`, or one that is started for the demo and ends with it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';
import type { Haiku } from '../haiku.ts';
import { KEEP, type HaikuStore } from '../store.ts';

export type RedisClient = ReturnType<typeof createClient>;

/** Keeps the last haikus where every node finds them. */
export class RedisStore implements HaikuStore {
  readonly #client: RedisClient;

  constructor(client: RedisClient) {
    this.#client = client;
  }

  async add(haiku: Haiku): Promise<void> {
    await this.#client
      .multi()
      .lPush('haikus', JSON.stringify(haiku))
      .lTrim('haikus', 0, KEEP - 1)
      .exec();
  }

  async last(): Promise<readonly Haiku[]> {
    const kept = await this.#client.lRange('haikus', 0, -1);
    return kept.map((text) => JSON.parse(text) as Haiku).toReversed();
  }
}

/** A client that says what is wrong, and comes back when Redis does. */
export async function connectTo(url: string): Promise<RedisClient> {
  const client: RedisClient = createClient({ url });
  client.on('error', (error: Error) => console.error(`Redis: ${error.message}`));
  await client.connect();
  return client;
}

/**
 * Starts a server of the demo's own on a free port; its data is gone when it ends.
 * @throws {Error} where there is none on this machine
 */
export async function startRedis(): Promise<{ url: string; stop: () => Promise<void> }> {
  const port = await freePort();
  const dir = mkdtempSync(join(tmpdir(), 'haiku-redis-'));
  const settings = ['--bind', '127.0.0.1', '--port', `${port}`, '--dir', dir, '--save', ''];
  // In a process group of its own: Ctrl-C is for the demo, which ends Redis when it does not need it any more.
  const server = spawn('redis-server', settings, { stdio: 'ignore', detached: true });
  process.once('exit', () => {
    server.kill();
    rmSync(dir, { recursive: true, force: true });
  });
  try {
    await once(server, 'spawn');
  } catch (cause) {
    throw new Error('the demo needs Redis: install redis-server, or name one in REDIS_URL', {
      cause,
    });
  }
  const url = `redis://127.0.0.1:${port}`;
  // It is there as soon as somebody can connect.
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

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
