/** Cases in which many streams resume together and have missed the same events. */
import { once } from 'node:events';
import http from 'node:http';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { Bench } from '../processes.mjs';
import { LISTEN, payload } from '../servers/control.mjs';
import { describeStreams, verdict } from './fan-out.mjs';
import { CHANNEL, inBatches, LONG, redisStage, Stage, until } from './stage.mjs';

const EVENT_BYTES = 1_000;
const SIZES = [100, 1_000, 10_000];
const FAKE_SIZES = [10_000, 100_000];

// About the number of requests that a busy server accepts in one turn of the event loop.
const REQUESTS_PER_TURN = 100;

/** @type {import('./cases.mjs').Case[]} */
export const resuming = [
  resumeCase({ name: 'e8a', kb: 60, sizes: SIZES, fakeSizes: FAKE_SIZES }),
  resumeCase({ name: 'e8a-10kb', kb: 10, sizes: SIZES, fakeSizes: FAKE_SIZES }),
  resumeCase({ name: 'e8a-1mb', kb: 1_000, sizes: [100, 1_000, 4_000] }),
  connectCase({ name: 'e8a-connect', kb: 60 }),
  {
    name: 'node-connect',
    title:
      'For e8a-connect: N clients connect at once to a node:http server that writes 60 KB to each',
    item: 'stream',
    sizes: SIZES,
    prepare: (n) => connectToNode(n, 60),
  },
  healCase({ name: 'e8b', kb: 60 }),
  healCase({ name: 'e8b-10kb', kb: 10 }),
];

/** Creates a case in which connected streams subscribe with an id. */
function resumeCase({ kb, ...sizes }) {
  return {
    ...sizes,
    title: `E8: N connected clients subscribe with an id, each has missed ${kb} KB, memory broker`,
    item: 'stream',
    prepare: (n, isFake) => (isFake ? resumeWithoutSockets(n, kb) : resume(n, kb)),
  };
}

/** Creates a case in which clients connect with an id. */
function connectCase({ name, kb }) {
  return {
    name,
    title: `E8: N clients connect at once with an id, each has missed ${kb} KB, memory broker`,
    item: 'stream',
    sizes: SIZES,
    prepare: (n) => connectAndResume(n, kb),
  };
}

/** Creates a case in which the node loses its connection to Redis. */
function healCase({ name, kb }) {
  return {
    name,
    title: `E8: N open streams reconnect to Redis after 3 s, each has missed ${kb} KB`,
    item: 'stream',
    sizes: SIZES,
    fakeSizes: FAKE_SIZES,
    prepare: (n, isFake) => heal(n, kb, isFake),
  };
}

/** Measures without the connects: the streams are open before they subscribe. */
async function resume(n, kb) {
  const streams = [];
  const stage = new Stage({ handler: (stream) => streams.push(stream.open()) });
  const lastEventId = await fillLog(stage, kb);
  const client = await stage.connect(n, { lastEventId });
  const counted = await client.expect(kb);
  let result;
  return {
    async act() {
      await inBatches(n, REQUESTS_PER_TURN, async (index) => {
        await stage.channels.subscribe(streams[index], CHANNEL);
        await nextTurn();
      });
      result = await counted();
    },
    note: () => verdict(result, stage),
  };
}

/** Measures including the connects. */
async function connectAndResume(n, kb) {
  const stage = new Stage();
  const lastEventId = await fillLog(stage, kb);
  // The first client starts the server.
  await (await stage.connect(1)).stop();
  return {
    act: () => stage.connect(n, { lastEventId, events: kb, together: true }),
    note: () => (stage.events.stats().open === n ? '' : `WRONG: ${describeStreams(stage)}`),
  };
}

/** Measures the same bytes from a server without this library. */
async function connectToNode(n, kb) {
  const server = http.createServer((req, res) => {
    res.writeHead(200, { 'Content-Type': 'text/event-stream' });
    for (let sent = 0; sent < kb; sent++) res.write(`data: ${payload(EVENT_BYTES)}\n\n`);
  });
  server.listen(LISTEN);
  await once(server, 'listening');
  const bench = new Bench(false, process.env.SCALE_CLIENT);
  return { act: () => bench.connect(server.address(), { n, events: kb, together: true }) };
}

/** @returns {Promise<string>} the id before the events that the streams have missed */
async function fillLog(stage, kb) {
  await stage.channels.publish(CHANNEL, payload(EVENT_BYTES));
  const lastEventId = await stage.channels.cursor();
  await stage.burst(kb, EVENT_BYTES);
  return lastEventId;
}

/** Measures requests with an id, in batches, with fake responses. */
async function resumeWithoutSockets(n, kb) {
  const stage = new Stage();
  const lastEventId = await fillLog(stage, kb);
  return {
    async act() {
      const streams = [];
      await inBatches(n, REQUESTS_PER_TURN, async () => {
        streams.push(await stage.fake(undefined, { 'last-event-id': lastEventId }));
        await nextTurn();
      });
      await until(() => streams.every(({ taken }) => taken >= kb * EVENT_BYTES), 2);
    },
  };
}

/** Measures the recovery of a node that was without access to Redis for 3 s. */
async function heal(n, kb, isFake) {
  const { registry, elsewhere, shutOut, letIn } = await redisStage();
  const stage = new Stage({ registry: registry() });
  await stage.channels.publish(CHANNEL, payload(EVENT_BYTES));
  const publisher = elsewhere(LONG);
  const readers = await stage.readers(n, isFake);
  await until(() => stage.channels.stats().behind === 0);
  const counted = await readers.expect(kb, EVENT_BYTES);
  await shutOut();
  await until(() => stage.channels.stats().broker.state !== 'open');
  await Promise.all(
    Array.from({ length: kb }, () => publisher.publish(CHANNEL, payload(EVENT_BYTES))),
  );
  await sleep(3_000);
  let result;
  return {
    async act() {
      await letIn();
      result = await counted();
    },
    note: () => verdict(result, stage),
  };
}
