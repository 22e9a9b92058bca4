/** Clients behind buffers and without event names, with the broker in this process. */
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { createChannels, memoryBroker } from '../src/index.ts';
import { serveListen, testBuffers } from './promises/buffers.ts';
import { memoryNodes } from './promises/nodes.ts';
import { brokerWith } from './support/broker-with.ts';
import { read } from './support/reader.ts';

testBuffers(memoryNodes);

test.each(['an old id', 'an id of another log'])(
  'a poll with %s delivers what is kept after the gap, also if the broker is slow',
  async (what) => {
    const broker = memoryBroker();
    const slow = brokerWith(broker, {
      read: async (...args) => {
        await delay(40);
        return broker.read(...args);
      },
    });
    const channels = createChannels({ broker: slow, history: { events: 2 } });
    let gaps = 0;
    await using server = await serveListen(channels, { onGap: () => void gaps++ });
    const { id } = await channels.publish('a', '1');
    for (const text of ['2', '3', '4']) await channels.publish('a', text);
    const lastEventId = what === 'an old id' ? id : 'elsewhere.7';
    using reader = await read(`${server.url}?ssePoll=1&lastEventId=${lastEventId}`);
    await reader.end();
    expect(reader.events.map(({ data }) => data)).toEqual(['3', '4']);
    expect(gaps).toBe(1);
  },
);

test('a poll whose snapshot is called again ends with an id, also if the broker is slow', async () => {
  const broker = memoryBroker();
  const slow = brokerWith(broker, {
    position: (...args) => Promise.resolve(broker.position(...args)),
    read: async (...args) => {
      await delay(10);
      return broker.read(...args);
    },
  });
  const channels = createChannels({ broker: slow, history: { events: 2 } });
  let calls = 0;
  await using server = await serveListen(channels, {
    snapshot: async (stream) => {
      stream.send(`snapshot ${++calls}`);
      if (calls > 1) await delay(60);
      // While the log is read, more is published than it keeps.
      else setImmediate(() => ['1', '2', '3', '4'].map((data) => channels.publish('a', data)));
    },
  });
  using reader = await read(`${server.url}?ssePoll=1`);
  await reader.end();
  expect(calls).toBe(2);
  expect(reader.text).toMatch(/^id: /m);
});
