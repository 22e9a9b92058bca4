import { describe, expect, test } from 'vitest';
import {
  memoryBroker,
  type Broker,
  type LogEntry,
  type Page,
  type Publication,
  type Receiver,
} from '../../src/index.ts';
import { brokerContract, type BrokerCheck } from '../../src/testing/index.ts';
import { sharedMemory } from './shared-memory.ts';

function named(checks: readonly BrokerCheck[]): [string, BrokerCheck['run']][] {
  return checks.map(({ name, run }) => [name, run]);
}

describe('a broker of one process keeps the contract:', () => {
  test.each(named(brokerContract(memoryBroker)))('%s', async (_, run) => {
    await expect(run()).resolves.toBeUndefined();
  });
});

describe('brokers of several nodes keep the contract:', () => {
  test.each(named(brokerContract(sharedMemory(), { shared: true })))('%s', async (_, run) => {
    await expect(run()).resolves.toBeUndefined();
  });
});

test('the checks for several nodes are made only where nodes share a log', () => {
  const alone = brokerContract(memoryBroker).map(({ name }) => name);
  const shared = brokerContract(sharedMemory(), { shared: true }).map(({ name }) => name);
  expect(new Set(alone).size).toBe(alone.length);
  expect(shared.slice(0, alone.length)).toEqual(alone);
  expect(shared.length).toBeGreaterThan(alone.length);
});

/** A memory broker with something wrong. */
function faulty(change: (broker: Broker) => Partial<Record<keyof Broker, unknown>>): () => Broker {
  return () => {
    const broker = memoryBroker();
    const changes = change(broker);
    return new Proxy(broker, {
      get(target, name: keyof Broker) {
        if (name in changes) return changes[name];
        const value: unknown = Reflect.get(target, name, target);
        return typeof value === 'function' ? (value.bind(target) as unknown) : value;
      },
    });
  };
}

function openWith(
  broker: Broker,
  receive: (entry: LogEntry, receiver: Receiver) => void,
): Partial<Broker> {
  return {
    open: (receiver, bounds) =>
      broker.open(
        {
          receive: (entry) => receive(entry, receiver),
          follows: (name) => receiver.follows(name),
          interrupted: () => undefined,
        },
        bounds,
      ),
  };
}

function readWith(broker: Broker, change: (page: Page) => Partial<Page>): Partial<Broker> {
  return {
    read(channels, after, maxBytes) {
      const page = broker.read(channels, after, maxBytes) as Page;
      return { ...page, ...change(page) };
    },
  };
}

const faults: Record<string, () => Broker> = {
  'receives nothing': faulty((broker) => openWith(broker, () => {})),
  'receives each entry twice': faulty((broker) =>
    openWith(broker, (entry, receiver) => {
      receiver.receive(entry);
      receiver.receive(entry);
    }),
  ),
  'receives what is not listened to': faulty((broker) => ({
    open: (receiver: Receiver, bounds: Parameters<Broker['open']>[1]) =>
      broker.open(
        {
          receive: (entry) => receiver.receive(entry),
          follows: () => true,
          interrupted: () => undefined,
        },
        bounds,
      ),
  })),
  'receives out of order': faulty((broker) => {
    let held: LogEntry | undefined;
    return openWith(broker, (entry, receiver) => {
      if (held === undefined) {
        held = entry;
        setImmediate(() => {
          if (held !== undefined) receiver.receive(held);
          held = undefined;
        });
        return;
      }
      receiver.receive(entry);
    });
  }),
  'reads nothing': faulty((broker) => readWith(broker, () => ({ entries: [] }))),
  'reads backwards': faulty((broker) =>
    readWith(broker, ({ entries }) => ({ entries: entries.toReversed() })),
  ),
  'says that each page is complete': faulty((broker) =>
    readWith(broker, () => ({ complete: true })),
  ),
  'knows of no loss': faulty((broker) =>
    readWith(broker, ({ trimmed }) => ({ trimmed: trimmed.map(() => 0) })),
  ),
  'stands still': faulty(() => ({ position: () => ({ epoch: 'e', offset: 0 }) })),
  'forgets keys': faulty((broker) => ({
    append: (one: Publication) => broker.append({ ...one, key: undefined }),
  })),
  'keeps what has no history': faulty((broker) => ({
    append: (one: Publication) =>
      broker.append({
        ...one,
        history: one.history || { events: 9, bytes: 999, age: 9, latest: false },
      }),
  })),
  'clears nothing': faulty(() => ({ clear: () => Promise.resolve() })),
  'keeps for ever': faulty((broker) => ({
    append: (one: Publication) =>
      broker.append({ ...one, history: one.history && { ...one.history, age: Infinity } }),
  })),
  'goes on when it is closed': faulty(() => ({ close: () => Promise.resolve() })),
};

test.each(Object.entries(faults))('a broker that %s does not pass', async (_, makeBroker) => {
  const failed: string[] = [];
  for (const { name, run } of brokerContract(makeBroker, { timeout: 100 })) {
    await run().catch((error: Error) => failed.push(`${name}: ${error.message}`));
  }
  expect(failed).not.toEqual([]);
});
