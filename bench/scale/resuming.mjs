/** Streams that come back together and are all owed the same. */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { payload } from '../servers/control.mjs';
import { closedText, verdict } from './fan-out.mjs';
import { CHANNEL, inBatches, LONG, redisStage, Stage, until } from './stage.mjs';

const EVENT = 1_000;
const SIZES = [100, 1_000, 10_000];
const FAKE_SIZES = [10_000, 100_000];

// About as many as a busy server accepts in one turn of the loop.
const REQUESTS_PER_TURN = 100;

/** @type {import('./cases.mjs').Case[]} */
export const resuming = [
  comingBack({ name: 'e8a', kb: 60, sizes: SIZES, fakeSizes: FAKE_SIZES }),
  comingBack({ name: 'e8a-10kb', kb: 10, sizes: SIZES, fakeSizes: FAKE_SIZES }),
  comingBack({ name: 'e8a-1mb', kb: 1_000, sizes: [100, 1_000, 4_000] }),
  healing({ name: 'e8b', kb: 60 }),
  healing({ name: 'e8b-10kb', kb: 10 }),
];

function comingBack({ kb, ...sizes }) {
  return {
    ...sizes,
    title: `E8: N clients connect with an id, each is owed ${kb} KB, memory broker`,
    item: 'stream',
    prepare: (n, isFake) => (isFake ? comeBackWithoutSockets(n, kb) : comeBack(n, kb)),
  };
}

function healing({ name, kb }) {
  return {
    name,
    title: `E8: N open streams, the node was shut out of Redis for 3 s, each stream is owed ${kb} KB`,
    item: 'stream',
    sizes: SIZES,
    fakeSizes: FAKE_SIZES,
    prepare: (n, isFake) => heal(n, kb, isFake),
  };
}

async function comeBack(n, kb) {
  const stage = new Stage();
  await stage.channels.publish(CHANNEL, payload(EVENT));
  const lastEventId = await stage.channels.cursor();
  await stage.burst(kb, EVENT);
  // The server is there before the clients are.
  await (await stage.connect(1)).stop();
  return {
    act: () => stage.connect(n, { lastEventId, events: kb, together: true }),
    note: () => (stage.events.stats().open === n ? '' : `WRONG: ${closedText(stage)}`),
  };
}

async function comeBackWithoutSockets(n, kb) {
  const stage = new Stage();
  await stage.channels.publish(CHANNEL, payload(EVENT));
  const lastEventId = await stage.channels.cursor();
  await stage.burst(kb, EVENT);
  return {
    async act() {
      const streams = [];
      await inBatches(n, REQUESTS_PER_TURN, async () => {
        streams.push(await stage.fake(undefined, { 'last-event-id': lastEventId }));
        await nextTurn();
      });
      await until(() => streams.every(({ taken }) => taken >= kb * EVENT), 2);
    },
  };
}

async function heal(n, kb, isFake) {
  const { registry, elsewhere, shutOut, letIn } = await redisStage();
  const stage = new Stage({ registry: registry() });
  await stage.channels.publish(CHANNEL, payload(EVENT));
  const publisher = elsewhere(LONG);
  const readers = await stage.readers(n, isFake);
  await until(() => stage.channels.stats().behind === 0);
  const counted = await readers.expect(kb, EVENT);
  await shutOut();
  await until(() => stage.channels.stats().broker.state !== 'open');
  await Promise.all(Array.from({ length: kb }, () => publisher.publish(CHANNEL, payload(EVENT))));
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
