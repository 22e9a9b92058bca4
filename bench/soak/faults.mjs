/** The faults of Redis, at random times. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Causes faults until stopped. */
export class Faults {
  /** Number of faults, by name. */
  counts = {};
  #redis;
  #interval;
  #isStopped = false;
  #running;

  /**
   * @param {import('../redis.mjs').RedisServer} redis
   * @param {number} interval average time between two faults, in ms
   */
  constructor(redis, interval) {
    this.#redis = redis;
    this.#interval = interval;
  }

  start() {
    this.#isStopped = false;
    this.#running = this.#run();
  }

  /** Stops. @returns a promise that resolves when the last fault is over */
  async stop() {
    this.#isStopped = true;
    await this.#running;
  }

  async #run() {
    let until = this.#next();
    while (!this.#isStopped) {
      await sleep(200);
      if (performance.now() < until) continue;
      const [name, run] = this.#draw();
      this.counts[name] = (this.counts[name] ?? 0) + 1;
      await run();
      until = this.#next();
    }
  }

  #next() {
    return performance.now() + this.#interval * (0.5 + Math.random());
  }

  /** @returns name and function of a fault, at random according to the weights */
  #draw() {
    let drawn = Math.random() * KINDS.reduce((sum, { weight }) => sum + weight, 0);
    const { name, run } = KINDS.find(({ weight }) => (drawn -= weight) < 0);
    return [name, () => run(this.#redis)];
  }
}

/** The kinds of faults. A kind with a higher weight is drawn more often. */
const KINDS = [
  { name: 'Pub/Sub killed', weight: 3, run: killPubSub },
  { name: 'Pub/Sub killed again and again', weight: 2, run: killPubSubOften },
  { name: 'commands paused', weight: 3, run: pauseCommands },
  { name: 'all connections killed', weight: 2, run: killAll },
  { name: 'restarted', weight: 1, run: (redis) => restart(redis, 'SIGTERM') },
  { name: 'crashed', weight: 1, run: (redis) => restart(redis, 'SIGKILL') },
];

/** Kills the subscribing connections of all nodes. */
async function killPubSub({ client }) {
  await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
}

/** Kills the connections many times within a second, also while the nodes recover. */
async function killPubSubOften(redis) {
  const kills = 8 + Math.floor(Math.random() * 30);
  for (let kill = 0; kill < kills; kill++) {
    await killPubSub(redis);
    await sleep(Math.random() * 60);
  }
}

/** Lets Redis answer no command for up to 4.3 s. */
async function pauseCommands({ client }) {
  const ms = 300 + Math.floor(Math.random() * 4_000);
  await client.sendCommand(['CLIENT', 'PAUSE', String(ms), 'ALL']);
  await sleep(ms);
}

/** Kills all connections of all nodes. */
async function killAll({ client }) {
  await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'pubsub']);
  await client.sendCommand(['CLIENT', 'KILL', 'TYPE', 'normal']);
}

/** Redis writes its log to disk with each write, so a restart does not lose accepted events. */
async function restart(redis, signal) {
  await redis.stop(signal);
  await sleep(Math.random() * 3_000);
  await redis.launch();
}
