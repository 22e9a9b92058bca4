/** The broker contract as tests of vitest, and a node for further tests of one broker. */
import { describe, expect, test } from 'vitest';
import type {
  Broker,
  HistoryLimits,
  LogBounds,
  LogEntry,
  Page,
  Publication,
  Receiver,
} from '../../src/index.ts';
import { brokerContract as checksOf, type BrokerContractOptions } from '../../src/testing/index.ts';

export const LIMITS: HistoryLimits = {
  events: 1_000,
  bytes: 1_000_000,
  age: Infinity,
  latest: false,
};
const BOUNDS: LogBounds = { maxHistory: 10_000_000, maxChannels: 1_000 };
const MAX_BYTES = 10_000_000;

/** A node: a broker, and the entries that the broker delivered. */
export class Node implements Receiver, AsyncDisposable {
  readonly broker: Broker;
  readonly received: LogEntry[] = [];
  interruptions = 0;
  readonly #channels = new Set<string>();

  constructor(broker: Broker, bounds: Partial<LogBounds> = {}) {
    this.broker = broker;
    broker.open(this, { ...BOUNDS, ...bounds });
  }

  receive(entry: LogEntry): void {
    this.received.push(entry);
  }

  interrupted(): void {
    this.interruptions++;
  }

  follows(channel: string): boolean {
    return this.#channels.has(channel);
  }

  async listen(channel: string): Promise<void> {
    this.#channels.add(channel);
    await this.broker.listen(channel);
  }

  unlisten(channel: string): void {
    this.#channels.delete(channel);
    this.broker.unlisten(channel);
  }

  publish(channel: string, data: string, more: Partial<Publication> = {}): Promise<{ id: string }> {
    return this.broker.append({
      channel,
      data,
      event: undefined,
      retry: undefined,
      key: undefined,
      history: LIMITS,
      ...more,
    });
  }

  async read(channels: string[], after = 0, maxBytes = MAX_BYTES): Promise<Page> {
    return this.broker.read(channels, after, maxBytes);
  }

  async data(...channels: string[]): Promise<string[]> {
    return (await this.read(channels)).entries.map((entry) => entry.data);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.broker.close();
  }
}

/** Defines one vitest test for each check of the broker contract in `res-sse/testing`. */
export function brokerContract(
  name: string,
  makeBroker: (log: string) => Broker | Promise<Broker>,
  options?: BrokerContractOptions,
): void {
  describe(`${name} keeps the broker contract`, () => {
    const checks = checksOf(makeBroker, options).map((check) => [check.name, check.run] as const);
    test.each(checks)('%s', async (_, run) => {
      await expect(run()).resolves.toBeUndefined();
    });
  });
}
