/** A process that pipes numbers to the channel `run` without end. For `redis-pipe.test.ts`. */
import { setTimeout as delay } from 'node:timers/promises';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels } from '../../src/index.ts';

const [url, prefix, lease] = process.argv.slice(2) as [string, string, string];
const connection = ownConnection(url, 10_000, () => {});
const timing = { timeout: 2_000, probe: 10_000, linger: 10_000, wait: { min: 5, max: 100 } };
const broker = new RedisBroker(connection, prefix, { ...timing, lease: Number(lease) });
const channels = createChannels({ broker });

async function* numbers(): AsyncGenerator<string> {
  for (let n = 0; ; n++) {
    yield `${n}`;
    await delay(5);
  }
}

await channels.pipe('run', numbers());
