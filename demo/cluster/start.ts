/**
 * The haiku chat on three nodes that share a Redis, behind a proxy on port 4444, or `PORT`, until SIGTERM or SIGINT. Kill a node by
 * the id that is printed: the tabs that were on it go on elsewhere, and have missed nothing.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { explainPort, portFromEnvironment } from '../port.ts';
import { createProxy } from './proxy.ts';
import { startRedis } from './redis.ts';

const NODES = 3;

// Before all are there it ends at once, and Redis and the nodes with it.
let end = (): void => process.exit(1);
process.on('SIGTERM', () => end());
process.on('SIGINT', () => end());

const publicPort = portFromEnvironment();
const { REDIS_URL: given } = process.env;
const redis = given ? undefined : await startRedis();
const nodes = Array.from({ length: NODES }, () =>
  fork(new URL('node.ts', import.meta.url), {
    env: { ...process.env, REDIS_URL: given || redis?.url },
  }),
);
const ports = await Promise.all(nodes.map(portOf));
for (const [index, node] of nodes.entries()) {
  console.log(`Node ${index + 1} is process ${node.pid}, on http://localhost:${ports[index]}`);
  node.once('exit', () => console.log(`Node ${index + 1} has ended`));
}
const proxy = createProxy(ports);
proxy.once('error', (error) => {
  explainPort(publicPort, error);
  end();
});
proxy.listen(publicPort, () => {
  console.log(`Haiku are spoken on http://localhost:${(proxy.address() as AddressInfo).port}`);
});

async function portOf(node: ChildProcess): Promise<number> {
  const ended = once(node, 'exit').then(() => {
    throw new Error('a node has not started');
  });
  const [{ port }] = (await Promise.race([once(node, 'message'), ended])) as [{ port: number }];
  // From here on it may.
  ended.catch(() => {});
  return port;
}

let isEnding = false;
end = () => void shutDown();

async function shutDown(): Promise<void> {
  if (isEnding) return;
  isEnding = true;
  proxy.close();
  await Promise.all(nodes.map(endNode));
  proxy.closeAllConnections();
  await redis?.stop();
}

async function endNode(node: ChildProcess): Promise<void> {
  if (node.exitCode !== null || node.signalCode !== null) return;
  node.kill('SIGTERM');
  await once(node, 'exit');
}
