/**
 * The scenarios. Each scenario runs its servers in turns, so that the runs that are compared are
 * only seconds apart:
 *
 *     run 1: net, Express, better-sse, res-sse
 *     run 2: res-sse, better-sse, Express, net
 *     run 3: net, Express, …
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { cpuBetween, residentBytes } from './machine.mjs';

/** The servers, and the variants of res-sse. */
const NET = { name: 'raw net', file: 'net.mjs' };
const SOCKETS = { name: "Express's sockets", file: 'sockets.mjs' };
const EXPRESS = { name: 'Express by hand', file: 'express.mjs' };
const BETTER = { name: 'better-sse', file: 'better-sse.mjs' };
const OURS = { name: 'res-sse', file: 'res-sse.mjs' };
const WITHOUT_HISTORY = { ...OURS, name: 'res-sse, no history', env: { HISTORY: 'off' } };
const OVER_REDIS = { ...OURS, name: 'res-sse over Redis', env: { BROKER: 'redis' } };
const OPEN_ONLY = { ...OURS, name: 'res-sse, open only', path: '/open' };
const SUBSCRIBED = { ...OURS, name: 'res-sse, subscribed' };
const RESUMING = { ...OURS, name: 'res-sse, resuming', resumes: 5 };
const THREE_EACH = { ...OURS, name: 'res-sse, three each', groups: 10 };

/** The servers that most scenarios compare. */
const ALL = [NET, EXPRESS, BETTER, OURS];
const WITH_SOCKETS = [NET, SOCKETS, EXPRESS, BETTER, OURS];

/** The measures: the property of a result, and the title in the table. */
const CPU = { key: 'cpuUs', title: 'CPU µs per delivery' };
const CONNECT = { key: 'cpuUs', title: 'CPU µs per stream' };
const RATE = { key: 'perSecond', title: 'deliveries per s' };
const STALL = { key: 'stallMs', title: 'longest stall, ms' };
const HEAP = { key: 'heapBytes', title: 'heap B per stream' };
const GROWTH = { key: 'growth', title: 'growth of resident memory, MB' };
const ENCODE = { key: 'nanoseconds', title: 'ns per event' };
const RESIDENT = { key: 'residentBytes', title: 'resident B per stream' };

// About 50,000 deliveries per second, which the slowest server can do. At full speed a fast server
// would outrun the client. The kernel would then join what is queued, and the server would seem
// faster than it is.
const AT_100 = { n: 100, rate: 500 };
const AT_1000 = { n: 1_000, rate: 50 };
const AT_10000 = { n: 10_000, rate: 4 };

/**
 * @typedef {object} Variant a server, and its use in a scenario
 * @property {string} name
 * @property {string} file
 * @property {Record<string, string>} [env]
 * @property {string} [path]
 * @property {number} [groups] number of sets of channels over which the streams are spread
 * @property {number} [resumes] number of events that each stream has missed when it connects
 *
 * @typedef {object} Scenario
 * @property {string} name name for `--only`
 * @property {string} title
 * @property {(bench: Bench, scenario: Scenario, reps: number) => Promise<Results>} run
 * @property {readonly Variant[]} variants the first one is the base of the ratios
 * @property {readonly { key: string, title: string }[]} measures
 * @property {number} n number of streams
 * @property {number} [size] bytes of the data of an event
 * @property {number} [burst] events per turn of the event loop; 0 publishes the number that the
 * rate requires
 * @property {number} [rate] events per second
 * @property {number} [events] number of events of one run
 * @property {number} [idle] number of additional streams that never read
 * @property {boolean} [isExtra] whether the scenario is not in the default set
 * @property {number} [share] the part of `--reps`, for scenarios with long runs and steady results
 *
 * @typedef {import('./processes.mjs').Bench} Bench
 * @typedef {Record<string, number> & { ok: boolean }} Result the result of one run
 * @typedef {Map<string, Result[]>} Results the results of each variant
 */

/** @type {readonly Scenario[]} */
export const scenarios = [
  fanOut({ name: '100', title: '100 streams, 200 B', ...AT_100, size: 200, events: 1_000 }),
  fanOut({
    name: '100-ten',
    title: '100 streams, 200 B, ten per turn',
    ...AT_100,
    size: 200,
    burst: 10,
    events: 1_000,
  }),
  fanOut({
    name: '100-2kb',
    title: '100 streams, 2 KB',
    ...AT_100,
    size: 2_048,
    events: 1_000,
    isExtra: true,
  }),
  fanOut({
    name: '100-2kb-ten',
    title: '100 streams, 2 KB, ten per turn',
    ...AT_100,
    size: 2_048,
    burst: 10,
    events: 1_000,
    isExtra: true,
  }),
  fanOut({
    name: '1k',
    title: '1,000 streams, 200 B',
    ...AT_1000,
    size: 200,
    events: 100,
    variants: WITH_SOCKETS,
  }),
  fanOut({
    name: '1k-ten',
    title: '1,000 streams, 200 B, ten per turn',
    ...AT_1000,
    size: 200,
    burst: 10,
    events: 100,
  }),
  fanOut({ name: '1k-2kb', title: '1,000 streams, 2 KB', ...AT_1000, size: 2_048, events: 100 }),
  fanOut({
    name: '1k-2kb-ten',
    title: '1,000 streams, 2 KB, ten per turn',
    ...AT_1000,
    size: 2_048,
    burst: 10,
    events: 100,
  }),
  fanOut({
    name: '10k',
    title: '10,000 streams, 200 B',
    ...AT_10000,
    size: 200,
    events: 10,
    variants: WITH_SOCKETS,
  }),
  fanOut({
    name: '10k-ten',
    title: '10,000 streams, 200 B, ten per turn',
    ...AT_10000,
    size: 200,
    burst: 10,
    events: 20,
  }),
  fanOut({
    name: '10k-2kb',
    title: '10,000 streams, 2 KB',
    ...AT_10000,
    size: 2_048,
    events: 10,
    isExtra: true,
  }),
  fanOut({
    name: '10k-2kb-ten',
    title: '10,000 streams, 2 KB, ten per turn',
    ...AT_10000,
    size: 2_048,
    burst: 10,
    events: 20,
    isExtra: true,
  }),
  fanOut({
    name: 'history',
    title: '1,000 streams, with and without history',
    ...AT_1000,
    size: 200,
    events: 100,
    variants: [WITHOUT_HISTORY, OURS],
  }),
  fanOut({
    name: 'channels',
    title: '1,000 streams, one channel or three in ten sets',
    ...AT_1000,
    size: 200,
    events: 100,
    variants: [OURS, THREE_EACH],
  }),
  fanOut({
    name: 'redis',
    title: '1,000 streams, in memory or over the Redis at REDIS_URL',
    ...AT_1000,
    size: 200,
    events: 100,
    variants: [OURS, OVER_REDIS],
    isExtra: true,
  }),
  fanOut({
    name: 'overload',
    title: '1,000 streams, 3,000 events per s',
    n: 1_000,
    rate: 3_000,
    size: 200,
    burst: 0,
    events: 6_000,
    variants: [OURS],
    measures: [RATE, CPU],
    share: 1 / 3,
  }),
  fanOut({
    name: 'stall',
    title: '10,000 streams, 200 B, longest stall of the event loop',
    ...AT_10000,
    size: 200,
    events: 10,
    measures: [STALL],
    share: 1 / 3,
  }),
  {
    name: 'slow',
    title: '450 streams that read, 50 that never read, 8 KB',
    n: 450,
    idle: 50,
    size: 8_192,
    burst: 1,
    rate: 100,
    events: 800,
    variants: ALL,
    measures: [CPU, GROWTH],
    share: 1 / 3,
    run: runSlow,
  },
  {
    name: 'encode',
    title: 'encoding of one event of 1 KB',
    n: 1,
    size: 1_024,
    events: 100_000,
    variants: [EXPRESS, BETTER, OURS],
    measures: [ENCODE],
    run: runEncode,
  },
  {
    name: 'connect',
    title: '1,000 streams connect',
    n: 1_000,
    variants: [EXPRESS, BETTER, OPEN_ONLY, SUBSCRIBED],
    measures: [CONNECT],
    run: runConnects,
  },
  {
    name: 'resume',
    title: '10,000 streams resume, five events behind',
    n: 10_000,
    share: 2 / 3,
    variants: [SUBSCRIBED, RESUMING],
    measures: [CONNECT],
    run: runConnects,
  },
  {
    name: 'memory',
    title: '10,000 idle streams',
    n: 10_000,
    variants: [EXPRESS, BETTER, OPEN_ONLY, SUBSCRIBED],
    measures: [HEAP, RESIDENT],
    share: 1 / 3,
    run: runMemory,
  },
];

/**
 * Creates a scenario that publishes events to many streams. By default all servers run, one event
 * is published per turn of the event loop, and the CPU time is measured.
 */
function fanOut(scenario) {
  return { run: runFanOut, variants: ALL, measures: [CPU], burst: 1, ...scenario };
}

/** Starts all servers with their clients, and publishes to them in turns. */
async function runFanOut(bench, scenario, reps) {
  const { variants, n } = scenario;
  const stages = new Map();
  for (const variant of variants) {
    const server = await bench.startServer(variant);
    stages.set(variant, { server, client: await bench.connect(server, { ...variant, n }) });
  }
  const results = await runInTurns(variants, reps, 1, (variant) =>
    publishOnce(stages.get(variant), scenario),
  );
  await stopAll([...stages.values()]);
  return results;
}

/** @param {Scenario} scenario */
async function publishOnce({ server, client }, { events, n, size, burst, rate, measures }) {
  const watches = measures.includes(STALL);
  if (watches) await server.ask('/watch');
  const counted = await client.expect(events);
  const before = server.readCpuTime();
  await server.ask('/publish', { events, size, burst, rate });
  const { ok, rx_ms: receivedMs, p50_us: p50Us, p99_us: p99Us } = await counted();
  const { us, userUs } = cpuBetween(before, server.readCpuTime());
  const deliveries = events * n;
  const { stallMs } = watches ? await server.ask('/stall') : {};
  const perSecond = deliveries / (receivedMs / 1e3);
  return {
    ok,
    cpuUs: us / deliveries,
    userUs: userUs / deliveries,
    perSecond,
    p50Ms: p50Us / 1e3,
    p99Ms: p99Us / 1e3,
    stallMs,
  };
}

/** Measures clients that never read. They should cost the other clients nothing. */
async function runSlow(bench, scenario, reps) {
  return runInTurns(scenario.variants, reps, 0, async (variant) => {
    const server = await bench.startServer(variant);
    const idle = await bench.connect(server, { n: scenario.idle, reads: false });
    const client = await bench.connect(server, { n: scenario.n });
    const before = residentBytes(server.pid);
    const result = await publishOnce({ server, client }, scenario);
    const growth = (residentBytes(server.pid) - before) / 1e6;
    await stopAll([{ server, client }]);
    await idle.stop();
    return { ...result, growth };
  });
}

/** Measures the encoding of events, without any stream. */
async function runEncode(bench, { variants, size, events }, reps) {
  const servers = new Map();
  for (const variant of variants) servers.set(variant, await bench.startServer(variant));
  const results = await runInTurns(variants, reps, 1, async (variant) => {
    const { nanoseconds } = await servers.get(variant).ask('/encode', { size, times: events });
    return { ok: true, nanoseconds };
  });
  await stopAll([...servers.values()].map((server) => ({ server })));
  return results;
}

/** The same server again and again, as after a restart of what stands in front of it. */
async function runConnects(bench, { variants, n }, reps) {
  const servers = new Map();
  for (const variant of variants) servers.set(variant, await bench.startServer(variant));
  // Three runs for the warm-up, because the code for the first thousand streams is not optimised.
  const results = await runInTurns(variants, reps, 3, (variant) =>
    connectOnce(bench, servers.get(variant), variant, n),
  );
  await stopAll([...servers.values()].map((server) => ({ server })));
  return results;
}

/** Connects all streams once, and disconnects them. */
async function connectOnce(bench, server, { path, resumes = 0 }, n) {
  const { cursor: lastEventId } = await server.ask('/cursor');
  if (resumes > 0) {
    await server.ask('/publish', { events: resumes, size: 200, burst: resumes, rate: 1_000 });
  }
  const before = server.readCpuTime();
  const client = await bench.connect(
    server,
    resumes === 0 ? { path, n } : { path, n, lastEventId, events: resumes },
  );
  const { us, userUs } = cpuBetween(before, server.readCpuTime());
  await client.stop();
  await server.waitUntilEmpty();
  return { ok: true, cpuUs: us / n, userUs: userUs / n };
}

/** Measures the memory of idle streams, with a new server for each run. */
async function runMemory(bench, { variants, n }, reps) {
  return runInTurns(variants, reps, 0, async (variant) => {
    const server = await bench.startServer({ ...variant, args: ['--expose-gc'] });
    const before = await memoryOf(server);
    const client = await bench.connect(server, { path: variant.path, n });
    // After this time the garbage of connecting is collected, and no heartbeat has been sent yet.
    await sleep(1_000);
    const after = await memoryOf(server);
    await stopAll([{ server, client }]);
    return {
      ok: true,
      heapBytes: (after.heap - before.heap) / n,
      residentBytes: (after.resident - before.resident) / n,
    };
  });
}

/** @returns the heap after a garbage collection, and the resident memory, both in bytes */
async function memoryOf(server) {
  const { heapUsed: heap } = await server.ask('/memory');
  return { heap, resident: residentBytes(server.pid) };
}

/**
 * Runs the variants in turns.
 * @param {number} warmups number of runs whose results are dropped
 * @returns {Promise<Results>}
 */
async function runInTurns(variants, reps, warmups, runOnce) {
  const results = new Map(variants.map(({ name }) => [name, []]));
  for (let rep = -warmups; rep < reps; rep++) {
    // In alternating order, so that a drift of the machine affects all variants equally.
    for (const variant of rep % 2 === 0 ? variants : variants.toReversed()) {
      const result = await runOnce(variant);
      if (rep >= 0) results.get(variant.name).push(result);
    }
  }
  return results;
}

/** Stops clients and servers. */
async function stopAll(stages) {
  for (const { server, client } of stages) {
    await client?.stop();
    await server.stop();
  }
}
