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

describe('a broker of one process fulfils the contract:', () => {
  test.each(named(brokerContract(memoryBroker)))('%s', async (_, run) => {
    await expect(run()).resolves.toBeUndefined();
  });
});

describe('brokers of several nodes fulfil the contract:', () => {
  test.each(named(brokerContract(sharedMemory(), { shared: true })))('%s', async (_, run) => {
    await expect(run()).resolves.toBeUndefined();
  });
});

test('the checks for several nodes run only with the option shared', () => {
  const alone = brokerContract(memoryBroker).map(({ name }) => name);
  const shared = brokerContract(sharedMemory(), { shared: true }).map(({ name }) => name);
  expect(new Set(alone).size).toBe(alone.length);
  expect(shared.slice(0, alone.length)).toEqual(alone);
  expect(shared.length).toBeGreaterThan(alone.length);
});

/** Returns a function that creates memory brokers with a defect. */
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
  'delivers nothing': faulty((broker) => openWith(broker, () => {})),
  'delivers each entry twice': faulty((broker) =>
    openWith(broker, (entry, receiver) => {
      receiver.receive(entry);
      receiver.receive(entry);
    }),
  ),
  'delivers channels that it does not listen to': faulty((broker) => ({
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
  'delivers out of order': faulty((broker) => {
    let delayed: LogEntry | undefined;
    return openWith(broker, (entry, receiver) => {
      if (delayed === undefined) {
        delayed = entry;
        setImmediate(() => {
          if (delayed !== undefined) receiver.receive(delayed);
          delayed = undefined;
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
  'reports each page as complete': faulty((broker) => readWith(broker, () => ({ complete: true }))),
  'reports no loss': faulty((broker) =>
    readWith(broker, ({ trimmed }) => ({ trimmed: trimmed.map(() => 0) })),
  ),
  'always reports position 0': faulty(() => ({ position: () => ({ epoch: 'e', offset: 0 }) })),
  'forgets keys': faulty((broker) => ({
    append: (one: Publication) => broker.append({ ...one, key: undefined }),
  })),
  'keeps events without history': faulty((broker) => ({
    append: (one: Publication) =>
      broker.append({
        ...one,
        history: one.history || { events: 9, bytes: 999, age: 9, latest: false },
      }),
  })),
  'clears nothing': faulty(() => ({ clear: () => Promise.resolve() })),
  'ignores the age limit': faulty((broker) => ({
    append: (one: Publication) =>
      broker.append({ ...one, history: one.history && { ...one.history, age: Infinity } }),
  })),
  'continues after close()': faulty(() => ({ close: () => Promise.resolve() })),
};

test.each(Object.entries(faults))('a broker that %s fails a check', async (_, makeBroker) => {
  const failures: string[] = [];
  for (const { name, run } of brokerContract(makeBroker, { timeout: 100 })) {
    await run().catch((error: Error) => failures.push(`${name}: ${error.message}`));
  }
  expect(failures).not.toEqual([]);
});
