/** Events in Redis that this version cannot read. */
import { expect, test } from 'vitest';
import { redisBroker } from '../../src/brokers/redis.ts';
import { createChannels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { startRedis } from '../support/redis-server.ts';
import { read } from '../support/reader.ts';

test.each([
  ['from Redis directly', 1],
  ['through the cache', 67_108_864],
])(
  'unreadable events are reported as a gap, also if they fill whole pages, %s',
  async (_what, maxHistory) => {
    await using redis = await startRedis();
    const writer = createChannels({ broker: redisBroker({ url: redis.url }) });
    const { id } = await writer.publish('c', 'first');
    for (let n = 0; n < 2; n++) await writer.publish('c', 'x'.repeat(90_000));
    await writer.publish('c', 'last');
    const client = await redis.client();
    const entries = (await client.xRange('{res-sse}:s:c', '-', '+')) ?? [];
    await client.del('{res-sse}:s:c');
    for (const { id: entryId, message } of entries) {
      const body = message['b']!;
      // A version of the format that does not exist.
      const b = body.length > 1_000 ? body.replace(/^1 /, '2 ') : body;
      await client.xAdd('{res-sse}:s:c', entryId, { ...message, b });
    }
    const channels = createChannels({ broker: redisBroker({ url: redis.url }), maxHistory });
    await using server = await serveStreams((stream) => stream.subscribe('c'), { channels });
    using reader = await read(`${server.url}?lastEventId=${id}`);
    expect(await reader.take(2)).toMatchObject([{ event: 'sse:gap' }, { data: 'last' }]);
    await Promise.all([writer.close(), channels.close()]);
  },
);
