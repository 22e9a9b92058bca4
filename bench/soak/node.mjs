/**
 * One node of the soak: a server with a registry over Redis. The parent process sends its commands
 * by IPC, so that all sockets of the node belong to clients.
 */
import http from 'node:http';
import process from 'node:process';
import { subscribe } from 'node:diagnostics_channel';
import { createChannels, redisBroker, sse } from '../library.mjs';
import { LIMITS, PREFIX } from './settings.mjs';

const { SOAK_REDIS } = process.env;

const channels = createChannels({
  broker: redisBroker({ url: SOAK_REDIS, prefix: PREFIX, timeout: 2_000 }),
  ...LIMITS,
});
const events = sse({ channels, heartbeat: 5_000, warnings: false });

const warnings = [];
process.on('warning', ({ name, message, code }) => {
  // Expected, because a restart of Redis may take longer than a node waits before this warning.
  if (code !== 'RES_SSE_BROKER_UNREACHABLE') warnings.push(`${name}: ${message}`);
});
let errors = 0;
let lastError = '';
subscribe('res-sse:error', ({ error }) => {
  errors++;
  lastError = String(error);
});

const listen = channels.listen(({ url }) =>
  new URL(url, 'http://localhost').pathname.split('/').at(-1).split(','),
);
const server = http.createServer((req, res) => {
  const fail = (error) => {
    process.stderr.write(`${error?.stack}\n`);
    res.destroy();
  };
  events(req, res, (error) => (error === undefined ? listen(req, res, fail) : fail(error)));
});
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }));

/** The commands of the parent process. */
const commands = {
  publish: ({ items }) => Promise.all(items.map(publishOne)),
  state: readState,
};

process.on('message', (message) => void runCommand(message));
process.on('disconnect', () => process.exit());

async function runCommand({ id, kind, ...parameters }) {
  process.send({ id, answer: await commands[kind](parameters) });
}

/** @returns the answer of `publish()`, or its error as text */
async function publishOne({ channel, data, key }) {
  try {
    return await channels.publish(channel, data, { key });
  } catch (error) {
    return { error: String(error), delivery: error.delivery };
  }
}

/** Reads memory, statistics and resources of this node, after a garbage collection. */
function readState() {
  globalThis.gc();
  globalThis.gc();
  const { heapUsed, external, rss } = process.memoryUsage();
  const streams = events.stats();
  return {
    heapUsed,
    external,
    rss,
    streams,
    registry: channels.stats(),
    resources: countNames(process.getActiveResourcesInfo()),
    listeners: process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0),
    warnings,
    errors,
    lastError,
  };
}

/** @returns how often each name occurs */
function countNames(names) {
  const counts = {};
  for (const name of names.toSorted()) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}
