/** The soak from its start to its verdict. */
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { cpuTime } from '../machine.mjs';
import { Checker } from './checker.mjs';
import { Crowd } from './crowd.mjs';
import { Faults } from './faults.mjs';
import { startNode } from './nodes.mjs';
import { oneOf, Publisher } from './publisher.mjs';
import {
  hasSameResources,
  held,
  leftIn,
  megabytes,
  memoryCheck,
  memoryText,
  redisCheck,
  redisText,
  resourceCheck,
} from './levels.mjs';

const NODES = 3;
const LINE_MS = 30_000;
const AUDIT_MS = 1_000;

// Time that nodes have for healing, and clients for getting what they are owed, when Redis is well again.
const SETTLE_MS = 90_000;
// A node goes on listening to a channel for 10 s after its last reader.
const EMPTY_MS = 60_000;
const RESOURCES_MS = 20_000;

export class Soak {
  #redis;
  #options;
  #nodes = [];
  #checker = new Checker();
  #publisher;
  #faults;
  #spoil;
  #levels;
  #began = performance.now();
  // Of each node, megabytes by minute.
  #curve = [];
  #cpu = { at: 0, ms: 0 };
  #unsettled = '';
  #unemptied = '';
  #crowd;
  #came = 0;

  /** @param {import('../redis.mjs').RedisServer} redis @param {{ dist?: string, every: number, hasFaults: boolean, spoil?: string }} options */
  constructor(redis, options) {
    this.#redis = redis;
    this.#options = options;
    this.#spoil = options.spoil;
    this.#publisher = new Publisher(this.#checker, this.#choose);
    this.#faults = new Faults(redis, options.every);
  }

  #choose = () => oneOf(this.#nodes.filter(({ isRunning }) => isRunning));

  async start() {
    const { dist } = this.#options;
    this.#nodes = await Promise.all(
      Array.from({ length: NODES }, (unused, index) => startNode(index, this.#redis.url, dist)),
    );
    setInterval(() => this.#checker.audit(), AUDIT_MS);
    say(
      `${new Date().toISOString().slice(0, 16)}Z, Node ${process.version}, ${NODES} nodes, ${dist ?? 'dist'}`,
    );
  }

  /** Everything happens for so long. */
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
      await sleep(Math.min(LINE_MS, end - performance.now()));
      await this.#line(name);
    }
    this.#publisher.stop();
    await this.#faults.stop();
  }

  /** Waits until all clients have all. */
  async settle() {
    this.#crowd.gather();
    const { clients } = this.#crowd;
    const channels = new Set(clients.flatMap((client) => client.channels));
    // So that each channel has an event beyond which nothing comes.
    for (const channel of channels) void this.#publisher.publish(channel);
    if (!(await until(() => this.#checker.pending === 0, SETTLE_MS))) {
      this.#unsettled = 'not every publish has its answer; ';
    }
    const lacking = () =>
      clients.filter((client) => !this.#checker.hasAll(client.channels, client.lastEventId));
    await until(() => lacking().length === 0, SETTLE_MS);
    for (const { who, node, lastEventId } of lacking().slice(0, 5)) {
      this.#unsettled += `${who} on node ${node?.index} is at ${lastEventId || 'no place'}; `;
    }
    if (lacking().length > 0) {
      this.#unsettled += `${lacking().length} of ${clients.length} clients do not have all`;
    }
    this.#checker.audit();
  }

  /** All clients leave, and the nodes notice. */
  async empty() {
    this.#came += this.#crowd.came;
    this.#crowd.leave();
    const isEmpty = async () => (await this.#left()) === '';
    this.#unemptied = (await until(isEmpty, EMPTY_MS)) ? '' : await this.#left();
  }

  /** What memory and resources are to be compared with. */
  async takeLevels() {
    this.#levels = { states: await this.#states(), redis: await this.#redisLevel() };
    for (const [index, state] of this.#levels.states.entries()) {
      say(`level of node ${index}: ${memoryText(state)}`);
    }
    say(`level of Redis: ${redisText(this.#levels.redis)}`);
  }

  /** @returns whether all is well */
  async verdict() {
    const { states: before, redis: redisBefore } = this.#levels;
    // A command that is under way has a timer of its own.
    await until(
      async () =>
        (await this.#states()).every((state, index) => hasSameResources(state, before[index])),
      RESOURCES_MS,
    );
    const states = await this.#states();
    const warnings = states.flatMap((state) => state.warnings);
    const brokers = states.map(({ registry }) => registry.broker.state);
    const checks = [
      ...this.#clientChecks(),
      [
        'the broker of each node is open',
        brokers.every((state) => state === 'open'),
        brokers.join(', '),
      ],
      ['stats() is at 0 and no topic is listened to', this.#unemptied === '', this.#unemptied],
      ...states.map((state, index) => memoryCheck(index, state, before[index])),
      ...states.map((state, index) => resourceCheck(index, state, before[index])),
      [
        'nodes gave no warning, but of a Redis that is away',
        warnings.length === 0,
        warnings.join('; '),
      ],
      redisCheck(await this.#redisLevel(), redisBefore),
    ];
    this.#sayCurve();
    say(`faults: ${JSON.stringify(this.#faults.counts)}`);
    for (const [index, { errors, lastError }] of states.entries()) {
      say(`node ${index}: ${errors} errors, the last: ${lastError}`);
    }
    for (const violation of this.#checker.violations.slice(0, 20)) say(`violation: ${violation}`);
    for (const [what, isWell, figures] of checks) {
      say(`${isWell ? 'ok' : 'FAILED'}: ${what}${figures && ` (${figures})`}`);
    }
    const isWell = checks.every(([, ok]) => ok);
    say(isWell ? 'verdict: ok' : 'verdict: FAILED');
    return isWell;
  }

  #clientChecks() {
    const { violations, judged, accepted, gaps, excused, pending } = this.#checker;
    const figures = [
      `${judged} ids judged of ${this.#came} clients, ${accepted} events published`,
      `${gaps} gaps told for ${excused} events`,
      `${violations.length} violations`,
    ].join('; ');
    return [
      ['nothing is lost, twice or out of order', violations.length === 0, figures],
      [
        'each publish has its answer',
        pending === 0,
        `${pending} have none, ${this.#publisher.refused} were refused and repeated`,
      ],
      ['all clients have all in the end', this.#unsettled === '', this.#unsettled],
    ];
  }

  async stop() {
    for (const node of this.#nodes) node.stop();
    await this.#redis.close();
  }

  /** What is left of clients that have gone; `''` for nothing. */
  async #left() {
    const left = (await this.#states()).flatMap(leftIn);
    const topics = await this.#redis.client.sendCommand(['PUBSUB', 'CHANNELS']);
    const listened = topics.filter((topic) => topic.includes(':c:'));
    if (listened.length > 0) left.push(`${listened.length} topics are listened to`);
    return left.join('; ');
  }

  async #redisLevel() {
    const { used_memory: memory } = await this.#redis.info('memory');
    return { memory: Number(memory), keys: await this.#redis.client.dbSize() };
  }

  #states() {
    return Promise.all(this.#nodes.map((node) => node.ask('state')));
  }

  async #line(name) {
    const states = await this.#states();
    const minutes = (performance.now() - this.#began) / 60_000;
    this.#curve.push({ minutes, held: states.map(held) });
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
    say(
      [
        `${name} ${minutes.toFixed(1)} min`,
        `${connected.length}/${clients.length} clients connected, ${late.length} late`,
        `${states.reduce((sum, { registry }) => sum + registry.behind, 0)} behind`,
        `${accepted} events, ${gaps} gaps, ${violations.length} violations`,
        `nodes ${states.map((state) => `${state.registry.broker.state} ${megabytes(held(state))}`).join(', ')}`,
        `${this.#cpuShare(now)} of a CPU`,
        `faults ${Object.values(this.#faults.counts).reduce((sum, count) => sum + count, 0)}`,
      ].join(' | '),
    );
  }

  /** Of all processes, since the last line. */
  #cpuShare(now) {
    const pids = [process.pid, this.#redis.pid];
    let ms = this.#nodes.reduce((sum, node) => sum + node.cpuMs, 0);
    for (const pid of pids) {
      try {
        ms += cpuTime(pid).us / 1e3;
      } catch {
        // Redis is being restarted.
      }
    }
    const share = (ms - this.#cpu.ms) / (now - this.#cpu.at);
    this.#cpu = { at: now, ms };
    return `${Math.max(0, share * 100).toFixed(0)} %`;
  }

  #sayCurve() {
    const every = this.#curve.at(-1).minutes > 12 ? 5 : 1;
    let next = every;
    for (const { minutes, held: bytes } of this.#curve) {
      if (minutes < next) continue;
      say(`heap at ${minutes.toFixed(0)} min: ${bytes.map(megabytes).join(', ')}`);
      next = Math.floor(minutes / every) * every + every;
    }
  }
}

function say(line) {
  process.stdout.write(`${line}\n`);
}

/** @returns whether the condition came true in time */
async function until(condition, ms) {
  for (const end = performance.now() + ms; performance.now() < end; await sleep(1_000)) {
    if (await condition()) return true;
  }
  return false;
}
