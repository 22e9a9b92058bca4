/** Reading channels in the process, with the broker in this process. */
import { expect, test } from 'vitest';
import { createChannels } from '../src/index.ts';
import { testReading } from './promises/reading.ts';
import { memoryNodes } from './promises/nodes.ts';

testReading(memoryNodes);

test('follow with { last } starts in the call, and misses nothing that is published after it', async () => {
  const channels = createChannels();
  await channels.publish('a', '1');
  const events = channels.follow('a', { since: { last: 1 } });
  for (const text of ['2', '3', '4']) void channels.publish('a', text);
  const taken: string[] = [];
  for await (const { data } of events) {
    taken.push(data);
    if (data === '4') break;
  }
  expect(taken).toEqual(['1', '2', '3', '4']);
});
