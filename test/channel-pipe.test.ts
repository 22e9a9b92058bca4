/** `channels.pipe()`, with the broker in this process. */
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { createChannels, memoryBroker, type Broker } from '../src/index.ts';
import { noEffectError } from '../src/brokers/redis/redis-errors.ts';
import { brokerWith } from './support/broker-with.ts';
import { testPipe } from './promises/pipe.ts';
import { memoryNodes } from './promises/nodes.ts';
import { until } from './support/wait.ts';

testPipe(memoryNodes);

test('leaves no timer behind', async () => {
  const channels = createChannels();
  const timers = (): number =>
    process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
  const before = timers();
  await channels.pipe('a', ['1', '2'], { every: 60_000 });
  expect(timers()).toBeLessThanOrEqual(before);
  await channels.close();
});

/** A broker whose appends wait until a test accepts or refuses them. */
function slowBroker(): {
  broker: Broker;
  waiting: (() => void)[];
  most: number;
  isBroken: boolean;
} {
  const inner = memoryBroker();
  const slow = { broker: inner, waiting: [] as (() => void)[], most: 0, isBroken: false };
  slow.broker = brokerWith(inner, {
    append: (publication) =>
      new Promise((resolve, reject) => {
        slow.waiting.push(() => {
          if (slow.isBroken) reject(noEffectError('not accepted'));
          else resolve(inner.append(publication));
        });
        slow.most = Math.max(slow.most, slow.waiting.length);
      }),
  });
  return slow;
}

test('at most 64 publishes are in flight, and a slow broker slows the source', async () => {
  const slow = slowBroker();
  const channels = createChannels({ broker: slow.broker });
  let given = 0;
  const source = (function* () {
    while (given < 200) yield given++;
  })();
  const piped = channels.pipe('a', source);
  for (let accepted = 0; accepted < 201; accepted++) {
    await until('a publish', () => slow.waiting.length > 0);
    expect(given).toBeLessThanOrEqual(accepted + 65);
    slow.waiting.shift()?.();
    await delay(0);
  }
  expect(await piped).toMatchObject({ events: 200 });
  expect(slow.most).toBe(64);
  await channels.close();
});

test('with every, a slow broker slows the source, too', async () => {
  const slow = slowBroker();
  const channels = createChannels({ broker: slow.broker });
  let given = 0;
  const source = (async function* () {
    while (given < 500) {
      await delay(1);
      yield given++;
    }
  })();
  const piped = channels.pipe('a', source, { every: 1 });
  await until('64 publishes', () => slow.waiting.length === 64);
  const before = given;
  await until('the source to stand still', async () => {
    const last = given;
    await delay(50);
    return given === last;
  });
  expect(given - before).toBeLessThan(10);
  const accept = setInterval(() => slow.waiting.shift()?.(), 1);
  await piped;
  clearInterval(accept);
  expect(slow.most).toBe(64);
  await channels.close();
});

test('a broker that fails in the middle releases the source, abandons the lease and rejects', async () => {
  const slow = slowBroker();
  const lease: string[] = [];
  const broker = brokerWith(slow.broker, {
    hold: () => ({ release: () => lease.push('released'), abandon: () => lease.push('abandoned') }),
  });
  const channels = createChannels({ broker });
  let isReleased = false;
  const source = (async function* () {
    try {
      for (let n = 0; ; n++) {
        await delay(1);
        yield n;
      }
    } finally {
      isReleased = true;
    }
  })();
  const piped = channels.pipe('a', source);
  piped.catch(() => {});
  await until('two publishes', () => slow.waiting.length >= 2);
  slow.waiting.shift()?.();
  slow.isBroken = true;
  const accept = setInterval(() => slow.waiting.shift()?.(), 1);
  await expect(piped).rejects.toMatchObject({ code: 'ERR_SSE_BROKER' });
  clearInterval(accept);
  await until('the release of the source', () => isReleased);
  expect(lease).toEqual(['abandoned']);
  expect(await channels.state('a')).toBe('open');
  await channels.close();
});

test('the lease is released when the channel has ended elsewhere', async () => {
  const lease: string[] = [];
  const broker = brokerWith(memoryBroker(), {
    hold: () => ({ release: () => lease.push('released'), abandon: () => lease.push('abandoned') }),
  });
  const channels = createChannels({ broker });
  await channels.end('a');
  await expect(channels.pipe('a', ['1'])).rejects.toMatchObject({ code: 'ERR_SSE_ENDED' });
  expect(lease).toEqual(['released']);
  await channels.close();
});

test('the lease is released when the channel has ended, and with end: false there is none', async () => {
  const lease: string[] = [];
  const broker = brokerWith(memoryBroker(), {
    hold: (channel) => {
      lease.push(channel);
      return { release: () => lease.push('released'), abandon: () => lease.push('abandoned') };
    },
  });
  const channels = createChannels({ broker });
  await channels.pipe('a', ['1']);
  await channels.pipe('b', ['1'], { end: false });
  expect(lease).toEqual(['a', 'released']);
  await channels.close();
});
