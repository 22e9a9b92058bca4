/** What every broker promises, as the prose on the interface says it. Run it with a function that makes a fresh one. */
import { describe, expect, test } from 'vitest';
import type { Broker, HistoryLimits, LogBounds, LogEntry, Page, Publication, Receiver } from '../../src/index.ts';
import { until } from '../support/wait.ts';

const LIMITS: HistoryLimits = { events: 1_000, bytes: 1_000_000, age: Infinity, latest: false };
const BOUNDS: LogBounds = { maxHistory: 10_000_000, maxChannels: 1_000 };
const ALL = 10_000_000;

/** A node: a broker and what it has received. */
class Node implements Receiver, AsyncDisposable {
  readonly broker: Broker;
  readonly received: LogEntry[] = [];
  interruptions = 0;
  readonly #listened = new Set<string>();

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
    return this.#listened.has(channel);
  }

  async listen(channel: string): Promise<void> {
    this.#listened.add(channel);
    await this.broker.listen(channel);
  }

  unlisten(channel: string): void {
    this.#listened.delete(channel);
    this.broker.unlisten(channel);
  }

  publish(channel: string, data: string, more: Partial<Publication> = {}): Promise<{ id: string }> {
    return this.broker.append({ channel, data, event: undefined, retry: undefined, key: undefined, history: LIMITS, ...more });
  }

  async read(channels: string[], after = 0, maxBytes = ALL): Promise<Page> {
    return this.broker.read(channels, after, maxBytes);
  }

  async data(...channels: string[]): Promise<string[]> {
    return (await this.read(channels)).entries.map((entry) => entry.data);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.broker.close();
  }
}

/** @param makeBroker makes a broker with a log of its own */
export function brokerContract(name: string, makeBroker: () => Broker): void {
  describe(`${name} keeps the broker contract`, () => {
    test('an entry that is appended is received, with its channel, its fields and the id that append resolves to', async () => {
      await using node = new Node(makeBroker());
      await node.listen('a');
      const { id } = await node.publish('a', 'x\ny', { event: 'tick', retry: 5 });
      await until('the entry', () => node.received.length === 1);
      const [entry] = node.received as [LogEntry];
      expect(entry).toMatchObject({ channel: 'a', event: 'tick', data: 'x\ny', id });
      expect(entry.frame.toString()).toBe(`id: ${id}\nevent: tick\nretry: 5\ndata: x\ndata: y\n\n`);
    });

    test('ids are short and safe, of one epoch, and offsets grow across channels, in the order of the calls', async () => {
      await using node = new Node(makeBroker());
      await node.listen('a');
      await node.listen('b');
      const ids = await Promise.all(
        Array.from({ length: 50 }, (_, index) => node.publish(index % 3 === 0 ? 'a' : 'b', `${index}`)),
      );
      await until('the entries', () => node.received.length === 50);
      const page = await node.read(['a', 'b']);
      expect(page.entries.map((entry) => entry.data)).toEqual(Array.from({ length: 50 }, (_, index) => `${index}`));
      expect(page.entries.map((entry) => entry.id)).toEqual(ids.map(({ id }) => id));
      for (const { id } of ids) expect(id).toMatch(/^[A-Za-z0-9._-]{1,127}$/);
      expect(new Set(page.entries.map((entry) => entry.epoch))).toEqual(new Set([page.position.epoch]));
      for (const channel of ['a', 'b']) {
        const offsets = node.received.filter((entry) => entry.channel === channel).map((entry) => entry.offset);
        expect(offsets).toEqual([...offsets].toSorted((one, other) => one - other));
      }
    });

    test('only what is listened to is received', async () => {
      await using node = new Node(makeBroker());
      await node.listen('a');
      await node.listen('b');
      node.unlisten('b');
      for (const channel of ['a', 'b', 'c', 'a']) await node.publish(channel, channel);
      await until('both of a', () => node.received.length >= 2);
      expect(node.received.map((entry) => entry.channel)).toEqual(['a', 'a']);
    });

    test('what has been received is found by a read', async () => {
      const seen: boolean[] = [];
      const broker = makeBroker();
      const node = new (class extends Node {
        override receive(entry: LogEntry): void {
          super.receive(entry);
          const read = broker.read(['a'], entry.offset - 1, ALL);
          void Promise.resolve(read).then((page) => seen.push(page.entries[0]?.offset === entry.offset));
        }
      })(broker);
      await node.listen('a');
      await Promise.all([node.publish('a', '1'), node.publish('a', '2'), node.publish('a', '3')]);
      await until('the reads', () => seen.length === 3);
      expect(seen).toEqual([true, true, true]);
      await broker.close();
    });

    test('a read goes on where the last page ended, until it is complete, at the position it names', async () => {
      await using node = new Node(makeBroker());
      for (let index = 0; index < 30; index++) await node.publish(index % 2 === 0 ? 'a' : 'b', `${index}`);
      const data: string[] = [];
      let after = 0;
      let pages = 0;
      for (;;) {
        const page = await node.read(['a', 'b'], after, 150);
        pages++;
        data.push(...page.entries.map((entry) => entry.data));
        if (page.complete) {
          expect(page.position).toEqual(await node.broker.position());
          break;
        }
        after = (page.entries.at(-1) as LogEntry).offset;
      }
      expect(data).toEqual(Array.from({ length: 30 }, (_, index) => `${index}`));
      expect(pages).toBeGreaterThan(5);
    });

    test('the position is that of the newest event', async () => {
      await using node = new Node(makeBroker());
      const before = await node.broker.position();
      await node.publish('a', '1');
      const page = await node.read(['a']);
      expect(before.offset).toBeLessThan((page.entries[0] as LogEntry).offset);
      expect(await node.broker.position()).toEqual({ epoch: before.epoch, offset: (page.entries[0] as LogEntry).offset });
      expect(page.position).toEqual(await node.broker.position());
    });

    test('two logs have two epochs', async () => {
      await using node = new Node(makeBroker());
      await using other = new Node(makeBroker());
      expect((await node.broker.position()).epoch).not.toBe((await other.broker.position()).epoch);
    });

    describe('loss is told by trimmed', () => {
      test('with sparse offsets: A1 A3 A5, of which A1 and A3 are trimmed', async () => {
        await using node = new Node(makeBroker());
        const history = { ...LIMITS, events: 1 };
        for (const channel of ['a', 'b', 'a', 'b', 'a']) await node.publish(channel, channel, channel === 'a' ? { history } : {});
        const page = await node.read(['a', 'b']);
        const all = page.entries.map((entry) => [entry.channel, entry.offset]);
        const [b1, b2] = page.entries.filter((entry) => entry.channel === 'b') as [LogEntry, LogEntry];
        expect(all).toHaveLength(3);
        // The second A lies between the two Bs: who has the second B lost nothing, who has the first lost it.
        const [trimmedA, trimmedB] = page.trimmed as [number, number];
        expect(trimmedA).toBeGreaterThan(b1.offset);
        expect(trimmedA).toBeLessThan(b2.offset);
        expect(trimmedB).toBe(0);
      });

      test('of a channel that is emptied it stays what it was', async () => {
        await using node = new Node(makeBroker());
        await node.publish('a', '1');
        await node.publish('a', '2');
        const { offset } = await node.broker.position();
        await node.publish('b', '3');
        await node.broker.clear('a');
        const page = await node.read(['a', 'b']);
        expect(page.trimmed).toEqual([offset, 0]);
        expect(page.entries.map((entry) => entry.data)).toEqual(['3']);
      });

      test('a bound of bytes bites as well as one of events', async () => {
        await using node = new Node(makeBroker());
        for (let index = 0; index < 10; index++) {
          await node.publish('a', 'x'.repeat(1_000), { history: { ...LIMITS, bytes: 5_000 } });
        }
        const page = await node.read(['a']);
        expect(page.entries.length).toBeGreaterThan(1);
        expect(page.entries.length).toBeLessThan(5);
        expect(page.trimmed[0]).toBe((page.entries[0] as LogEntry).offset - 1);
      });

      test('events past their age are not read', async () => {
        await using node = new Node(makeBroker());
        await node.publish('a', '1', { history: { ...LIMITS, age: 30 } });
        await until('it to be too old', async () => (await node.data('a')).length === 0);
        expect((await node.read(['a'])).trimmed).toEqual([(await node.broker.position()).offset]);
      });

      test('of a newest-only channel only the newest is read, and the others are not missed', async () => {
        await using node = new Node(makeBroker());
        const history = { ...LIMITS, events: 1, latest: true };
        for (const data of ['1', '2', '3']) await node.publish('a', data, { history });
        const page = await node.read(['a']);
        expect([page.entries.map((entry) => entry.data), page.trimmed]).toEqual([['3'], [0]]);
      });

      test('of a channel that was forgotten it is the floor, as of every unknown one', async () => {
        await using node = new Node(makeBroker(), { maxChannels: 2 });
        await node.publish('a', '1');
        const { offset } = await node.broker.position();
        await node.publish('b', '2');
        await node.publish('c', '3');
        const page = await node.read(['a', 'b', 'c', 'never']);
        expect(page.trimmed).toEqual([offset, 0, expect.any(Number), offset]);
        expect(page.entries.map((entry) => entry.data)).toEqual(['2', '3']);
      });
    });

    test('a channel without history is received, has no id, and is not read', async () => {
      await using node = new Node(makeBroker());
      await node.listen('a');
      const before = await node.broker.position();
      expect(await node.publish('a', 'live', { history: false })).toEqual({ id: '' });
      await until('the entry', () => node.received.length === 1);
      expect((node.received[0] as LogEntry).frame.toString()).toBe('data: live\n\n');
      expect((node.received[0] as LogEntry).id).toBe('');
      expect(await node.data('a')).toEqual([]);
      expect(await node.broker.position()).toEqual(before);
    });

    test('a key publishes once in its channel, and resolves with the first id', async () => {
      await using node = new Node(makeBroker());
      await node.listen('a');
      const first = await node.publish('a', '1', { key: 'k' });
      expect(await node.publish('a', 'again', { key: 'k' })).toEqual(first);
      expect(await node.publish('b', 'elsewhere', { key: 'k' })).not.toEqual(first);
      expect(await node.publish('a', '2', { key: 'other' })).not.toEqual(first);
      expect(await node.data('a', 'b')).toEqual(['1', 'elsewhere', '2']);
      await until('both of a', () => node.received.length >= 2);
      expect(node.received.map((entry) => entry.data)).toEqual(['1', '2']);
    });

    test('after close it appends, reads and receives nothing', async () => {
      const node = new Node(makeBroker());
      await node.listen('a');
      expect(node.broker.state).toBe('open');
      await node.broker.close();
      await node.broker.close();
      expect(node.broker.state).toBe('closed');
      await expect(node.publish('a', '1')).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
      await expect(node.read(['a'])).rejects.toMatchObject({ code: 'ERR_SSE_CLOSED' });
      expect(node.received).toEqual([]);
    });
  });
}
