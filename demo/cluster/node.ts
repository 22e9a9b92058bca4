/** One node: the haiku chat as in `demo/server.ts`, with one line that is another, and a store that all nodes share. */
import type { AddressInfo } from 'node:net';
import { redisBroker } from 'res-sse/redis';
import { createDemo } from '../app.ts';
import { connectTo, RedisStore } from './redis.ts';

// Before it serves it ends at once; also when whoever has started it is gone.
let end = (): void => process.exit(1);
for (const event of ['SIGTERM', 'SIGINT', 'disconnect']) process.on(event, () => end());
if (!process.connected) end();

const client = await connectTo(process.env['REDIS_URL'] as string);
const { app, events, channels } = createDemo(
  new RedisStore(client),
  redisBroker({ client, prefix: 'haiku' }),
);
const server = app.listen(0, '127.0.0.1', (error?: Error) => {
  if (error !== undefined) throw error;
  process.send?.({ port: (server.address() as AddressInfo).port });
});

// Longer than this nobody waits.
const WITHIN = 2_000;

let isEnding = false;
end = () => void shutDown();

async function shutDown(): Promise<void> {
  if (isEnding) return;
  isEnding = true;
  await events.close({ within: WITHIN });
  await channels.close();
  client.destroy();
  server.close(() => process.connected && process.disconnect());
  setTimeout(() => server.closeAllConnections(), WITHIN).unref();
}
