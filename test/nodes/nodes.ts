/** Starts nodes as processes, and controls them. */
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { ChannelsStats, HistoryOptions } from '../../src/index.ts';
import { start } from '../support/child.ts';
import { within } from '../support/wait.ts';

/** The configuration of a node. */
export interface NodeConfig {
  redis:
    | { url: string }
    | { urls: readonly string[]; user?: { username: string; password: string } }
    | { name: string; rootNodes: { host: string; port: number }[] };
  prefix?: string;
  history?: HistoryOptions;
  maxHistory?: number;
  maxChannels?: number;
  /** Time limit of a command to Redis, in ms. */
  timeout?: number;
  heartbeat?: number;
  /**
   * The time in ms without messages after which a node probes its subscriber connection, and the
   * time without a stream after which it unsubscribes from a channel. Only with `redis.url`.
   */
  probe?: number;
  /** A file with the CA certificate for the certificate of Redis. */
  caFile?: string;
}

export interface PublishRequest {
  data: unknown;
  key?: string | undefined;
}

/** The result of a publish: an id, or the error. */
export type PublishResult =
  | { id: string }
  | { code: string; delivery: 'none' | 'unknown' | undefined; message: string };

export interface NodeStats {
  channels: ChannelsStats;
  streams: number;
  errors: string[];
  heals: unknown[];
}

const NODE = fileURLToPath(new URL('node.ts', import.meta.url));

// Time limit for requests to a node: long enough for a busy machine, and for a test that pauses
// Redis for some seconds.
const TIMEOUT_MS = 30_000;

/** A node in a process of its own. */
export class TestNode implements AsyncDisposable {
  readonly url: string;
  readonly #child: ReturnType<typeof start>;
  // Whether the test ended the process.
  #isStopped = false;

  constructor(child: ReturnType<typeof start>, port: number) {
    this.#child = child;
    this.url = `http://127.0.0.1:${port}`;
  }

  get isRunning(): boolean {
    return this.#child.isRunning;
  }

  /** Publishes events, and returns their results in order. Rejects if the node exits meanwhile. */
  publish(channel: string, items: readonly PublishRequest[]): Promise<PublishResult[]> {
    return this.#request(`/publish/${channel}`, items) as Promise<PublishResult[]>;
  }

  async clear(channel: string): Promise<void> {
    await this.#request(`/clear/${channel}`, {});
  }

  cursor(): Promise<string> {
    return this.#request('/cursor') as Promise<string>;
  }

  stats(): Promise<NodeStats> {
    return this.#request('/stats') as Promise<NodeStats>;
  }

  async kill9(): Promise<void> {
    this.#isStopped = true;
    await this.#child.stop('SIGKILL');
  }

  /**
   * Stops the node with SIGTERM, as an orchestrator does in a rolling deploy.
   * @throws {Error} if the exit code is not 0
   */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#child.stop('SIGTERM');
    if (this.#child.process.exitCode !== 0) {
      throw new Error(`the exit code of the node is not 0:\n${this.#child.output}`);
    }
  }

  pause(): void {
    this.#child.process.kill('SIGSTOP');
  }

  resume(): void {
    this.#child.process.kill('SIGCONT');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const hasDied = !this.#isStopped && !this.isRunning;
    await this.#child.stop('SIGKILL');
    if (hasDied) throw new Error(`a node exited:\n${this.#child.output.slice(-4_000)}`);
  }

  async #request(path: string, body?: unknown): Promise<unknown> {
    const init =
      body === undefined ? {} : { method: 'POST', body: JSON.stringify(body), headers: JSON_TYPE };
    const response = await within(
      `the response to ${path}`,
      fetch(this.url + path, init),
      TIMEOUT_MS,
    );
    const text = await response.text();
    if (!response.ok) throw new Error(`${path} returned status ${response.status}: ${text}`);
    return text === '' ? undefined : JSON.parse(text);
  }
}

const JSON_TYPE = { 'Content-Type': 'application/json' };

/** Starts a node. Resolves when its server listens, even if Redis is unreachable. */
export async function startNode(config: NodeConfig): Promise<TestNode> {
  const { caFile = '' } = config;
  const env = {
    RES_SSE_NODE: JSON.stringify({ heartbeat: 500, ...config }),
    NODE_EXTRA_CA_CERTS: caFile,
  };
  const child = start(process.execPath, ['--import', 'tsx', NODE], env);
  const ready = once(child.process, 'message');
  const failed = child.ended.then(() => {
    throw new Error(`the node did not start:\n${child.output.slice(-4_000)}`);
  });
  // The process exits later, so a rejection must be handled.
  failed.catch(() => {});
  const [{ port }] = (await within(
    'the port of the node',
    Promise.race([ready, failed]),
    TIMEOUT_MS,
  )) as [{ port: number }];
  return new TestNode(child, port);
}
