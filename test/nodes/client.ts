/** A client as a browser is one: it comes back by itself, to whichever node, with the last id that it got. */
import { get, type ClientRequest } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import type { TestNode } from './nodes.ts';

/** What happened to a client, in order. `at` is the clock's `performance.now()`. */
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
  | { readonly kind: 'fault'; readonly what: string }
);

export interface ClientOptions {
  /** To which node it goes, at first and whenever its stream has ended; nowhere for the moment where that is `undefined`. */
  choose: () => TestNode | undefined;
  path?: '/listen' | '/history';
}

export class Client implements Disposable {
  readonly channels: readonly string[];
  readonly items: Item[] = [];
  lastEventId = '';
  /** Heartbeats that it got. */
  beats = 0;
  /** How often it was told when to come back. */
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
    void this.#live();
  }

  /** Whether it has got the event. */
  has(n: number): boolean {
    return this.#received.has(n);
  }

  /** How many it has got. */
  get received(): number {
    return this.#received.size;
  }

  /** How often it was told that something is lost. */
  get gaps(): number {
    return this.items.filter(({ kind }) => kind === 'gap').length;
  }

  /** How often it came back. */
  get returns(): number {
    return this.#connections - 1;
  }

  /** Whether its stream has begun, so that nothing that is published from now on may pass it by. */
  get isPlaced(): boolean {
    return this.lastEventId !== '';
  }

  /** Its connection breaks; it comes back. */
  drop(): void {
    this.#request?.destroy();
  }

  /** It does not come back until `resume`. */
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

  async #live(): Promise<void> {
    while (!this.#isDone) {
      const node = this.#isPaused ? undefined : this.#options.choose();
      if (node !== undefined) await this.#connect(node);
      // An EventSource waits for seconds; this is for a test.
      await delay(20 + 30 * Math.random());
    }
  }

  /** Resolves when the connection has ended. */
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
          this.#fault(`${url} answers ${response.statusCode}, and no EventSource would come back`);
        }
        this.#connections++;
        this.items.push({ at: performance.now(), kind: 'connected', lastEventId });
        const parser = createParser({
          onEvent: (event) => this.#take(event),
          onComment: () => void this.beats++,
          onRetry: () => void this.retries++,
        });
        response.setEncoding('utf8');
        response.on('data', (text: string) => parser.feed(text));
        response.on('error', () => resolve());
        response.on('close', () => resolve());
      });
    });
  }

  #take({
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
    } else if (id === undefined) {
      this.#fault(`an event without an id: ${data}`);
    } else if (event === 'sse:checkpoint') {
      this.items.push({ at, kind: 'checkpoint', id });
    } else {
      const { n, channel } = JSON.parse(data) as { n: number; channel: string };
      this.#received.add(n);
      this.items.push({ at, kind: 'event', n, channel, id });
    }
  }

  #fault(what: string): void {
    this.items.push({ at: performance.now(), kind: 'fault', what });
  }
}
