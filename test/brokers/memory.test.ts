import { execFileSync } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { expect, test, vi } from 'vitest';
import { createChannels, memoryBroker } from '../../src/index.ts';
import { brokerContract } from './contract.ts';

brokerContract('memoryBroker()', memoryBroker);

test('memoryBroker() delivers an event before append() returns its promise', () => {
  const broker = memoryBroker();
  const received: string[] = [];
  broker.open(
    {
      receive: (entry) => void received.push(entry.data),
      follows: () => true,
      interrupted: () => undefined,
    },
    { maxHistory: 1_000, maxChannels: 1 },
  );
  void broker.append({
    channel: 'a',
    data: '1',
    event: undefined,
    retry: undefined,
    key: undefined,
    history: false,
  });
  expect(received).toEqual(['1']);
});

test('the memory broker forgets a key after five minutes', async () => {
  const clock = vi.spyOn(performance, 'now').mockReturnValue(0);
  const channels = createChannels();
  const first = await channels.publish('a', 1, { key: 'k' });
  clock.mockReturnValue(299_999);
  expect(await channels.publish('a', 1, { key: 'k' })).toEqual(first);
  clock.mockReturnValue(300_001);
  expect(await channels.publish('a', 1, { key: 'k' })).not.toEqual(first);
  clock.mockRestore();
});

test('in a cluster worker memoryBroker() warns and names the broker to use', () => {
  const program = new URL('../support/cluster-warning.mjs', import.meta.url).pathname;
  const output = execFileSync(process.execPath, [program], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  expect(output).toBe(
    'RES_SSE_MEMORY_BROKER_IN_CLUSTER\nGive createChannels() a broker that all workers share, ' +
      'such as redisBroker() of res-sse/redis. ' +
      '(res-sse/docs/errors.md#res_sse_memory_broker_in_cluster)\n',
  );
});

test('a warning is emitted once when maxChannels removes a channel with events', async () => {
  const warnings: string[] = [];
  const note = (warning: Error & { code?: string }): void =>
    void warnings.push(warning.code ?? warning.message);
  // Wait for warnings that other tests caused.
  await new Promise((resolve) => setImmediate(resolve));
  process.on('warning', note);
  try {
    const channels = createChannels({ maxChannels: 2 });
    await channels.publish('a', 1);
    await channels.publish('b', 1);
    await new Promise((resolve) => setImmediate(resolve));
    expect(warnings).toEqual([]);
    await channels.publish('c', 1);
    await channels.publish('d', 1);
    await new Promise((resolve) => setImmediate(resolve));
    expect(warnings).toEqual(['RES_SSE_MAX_CHANNELS']);
  } finally {
    process.off('warning', note);
  }
});
