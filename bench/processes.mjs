/**
 * The processes of the benchmark. The driver talks to a server through its control port, and to a
 * client through stdin and stdout:
 *
 *     driver ──HTTP──▶ control port of the server
 *       │                  │ measured port
 *       └──stdin────▶ client (in C) ◀── streams
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { chooseCpus, compileClient, cpuTime } from './machine.mjs';

const running = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

const agent = new http.Agent({ keepAlive: true });

/** Starts servers and clients, and pins them to CPUs. */
export class Bench {
  #clientPath;
  #cpus;

  /**
   * @param {boolean} isPinned whether server and client get one CPU each, if there are two
   * @param {string} [clientPath] the path of the load client, if it has been compiled
   */
  constructor(isPinned, clientPath = compileClient()) {
    this.#clientPath = clientPath;
    this.#cpus = isPinned ? chooseCpus() : undefined;
  }

  /** The use of the CPUs, for the report. */
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
   * Connects streams to a server, and waits until all are connected.
   * @param {Server} server
   * @param {object} streams
   * @param {string} [streams.path]
   * @param {number} streams.n number of streams
   * @param {number} [streams.groups] number of paths over which the streams are spread
   * @param {string} [streams.lastEventId]
   * @param {number} [streams.events] number of events after which a stream counts as connected
   * @param {boolean} [streams.reads] whether the client reads the body of the response
   * @param {boolean} [streams.together] whether thousands of streams connect at the same time
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
    // A client that spins on a CPU of its own causes no interrupts for the server. On a shared CPU
    // it would take the time of the server, so it sleeps.
    if (this.#cpus === undefined || !reads) options.push('-S');
    const child = this.#spawn([this.#clientPath, ...options], this.#cpus?.client, {});
    const { connected } = await child.next();
    if (connected !== n) throw new Error(`only ${connected} of ${n} streams connected`);
    return new Client(child, n);
  }

  /**
   * Starts a process, pinned to a CPU if one is given.
   * @param {readonly string[]} command file and arguments
   * @param {number | undefined} cpu
   * @param {Record<string, string>} env additional environment variables
   */
  #spawn(command, cpu, env) {
    // `taskset` replaces itself by the command, so the process id is that of the command.
    const [file, ...args] =
      cpu === undefined ? command : ['taskset', '-c', String(cpu), ...command];
    return new Child(
      spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...env } }),
    );
  }
}

/** A child process that writes lines of JSON. */
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

  writeLine(line) {
    this.#process.stdin.write(`${line}\n`);
  }

  /** @returns {Promise<any>} the next line of JSON */
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

/** A server under test. */
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

  /** @returns the CPU time of the server so far; see {@link cpuTime} */
  readCpuTime() {
    return cpuTime(this.pid);
  }

  /**
   * Sends a command to the control port.
   * @returns {Promise<any>} the answer
   */
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

  /** Waits until the server has noticed that all clients have left. */
  async waitUntilEmpty() {
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

/** A running load client. */
class Client {
  #child;
  #streamCount;

  constructor(child, streamCount) {
    this.#child = child;
    this.#streamCount = streamCount;
  }

  /**
   * Starts to count events.
   * @param {number} events number of events that each stream should receive
   * @returns a function that waits for the events and resolves with the result. `ok` is true if
   * each stream has received exactly that number of events and none was closed.
   */
  async expect(events) {
    this.#child.writeLine(`start ${events * this.#streamCount} 120000`);
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
