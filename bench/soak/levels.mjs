/** What a node and Redis hold while nobody is connected, before and after. */
import { LIMITS } from './settings.mjs';

// What may be left beyond the level after the warm-up: V8's own.
const HEAP_TOLERANCE = 4e6;
// Redis keeps the key of each publish for five minutes, so the level of a short warm-up is low.
const REDIS_TOLERANCE = LIMITS.maxHistory + 8e6;

/** @typedef {[what: string, isWell: boolean, figures: string]} Check */

/** @param {any} state of a node @returns bytes in use, without the history, which has a bound of its own */
export function held({ heapUsed, external, registry }) {
  return heapUsed + external - registry.history.bytes;
}

/** @returns {Check} */
export function memoryCheck(index, state, before) {
  const grown = held(state) - held(before);
  const figures = `${megabytes(grown)} more; ${memoryText(state)}`;
  return [`node ${index} is back at its level of memory`, grown <= HEAP_TOLERANCE, figures];
}

export function hasSameResources(state, before) {
  return resourceText(state) === resourceText(before);
}

/** @returns {Check} */
export function resourceCheck(index, state, before) {
  const isSame = hasSameResources(state, before);
  const figures = isSame
    ? resourceText(state)
    : `${resourceText(state)}; before ${resourceText(before)}`;
  return [`node ${index} holds no timer, socket or listener more`, isSame, figures];
}

/** @returns {Check} */
export function redisCheck(after, before) {
  const isWell = after.memory <= before.memory + REDIS_TOLERANCE;
  return ['Redis is back at its level', isWell, `${redisText(after)}; level ${redisText(before)}`];
}

/** What is left of clients that have gone. @returns {string[]} */
export function leftIn({ streams, registry }, index) {
  const { open, buffered } = streams;
  const { channels, subscriptions, behind } = registry;
  return Object.entries({ open, buffered, channels, subscriptions, behind })
    .filter(([, count]) => count !== 0)
    .map(([name, count]) => `node ${index}: ${name} ${count}`);
}

export function memoryText(state) {
  const { heapUsed, external, rss, registry } = state;
  const parts = { heap: heapUsed, external, history: registry.history.bytes, resident: rss };
  return Object.entries(parts)
    .map(([name, bytes]) => `${name} ${megabytes(bytes)}`)
    .join(', ');
}

export function redisText({ memory, keys }) {
  return `${megabytes(memory)}, ${keys} keys`;
}

export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function resourceText({ resources, listeners }) {
  return `${JSON.stringify(resources)}, ${listeners} listeners of the process`;
}
