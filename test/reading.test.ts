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

test.each([
  ['start', 'start'],
  ['{ last }', { last: 1 }],
])('follow since %s: events that are lost after the call are a gap', async (_what, since) => {
  const channels = createChannels({ history: { events: 2 } });
  for (const text of ['1', '2', '3']) await channels.publish('a', text);
  const early = channels.follow('a', { since });
  const late = channels.follow('a', { since });
  await channels.publish('a', '4');
  expect((await early.next()).value?.data).toBe('3');
  await early.return?.();
  for (const text of ['5', '6']) await channels.publish('a', text);
  await expect(late.next()).rejects.toMatchObject({ code: 'ERR_SSE_GAP' });
});
