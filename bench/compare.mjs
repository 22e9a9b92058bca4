/** Compares two builds of res-sse inside one process. See README.md. */
import { fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { chooseCpus } from './machine.mjs';

const HELP = `node bench/compare.mjs --old folder --new folder [options]

  --old, --new    the folders \`dist\` of the two builds
  --only a,b      delivery, connect, open; without it all three
  --streams 1000  number of streams of each build in \`delivery\`
  --rounds 800    number of measurements of each build in \`delivery\`; a quarter in the others
`;

/** Number of connects in one measurement. */
const CONNECTS = 100;
/** Share of the rounds that only warm up. */
const WARM_UP = 0.25;
const EVENT = 'x'.repeat(200);

const { values: flags } = parseArgs({
  options: {
    old: { type: 'string' },
    new: { type: 'string' },
    only: { type: 'string', default: 'delivery,connect,open' },
    streams: { type: 'string', default: '1000' },
    rounds: { type: 'string', default: '800' },
    help: { type: 'boolean', default: false },
  },
});

if (flags.help || flags.old === undefined || flags.new === undefined) process.stdout.write(HELP);
else await compare();

async function compare() {
  const streams = Number(flags.streams);
  const rounds = Number(flags.rounds);
  const client = startClient();
  const scenarios = {
    delivery: () => compareDelivery(client, streams, rounds),
    connect: () => compareConnect(client, rounds / 4, true),
    open: () => compareConnect(client, rounds / 4, false),
  };
  for (const name of flags.only.split(',')) {
    process.stdout.write(`${name.padEnd(9)} ${await scenarios[name]()}\n`);
  }
  process.exit();
}

/** The cost of one event for one of many open streams of the same channel. */
async function compareDelivery(client, streams, rounds) {
  const builds = await startBoth(true);
  for (const build of builds) await client.ask({ port: build.port, connects: streams, stay: true });
  await until(() => builds.every(({ opened }) => opened() === streams));
  // A turn delivers to at most 250 streams.
  const turns = Math.ceil(streams / 250) + 2;
  return measure(builds, rounds, streams, async ({ channels }) => {
    const before = process.cpuUsage();
    void channels.publish('news', EVENT);
    for (let turn = 0; turn < turns; turn++) await nextTurn();
    const used = process.cpuUsage(before);
    // The client reads meanwhile.
    await sleep(3);
    return used;
  });
}

/** The cost of a stream that opens, gets its first bytes, and is disconnected. */
async function compareConnect(client, rounds, isSubscribed) {
  const builds = await startBoth(isSubscribed);
  return measure(builds, rounds, CONNECTS, async ({ port, closed }) => {
    const total = closed() + CONNECTS;
    const before = process.cpuUsage();
    await client.ask({ port, connects: CONNECTS, stay: false });
    await until(() => closed() === total);
    return process.cpuUsage(before);
  });
}

/**
 * Measures the builds in turns, in the reverse order each second time.
 * @param step does the work with one build, and returns the CPU time that it has used
 * @returns a line with the medians in µs and their ratio
 */
async function measure([old, current], rounds, items, step) {
  const samples = { old: [], current: [] };
  const ratios = [];
  for (let round = -Math.ceil(rounds * WARM_UP); round < rounds; round++) {
    const isReverse = round % 2 === 0;
    const first = await step(isReverse ? current : old);
    const second = await step(isReverse ? old : current);
    if (round < 0) continue;
    const [before, after] = (isReverse ? [second, first] : [first, second]).map(microseconds);
    samples.old.push(before / items);
    samples.current.push(after / items);
    ratios.push(after / before);
  }
  for (const { server } of [old, current]) server.closeAllConnections();
  const sorted = ratios.toSorted((a, b) => a - b);
  const quarter = (share) => sorted[Math.floor(sorted.length * share)].toFixed(2);
  const ratio = median(samples.current) / median(samples.old);
  return (
    `old ${median(samples.old).toFixed(2)} µs, new ${median(samples.current).toFixed(2)} µs, ` +
    `ratio of medians ${ratio.toFixed(3)}, median of ratios ${median(ratios).toFixed(3)} ` +
    `(middle half ${quarter(0.25)}–${quarter(0.75)}), ${rounds} pairs`
  );
}

/** Starts a server for each of the two builds. */
async function startBoth(isSubscribed) {
  return [await start(flags.old, isSubscribed), await start(flags.new, isSubscribed)];
}

async function start(dist, isSubscribed) {
  const { createChannels, sse } = await import(pathToFileURL(join(resolve(dist), 'index.js')).href);
  const channels = createChannels();
  const middleware = sse({ channels });
  let opened = 0;
  let closed = 0;
  const server = createServer((req, res) => {
    middleware(req, res, () => {
      res.on('close', () => closed++);
      if (isSubscribed) void res.sse.subscribe('news');
      else res.sse.open();
      opened++;
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  return { server, channels, port, opened: () => opened, closed: () => closed };
}

/** Starts the client, and gives each process a CPU of its own if there are two. */
function startClient() {
  const child = fork(join(import.meta.dirname, 'compare', 'client.mjs'));
  const cpus = chooseCpus();
  if (cpus !== undefined) {
    pin(process.pid, cpus.server);
    pin(child.pid, cpus.client);
  }
  return {
    async ask(order) {
      child.send(order);
      await once(child, 'message');
    },
  };
}

function pin(pid, cpu) {
  spawnSync('taskset', ['-a', '-c', '-p', `${cpu}`, `${pid}`]);
}

async function until(isTrue) {
  while (!isTrue()) await sleep(1);
}

function microseconds({ user, system }) {
  return user + system;
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}
