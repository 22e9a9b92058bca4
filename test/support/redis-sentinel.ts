/** A real primary and its replica under Sentinel, on one machine. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';
import { start } from './child.ts';
import { freePort, startRedis, synchronized, type RedisServer } from './redis-server.ts';
import { Resources } from './resources.ts';
import { until } from './wait.ts';

// The smallest number with which a majority can outvote one sentinel.
const SENTINELS = 3;
const NAME = 'res-sse';

// Time in ms without an answer after which the primary counts as down.
const DOWN_AFTER = 500;

export interface RedisSentinel extends AsyncDisposable {
  readonly name: string;
  /** The addresses of the sentinels. */
  readonly rootNodes: { readonly host: string; readonly port: number }[];
  /** The roles at the start. */
  readonly primary: RedisServer;
  readonly replica: RedisServer;
  /** The current primary, if all sentinels name the same server; otherwise `undefined`. */
  current(): Promise<RedisServer | undefined>;
  /** Resolves when the replica has all data of the primary. */
  synchronized(): Promise<void>;
}

/**
 * Starts a primary, a replica and three sentinels; resolves when they know each other.
 * @example await using sentinel = await startRedisSentinel();
 */
export async function startRedisSentinel(): Promise<RedisSentinel> {
  await using starting = new Resources();
  const config = ['repl-diskless-sync-delay 0', 'repl-ping-replica-period 1'];
  const primary = starting.use(await startRedis({ config }));
  const replica = starting.use(
    await startRedis({ config: [...config, `replicaof 127.0.0.1 ${primary.port}`] }),
  );
  const [onPrimary, onReplica] = [await primary.client(), await replica.client()];
  await until('the replica to follow', async () =>
    (await onReplica.info('replication')).includes('master_link_status:up'),
  );

  const rootNodes: { host: string; port: number }[] = [];
  for (let index = 0; index < SENTINELS; index++) {
    const dir = mkdtempSync(join(tmpdir(), 'res-sse-sentinel-'));
    starting.defer(() => rmSync(dir, { recursive: true, force: true }));
    const port = await freePort();
    writeFileSync(join(dir, 'sentinel.conf'), configuration(port, primary.port, dir));
    starting.use(start('redis-server', [join(dir, 'sentinel.conf'), '--sentinel']));
    rootNodes.push({ host: '127.0.0.1', port });
  }
  // A new connection for each question, so that no connection has to be closed later.
  const ask = async (port: number, ...words: string[]): Promise<string[]> => {
    const client = createClient({
      url: `redis://127.0.0.1:${port}`,
      RESP: 2,
      socket: { reconnectStrategy: false },
    });
    client.on('error', () => {});
    try {
      await client.connect();
      return await client.sendCommand<string[]>(['SENTINEL', ...words, NAME]);
    } finally {
      if (client.isOpen) client.destroy();
    }
  };
  await until(
    'the sentinels to know each other',
    async () => {
      try {
        const replies = await Promise.all(rootNodes.map(({ port }) => ask(port, 'MASTER')));
        return replies.every(
          (reply) =>
            valueOf(reply, 'num-other-sentinels') === `${SENTINELS - 1}` &&
            valueOf(reply, 'num-slaves') === '1',
        );
      } catch {
        return false;
      }
    },
    20_000,
  );

  const resources = starting.move();
  return {
    name: NAME,
    rootNodes,
    primary,
    replica,
    async current() {
      const ports = await Promise.all(
        rootNodes.map(async ({ port }) => (await ask(port, 'GET-MASTER-ADDR-BY-NAME'))[1]),
      );
      return [primary, replica].find((server) => ports.every((port) => port === `${server.port}`));
    },
    synchronized: () => synchronized(onPrimary, onReplica),
    [Symbol.asyncDispose]: () => resources[Symbol.asyncDispose](),
  };
}

function configuration(port: number, primary: number, dir: string): string {
  return [
    `port ${port}`,
    'bind 127.0.0.1',
    `dir "${dir}"`,
    `sentinel monitor ${NAME} 127.0.0.1 ${primary} 2`,
    `sentinel down-after-milliseconds ${NAME} ${DOWN_AFTER}`,
    `sentinel failover-timeout ${NAME} 5000`,
    '',
  ].join('\n');
}

function valueOf(reply: readonly string[], name: string): string | undefined {
  return reply[reply.indexOf(name) + 1];
}
