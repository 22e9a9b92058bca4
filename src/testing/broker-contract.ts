/** What every broker promises, as the prose on the interface says it, as checks that any test runner can run. */
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
import { EventStreamParser, type ReceivedEvent } from './parser.ts';

/** One promise of the contract. */
export interface BrokerCheck {
  /** What is promised, as a test's name. */
  readonly name: string;
  /** Rejects with an assertion error where it is not kept. */
  readonly run: () => Promise<void>;
}

/** What is known of the brokers. */
export interface BrokerContractOptions {
  /** Whether brokers that are made with the same name share a log, as those of several nodes do. @defaultValue `false` */
  shared?: boolean | undefined;
  /** Time in ms after which what has not arrived counts as lost. @defaultValue `10_000` */
  timeout?: number | undefined;
}

const LIMITS: HistoryLimits = { events: 1_000, bytes: 1_000_000, age: Infinity, latest: false };
const BOUNDS: LogBounds = { maxHistory: 10_000_000, maxChannels: 1_000 };
const ALL = 10_000_000;
const ID = /^[A-Za-z0-9._-]{1,127}$/;

/**
 * The checks that a broker has to pass; each makes brokers of its own and closes them. What is done to a closed broker has to be
 * refused with an error whose `code` is `ERR_SSE_CLOSED`.
 * @param makeBroker makes a broker that nobody has opened; each log name is a new, empty log
 * @example
 * for (const { name, run } of brokerContract((log) => myBroker({ log }), { shared: true })) test(name, run);
 */
export function brokerContract(
  makeBroker: (log: string) => Broker | Promise<Broker>,
  { shared = false, timeout = 10_000 }: BrokerContractOptions = {},
): BrokerCheck[] {
  const checks = shared ? { ...CHECKS, ...SHARED_CHECKS } : CHECKS;
  return Object.entries(checks).map(([name, check]) => ({
    name,
    run: async () => {
      const nodes = new Nodes(makeBroker, timeout);
      try {
        await check(nodes);
      } finally {
        await nodes.close();
      }
    },
  }));
}

/** Makes nodes for one check, and closes them. */
class Nodes {
  readonly timeout: number;
  readonly #makeBroker: (log: string) => Broker | Promise<Broker>;
  readonly #made: Node[] = [];
  readonly #prefix = `contract-${Math.random().toString(36).slice(2)}`;

  constructor(makeBroker: (log: string) => Broker | Promise<Broker>, timeout: number) {
    this.#makeBroker = makeBroker;
    this.timeout = timeout;
  }

  /** @param log nodes of the same log are given the same name */
  async make(
    log: string,
    bounds: Partial<LogBounds> = {},
    onReceive?: (node: Node, entry: LogEntry) => void,
  ): Promise<Node> {
    const node = new Node(await this.#makeBroker(`${this.#prefix}-${log}`), bounds, onReceive);
    this.#made.push(node);
    return node;
  }

  /** Waits for what is on its way, and no longer than `timeout`. */
  async until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + this.timeout;
    while (!(await condition())) {
      if (performance.now() > deadline) {
        assert.fail(`waited ${this.timeout} ms for ${what} in vain`);
      }
      await delay(5);
    }
  }

  async close(): Promise<void> {
    for (const node of this.#made) await node.broker.close();
  }
}

/** A node: a broker and what it has received. */
class Node implements Receiver {
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

  async publish(channel: string, data: string, more: Partial<Publication> = {}): Promise<string> {
    const publication = {
      channel,
      data,
      event: undefined,
      retry: undefined,
      key: undefined,
      history: LIMITS,
      ...more,
    };
    return (await this.broker.append(publication)).id;
  }

  async read(channels: string[], after = 0, maxBytes = ALL): Promise<Page> {
    return this.broker.read(channels, after, maxBytes);
  }

  async data(...channels: string[]): Promise<string[]> {
    return dataOf((await this.read(channels)).entries);
  }
}

function dataOf(entries: readonly LogEntry[]): string[] {
  return entries.map((entry) => entry.data);
}

/** What a client reads of an entry. */
function readFrame(entry: LogEntry): { events: ReceivedEvent[]; retry: number | undefined } {
  const read: ReturnType<typeof readFrame> = { events: [], retry: undefined };
  const parser = new EventStreamParser({
    onEvent: (event) => void read.events.push(event),
    onComment: () => {},
    onRetry: (ms) => {
      read.retry = ms;
    },
  });
  parser.feed(entry.frame.toString());
  return read;
}

function count(to: number): string[] {
  return Array.from({ length: to }, (_, index) => `${index}`);
}

function first(entries: readonly LogEntry[]): LogEntry {
  return entries[0] ?? assert.fail('there is no entry');
}

type Checks = Record<string, (nodes: Nodes) => Promise<void>>;

const CHECKS: Checks = {
  async 'an entry that is appended is received, with its channel, its fields and the id that append resolves to'(
    nodes,
  ) {
    const node = await nodes.make('log');
    await node.listen('a');
    const id = await node.publish('a', 'x\ny', { event: 'tick', retry: 5 });
    await nodes.until('the entry', () => node.received.length === 1);
    const entry = first(node.received);
    assert.deepEqual([entry.channel, entry.event, entry.data, entry.id], ['a', 'tick', 'x\ny', id]);
    assert.deepEqual(readFrame(entry), { events: [{ event: 'tick', data: 'x\ny', id }], retry: 5 });
  },

  async 'ids are short and safe, of one epoch, and offsets grow across channels, in the order of the calls'(
    nodes,
  ) {
    const node = await nodes.make('log');
    await node.listen('a', 'b');
    const ids = await Promise.all(
      count(50).map((data, index) => node.publish(index % 3 === 0 ? 'a' : 'b', data)),
    );
    await nodes.until('the entries', () => node.received.length === 50);
    const page = await node.read(['a', 'b']);
    assert.deepEqual(dataOf(page.entries), count(50));
    assert.deepEqual(
      page.entries.map((entry) => entry.id),
      ids,
    );
    for (const id of ids) assert.match(id, ID);
    assert.deepEqual(
      new Set(page.entries.map((entry) => entry.epoch)),
      new Set([page.position.epoch]),
    );
    assert.deepEqual(
      dataOf(node.received),
      count(50),
      'entries are received in the order of their offsets, each once',
    );
  },

  async 'only what is listened to is received'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a', 'b');
    node.unlisten('b');
    for (const channel of ['a', 'b', 'c', 'a']) await node.publish(channel, channel);
    await nodes.until('both of a', () => node.received.length >= 2);
    assert.deepEqual(dataOf(node.received), ['a', 'a']);
  },

  async 'what has been received is found by a read'(nodes) {
    const found: Promise<boolean>[] = [];
    const node = await nodes.make('log', {}, ({ broker }, entry) => {
      const read = Promise.resolve(broker.read(['a'], entry.offset - 1, ALL));
      found.push(read.then((page) => page.entries[0]?.offset === entry.offset));
    });
    await node.listen('a');
    await Promise.all([node.publish('a', '1'), node.publish('a', '2'), node.publish('a', '3')]);
    await nodes.until('the entries', () => found.length === 3);
    assert.deepEqual(await Promise.all(found), [true, true, true]);
  },

  async 'a read goes on where the last page ended, until it is complete, at the position it names'(
    nodes,
  ) {
    const node = await nodes.make('log');
    for (const data of count(30)) await node.publish(Number(data) % 2 === 0 ? 'a' : 'b', data);
    const data: string[] = [];
    let pages = 0;
    for (let after = 0; ;) {
      const page = await node.read(['a', 'b'], after, 150);
      pages++;
      data.push(...dataOf(page.entries));
      if (page.complete) {
        assert.deepEqual(page.position, await node.broker.position());
        break;
      }
      after = (page.entries.at(-1) ?? assert.fail('a page that is not complete has an entry'))
        .offset;
    }
    assert.deepEqual(data, count(30));
    assert.ok(
      pages > 5,
      `a page holds at most the bytes that were asked for, but there were only ${pages}`,
    );
  },

  async 'the position is that of the newest event'(nodes) {
    const node = await nodes.make('log');
    const before = await node.broker.position();
    await node.publish('a', '1');
    const page = await node.read(['a']);
    const { offset } = first(page.entries);
    assert.ok(before.offset < offset);
    assert.deepEqual(await node.broker.position(), { epoch: before.epoch, offset });
    assert.deepEqual(page.position, await node.broker.position());
  },

  async 'two logs have two epochs'(nodes) {
    const node = await nodes.make('log');
    const other = await nodes.make('another log');
    assert.notEqual((await node.broker.position()).epoch, (await other.broker.position()).epoch);
  },

  async 'loss is told by trimmed with sparse offsets: A1 A3 A5, of which A1 and A3 are trimmed'(
    nodes,
  ) {
    const node = await nodes.make('log');
    const history = { ...LIMITS, events: 1 };
    for (const channel of ['a', 'b', 'a', 'b', 'a']) {
      await node.publish(channel, channel, channel === 'a' ? { history } : {});
    }
    const page = await node.read(['a', 'b']);
    assert.deepEqual(dataOf(page.entries), ['b', 'b', 'a']);
    const [b1, b2] = page.entries as [LogEntry, LogEntry];
    const [trimmedA, trimmedB] = page.trimmed as [number, number];
    // The second A lies between the two Bs: who has the second B lost nothing, who has the first lost it.
    assert.ok(
      trimmedA > b1.offset && trimmedA < b2.offset,
      `${b1.offset} < ${trimmedA} < ${b2.offset}`,
    );
    assert.equal(trimmedB, 0);
  },

  async 'loss is told by trimmed, which of a channel that is emptied stays what it was'(nodes) {
    const node = await nodes.make('log');
    await node.publish('a', '1');
    await node.publish('a', '2');
    const { offset } = await node.broker.position();
    await node.publish('b', '3');
    await node.broker.clear('a');
    const page = await node.read(['a', 'b']);
    assert.deepEqual(page.trimmed, [offset, 0]);
    assert.deepEqual(dataOf(page.entries), ['3']);
  },

  async 'a bound of bytes bites as well as one of events'(nodes) {
    const node = await nodes.make('log');
    const history = { ...LIMITS, bytes: 5_000 };
    for (let index = 0; index < 10; index++) {
      await node.publish('a', 'x'.repeat(1_000), { history });
    }
    const page = await node.read(['a']);
    assert.ok(
      page.entries.length > 1 && page.entries.length < 5,
      `${page.entries.length} entries are kept`,
    );
    assert.equal(page.trimmed[0], first(page.entries).offset - 1);
  },

  async 'events past their age are not read'(nodes) {
    const node = await nodes.make('log');
    await node.publish('a', '1', { history: { ...LIMITS, age: 30 } });
    await nodes.until('it to be too old', async () => (await node.data('a')).length === 0);
    assert.deepEqual((await node.read(['a'])).trimmed, [(await node.broker.position()).offset]);
  },

  async 'of a newest-only channel only the newest is read, and the others are not missed'(nodes) {
    const node = await nodes.make('log');
    const history = { ...LIMITS, events: 1, latest: true };
    for (const data of ['1', '2', '3']) await node.publish('a', data, { history });
    const page = await node.read(['a']);
    assert.deepEqual([dataOf(page.entries), page.trimmed], [['3'], [0]]);
  },

  async 'loss is told by trimmed, which of a channel that was forgotten is the floor, as of every unknown one'(
    nodes,
  ) {
    const node = await nodes.make('log', { maxChannels: 2 });
    await node.publish('a', '1');
    const { offset } = await node.broker.position();
    await node.publish('b', '2');
    await node.publish('c', '3');
    const page = await node.read(['a', 'b', 'c', 'never']);
    assert.deepEqual([page.trimmed[0], page.trimmed[1], page.trimmed[3]], [offset, 0, offset]);
    assert.deepEqual(dataOf(page.entries), ['2', '3']);
  },

  async 'a channel without history is received, has no id, and is not read'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    const before = await node.broker.position();
    assert.equal(await node.publish('a', 'live', { history: false }), '');
    await nodes.until('the entry', () => node.received.length === 1);
    const entry = first(node.received);
    assert.equal(entry.id, '');
    assert.deepEqual(readFrame(entry), {
      events: [{ event: 'message', data: 'live' }],
      retry: undefined,
    });
    assert.deepEqual(await node.data('a'), []);
    assert.deepEqual(await node.broker.position(), before);
  },

  async 'a key publishes once in its channel, and resolves with the first id'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    const id = await node.publish('a', '1', { key: 'k' });
    assert.equal(await node.publish('a', 'again', { key: 'k' }), id);
    assert.notEqual(await node.publish('b', 'elsewhere', { key: 'k' }), id);
    assert.notEqual(await node.publish('a', '2', { key: 'other' }), id);
    assert.deepEqual(await node.data('a', 'b'), ['1', 'elsewhere', '2']);
    await nodes.until('both of a', () => node.received.length >= 2);
    assert.deepEqual(dataOf(node.received), ['1', '2']);
  },

  async 'after close it appends, reads and receives nothing'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    assert.equal(node.broker.state, 'open');
    await node.broker.close();
    await node.broker.close();
    assert.equal(node.broker.state, 'closed');
    await assert.rejects(node.publish('a', '1'), { code: 'ERR_SSE_CLOSED' });
    await assert.rejects(node.read(['a']), { code: 'ERR_SSE_CLOSED' });
    assert.deepEqual(node.received, []);
  },
};

const SHARED_CHECKS: Checks = {
  async 'nodes of one log receive what each of them appends, in one order, with the same ids'(
    nodes,
  ) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await one.listen('a', 'b');
    await other.listen('a', 'b');
    await Promise.all(
      count(40).map((data, index) =>
        (index % 2 === 0 ? one : other).publish(index % 3 === 0 ? 'a' : 'b', data),
      ),
    );
    await nodes.until(
      'all on both',
      () => one.received.length >= 40 && other.received.length >= 40,
    );
    const ids = (await one.read(['a', 'b'])).entries.map((entry) => entry.id);
    for (const node of [one, other]) {
      assert.deepEqual(
        node.received.map((entry) => entry.id),
        ids,
      );
    }
    assert.equal((await one.broker.position()).epoch, (await other.broker.position()).epoch);
  },

  async 'a node reads what another has appended'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    for (const data of count(5)) await one.publish('a', data);
    await nodes.until('them', async () => (await other.data('a')).length === 5);
    assert.deepEqual(await other.data('a'), count(5));
    assert.deepEqual((await other.read(['a'])).trimmed, [0]);
  },

  async 'a position waits until the node has come as far as a client of another has'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    for (const data of count(20)) await one.publish('a', data);
    const cursor = await one.broker.position();
    const position = await other.broker.position(cursor);
    assert.ok(position.offset >= cursor.offset, `${position.offset} is below ${cursor.offset}`);
    assert.deepEqual(
      dataOf(other.received),
      count(20),
      'what is at or below the position has been received',
    );
  },

  async 'a key of one node is known on the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    const id = await one.publish('a', '1', { key: 'k' });
    assert.equal(await other.publish('a', 'again', { key: 'k' }), id);
    assert.deepEqual(await one.data('a'), ['1']);
  },

  async 'what one node clears is gone on the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    await one.publish('a', '1');
    const { offset } = await one.broker.position();
    await nodes.until('the entry', () => other.received.length === 1);
    await one.broker.clear('a');
    await nodes.until('it to be gone', async () => (await other.data('a')).length === 0);
    assert.deepEqual((await other.read(['a'])).trimmed, [offset]);
  },

  async 'a node that closes takes nothing away from the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    await one.publish('a', '1');
    await one.broker.close();
    await other.publish('a', '2');
    await nodes.until('both', () => other.received.length >= 2);
    assert.deepEqual(dataOf(other.received), ['1', '2']);
    assert.deepEqual(await other.data('a'), ['1', '2']);
  },
};
