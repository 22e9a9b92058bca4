/** Starts a real Redis for one test. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient } from 'redis';
import { start, type Child } from './child.ts';
import { until } from './wait.ts';

export type RedisClient = ReturnType<typeof makeClient>;

export interface RedisOptions {
  /** Whether Redis keeps its data over a restart. @defaultValue `false` */
  appendonly?: boolean;
  appendfsync?: 'always' | 'everysec' | 'no';
  /** A value of `maxmemory`: `'10mb'`. */
  maxmemory?: string;
  requirepass?: string;
  /** Users, as lines of an ACL file: `'user node on >secret ~* &* +@all'`. */
  acl?: readonly string[];
  /** Whether Redis accepts only TLS, with a certificate that is made for the test. */
  tls?: boolean;
  /** Lines of its configuration. */
  config?: readonly string[];
}

export interface RedisServer extends AsyncDisposable {
  /** The URL, with the password of the default user. */
  readonly url: string;
  readonly port: number;
  /** Its working directory, removed at the end. */
  readonly dir: string;
  readonly pid: number;
  /** The output of the server since its last start. */
  readonly log: string;
  /**
   * The certificate of the authority that signed the server's certificate, in PEM; `undefined`
   * without `tls`.
   */
  readonly ca: string | undefined;
  /** A connected client of the default user, closed with the server. */
  client(): Promise<RedisClient>;
  /** Kills Redis with SIGKILL, like a power failure. */
  kill9(): Promise<void>;
  /**
   * Starts Redis again on the same port and directory. If it still runs, ends it in order before.
   */
  restart(): Promise<void>;
  /** Stops the process: connections stay open, but nothing is answered. */
  pause(): void;
  resume(): void;
}

/**
 * Starts a Redis on a free port of the loopback; resolves when it answers PING.
 * @example await using redis = await startRedis({ appendonly: true });
 * @throws {Error} with the end of its log when it does not start
 */
export async function startRedis(options: RedisOptions = {}): Promise<RedisServer> {
  const dir = mkdtempSync(join(tmpdir(), 'res-sse-redis-'));
  const clients: RedisClient[] = [];
  const port = await freePort();
  const { requirepass, tls = false } = options;
  const url = `${tls ? 'rediss' : 'redis'}://${requirepass === undefined ? '' : `:${encodeURIComponent(requirepass)}@`}127.0.0.1:${port}`;
  if (tls) makeCertificate(dir);
  const ca = tls ? readFileSync(join(dir, 'ca.crt'), 'utf8') : undefined;
  writeFileSync(join(dir, 'redis.conf'), configuration(options, port, dir).join('\n'));
  let child: Child | undefined;

  async function launch(): Promise<void> {
    const launched = start('redis-server', [join(dir, 'redis.conf')]);
    child = launched;
    try {
      await until(`Redis on port ${port}`, async () => {
        if (!launched.isRunning) throw new Error('it has ended');
        const client = makeClient(url, ca, false);
        try {
          await client.connect();
          return (await client.ping()) === 'PONG';
        } catch {
          return false;
        } finally {
          if (client.isOpen) client.destroy();
        }
      });
    } catch (error) {
      await launched.stop('SIGKILL');
      throw new Error(`Redis has not started; its log ends:\n${launched.output.slice(-2_000)}`, {
        cause: error,
      });
    }
  }

  async function dispose(): Promise<void> {
    for (const client of clients) if (client.isOpen) client.destroy();
    await child?.[Symbol.asyncDispose]();
    rmSync(dir, { recursive: true, force: true });
  }

  try {
    await launch();
  } catch (error) {
    await dispose();
    throw error;
  }

  return {
    url,
    port,
    dir,
    ca,
    get pid() {
      return child?.pid as number;
    },
    get log() {
      return child?.output ?? '';
    },
    async client() {
      const client = makeClient(url, ca, true);
      clients.push(client);
      await client.connect();
      return client;
    },
    kill9: async () => child?.stop('SIGKILL'),
    async restart() {
      await child?.stop('SIGTERM');
      await launch();
    },
    pause: () => void child?.process.kill('SIGSTOP'),
    resume: () => void child?.process.kill('SIGCONT'),
    [Symbol.asyncDispose]: dispose,
  };
}

// Below the ports that kernels give to connections (32768 on Linux, 49152 elsewhere), also for the
// second port of a Redis in a Cluster, which is 10,000 higher.
const LOWEST_PORT = 10_100;
const HIGHEST_PORT = 22_000;

/** @returns a port that is not in use. No connection of another test gets the port meanwhile. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = LOWEST_PORT + Math.floor(Math.random() * (HIGHEST_PORT - LOWEST_PORT));
    const server = createServer().listen(port, '127.0.0.1');
    try {
      await once(server, 'listening');
    } catch {
      continue;
    }
    server.close();
    await once(server, 'close');
    return port;
  }
}

// The type is inferred, because the return type of `createClient` depends on these options.
function makeClient(url: string, ca: string | undefined, reconnects: boolean) {
  const never = reconnects ? {} : { reconnectStrategy: false as const };
  const client = createClient({
    url,
    socket: ca === undefined ? never : { ...never, tls: true, ca },
  });
  // The next command rejects with the error.
  client.on('error', () => {});
  return client;
}

/** Resolves when the replica has all data of its primary. */
export async function synchronized(primary: RedisClient, replica: RedisClient): Promise<void> {
  const offsetOf = async (client: RedisClient) =>
    /master_repl_offset:(\d+)/.exec(await client.info('replication'))?.[1];
  await until(
    'the replica to have it all',
    async () => (await offsetOf(primary)) === (await offsetOf(replica)),
  );
}

function configuration(options: RedisOptions, port: number, dir: string): string[] {
  const {
    appendonly = false,
    appendfsync = 'always',
    maxmemory,
    requirepass,
    acl = [],
    tls = false,
    config = [],
  } = options;
  const lines = [
    'bind 127.0.0.1',
    `dir "${dir}"`,
    'save ""',
    `appendonly ${appendonly ? 'yes' : 'no'}`,
    `appendfsync ${appendfsync}`,
  ];
  if (tls) {
    lines.push(
      'port 0',
      `tls-port ${port}`,
      'tls-cert-file server.crt',
      'tls-key-file server.key',
      'tls-ca-cert-file ca.crt',
    );
    lines.push('tls-auth-clients no');
  } else {
    lines.push(`port ${port}`);
  }
  if (maxmemory !== undefined) lines.push(`maxmemory ${maxmemory}`);
  if (requirepass !== undefined) lines.push(`requirepass "${requirepass}"`);
  return [...lines, ...acl, ...config, ''];
}

function makeCertificate(dir: string): void {
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: dir, stdio: 'pipe' });
  writeFileSync(join(dir, 'server.ext'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\n');
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  openssl(
    'req',
    '-x509',
    ...key,
    '-keyout',
    'ca.key',
    '-out',
    'ca.crt',
    '-days',
    '2',
    '-subj',
    '/CN=res-sse tests',
  );
  openssl('req', ...key, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=127.0.0.1');
  const signed = [
    '-CA',
    'ca.crt',
    '-CAkey',
    'ca.key',
    '-CAcreateserial',
    '-extfile',
    'server.ext',
    '-days',
    '2',
  ];
  openssl('x509', '-req', '-in', 'server.csr', '-out', 'server.crt', ...signed);
}
