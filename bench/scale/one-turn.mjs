/** Cases with loops in one turn of the event loop, and with many calls on one stream. */
import { CHANNEL, inBatches, LONG, Stage } from './stage.mjs';

/** @type {import('./cases.mjs').Case[]} */
export const oneTurn = [
  {
    name: 'e17a',
    title: 'E17: for (…) { await channels.publish(…); stream.comment(); } N times',
    item: 'publish',
    fakeSizes: [100, 1_000, 10_000],
    prepare: publishAndComment,
  },
  {
    name: 'e22',
    title: 'E22: N subscribe() calls on one stream, each to a channel of its own',
    item: 'subscribe',
    fakeSizes: [100, 400, 1_600],
    prepare: manySubscriptions,
  },
];

/** Measures a loop of publishes, each of which a comment forces to be written at once. */
async function publishAndComment(n) {
  const stage = new Stage();
  let stream;
  await stage.fake((opened) => {
    stream = opened;
    return stage.channels.subscribe(opened, CHANNEL);
  });
  return {
    async act() {
      for (let done = 0; done < n; done++) {
        await stage.channels.publish(CHANNEL, 'x');
        stream.comment();
      }
    },
  };
}

/** Measures many subscriptions of one stream, all at the same time. */
async function manySubscriptions(n) {
  const stage = stageWithSubscriptions(n);
  let stream;
  await stage.fake((opened) => {
    stream = opened;
  });
  const subscribe = (at) => stage.channels.subscribe(stream, `channel-${at}`);
  // The first subscription also opens the stream.
  await subscribe(n);
  return {
    act: () => inBatches(n - 1, n, subscribe),
  };
}

/** Raises the limit on subscriptions. An older build has neither the limit nor the option. */
function stageWithSubscriptions(maxSubscriptions) {
  try {
    return new Stage({ registry: LONG, streams: { maxSubscriptions } });
  } catch (error) {
    if (error.code !== 'ERR_SSE_OPTION') throw error;
    return new Stage({ registry: LONG });
  }
}
