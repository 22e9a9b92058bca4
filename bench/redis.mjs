/** A `redis-server` for the benchmark, on a free port of 127.0.0.1. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from 'redis';

const running = new Set();
process.on('exit', () => {
  for (const server of running) server.remove();
});

// Time limit for the start of the server, in ms.
const START_TIMEOUT_MS = 30_000;

/** A `redis-server` process, which can be stopped and started again. */
export class RedisServer {
  /** A connected client of the default user. */
  client;
  #child;
  #directory;
  #options;

  constructor(port, options) {
    this.port = port;
    this.#options = options;
    if ('appendonly' in options) {
      this.#directory = mkdtempSync(join(tmpdir(), 'res-sse-bench-redis-'));
    }
  }

  get url() {
    return `redis://127.0.0.1:${this.port}`;
  }

  get pid() {
    return this.#child.pid;
  }

  /** Starts the process. After `stop()`, the port and the files on disk are the same as before. */
  async launch() {
    const settings = {
      port: this.port,
      bind: '127.0.0.1',
      dir: this.#directory ?? tmpdir(),
      save: '',
      ...this.#options,
    };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const child = spawn('redis-server', args, { stdio: 'ignore' });
    const failed = once(child, 'error').then(([cause]) => {
      throw new Error('redis-server cannot be started', { cause });
    });
    failed.catch(() => {});
    this.#child = child;
    running.add(this);
    await Promise.race([this.#waitUntilReady(), failed]);
    if (this.client === undefined) {
      this.client = createClient({ url: this.url, socket: { reconnectStrategy: 50 } });
      // Ignored here, because the next command rejects with the error.
      this.client.on('error', () => {});
      await this.client.connect();
    }
  }

  /** Ends the process, and waits for its end. @param {NodeJS.Signals} signal */
  async stop(signal) {
    const exit = once(this.#child, 'exit');
    this.#child.kill(signal);
    await exit;
  }

  /** Kills the process and removes its files. */
  remove() {
    running.delete(this);
    this.#child?.kill('SIGKILL');
    if (this.#directory !== undefined) rmSync(this.#directory, { recursive: true, force: true });
  }

  /** Closes the client, ends the process and removes its files. */
  async close() {
    this.client?.destroy();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      await this.stop('SIGKILL');
    }
    this.remove();
  }

  /** @returns {Promise<Record<string, string>>} the fields of a section of INFO */
  async info(section) {
    const text = await this.client.info(section);
    return Object.fromEntries(
      [...text.matchAll(/^(\w+):(.*?)\r?$/gm)].map(([, name, value]) => [name, value]),
    );
  }

  /** Connects again and again until the server answers to PING. */
  async #waitUntilReady() {
    const deadline = performance.now() + START_TIMEOUT_MS;
    for (;;) {
      const probe = createClient({ url: this.url, socket: { reconnectStrategy: false } });
      probe.on('error', () => {});
      try {
        await probe.connect();
        if ((await probe.ping()) === 'PONG') return;
      } catch (error) {
        if (performance.now() > deadline) {
          throw new Error('redis-server did not start in time', { cause: error });
        }
      } finally {
        if (probe.isOpen) probe.destroy();
      }
      await sleep(20);
    }
  }
}

/**
 * Starts a `redis-server`. Without options the server stores nothing on disk.
 * @param {Record<string, string | number>} [options] options of the configuration of Redis
 */
export async function startRedis(options = {}) {
  const server = new RedisServer(await findFreePort(), options);
  await server.launch();
  return server;
}

/** @returns {Promise<number>} a port that was free a moment ago */
async function findFreePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}
