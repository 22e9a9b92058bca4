/** One node of the cluster: the haiku chat of `demo/server.ts`, with Redis as broker and store. */
import cluster from 'node:cluster';
import { createServer } from 'node:http';
import { redisBroker } from 'res-sse/redis';
import { createDemo } from '../app.ts';
import { connectTo, RedisStore } from './redis.ts';

// Maximum time in ms for ending the streams, and then for requests that are still running.
const SHUTDOWN_MS = 2_000;

// Before this node listens, a signal ends the process at once. If the primary ends, `node:cluster`
// ends this process.
let end = (): void => process.exit(1);
process.on('SIGTERM', () => end());
process.on('SIGINT', () => end());

const client = await connectTo(process.env['REDIS_URL'] as string);
const { app, events, channels } = createDemo(
  new RedisStore(client),
  redisBroker({ client, prefix: 'haiku' }),
);
const server = createServer((req, res) => {
  res.setHeader('X-Node', `${cluster.worker?.id}`);
  app(req, res);
});
server.once('error', ({ code, message }: NodeJS.ErrnoException) => {
  process.send?.({ code, message });
});
// In a cluster, all nodes with the same port share the socket of the primary.
server.listen(Number(process.env['PORT']));

let isEnding = false;
end = () => void shutDown();

/** Ends the streams, then the connections to Redis, then the server and this process. */
async function shutDown(): Promise<void> {
  if (isEnding) return;
  isEnding = true;
  await events.close({ within: SHUTDOWN_MS });
  await channels.close();
  client.destroy();
  // Closing the channel to the primary ends this process.
  server.close(() => process.connected && process.disconnect());
  setTimeout(() => server.closeAllConnections(), SHUTDOWN_MS).unref();
}
