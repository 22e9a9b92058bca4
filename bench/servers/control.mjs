/** The common part of all servers: the data of an event, paced publishing, and the control port. */
import http from 'node:http';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

const LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789 ,.:-';
const ENVELOPE = '{"t":"~T0123456789012345","v":""}'.length;

const fillers = new Map();

/** @returns a text of the given length, which is the same in all calls */
function filler(length) {
  let text = fillers.get(length);
  if (text === undefined) {
    text = Array.from(
      { length },
      (unused, at) => LETTERS[(at * 7 + (at >> 3)) % LETTERS.length],
    ).join('');
    fillers.set(length, text);
  }
  return text;
}

/**
 * Creates the data of an event: JSON with the marker `~T` and the time of the monotonic clock in
 * ns. The client counts the markers, and computes the latency from the time.
 * @param {number} size number of bytes
 */
export function payload(size) {
  const time = process.hrtime.bigint().toString().padStart(16, '0');
  return `{"t":"~T${time}","v":"${filler(Math.max(0, size - ENVELOPE))}"}`;
}

const loopDelay = monitorEventLoopDelay({ resolution: 1 });

/**
 * @typedef {object} Api the functions of a server that the driver calls
 * @property {(data: string) => unknown} publish publishes to all streams; may return a promise
 * @property {() => number} connections returns the number of open streams
 * @property {() => Promise<string>} [cursor] returns the id to resume from
 * @property {(data: string) => unknown} [encode] returns the bytes of an event
 *
 * @typedef {object} Load
 * @property {number} events total number of events
 * @property {number} burst events per turn of the event loop; 0 publishes in each turn the number
 * that the rate requires, like a feed that is independent of the event loop
 * @property {number} rate events per second
 * @property {number} size bytes of the data of an event
 */

/**
 * Publishes events at a constant rate.
 * @param {(data: string) => unknown} publish
 * @param {Load} load
 */
async function publishPaced(publish, { events, burst, rate, size }) {
  const start = performance.now();
  const countExpected = () => Math.floor(((performance.now() - start) * rate) / 1000) + 1;
  for (let sent = 0; sent < events;) {
    const count = Math.min(burst || Math.max(0, countExpected() - sent), events - sent);
    await Promise.all(Array.from({ length: count }, () => publish(payload(size))));
    sent += count;
    const wait = start + (sent / rate) * 1000 - performance.now();
    if (sent < events && wait > 1) await sleep(wait);
    else await nextTurn();
  }
}

/**
 * Reads the memory that is in use after a garbage collection. There are two collections, because
 * some objects are only marked by the first one and freed by the second one.
 */
function readMemory() {
  globalThis.gc?.();
  globalThis.gc?.();
  return process.memoryUsage();
}

/**
 * The commands of the control port, by path.
 * @type {Record<string, (api: Api, query: URLSearchParams) => unknown>}
 */
const commands = {
  async '/publish'({ publish }, query) {
    const number = (name) => Number(query.get(name));
    await publishPaced(publish, {
      events: number('events'),
      burst: number('burst'),
      rate: number('rate'),
      size: number('size'),
    });
    return {};
  },
  '/connections': ({ connections }) => ({ connections: connections() }),
  '/memory': readMemory,
  '/cursor': async ({ cursor }) => ({ cursor: await cursor?.() }),
  '/encode'({ encode }, query) {
    const data = payload(Number(query.get('size')));
    const times = Number(query.get('times'));
    for (let done = 0; done < times; done++) encode(data);
    const start = performance.now();
    for (let done = 0; done < times; done++) encode(data);
    return { nanoseconds: ((performance.now() - start) / times) * 1e6 };
  },
  '/watch': () => {
    loopDelay.reset();
    return { watching: loopDelay.enable() };
  },
  '/stall': () => {
    loopDelay.disable();
    return { stallMs: loopDelay.max / 1e6 };
  },
};

/**
 * Opens the control port, and prints both ports for the driver.
 * @param {number} port the port that is measured
 * @param {Api} api
 */
export function ready(port, api) {
  const server = http.createServer((req, res) => void answer(api, req, res));
  server.listen(0, '127.0.0.1', () => {
    process.stdout.write(`${JSON.stringify({ port, control: server.address().port })}\n`);
  });
}

/** Runs the command of a request, and answers with its result as JSON. */
async function answer(api, req, res) {
  try {
    const { pathname, searchParams } = new URL(req.url, 'http://localhost');
    res.end(JSON.stringify(await commands[pathname](api, searchParams)));
  } catch (error) {
    res.statusCode = 500;
    res.end(JSON.stringify({ error: String(error) }));
  }
}

/** Options of `listen()`, with a backlog for thousands of clients that connect at once. */
export const LISTEN = { port: 0, host: '127.0.0.1', backlog: 4096 };
