/** The node processes of the soak. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import process from 'node:process';
import { cpuTime } from '../machine.mjs';

const running = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** A node process, and the answers that are awaited from it. */
export class SoakNode {
  #child;
  #lastId = 0;
  #pendingAnswers = new Map();

  constructor(index, child, port) {
    this.index = index;
    this.port = port;
    this.#child = child;
    child.on('message', ({ id, answer }) => {
      this.#pendingAnswers.get(id)?.(answer);
      this.#pendingAnswers.delete(id);
    });
  }

  get isRunning() {
    return running.has(this.#child);
  }

  /**
   * Sends a command to the node.
   * @returns {Promise<any>} the answer; never settles if the node ends before
   */
  ask(kind, parameters = {}) {
    const id = ++this.#lastId;
    return new Promise((resolve) => {
      this.#pendingAnswers.set(id, resolve);
      this.#child.send({ id, kind, ...parameters });
    });
  }

  get cpuMs() {
    return this.isRunning ? cpuTime(this.#child.pid).us / 1e3 : 0;
  }

  stop() {
    this.#child.kill('SIGKILL');
  }
}

/** Starts a node. @returns a promise that resolves when the node is listening */
export async function startNode(index, redisUrl, dist) {
  const env = {
    ...process.env,
    NODE_ENV: 'production',
    SOAK_REDIS: redisUrl,
    ...(dist !== undefined && { BENCH_DIST: dist }),
  };
  const child = fork(join(import.meta.dirname, 'node.mjs'), { execArgv: ['--expose-gc'], env });
  running.add(child);
  child.once('exit', () => running.delete(child));
  const [{ port }] = await once(child, 'message');
  return new SoakNode(index, child, port);
}
