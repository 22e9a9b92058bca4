/**
 * The phases of the soak:
 *
 *     start ─▶ load (warm-up) ─▶ empty ─▶ takeLevels ─▶ load (soak) ─▶ settle ─▶ empty ─▶ verdict
 */
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { cpuTime } from '../machine.mjs';
import { Checker } from './checker.mjs';
import { Crowd } from './crowd.mjs';
import { Faults } from './faults.mjs';
import { startNode } from './nodes.mjs';
import { drawOne, Publisher } from './publisher.mjs';
import {
  checkMemory,
  checkRedis,
  checkResources,
  describeMemory,
  describeRedis,
  hasSameResources,
  listRemaining,
  megabytes,
  usedBytes,
} from './levels.mjs';

const NODE_COUNT = 3;
const LINE_INTERVAL_MS = 30_000;
const AUDIT_INTERVAL_MS = 1_000;

// Time limit in ms after the last fault: for the recovery of the nodes, and for the events that the
// clients have missed.
const SETTLE_TIMEOUT_MS = 90_000;

// Time limit in ms for the nodes after the last client has left. A node stays subscribed to a
// channel for 10 s after its last client.
const EMPTY_TIMEOUT_MS = 60_000;

// Time limit in ms for the resources of the nodes to be the same as before.
const RESOURCES_TIMEOUT_MS = 20_000;

/** One run of the soak. */
export class Soak {
  #redis;
  #options;
  #nodes = [];
  #checker = new Checker();
  #publisher;
  #faults;
  #spoil;
  #levels;
  #startedAt = performance.now();
  // Used bytes of each node, by minute.
  #curve = [];
  #cpu = { at: 0, ms: 0 };
  #unsettled = '';
  #unemptied = '';
  #crowd;
  #clientCount = 0;

  /**
   * @param {import('../redis.mjs').RedisServer} redis
   * @param {object} options
   * @param {string} [options.dist] folder of the build
   * @param {number} options.every average time between two faults, in ms
   * @param {boolean} options.hasFaults
   * @param {string} [options.spoil] way in which the record of one client is changed
   */
  constructor(redis, options) {
    this.#redis = redis;
    this.#options = options;
    this.#spoil = options.spoil;
    this.#publisher = new Publisher(this.#checker, this.#choose);
    this.#faults = new Faults(redis, options.every);
  }

  /** @returns a running node, at random */
  #choose = () => drawOne(this.#nodes.filter(({ isRunning }) => isRunning));

  /** Starts the nodes and the checker. */
  async start() {
    const { dist } = this.#options;
    this.#nodes = await Promise.all(
      Array.from({ length: NODE_COUNT }, (unused, index) =>
        startNode(index, this.#redis.url, dist),
      ),
    );
    setInterval(() => this.#checker.audit(), AUDIT_INTERVAL_MS);
    const date = new Date().toISOString().slice(0, 16);
    print(`${date}Z, Node ${process.version}, ${NODE_COUNT} nodes, ${dist ?? 'dist'}`);
  }

  /**
   * Runs clients, publisher and faults.
   * @param {string} name name of the phase
   * @param {number} ms duration in ms
   */
  async load(name, ms) {
    const isSpoiled = name !== 'warm-up';
    this.#crowd = new Crowd(
      { checker: this.#checker, choose: this.#choose },
      isSpoiled ? this.#spoil : undefined,
    );
    this.#crowd.start();
    this.#publisher.start();
    if (this.#options.hasFaults) this.#faults.start();
    const end = performance.now() + ms;
    while (performance.now() < end) {
      await sleep(Math.min(LINE_INTERVAL_MS, end - performance.now()));
      await this.#printLine(name);
    }
    this.#publisher.stop();
    await this.#faults.stop();
  }

  /** Waits until all clients have received all events of their channels. */
  async settle() {
    this.#crowd.connectAll();
    const { clients } = this.#crowd;
    const channels = new Set(clients.flatMap((client) => client.channels));
    // The last event of each channel. A client that has received it has received all others.
    for (const channel of channels) void this.#publisher.publish(channel);
    if (!(await until(() => this.#checker.pending === 0, SETTLE_TIMEOUT_MS))) {
      this.#unsettled = 'some publishes have no answer; ';
    }
    const incompleteClients = () =>
      clients.filter((client) => !this.#checker.hasAll(client.channels, client.lastEventId));
    await until(() => incompleteClients().length === 0, SETTLE_TIMEOUT_MS);
    const incomplete = incompleteClients();
    for (const { name, node, lastEventId } of incomplete.slice(0, 5)) {
      this.#unsettled += `${name} on node ${node?.index} is at ${lastEventId || 'no id'}; `;
    }
    if (incomplete.length > 0) {
      this.#unsettled += `${incomplete.length} of ${clients.length} clients miss events`;
    }
    this.#checker.audit();
  }

  /** Disconnects all clients, and waits until the nodes have noticed. */
  async empty() {
    this.#clientCount += this.#crowd.totalCount;
    this.#crowd.leave();
    const isEmpty = async () => (await this.#describeRemaining()) === '';
    const hasEmptied = await until(isEmpty, EMPTY_TIMEOUT_MS);
    this.#unemptied = hasEmptied ? '' : await this.#describeRemaining();
  }

  /** Measures memory and resources, for the comparison at the end. */
  async takeLevels() {
    this.#levels = { states: await this.#readStates(), redis: await this.#readRedisLevel() };
    for (const [index, state] of this.#levels.states.entries()) {
      print(`level of node ${index}: ${describeMemory(state)}`);
    }
    print(`level of Redis: ${describeRedis(this.#levels.redis)}`);
  }

  /** Prints all checks. @returns {Promise<boolean>} whether all checks have passed */
  async verdict() {
    const { states: before, redis: redisBefore } = this.#levels;
    // Waits, because a command that is running has a timer.
    await until(
      async () =>
        (await this.#readStates()).every((state, index) => hasSameResources(state, before[index])),
      RESOURCES_TIMEOUT_MS,
    );
    const states = await this.#readStates();
    const warnings = states.flatMap((state) => state.warnings);
    const brokers = states.map(({ registry }) => registry.broker.state);
    const checks = [
      ...this.#clientChecks(),
      [
        'the broker of each node is open',
        brokers.every((state) => state === 'open'),
        brokers.join(', '),
      ],
      ['stats() is at 0 and no topic has subscribers', this.#unemptied === '', this.#unemptied],
      ...states.map((state, index) => checkMemory(index, state, before[index])),
      ...states.map((state, index) => checkResources(index, state, before[index])),
      [
        'the nodes emitted no warning except for an unreachable Redis',
        warnings.length === 0,
        warnings.join('; '),
      ],
      checkRedis(await this.#readRedisLevel(), redisBefore),
    ];
    this.#printCurve();
    print(`faults: ${JSON.stringify(this.#faults.counts)}`);
    for (const [index, { errors, lastError }] of states.entries()) {
      print(`node ${index}: ${errors} errors, last: ${lastError}`);
    }
    for (const violation of this.#checker.violations.slice(0, 20)) {
      print(`violation: ${violation}`);
    }
    for (const [name, isOk, figures] of checks) {
      print(`${isOk ? 'ok' : 'FAILED'}: ${name}${figures && ` (${figures})`}`);
    }
    const areAllOk = checks.every(([, isOk]) => isOk);
    print(areAllOk ? 'verdict: ok' : 'verdict: FAILED');
    return areAllOk;
  }

  /** @returns the checks of the id rule, the publishes and the clients */
  #clientChecks() {
    const { violations, judged, accepted, gaps, excused, pending } = this.#checker;
    const figures = [
      `${judged} ids of ${this.#clientCount} clients judged, ${accepted} events published`,
      `${gaps} gaps received for ${excused} events`,
      `${violations.length} violations`,
    ].join('; ');
    return [
      ['no event was lost, repeated or out of order', violations.length === 0, figures],
      [
        'each publish has its answer',
        pending === 0,
        `${pending} without answer, ${this.#publisher.refused} refused and repeated`,
      ],
      ['all clients have all events at the end', this.#unsettled === '', this.#unsettled],
    ];
  }

  /** Ends all processes. */
  async stop() {
    for (const node of this.#nodes) node.stop();
    await this.#redis.close();
  }

  /** @returns what remains of clients that have left, or `''` if nothing remains */
  async #describeRemaining() {
    const remaining = (await this.#readStates()).flatMap(listRemaining);
    const topics = await this.#redis.client.sendCommand(['PUBSUB', 'CHANNELS']);
    const subscribed = topics.filter((topic) => topic.includes(':c:'));
    if (subscribed.length > 0) remaining.push(`${subscribed.length} topics have subscribers`);
    return remaining.join('; ');
  }

  async #readRedisLevel() {
    const { used_memory: memory } = await this.#redis.info('memory');
    return { memory: Number(memory), keys: await this.#redis.client.dbSize() };
  }

  #readStates() {
    return Promise.all(this.#nodes.map((node) => node.ask('state')));
  }

  /** Prints the state of nodes and clients in one line. */
  async #printLine(name) {
    const states = await this.#readStates();
    const minutes = (performance.now() - this.#startedAt) / 60_000;
    this.#curve.push({ minutes, bytes: states.map(usedBytes) });
    const { clients } = this.#crowd;
    const connected = clients.filter(({ connectedAt }) => connectedAt !== undefined);
    const now = performance.now();
    const late = connected.filter(
      (client) =>
        !client.isPaused &&
        now - client.connectedAt > 15_000 &&
        this.#checker.isLate(client.channels, client.lastEventId),
    );
    const { accepted, gaps, violations } = this.#checker;
    const nodes = states.map(
      (state) => `${state.registry.broker.state} ${megabytes(usedBytes(state))}`,
    );
    const faults = Object.values(this.#faults.counts).reduce((sum, count) => sum + count, 0);
    print(
      [
        `${name} ${minutes.toFixed(1)} min`,
        `${connected.length}/${clients.length} clients connected, ${late.length} late`,
        `${states.reduce((sum, { registry }) => sum + registry.behind, 0)} behind`,
        `${accepted} events, ${gaps} gaps, ${violations.length} violations`,
        `nodes ${nodes.join(', ')}`,
        `${this.#measureCpuShare(now)} of a CPU`,
        `faults ${faults}`,
      ].join(' | '),
    );
  }

  /** @returns the CPU time of all processes since the last line, in percent */
  #measureCpuShare(now) {
    const pids = [process.pid, this.#redis.pid];
    let ms = this.#nodes.reduce((sum, node) => sum + node.cpuMs, 0);
    for (const pid of pids) {
      try {
        ms += cpuTime(pid).us / 1e3;
      } catch {
        // Redis is not running, because it is being restarted.
      }
    }
    const share = (ms - this.#cpu.ms) / (now - this.#cpu.at);
    this.#cpu = { at: now, ms };
    return `${Math.max(0, share * 100).toFixed(0)} %`;
  }

  /** Prints the memory of each node at intervals of 5 minutes, or of 1 minute in a short soak. */
  #printCurve() {
    const interval = this.#curve.at(-1).minutes > 12 ? 5 : 1;
    let next = interval;
    for (const { minutes, bytes } of this.#curve) {
      if (minutes < next) continue;
      print(`heap at ${minutes.toFixed(0)} min: ${bytes.map(megabytes).join(', ')}`);
      next = Math.floor(minutes / interval) * interval + interval;
    }
  }
}

function print(line) {
  process.stdout.write(`${line}\n`);
}

/** @returns {Promise<boolean>} whether the condition became true within the time limit */
async function until(condition, ms) {
  for (const end = performance.now() + ms; performance.now() < end; await sleep(1_000)) {
    if (await condition()) return true;
  }
  return false;
}
