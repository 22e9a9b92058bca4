/** Channels that end, with the broker in this process. */
import { expect, test } from 'vitest';
import { memoryBroker } from '../src/index.ts';
import { testEnds } from './promises/ends.ts';
import { memoryNodes } from './promises/nodes.ts';
import { serveStreams } from './support/app.ts';
import { brokerWith } from './support/broker-with.ts';
import { read } from './support/reader.ts';
import { until } from './support/wait.ts';

testEnds(memoryNodes);

test('a stream that unsubscribes receives all pending events after an end', async () => {
  await using nodes = memoryNodes();
  const { publisher, reader } = nodes;
  let isOpen = false;
  await using server = await serveStreams(
    async (stream) => {
      const subscription = await stream.subscribe(['a', 'b']);
      isOpen = true;
      await until('the signal', () => !isOpen);
      const ended = publisher.end('a');
      // Together more than one frame may hold.
      const published = ['1', '2', '3'].map((name) => publisher.publish('b', name.repeat(40_000)));
      subscription.unsubscribe();
      stream.send('direct');
      await Promise.all([ended, ...published]);
    },
    { channels: reader },
  );
  using client = await read(server.url);
  await until('the stream', () => isOpen);
  isOpen = false;
  await client.take(4);
  expect(client.events.map(({ data }) => data.slice(0, 6))).toEqual([
    '111111',
    '222222',
    '333333',
    'direct',
  ]);
});

test('a stream that is opened while its id is looked up receives sse:end', async () => {
  const broker = memoryBroker();
  const answers: (() => void)[] = [];
  const slow = brokerWith(broker, {
    read: (...args) =>
      new Promise((resolve) => {
        answers.push(() => resolve(broker.read(...args)));
      }),
  });
  await using nodes = memoryNodes({ broker: slow });
  const { publisher, reader } = nodes;
  await using server = await serveStreams(
    async (stream) => {
      const subscription = stream.subscribe('a');
      await until('the lookup', () => answers.length === 1);
      stream.send('hello');
      answers[0]?.();
      await until('the page', () => answers.length === 2);
      answers[1]?.();
      await subscription;
    },
    { channels: reader },
  );
  const { id } = await publisher.end('a');
  using client = await read(server.url, { headers: { 'Last-Event-ID': id } });
  await client.end();
  expect(client.events).toMatchObject([{ data: 'hello' }, { event: 'sse:end' }]);
});
