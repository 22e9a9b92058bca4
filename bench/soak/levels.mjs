/** Memory and resources of nodes and Redis without clients, compared before and after the soak. */
import { LIMITS } from './settings.mjs';

// Growth of the heap since the warm-up, in bytes, that V8 itself may cause.
const HEAP_TOLERANCE_BYTES = 4e6;

// Growth of Redis since the warm-up, in bytes. Redis keeps the key of each publish for five
// minutes, so the level after a short warm-up is low.
const REDIS_TOLERANCE_BYTES = LIMITS.maxHistory + 8e6;

/** @typedef {[name: string, isOk: boolean, figures: string]} Check */

/**
 * @param {any} state the state of a node
 * @returns the bytes in use, without the history, which has a limit of its own
 */
export function usedBytes({ heapUsed, external, registry }) {
  return heapUsed + external - registry.history.bytes;
}

/** @returns {Check} */
export function checkMemory(index, state, before) {
  const growth = usedBytes(state) - usedBytes(before);
  const figures = `growth ${megabytes(growth)}; ${describeMemory(state)}`;
  return [`memory of node ${index} has not grown`, growth <= HEAP_TOLERANCE_BYTES, figures];
}

/** Whether a node has the same timers, sockets and listeners as before. */
export function hasSameResources(state, before) {
  return describeResources(state) === describeResources(before);
}

/** @returns {Check} */
export function checkResources(index, state, before) {
  const isSame = hasSameResources(state, before);
  const figures = isSame
    ? describeResources(state)
    : `${describeResources(state)}; before ${describeResources(before)}`;
  return [`node ${index} has no additional timer, socket or listener`, isSame, figures];
}

/** @returns {Check} */
export function checkRedis(after, before) {
  const isOk = after.memory <= before.memory + REDIS_TOLERANCE_BYTES;
  return [
    'memory of Redis has not grown',
    isOk,
    `${describeRedis(after)}; before ${describeRedis(before)}`,
  ];
}

/**
 * Lists the gauges of a node that are not 0 although all clients have left.
 * @returns {string[]}
 */
export function listRemaining({ streams, registry }, index) {
  const { open, buffered } = streams;
  const { channels, subscriptions, behind } = registry;
  return Object.entries({ open, buffered, channels, subscriptions, behind })
    .filter(([, count]) => count !== 0)
    .map(([name, count]) => `node ${index}: ${name} ${count}`);
}

/** @returns the parts of the memory of a node as text */
export function describeMemory(state) {
  const { heapUsed, external, rss, registry } = state;
  const parts = { heap: heapUsed, external, history: registry.history.bytes, resident: rss };
  return Object.entries(parts)
    .map(([name, bytes]) => `${name} ${megabytes(bytes)}`)
    .join(', ');
}

/** @returns memory and number of keys of Redis as text */
export function describeRedis({ memory, keys }) {
  return `${megabytes(memory)}, ${keys} keys`;
}

/** @returns the bytes as text in MB */
export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @returns timers, sockets and listeners of a node as text, which can be compared */
function describeResources({ resources, listeners }) {
  return `${JSON.stringify(resources)}, ${listeners} listeners of the process`;
}
