import { execFileSync } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { expect, test, vi } from 'vitest';
import { createChannels, memoryBroker } from '../../src/index.ts';
import { brokerContract } from './contract.ts';

brokerContract('memoryBroker()', memoryBroker);

test('it delivers before publish returns its promise', () => {
  const broker = memoryBroker();
  const received: string[] = [];
  broker.open(
    { receive: (entry) => void received.push(entry.data), follows: () => true, interrupted: () => undefined },
    { maxHistory: 1_000, maxChannels: 1 },
  );
  void broker.append({ channel: 'a', data: '1', event: undefined, retry: undefined, key: undefined, history: false });
  expect(received).toEqual(['1']);
});

test('a key is forgotten after five minutes', async () => {
  const clock = vi.spyOn(performance, 'now').mockReturnValue(0);
  const channels = createChannels();
  const first = await channels.publish('a', 1, { key: 'k' });
  clock.mockReturnValue(299_999);
  expect(await channels.publish('a', 1, { key: 'k' })).toEqual(first);
  clock.mockReturnValue(300_001);
  expect(await channels.publish('a', 1, { key: 'k' })).not.toEqual(first);
  clock.mockRestore();
});

test('in a cluster worker it warns that it reaches only that worker', () => {
  const program = new URL('../support/cluster-warning.mjs', import.meta.url).pathname;
  const output = execFileSync(process.execPath, [program], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  expect(output).toBe('RES_SSE_MEMORY_BROKER_IN_CLUSTER\n');
});
