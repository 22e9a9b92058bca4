/** The node processes, as the soak sees them. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import process from 'node:process';
import { cpuTime } from '../machine.mjs';

const running = new Set();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export class SoakNode {
  #child;
  #asked = 0;
  #waiting = new Map();

  constructor(index, child, port) {
    this.index = index;
    this.port = port;
    this.#child = child;
    child.on('message', ({ id, answer }) => {
      this.#waiting.get(id)?.(answer);
      this.#waiting.delete(id);
    });
  }

  get isRunning() {
    return running.has(this.#child);
  }

  /** @returns {Promise<any>} never settles if the node dies */
  ask(kind, question = {}) {
    const id = ++this.#asked;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      this.#child.send({ id, kind, ...question });
    });
  }

  get cpuMs() {
    return this.isRunning ? cpuTime(this.#child.pid).us / 1e3 : 0;
  }

  stop() {
    this.#child.kill('SIGKILL');
  }
}

/** Resolves when the node serves. */
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
