/** What every server under test shares: the data of an event, paced publishing, and a control port beside the measured one. */
import http from 'node:http';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

const LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789 ,.:-';
const ENVELOPE = '{"t":"~T0123456789012345","v":""}'.length;

const fillers = new Map();

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

/** JSON text of so many bytes, with the monotonic clock (ns) behind the marker by which the client counts and takes the latency. */
export function payload(size) {
  const time = process.hrtime.bigint().toString().padStart(16, '0');
  return `{"t":"~T${time}","v":"${filler(Math.max(0, size - ENVELOPE))}"}`;
}

const loopDelay = monitorEventLoopDelay({ resolution: 1 });

/**
 * @typedef {object} Api what a server can do for the driver
 * @property {(data: string) => unknown} publish to all streams; may return a promise
 * @property {() => number} connections how many streams are open
 * @property {() => Promise<string>} [cursor] the id to resume from
 * @property {(data: string) => unknown} [encode] the bytes of an event
 *
 * @typedef {object} Load
 * @property {number} events how many in all
 * @property {number} burst how many in one turn of the loop; 0 publishes in each turn what is due by now, as a feed meets a busy loop
 * @property {number} rate events per second
 * @property {number} size bytes of an event's data
 */

/** @param {(data: string) => unknown} publish @param {Load} load */
async function run(publish, { events, burst, rate, size }) {
  const start = performance.now();
  const due = () => Math.floor(((performance.now() - start) * rate) / 1000) + 1;
  for (let sent = 0; sent < events;) {
    const count = Math.min(burst || Math.max(0, due() - sent), events - sent);
    await Promise.all(Array.from({ length: count }, () => publish(payload(size))));
    sent += count;
    const wait = start + (sent / rate) * 1000 - performance.now();
    if (sent < events && wait > 1) await sleep(wait);
    else await nextTurn();
  }
}

/** Bytes that are really in use: two collections, since the first may only find what the second frees. */
function memory() {
  globalThis.gc?.();
  globalThis.gc?.();
  return process.memoryUsage();
}

/** @type {Record<string, (api: Api, query: URLSearchParams) => unknown>} */
const commands = {
  async '/publish'({ publish }, query) {
    const number = (name) => Number(query.get(name));
    await run(publish, {
      events: number('events'),
      burst: number('burst'),
      rate: number('rate'),
      size: number('size'),
    });
    return {};
  },
  '/connections': ({ connections }) => ({ connections: connections() }),
  '/memory': memory,
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
 * Opens the control port and tells the driver both.
 * @param {number} port @param {Api} api
 */
export function ready(port, api) {
  const server = http.createServer((req, res) => void answer(api, req, res));
  server.listen(0, '127.0.0.1', () => {
    process.stdout.write(`${JSON.stringify({ port, control: server.address().port })}\n`);
  });
}

async function answer(api, req, res) {
  try {
    const { pathname, searchParams } = new URL(req.url, 'http://localhost');
    res.end(JSON.stringify(await commands[pathname](api, searchParams)));
  } catch (error) {
    res.statusCode = 500;
    res.end(JSON.stringify({ error: String(error) }));
  }
}

/** Thousands connect at once. */
export const LISTEN = { port: 0, host: '127.0.0.1', backlog: 4096 };
