/**
 * A client that behaves like a browser: it reconnects by itself, to any node, with the last id that
 * it received.
 */
import { get, type ClientRequest } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import type { SnapshotRequest } from '../../src/index.ts';
import type { TestNode } from './nodes.ts';

/** An event of a client. `at` is the time from `performance.now()`. */
export type Item = { readonly at: number } & (
  | { readonly kind: 'connected'; readonly lastEventId: string }
  | { readonly kind: 'event'; readonly n: number; readonly channel: string; readonly id: string }
  | { readonly kind: 'checkpoint'; readonly id: string }
  | {
      readonly kind: 'gap';
      readonly channels: readonly string[];
      readonly after: string;
      readonly cursor: string;
    }
  | ({ readonly kind: 'snapshot' } & SnapshotRequest)
  | { readonly kind: 'fault'; readonly description: string }
);

/**
 * A route of a node: streams from now on; of the whole history; from the newest events of each
 * channel on; with a `snapshot`; and of a consumer, see `channels.follow()`.
 */
export type ClientPath = '/listen' | '/history' | '/last' | '/snapshot' | '/follow';

export interface ClientOptions {
  /**
   * Chooses the node for the first connection and for each reconnect. If it returns `undefined`,
   * the client waits.
   */
  choose: () => TestNode | undefined;
  path?: ClientPath | undefined;
}

/** A client that follows channels until it is disposed. */
export class Client implements Disposable {
  readonly channels: readonly string[];
  readonly items: Item[] = [];
  lastEventId = '';
  /** Number of heartbeats that the client received. */
  heartbeats = 0;
  /** Number of `retry` fields that the client received. */
  retries = 0;
  readonly #received = new Set<number>();
  readonly #options: ClientOptions;
  #request: ClientRequest | undefined;
  #isDone = false;
  #isPaused = false;
  #connections = 0;

  constructor(channels: readonly string[], options: ClientOptions) {
    this.channels = channels;
    this.#options = options;
    void this.#run();
  }

  /** Whether the client received the event. */
  has(n: number): boolean {
    return this.#received.has(n);
  }

  /** Number of different events that the client received. */
  get received(): number {
    return this.#received.size;
  }

  /** Number of gaps that the client received. */
  get gaps(): number {
    return this.items.filter(({ kind }) => kind === 'gap').length;
  }

  /** The reasons of the snapshots that the client received. */
  get snapshots(): string[] {
    return this.items.flatMap((item) => (item.kind === 'snapshot' ? [item.reason] : []));
  }

  /** Number of reconnects. */
  get reconnects(): number {
    return this.#connections - 1;
  }

  /** Whether the client has an id, so that it must receive all later events. */
  get hasPosition(): boolean {
    return this.lastEventId !== '';
  }

  /** Closes the connection. The client reconnects. */
  drop(): void {
    this.#request?.destroy();
  }

  /** Closes the connection. The client does not reconnect before `resume`. */
  leave(): void {
    this.#isPaused = true;
    this.drop();
  }

  resume(): void {
    this.#isPaused = false;
  }

  [Symbol.dispose](): void {
    this.#isDone = true;
    this.#request?.destroy();
  }

  async #run(): Promise<void> {
    while (!this.#isDone) {
      const node = this.#isPaused ? undefined : this.#options.choose();
      if (node !== undefined) await this.#connect(node);
      // An EventSource waits some seconds. A short delay is enough for a test.
      await delay(20 + 30 * Math.random());
    }
  }

  /** Opens a connection, and resolves when the connection has ended. */
  #connect(node: TestNode): Promise<void> {
    return new Promise((resolve) => {
      const { lastEventId } = this;
      const headers = {
        Accept: 'text/event-stream',
        ...(lastEventId === '' ? {} : { 'Last-Event-ID': lastEventId }),
      };
      const url = `${node.url}${this.#options.path ?? '/listen'}/${this.channels.join()}`;
      const request = get(url, { headers, agent: false });
      this.#request = request;
      request.on('error', () => resolve());
      request.on('close', () => resolve());
      request.on('response', (response) => {
        if (response.statusCode !== 200) {
          this.#addFault(
            `status ${response.statusCode} from ${url}: an EventSource would not reconnect`,
          );
        }
        this.#connections++;
        this.items.push({ at: performance.now(), kind: 'connected', lastEventId });
        const parser = createParser({
          onEvent: (event) => this.#onEvent(event),
          onComment: () => void this.heartbeats++,
          onRetry: () => void this.retries++,
        });
        response.setEncoding('utf8');
        response.on('data', (text: string) => parser.feed(text));
        response.on('error', () => resolve());
        response.on('close', () => resolve());
      });
    });
  }

  #onEvent({
    event,
    data,
    id,
  }: {
    event?: string | undefined;
    data: string;
    id?: string | undefined;
  }): void {
    const at = performance.now();
    if (id !== undefined) this.lastEventId = id;
    if (event === 'sse:gap') {
      this.items.push({
        at,
        kind: 'gap',
        ...(JSON.parse(data) as { channels: string[]; after: string; cursor: string }),
      });
    } else if (event === 'snapshot') {
      this.items.push({ at, kind: 'snapshot', ...(JSON.parse(data) as SnapshotRequest) });
    } else if (id === undefined) {
      this.#addFault(`event without an id: ${data}`);
    } else if (event === 'sse:checkpoint') {
      this.items.push({ at, kind: 'checkpoint', id });
    } else {
      const { n, channel } = JSON.parse(data) as { n: number; channel: string };
      this.#received.add(n);
      this.items.push({ at, kind: 'event', n, channel, id });
    }
  }

  #addFault(description: string): void {
    this.items.push({ at: performance.now(), kind: 'fault', description });
  }
}
