/** A redis-server of the benchmark's own, on a free port of the loopback. */
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

const START_MS = 30_000;

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

  /** Starts the process, again after `stop()`, on the same port and with the files it had. */
  async launch() {
    const given = {
      port: this.port,
      bind: '127.0.0.1',
      dir: this.#directory ?? tmpdir(),
      save: '',
      ...this.#options,
    };
    const args = Object.entries(given).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const child = spawn('redis-server', args, { stdio: 'ignore' });
    const failed = once(child, 'error').then(([cause]) => {
      throw new Error('redis-server cannot be started', { cause });
    });
    failed.catch(() => {});
    this.#child = child;
    running.add(this);
    await Promise.race([this.#answers(), failed]);
    if (this.client === undefined) {
      this.client = createClient({ url: this.url, socket: { reconnectStrategy: 50 } });
      // The next command tells it.
      this.client.on('error', () => {});
      await this.client.connect();
    }
  }

  /** @param {NodeJS.Signals} signal */
  async stop(signal) {
    const exit = once(this.#child, 'exit');
    this.#child.kill(signal);
    await exit;
  }

  remove() {
    running.delete(this);
    this.#child?.kill('SIGKILL');
    if (this.#directory !== undefined) rmSync(this.#directory, { recursive: true, force: true });
  }

  /** Ends the server and the client. */
  async close() {
    this.client?.destroy();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      await this.stop('SIGKILL');
    }
    this.remove();
  }

  /** @returns {Promise<Record<string, string>>} a section of INFO by field */
  async info(section) {
    const text = await this.client.info(section);
    return Object.fromEntries(
      [...text.matchAll(/^(\w+):(.*?)\r?$/gm)].map(([, name, value]) => [name, value]),
    );
  }

  async #answers() {
    const deadline = performance.now() + START_MS;
    for (;;) {
      const probe = createClient({ url: this.url, socket: { reconnectStrategy: false } });
      probe.on('error', () => {});
      try {
        await probe.connect();
        if ((await probe.ping()) === 'PONG') return;
      } catch (error) {
        if (performance.now() > deadline) {
          throw new Error('redis-server has not started', { cause: error });
        }
      } finally {
        if (probe.isOpen) probe.destroy();
      }
      await sleep(20);
    }
  }
}

/**
 * Starts a redis-server that keeps nothing on disk, unless the options say so.
 * @param {Record<string, string | number>} [options] of its configuration
 */
export async function startRedis(options = {}) {
  const server = new RedisServer(await freePort(), options);
  await server.launch();
  return server;
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}
