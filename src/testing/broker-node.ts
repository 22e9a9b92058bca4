/** Nodes for the checks of the broker contract. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import type {
  Broker,
  HistoryLimits,
  LogBounds,
  LogEntry,
  Page,
  Publication,
  Receiver,
} from '../index.ts';

/** The history of a channel, unless a check publishes with another one. */
export const HISTORY: HistoryLimits = {
  events: 1_000,
  bytes: 1_000_000,
  age: Infinity,
  latest: false,
};

/** More bytes than any check publishes. */
export const ALL_BYTES = 10_000_000;

const BOUNDS: LogBounds = { maxHistory: 10_000_000, maxChannels: 1_000 };

// Interval in ms at which a condition is tested.
const POLL_MS = 5;

/** Makes the nodes of one check, and closes them. */
export class Nodes {
  /** Time in ms. */
  readonly timeout: number;
  readonly #makeBroker: (log: string) => Broker | Promise<Broker>;
  readonly #made: Node[] = [];
  readonly #prefix = `contract-${Math.random().toString(36).slice(2)}`;

  constructor(makeBroker: (log: string) => Broker | Promise<Broker>, timeout: number) {
    this.#makeBroker = makeBroker;
    this.timeout = timeout;
  }

  /**
   * Makes and opens a broker.
   * @param log nodes with the same name share a log
   * @param bounds limits over all channels that differ from the default
   * @param onReceive called with each entry that the node receives
   */
  async make(
    log: string,
    bounds: Partial<LogBounds> = {},
    onReceive?: (node: Node, entry: LogEntry) => void,
  ): Promise<Node> {
    const node = new Node(await this.#makeBroker(`${this.#prefix}-${log}`), bounds, onReceive);
    this.#made.push(node);
    return node;
  }

  /**
   * Waits until a condition holds.
   * @param label names what is waited for, in the error
   * @returns a promise that rejects after `timeout`
   */
  async until(label: string, condition: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + this.timeout;
    while (!(await condition())) {
      if (performance.now() > deadline) {
        assert.fail(`timed out after ${this.timeout} ms waiting for ${label}`);
      }
      await delay(POLL_MS);
    }
  }

  async close(): Promise<void> {
    for (const node of this.#made) await node.broker.close();
  }
}

/** A broker, and the entries that it has received. */
export class Node implements Receiver {
  readonly broker: Broker;
  readonly received: LogEntry[] = [];
  readonly #listened = new Set<string>();
  readonly #onReceive: ((node: Node, entry: LogEntry) => void) | undefined;

  constructor(
    broker: Broker,
    bounds: Partial<LogBounds>,
    onReceive?: (node: Node, entry: LogEntry) => void,
  ) {
    this.broker = broker;
    this.#onReceive = onReceive;
    broker.open(this, { ...BOUNDS, ...bounds });
  }

  receive(entry: LogEntry): void {
    this.received.push(entry);
    this.#onReceive?.(this, entry);
  }

  interrupted(): void {}

  follows(channel: string): boolean {
    return this.#listened.has(channel);
  }

  /** Resolves when entries of the channels are received. */
  async listen(...channels: string[]): Promise<void> {
    for (const channel of channels) {
      this.#listened.add(channel);
      await this.broker.listen(channel);
    }
  }

  unlisten(channel: string): void {
    this.#listened.delete(channel);
    this.broker.unlisten(channel);
  }

  /** Publishes an event without fields, unless `more` has some. @returns its id */
  async publish(channel: string, data: string, more: Partial<Publication> = {}): Promise<string> {
    const publication = {
      channel,
      data,
      event: undefined,
      retry: undefined,
      key: undefined,
      history: HISTORY,
      ...more,
    };
    return (await this.broker.append(publication)).id;
  }

  /** Ends a channel without a last event. @returns the id of the end */
  end(channel: string, more: Partial<Publication> = {}): Promise<string> {
    const publication = { event: undefined, data: undefined, retry: undefined, key: undefined };
    const ending = { ...publication, channel, isEnd: true, history: HISTORY, ...more };
    return this.broker.append(ending).then(({ id }) => id);
  }

  async read(channels: string[], after = 0, maxBytes: number = ALL_BYTES): Promise<Page> {
    return this.broker.read(channels, after, maxBytes);
  }

  /** Reads the data of all events of the channels. */
  async data(...channels: string[]): Promise<string[]> {
    return dataOf((await this.read(channels)).entries);
  }
}

/** @returns the data of each entry */
export function dataOf(entries: readonly LogEntry[]): string[] {
  return entries.map((entry) => entry.data);
}

/** @returns `'0'`, `'1'`, … */
export function numbers(count: number): string[] {
  return Array.from({ length: count }, (_, index) => `${index}`);
}
