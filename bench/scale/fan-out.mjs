/** Cases with much data for many streams: bursts, overload, many sets of channels, large events. */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { payload } from '../servers/control.mjs';
import { CHANNEL, LONG, Stage, until } from './stage.mjs';

/** The burst of the case `e7a`: 1 MB in total. */
const BURST = { events: 512, size: 2_048 };

/** @type {import('./cases.mjs').Case[]} */
export const fanOut = [
  {
    name: 'e7a',
    title: 'E7: a burst of 1 MB in one turn to N streams, a heartbeat is due',
    item: 'stream',
    sizes: [100, 1_000, 10_000],
    fakeSizes: [10_000, 100_000],
    prepare: burst,
  },
  {
    name: 'e7b',
    title: 'E7: 20,000 events/s of 200 B for 2 s to N streams, until all events have arrived',
    item: 'stream',
    sizes: [200, 2_000],
    prepare: overload,
  },
  {
    name: 'e18',
    title: 'E18: N sets of channels, 10 events to their common channel, one per turn',
    item: 'set and event',
    fakeSizes: [100, 1_000, 10_000, 100_000],
    prepare: manySets,
  },
  {
    name: 'send',
    title: 'Low: send() of N MB in one call to a fast reader',
    item: 'MB',
    sizes: [2, 20, 200],
    prepare: largeSend,
  },
];

/** Measures a burst of events in one turn, with a heartbeat during the burst. */
async function burst(n, isFake) {
  // Short enough for a heartbeat during the burst, if the burst takes longer than this time.
  const stage = new Stage({ streams: { heartbeat: 250 } });
  const readers = await stage.readers(n, isFake);
  const counted = await readers.expect(BURST.events, BURST.size);
  let result;
  return {
    async act() {
      await stage.burst(BURST.events, BURST.size);
      result = await counted();
    },
    note: () => verdict(result, stage),
  };
}

/** Measures more events than the clients can take, from the first event until all have arrived. */
async function overload(n) {
  const stage = new Stage({ streams: { heartbeat: 1_000 } });
  const client = await stage.connect(n);
  const seconds = 2;
  const rate = 20_000;
  const counted = await client.expect(seconds * rate);
  let result;
  let maxBuffered = 0;
  let maxBehind = 0;
  const sample = () => {
    maxBuffered = Math.max(maxBuffered, stage.events.stats().buffered);
    maxBehind = Math.max(maxBehind, stage.channels.stats().behind);
  };
  return {
    async act() {
      const timer = setInterval(sample, 100);
      const start = performance.now();
      for (let sent = 0; sent < seconds * rate;) {
        const due = Math.min(seconds * rate, Math.ceil(((performance.now() - start) * rate) / 1e3));
        for (; sent < due; sent++) void stage.channels.publish(CHANNEL, payload(200));
        await sleep(1);
      }
      result = await counted();
      clearInterval(timer);
    },
    note: () =>
      `at most ${megabytes(maxBuffered)} buffered, ${maxBehind} behind; ${verdict(result, stage)}`,
  };
}

/** Measures streams that all subscribe to different sets of channels with one common channel. */
async function manySets(n) {
  const stage = new Stage({ registry: { ...LONG, maxChannels: 1_000_000 }, handler: followOwnSet });
  const streams = [];
  for (let user = 0; user < n; user++) streams.push(await stage.fake(undefined, { user }));
  const events = 10;
  const publish = async () => {
    const wanted = streams.map(({ taken }) => taken + 200);
    await stage.channels.publish('global', payload(200));
    await nextTurn();
    return wanted;
  };
  await publish();
  return {
    items: n * events,
    async act() {
      let wanted;
      for (let event = 0; event < events; event++) wanted = await publish();
      await until(() => streams.every(({ taken }, at) => taken >= wanted[at]), 1);
    },
  };
}

/** Subscribes to the common channel and to a channel of the user. */
function followOwnSet(stream, channels) {
  return channels.subscribe(stream, ['global', `user:${stream.req.headers.user}`]);
}

/** Measures one very large event on one stream. */
async function largeSend(n) {
  let stream;
  const stage = new Stage({
    streams: { maxBuffered: 2 ** 30 },
    handler(opened) {
      stream = opened.open();
    },
  });
  const client = await stage.connect(1);
  const counted = await client.expect(1);
  const data = 'x'.repeat(n * 1_000_000) + payload(100);
  let result;
  return {
    async act() {
      stream.send(data);
      result = await counted();
    },
    note: () => verdict(result, stage),
  };
}

/** @returns `''` if each client has received every event, else a description of the error */
export function verdict({ ok, events }, stage) {
  return ok ? '' : `WRONG: ${events} events received; ${describeStreams(stage)}`;
}

/** @returns the number of open streams, and the reasons of those that have ended */
export function describeStreams(stage) {
  const { open, closed } = stage.events.stats();
  return `${open} open, closed ${JSON.stringify(closed)}`;
}

/** @returns the bytes as text in MB */
export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
