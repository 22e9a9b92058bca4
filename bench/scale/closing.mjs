/** Cases in which one call ends many streams. */
import { setTimeout as sleep } from 'node:timers/promises';
import { CHANNEL, Stage, until } from './stage.mjs';

const SIZES = [100, 1_000, 10_000];
const FAKE_SIZES = [10_000, 100_000];

/** @type {import('./cases.mjs').Case[]} */
export const closing = [
  {
    name: 'e17b',
    title: 'E17: closeWhere() of N streams, each publishes "left" when it is aborted',
    item: 'stream',
    sizes: SIZES,
    fakeSizes: FAKE_SIZES,
    prepare: (n, isFake) => closeWhere(n, isFake, true),
  },
  {
    name: 'close-where',
    title: 'Low: closeWhere(() => true) with N streams',
    item: 'stream',
    sizes: SIZES,
    fakeSizes: FAKE_SIZES,
    prepare: (n, isFake) => closeWhere(n, isFake, false),
  },
  {
    name: 'close',
    title: 'Low: channels.close() with N streams',
    item: 'stream',
    sizes: SIZES,
    fakeSizes: FAKE_SIZES,
    prepare: closeRegistry,
  },
];

/** @param {boolean} isAnnounced whether the end of each stream publishes an event */
async function closeWhere(n, isFake, isAnnounced) {
  let userCount = 0;
  const stage = new Stage({
    async handler(stream, channels) {
      const user = ++userCount;
      if (isAnnounced) {
        stream.signal.addEventListener(
          'abort',
          () => void channels.publish(CHANNEL, { user }, { event: 'left' }),
        );
      }
      await channels.subscribe(stream, CHANNEL);
    },
  });
  await stage.readers(n, isFake);
  return {
    async act() {
      stage.events.closeWhere(() => true);
      await allEnded(stage);
    },
  };
}

/** Measures `channels.close()`. */
async function closeRegistry(n, isFake) {
  const stage = new Stage();
  await stage.readers(n, isFake);
  return {
    async act() {
      await stage.channels.close();
      await allEnded(stage);
    },
  };
}

/** Waits until all streams have ended and their last bytes are written. */
async function allEnded(stage) {
  await until(() => stage.events.stats().open === 0);
  // The last bytes of the streams are written in this time.
  await sleep(100);
}
