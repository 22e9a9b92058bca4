/** The promises of the relay on which the tests of many nodes depend. */
import { expect, test } from 'vitest';
import { createClient } from 'redis';
import { startRedis } from './redis-server.ts';
import { startRelay } from './relay.ts';
import { until } from './wait.ts';

test.each([2, 3] as const)(
  'the relay takes out one message and nothing else, in version %i of the protocol',
  async (RESP) => {
    await using redis = await startRedis();
    await using relay = await startRelay(redis.port);
    const publisher = await redis.client();
    const client = createClient({ url: relay.url, RESP });
    client.on('error', () => {});
    await client.connect();
    const subscriber = client.duplicate();
    subscriber.on('error', () => {});
    await subscriber.connect();
    const heard: string[] = [];
    await subscriber.subscribe(
      ['a', 'b'],
      (message, topic) => void heard.push(`${topic}${message}`),
    );
    relay.dropNext(({ topic, payload }) => topic === 'a' && String(payload) === '2');
    for (const number of ['1', '2', '3', '2']) {
      await publisher.publish('a', number);
      await publisher.publish('b', number);
    }
    await until('the last', () => heard.length >= 7);
    expect(heard).toEqual(['a1', 'b1', 'b2', 'a3', 'b3', 'a2', 'b2']);
    expect(relay.dropped.map(({ topic, payload }) => topic + payload)).toEqual(['a2']);

    const large = 'x\r\n'.repeat(100_000);
    await client.set('large', large);
    expect(await client.get('large')).toBe(large);
    expect(await client.sendCommand(['COMMAND', 'INFO', 'get', 'set'])).toHaveLength(2);

    relay.stall('replies');
    const answer = client.ping();
    let isAnswered = false;
    void answer.then(() => (isAnswered = true));
    await publisher.set('reached', 'no');
    expect(isAnswered).toBe(false);
    relay.flow();
    expect(await answer).toBe('PONG');

    const { made } = relay;
    relay.cut();
    await until(
      'both to be back',
      () => relay.made === made + 2 && client.isReady && subscriber.isReady,
    );
    client.destroy();
    subscriber.destroy();
  },
);
