/** Nodes as a test sees them: processes that it starts, asks and kills. */
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { ChannelsStats, HistoryOptions } from '../../src/index.ts';
import { start } from '../support/child.ts';
import { within } from '../support/wait.ts';

/** What a node is told when it is started. */
export interface NodeConfig {
  redis:
    | { url: string }
    | { urls: readonly string[]; user?: { username: string; password: string } }
    | { name: string; rootNodes: { host: string; port: number }[] };
  prefix?: string;
  history?: HistoryOptions;
  maxHistory?: number;
  maxChannels?: number;
  /** Of a command to Redis, in ms. */
  timeout?: number;
  heartbeat?: number;
  /**
   * After so much silence, in ms, a node makes sure that it hears, and after so much without a stream it does not listen to a channel
   * any more; only where `redis` is a url.
   */
  patience?: number;
  /** A file with the certificate of who signed that of Redis. */
  caFile?: string;
}

export interface ToPublish {
  data: unknown;
  key?: string | undefined;
}

/** An id, or what the error said. */
export type Published =
  | { id: string }
  | { code: string; delivery: 'none' | 'unknown' | undefined; message: string };

export interface NodeStats {
  channels: ChannelsStats;
  streams: number;
  errors: string[];
  heals: unknown[];
}

const NODE = fileURLToPath(new URL('node.ts', import.meta.url));

// Long enough for a machine that is busy, and for a test that stops Redis for seconds.
const PATIENCE = 30_000;

export class TestNode implements AsyncDisposable {
  readonly url: string;
  readonly #child: ReturnType<typeof start>;
  // It was this test that ended it.
  #isEnded = false;

  constructor(child: ReturnType<typeof start>, port: number) {
    this.#child = child;
    this.url = `http://127.0.0.1:${port}`;
  }

  get isRunning(): boolean {
    return this.#child.isRunning;
  }

  /** What each of them came to, in their order; rejects when the node dies over it. */
  publish(channel: string, items: readonly ToPublish[]): Promise<Published[]> {
    return this.#ask(`/publish/${channel}`, items) as Promise<Published[]>;
  }

  async clear(channel: string): Promise<void> {
    await this.#ask(`/clear/${channel}`, {});
  }

  cursor(): Promise<string> {
    return this.#ask('/cursor') as Promise<string>;
  }

  stats(): Promise<NodeStats> {
    return this.#ask('/stats') as Promise<NodeStats>;
  }

  async kill9(): Promise<void> {
    this.#isEnded = true;
    await this.#child.stop('SIGKILL');
  }

  /** As an orchestrator ends it in a rolling deploy. @throws {Error} where it does not end well */
  async stop(): Promise<void> {
    this.#isEnded = true;
    await this.#child.stop('SIGTERM');
    if (this.#child.process.exitCode !== 0) {
      throw new Error(`the node has not ended well:\n${this.#child.output}`);
    }
  }

  pause(): void {
    this.#child.process.kill('SIGSTOP');
  }

  resume(): void {
    this.#child.process.kill('SIGCONT');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const hasDied = !this.#isEnded && !this.isRunning;
    await this.#child.stop('SIGKILL');
    if (hasDied) throw new Error(`a node has died:\n${this.#child.output.slice(-4_000)}`);
  }

  async #ask(path: string, body?: unknown): Promise<unknown> {
    const init =
      body === undefined ? {} : { method: 'POST', body: JSON.stringify(body), headers: JSON_TYPE };
    const response = await within(`the answer to ${path}`, fetch(this.url + path, init), PATIENCE);
    const text = await response.text();
    if (!response.ok) throw new Error(`${path} answers ${response.status}: ${text}`);
    return text === '' ? undefined : JSON.parse(text);
  }
}

const JSON_TYPE = { 'Content-Type': 'application/json' };

/** Starts a node; resolves when it serves, whether or not Redis is there. */
export async function startNode(config: NodeConfig): Promise<TestNode> {
  const { caFile = '' } = config;
  const env = {
    RES_SSE_NODE: JSON.stringify({ heartbeat: 500, ...config }),
    NODE_EXTRA_CA_CERTS: caFile,
  };
  const child = start(process.execPath, ['--import', 'tsx', NODE], env);
  const ready = once(child.process, 'message');
  const failed = child.ended.then(() => {
    throw new Error(`the node has not started:\n${child.output.slice(-4_000)}`);
  });
  // It will end, later.
  failed.catch(() => {});
  const [{ port }] = (await within('the node', Promise.race([ready, failed]), PATIENCE)) as [
    { port: number },
  ];
  return new TestNode(child, port);
}
