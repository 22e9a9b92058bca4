/** Promises in place of values. */
import { expect, test } from 'vitest';
import { createChannels, sse } from '../../src/index.ts';
import { connectFake } from '../support/crowd.ts';
import { turns } from '../support/turns.ts';

test('a promise that rejects, in place of a value, does not end the process', async () => {
  const reject = (): Promise<never> => Promise.reject(new Error('the database is away'));
  const channels = createChannels();
  const errors: unknown[] = [];
  const events = sse({ channels, warnings: false, onError: (error) => void errors.push(error) });
  const { stream } = connectFake(events);
  await stream.subscribe('a', { filter: reject as never });
  await channels.publish('a', 'x');
  await turns(5);
  expect(errors).toMatchObject([{ code: 'ERR_SSE_FILTER' }]);
  await expect(channels.publish('a', reject())).rejects.toMatchObject({ code: 'ERR_SSE_DATA' });
  await expect(channels.publish('a', 'x', reject() as never)).rejects.toMatchObject({
    code: 'ERR_SSE_OPTION',
  });
  const other = createChannels({ historyFor: reject as never });
  await expect(other.publish('a', 'x')).rejects.toMatchObject({ code: 'ERR_SSE_OPTION' });
  // Vitest fails on an unhandled rejection.
  await turns(5);
});
