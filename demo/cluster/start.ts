/**
 * Starts the haiku chat on three nodes that share a Redis and the port 4444, or `PORT`.
 *
 *     browser ──▶ port 4444 ──▶ primary (this process), passes each connection to the next node
 *                               ├── node 1 ──┐
 *                               ├── node 2 ──┼── Redis
 *                               └── node 3 ──┘
 *
 * Kill a node by the process id that is printed: its browser tabs reconnect to another node and
 * receive the haiku that they missed. SIGTERM and SIGINT end the demo.
 *
 * Known limitation of `node:cluster`: a connection that the primary passes to a node within the few
 * milliseconds between the death of the node and its detection is not passed to another node. Its
 * client waits until it gives up. Tabs of the killed node are not affected, because they reconnect
 * after at least 500 ms.
 */
import cluster, { type Worker } from 'node:cluster';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { explainPort, readPort } from '../port.ts';
import { startRedis } from './redis.ts';

const NODE_COUNT = 3;

// Until all nodes listen, a signal ends this process at once, and Redis and the nodes with it.
let end = (): void => process.exit(1);
process.on('SIGTERM', () => end());
process.on('SIGINT', () => end());

const port = readPort();
const { REDIS_URL } = process.env;
const redis = REDIS_URL ? undefined : await startRedis();
cluster.schedulingPolicy = cluster.SCHED_RR;
cluster.setupPrimary({ exec: fileURLToPath(new URL('node.ts', import.meta.url)) });
const nodes = Array.from({ length: NODE_COUNT }, () =>
  cluster.fork({ PORT: port, REDIS_URL: REDIS_URL || redis?.url }),
);

let isEnding = false;
try {
  const [listeningPort] = await Promise.all(nodes.map(waitForPort));
  for (const node of nodes) {
    console.log(`Node ${node.id} is process ${node.process.pid}`);
    node.once('exit', () => console.log(`Node ${node.id} has ended`));
  }
  console.log(`Haiku chat listening on http://localhost:${listeningPort}`);
  end = () => void shutDown();
} catch (error) {
  const listenError = error as NodeJS.ErrnoException;
  if (listenError.code === undefined) throw error;
  explainPort(port, listenError);
  await shutDown();
}

/** @returns a promise of the port that the node listens on; rejects if the node cannot listen */
function waitForPort(node: Worker): Promise<number> {
  return new Promise((resolve, reject) => {
    node.once('listening', (address) => resolve(address.port));
    // A node sends no other message than the error of its `listen()`.
    node.once('message', ({ code, message }: NodeJS.ErrnoException) =>
      reject(Object.assign(new Error(message), { code })),
    );
    node.once('exit', () => reject(new Error('a node ended before it was listening')));
  });
}

/** Ends the nodes, which end their streams, and then the Redis of the demo. */
async function shutDown(): Promise<void> {
  if (isEnding) return;
  isEnding = true;
  await Promise.all(nodes.map(endNode));
  await redis?.stop();
}

/** Asks a node to end, and waits for its end. */
async function endNode(node: Worker): Promise<void> {
  if (node.isDead()) return;
  node.process.kill('SIGTERM');
  await once(node, 'exit');
}
