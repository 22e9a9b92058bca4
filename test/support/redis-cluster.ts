/** A real Redis Cluster of three, on one machine. */
import { createCluster } from 'redis';
import {
  freePort,
  startRedis,
  synchronized,
  type RedisClient,
  type RedisOptions,
  type RedisServer,
} from './redis-server.ts';
import { Resources } from './resources.ts';
import { until } from './wait.ts';

const SLOTS = 16_384;
const MASTERS = 3;

// In ms. If a master does not answer for about twice this time, its replica takes over.
const NODE_TIMEOUT = 600;

export type RedisClusterClient = ReturnType<typeof makeClusterClient>;

export interface RedisCluster extends AsyncDisposable {
  /** The URLs of all servers. */
  readonly urls: readonly string[];
  /** The servers that had slots at the start, in the order of the slots. */
  readonly masters: readonly RedisServer[];
  /** The replica of the master that had the key's slot at the start. */
  readonly replica: RedisServer;
  /** A connected client, closed with the cluster. */
  client(): Promise<RedisClusterClient>;
  /** Asks the running servers which server has the key's slot now. */
  masterOf(key: string): Promise<RedisServer>;
  /** Resolves when the replica has all data of its master. */
  synchronized(): Promise<void>;
  /**
   * Moves the slot of the key with all its keys, ten keys at a time, as `redis-cli --cluster
   * reshard` does. Calls `between` after each ten keys.
   */
  moveSlot(key: string, to: RedisServer, between?: () => Promise<unknown>): Promise<void>;
}

/**
 * Starts three masters, and a replica of the master that has the key's slot. Resolves when all of
 * them agree that the cluster is complete.
 * @example await using cluster = await startRedisCluster('{res-sse}:log');
 */
export async function startRedisCluster(
  replicatedKey: string,
  options: Pick<RedisOptions, 'acl'> = {},
): Promise<RedisCluster> {
  await using starting = new Resources();
  const servers = await Promise.all(
    Array.from({ length: MASTERS + 1 }, () => startMember(starting, options)),
  );
  const masters = servers.slice(0, MASTERS);
  const replica = servers.at(-1) as RedisServer;
  const clients = new Map<RedisServer, RedisClient>();
  for (const server of servers) clients.set(server, await server.client());
  const ask = (server: RedisServer, ...words: string[]) =>
    (clients.get(server) as RedisClient).sendCommand<string>(words);
  const idOf = (server: RedisServer) => ask(server, 'CLUSTER', 'MYID');
  const slotOf = async (key: string) =>
    Number(await ask(running()[0] as RedisServer, 'CLUSTER', 'KEYSLOT', key));

  function running(): RedisServer[] {
    return servers.filter((server) => clients.get(server)?.isReady === true);
  }

  async function masterOf(key: string): Promise<RedisServer> {
    const slot = await slotOf(key);
    for (const server of running()) {
      const mine = (await ask(server, 'CLUSTER', 'NODES'))
        .split('\n')
        .find((line) => line.includes('myself,master'));
      const ranges = mine?.split(' ').slice(8) ?? [];
      const has = ranges.some((range) => {
        const [first, last = first] = range.split('-').map(Number) as [number, number?];
        return first <= slot && slot <= last;
      });
      if (has) return server;
    }
    throw new Error(`nobody has slot ${slot} now`);
  }

  for (const [index, server] of masters.entries()) {
    const first = Math.floor((index * SLOTS) / MASTERS);
    const last = Math.floor(((index + 1) * SLOTS) / MASTERS) - 1;
    await ask(server, 'CLUSTER', 'ADDSLOTSRANGE', `${first}`, `${last}`);
    await ask(server, 'CLUSTER', 'SET-CONFIG-EPOCH', `${index + 1}`);
  }
  for (const { port, busPort } of servers.slice(1)) {
    await ask(servers[0] as RedisServer, 'CLUSTER', 'MEET', '127.0.0.1', `${port}`, `${busPort}`);
  }
  await until('the servers to know each other', async () => {
    const known = await Promise.all(servers.map((server) => ask(server, 'CLUSTER', 'NODES')));
    return known.every(
      (text) => text.trim().split('\n').length === servers.length && !text.includes('handshake'),
    );
  });
  await ask(replica, 'CLUSTER', 'REPLICATE', await idOf(await masterOf(replicatedKey)));
  await until('the cluster to be whole', async () => {
    const states = await Promise.all(servers.map((server) => ask(server, 'CLUSTER', 'INFO')));
    const link = await ask(replica, 'INFO', 'replication');
    return (
      states.every((state) => state.includes('cluster_state:ok')) &&
      link.includes('master_link_status:up')
    );
  });

  const urls = servers.map(({ url }) => url);
  const resources = starting.move();
  return {
    urls,
    masters,
    replica,
    async client() {
      const client = makeClusterClient(urls);
      resources.defer(() => client.destroy());
      await client.connect();
      return client;
    },
    masterOf,
    async moveSlot(key, to, between = async () => {}) {
      const slot = `${await slotOf(key)}`;
      const from = await masterOf(key);
      const [fromId, toId] = [await idOf(from), await idOf(to)];
      await ask(to, 'CLUSTER', 'SETSLOT', slot, 'IMPORTING', fromId);
      await ask(from, 'CLUSTER', 'SETSLOT', slot, 'MIGRATING', toId);
      for (;;) {
        const keys = (await ask(
          from,
          'CLUSTER',
          'GETKEYSINSLOT',
          slot,
          '10',
        )) as unknown as string[];
        if (keys.length === 0) break;
        await ask(from, 'MIGRATE', '127.0.0.1', `${to.port}`, '', '0', '5000', 'KEYS', ...keys);
        await between();
      }
      // The new owner first, so that the slot has an owner at every moment.
      for (const server of [
        to,
        from,
        ...masters.filter((other) => other !== to && other !== from),
      ]) {
        await ask(server, 'CLUSTER', 'SETSLOT', slot, 'NODE', toId);
      }
    },
    async synchronized() {
      const master = await masterOf(replicatedKey);
      await synchronized(clients.get(master) as RedisClient, clients.get(replica) as RedisClient);
    },
    [Symbol.asyncDispose]: () => resources[Symbol.asyncDispose](),
  };
}

async function startMember(
  resources: Resources,
  options: Pick<RedisOptions, 'acl'>,
): Promise<RedisServer & { busPort: number }> {
  // The default, the port + 10,000, may be in use.
  const busPort = await freePort();
  const config = [
    'cluster-enabled yes',
    `cluster-port ${busPort}`,
    `cluster-node-timeout ${NODE_TIMEOUT}`,
    'cluster-replica-validity-factor 0',
    'repl-diskless-sync-delay 0',
  ];
  return { ...resources.use(await startRedis({ ...options, config })), busPort };
}

function makeClusterClient(urls: readonly string[]) {
  const client = createCluster({ rootNodes: urls.map((url) => ({ url })) });
  // The next command rejects with the error.
  client.on('error', () => {});
  return client;
}
