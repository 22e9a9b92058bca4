/** Servers and clients, each a process of its own. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { compileClient, cpuTime, twoCpus } from './machine.mjs';

const running = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

const agent = new http.Agent({ keepAlive: true });

/** The machine as one benchmark uses it. */
export class Bench {
  #client;
  #cpus;

  /**
   * @param {boolean} pinned whether server and client get a CPU each, where there are two
   * @param {string} [client] the load client, if it has been compiled already
   */
  constructor(pinned, client = compileClient()) {
    this.#client = client;
    this.#cpus = pinned ? twoCpus() : undefined;
  }

  /** In words, for the report. */
  get pinning() {
    return this.#cpus === undefined
      ? 'not pinned'
      : `server on CPU ${this.#cpus.server}, client on CPU ${this.#cpus.client}`;
  }

  /** @param {{ file: string, env?: Record<string, string>, args?: readonly string[] }} variant */
  async startServer({ file, env = {}, args = [] }) {
    const command = [process.execPath, ...args, join(import.meta.dirname, 'servers', file)];
    const child = this.#spawn(command, this.#cpus?.server, { NODE_ENV: 'production', ...env });
    const { port, control } = await child.next();
    return new Server(child, port, control);
  }

  /**
   * Connects so many streams to a server.
   * @param {Server} server
   * @param {{ path?: string, n: number, groups?: number, lastEventId?: string, events?: number, reads?: boolean, together?: boolean }} streams
   *   `events`: how many each has to get before it counts as connected; `reads`: whether anything behind the head is read;
   *   `together`: thousands connect at once
   */
  async connect(
    server,
    { path = '/listen', n, groups = 0, lastEventId, events = 0, reads = true, together = false },
  ) {
    const options = ['-p', server.port, '-u', path, '-n', n, '-g', groups, '-e', events].map(
      String,
    );
    if (lastEventId !== undefined) options.push('-H', `Last-Event-ID: ${lastEventId}`);
    if (!reads) options.push('-z');
    if (together) options.push('-w', '4000');
    // Spinning, it costs the server no interrupts; on one CPU it would take the server's time.
    if (this.#cpus === undefined || !reads) options.push('-S');
    const child = this.#spawn([this.#client, ...options], this.#cpus?.client, {});
    const { connected } = await child.next();
    if (connected !== n) throw new Error(`only ${connected} of ${n} streams came about`);
    return new Client(child, n);
  }

  #spawn(command, cpu, env) {
    // taskset becomes the command: its process id is the command's.
    const [file, ...args] =
      cpu === undefined ? command : ['taskset', '-c', String(cpu), ...command];
    return new Child(
      spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...env } }),
    );
  }
}

/** A process that answers with lines of JSON. */
class Child {
  #process;
  #lines;

  constructor(child) {
    this.#process = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    running.add(child);
    child.once('exit', () => running.delete(child));
  }

  get pid() {
    return this.#process.pid;
  }

  say(line) {
    this.#process.stdin.write(`${line}\n`);
  }

  async next() {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`${this.#process.spawnargs.join(' ')} ended before it answered`);
    return JSON.parse(value);
  }

  async stop() {
    if (!running.has(this.#process)) return;
    const exit = once(this.#process, 'exit');
    this.#process.kill('SIGKILL');
    await exit;
  }
}

class Server {
  #child;
  #control;

  constructor(child, port, control) {
    this.#child = child;
    this.port = port;
    this.#control = control;
  }

  get pid() {
    return this.#child.pid;
  }

  get cpu() {
    return cpuTime(this.pid);
  }

  /** @returns {Promise<any>} */
  ask(command, query = {}) {
    const path = `${command}?${new URLSearchParams(query)}`;
    return new Promise((resolve, reject) => {
      const request = http.get({ host: '127.0.0.1', port: this.#control, path, agent }, (res) => {
        let text = '';
        res.setEncoding('utf8').on('data', (part) => {
          text += part;
        });
        res.on('end', () =>
          res.statusCode === 200 ? resolve(JSON.parse(text)) : reject(new Error(text)),
        );
      });
      request.on('error', reject);
    });
  }

  /** Waits until the streams of a client that has gone are gone here, too. */
  async empty() {
    for (;;) {
      const { connections } = await this.ask('/connections');
      if (connections === 0) return;
      await sleep(20);
    }
  }

  stop() {
    return this.#child.stop();
  }
}

class Client {
  #child;
  #streams;

  constructor(child, streams) {
    this.#child = child;
    this.#streams = streams;
  }

  /** Begins to count. @returns what waits until each stream has got so many events, and tells how that went */
  async expect(events) {
    this.#child.say(`start ${events * this.#streams} 120000`);
    await this.#child.next();
    return async () => {
      const { min_per_conn: min, max_per_conn: max, ...result } = await this.#child.next();
      return {
        ...result,
        ok: result.done === 1 && result.closed === 0 && min === events && max === events,
      };
    };
  }

  stop() {
    return this.#child.stop();
  }
}
