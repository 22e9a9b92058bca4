/** The checks of the broker contract. Each verifies one guarantee that `Broker` describes. */
import assert from 'node:assert/strict';
import type { LogEntry } from '../index.ts';
import { ALL_BYTES, dataOf, HISTORY, numbers, type Nodes } from './broker-node.ts';
import { EventStreamParser, type ReceivedEvent } from '../client/parser.ts';

const ID = /^[A-Za-z0-9._-]{1,127}$/;

/** Parses the frame of an entry as a client does. */
function parseFrame(entry: LogEntry): { events: ReceivedEvent[]; retry: number | undefined } {
  const read: ReturnType<typeof parseFrame> = { events: [], retry: undefined };
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

function first(entries: readonly LogEntry[]): LogEntry {
  return entries[0] ?? assert.fail('expected at least one entry');
}

/** Checks by name. Each check makes nodes, and rejects with an assertion error. */
export type Checks = Record<string, (nodes: Nodes) => Promise<void>>;

/** Checks for every broker. */
export const CHECKS: Checks = {
  async 'an appended entry is received with its channel, its fields and the returned id'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    const id = await node.publish('a', 'x\ny', { event: 'tick', retry: 5 });
    await nodes.until('the entry', () => node.received.length === 1);
    const entry = first(node.received);
    assert.deepEqual([entry.channel, entry.event, entry.data, entry.id], ['a', 'tick', 'x\ny', id]);
    assert.deepEqual(parseFrame(entry), {
      events: [{ event: 'tick', data: 'x\ny', id }],
      retry: 5,
    });
  },

  async 'ids are short and have one epoch; offsets grow in the order of the calls'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a', 'b');
    const ids = await Promise.all(
      numbers(50).map((data, index) => node.publish(index % 3 === 0 ? 'a' : 'b', data)),
    );
    await nodes.until('the entries', () => node.received.length === 50);
    const page = await node.read(['a', 'b']);
    assert.deepEqual(dataOf(page.entries), numbers(50));
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
      numbers(50),
      'entries are received in the order of their offsets, each once',
    );
  },

  async 'entries are received only of channels that are listened to'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a', 'b');
    node.unlisten('b');
    for (const channel of ['a', 'b', 'c', 'a']) await node.publish(channel, channel);
    await nodes.until('both entries of a', () => node.received.length >= 2);
    assert.deepEqual(dataOf(node.received), ['a', 'a']);
  },

  async 'a read finds each entry that has been received'(nodes) {
    const found: Promise<boolean>[] = [];
    const node = await nodes.make('log', {}, ({ broker }, entry) => {
      const read = Promise.resolve(broker.read(['a'], entry.offset - 1, ALL_BYTES));
      found.push(read.then((page) => page.entries[0]?.offset === entry.offset));
    });
    await node.listen('a');
    await Promise.all([node.publish('a', '1'), node.publish('a', '2'), node.publish('a', '3')]);
    await nodes.until('the entries', () => found.length === 3);
    assert.deepEqual(await Promise.all(found), [true, true, true]);
  },

  async 'reads continue from page to page; the complete page has the position of the log'(nodes) {
    const node = await nodes.make('log');
    for (const data of numbers(30)) await node.publish(Number(data) % 2 === 0 ? 'a' : 'b', data);
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
      after = (page.entries.at(-1) ?? assert.fail('an incomplete page has at least one entry'))
        .offset;
    }
    assert.deepEqual(data, numbers(30));
    assert.ok(pages > 5, `expected more than 5 pages of 150 bytes, got ${pages}`);
  },

  async 'the position is the offset of the newest event'(nodes) {
    const node = await nodes.make('log');
    const before = await node.broker.position();
    await node.publish('a', '1');
    const page = await node.read(['a']);
    const { offset } = first(page.entries);
    assert.ok(before.offset < offset);
    assert.deepEqual(await node.broker.position(), { epoch: before.epoch, offset });
    assert.deepEqual(page.position, await node.broker.position());
  },

  async 'different logs have different epochs'(nodes) {
    const node = await nodes.make('log');
    const other = await nodes.make('another log');
    assert.notEqual((await node.broker.position()).epoch, (await other.broker.position()).epoch);
  },

  async 'trimmed shows loss with sparse offsets: A1 A3 A5, of which A1 and A3 are trimmed'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, events: 1 };
    for (const channel of ['a', 'b', 'a', 'b', 'a']) {
      await node.publish(channel, channel, channel === 'a' ? { history } : {});
    }
    const page = await node.read(['a', 'b']);
    assert.deepEqual(dataOf(page.entries), ['b', 'b', 'a']);
    const [b1, b2] = page.entries as [LogEntry, LogEntry];
    const [trimmedA, trimmedB] = page.trimmed as [number, number];
    // The second A is between the two Bs: a reader that has the second B lost nothing, a reader
    // that has only the first B lost the second A.
    assert.ok(
      trimmedA > b1.offset && trimmedA < b2.offset,
      `${b1.offset} < ${trimmedA} < ${b2.offset}`,
    );
    assert.equal(trimmedB, 0);
  },

  async 'trimmed of a cleared channel is the offset of its newest event'(nodes) {
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

  async 'a limit in bytes is enforced like a limit in events'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, bytes: 5_000 };
    for (let index = 0; index < 10; index++) {
      await node.publish('a', 'x'.repeat(1_000), { history });
    }
    const page = await node.read(['a']);
    assert.ok(
      page.entries.length > 1 && page.entries.length < 5,
      `expected 2 to 4 entries to be kept, got ${page.entries.length}`,
    );
    assert.equal(page.trimmed[0], first(page.entries).offset - 1);
  },

  async 'events past their age are not read'(nodes) {
    const node = await nodes.make('log');
    await node.publish('a', '1', { history: { ...HISTORY, age: 30 } });
    await nodes.until(
      'the event to be past its age',
      async () => (await node.data('a')).length === 0,
    );
    assert.deepEqual((await node.read(['a'])).trimmed, [(await node.broker.position()).offset]);
  },

  async 'of a newest-only channel the newest event is read, and the others are not lost'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, events: 1, latest: true };
    for (const data of ['1', '2', '3']) await node.publish('a', data, { history });
    const page = await node.read(['a']);
    assert.deepEqual([dataOf(page.entries), page.trimmed], [['3'], [0]]);
  },

  async 'trimmed of a forgotten channel is the floor, as of every unknown channel'(nodes) {
    const node = await nodes.make('log', { maxChannels: 2 });
    await node.publish('a', '1');
    const { offset } = await node.broker.position();
    await node.publish('b', '2');
    await node.publish('c', '3');
    const page = await node.read(['a', 'b', 'c', 'never']);
    assert.deepEqual([page.trimmed[0], page.trimmed[1], page.trimmed[3]], [offset, 0, offset]);
    assert.deepEqual(dataOf(page.entries), ['2', '3']);
  },

  async 'an event of a channel without history is received without an id, and is not read'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    const before = await node.broker.position();
    assert.equal(await node.publish('a', 'live', { history: false }), '');
    await nodes.until('the entry', () => node.received.length === 1);
    const entry = first(node.received);
    assert.equal(entry.id, '');
    assert.deepEqual(parseFrame(entry), {
      events: [{ event: 'message', data: 'live' }],
      retry: undefined,
    });
    assert.deepEqual(await node.data('a'), []);
    assert.deepEqual(await node.broker.position(), before);
  },

  async 'a key publishes once in its channel; later calls return the first id'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    const id = await node.publish('a', '1', { key: 'k' });
    assert.equal(await node.publish('a', 'again', { key: 'k' }), id);
    assert.notEqual(await node.publish('b', 'elsewhere', { key: 'k' }), id);
    assert.notEqual(await node.publish('a', '2', { key: 'other' }), id);
    assert.deepEqual(await node.data('a', 'b'), ['1', 'elsewhere', '2']);
    await nodes.until('both entries of a', () => node.received.length >= 2);
    assert.deepEqual(dataOf(node.received), ['1', '2']);
  },

  async 'an event and the end of its channel are appended as one step, in this order'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    await node.publish('a', '1');
    const id = await node.publish('a', '2', { isEnd: true });
    await nodes.until('three entries', () => node.received.length === 3);
    const page = await node.read(['a', 'b']);
    for (const entries of [page.entries, node.received]) {
      assert.deepEqual(
        entries.map(({ data, isEnd }) => [data, isEnd]),
        [
          ['1', false],
          ['2', false],
          ['', true],
        ],
      );
      assert.equal(entries.at(-1)?.id, id);
      assert.equal(entries.at(-1)?.frame.length, 0, 'nothing is written for an end');
    }
    assert.deepEqual(
      [page.ended, page.trimmed],
      [
        [true, false],
        [0, 0],
      ],
    );
    const after = first(page.entries.slice(2)).offset;
    assert.deepEqual((await node.read(['a'], after)).ended, [true]);
  },

  async 'the state of a channel is unknown, open or ended'(nodes) {
    const node = await nodes.make('log');
    assert.equal(await node.broker.channelState('a'), 'unknown');
    await node.publish('a', '1');
    assert.equal(await node.broker.channelState('a'), 'open');
    await node.end('a');
    assert.equal(await node.broker.channelState('a'), 'ended');
    await node.broker.clear('a');
    assert.equal(await node.broker.channelState('a'), 'unknown');
    await node.publish('a', '2');
    assert.equal(await node.broker.channelState('a'), 'open');
    assert.deepEqual((await node.read(['a'])).ended, [false]);
  },

  async 'an ended channel accepts only what was published before'(nodes) {
    const node = await nodes.make('log');
    const published = await node.publish('a', '1', { key: 'event' });
    const id = await node.publish('a', '2', { key: 'end', isEnd: true });
    const ended = { code: 'ERR_SSE_ENDED', delivery: 'none' };
    await assert.rejects(node.publish('a', '3'), ended);
    await assert.rejects(node.publish('a', '3', { key: 'new' }), ended);
    await assert.rejects(node.publish('a', '3', { isEnd: true }), ended);
    assert.equal(await node.publish('a', 'again', { key: 'event' }), published);
    assert.equal(await node.publish('a', 'again', { key: 'end', isEnd: true }), id);
    assert.equal(await node.end('a'), id);
    assert.deepEqual(await node.data('a'), ['1', '2', '']);
    assert.notEqual(await node.end('b'), id);
  },

  async 'an end counts as one event of the history'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, events: 2 };
    for (const data of ['1', '2']) await node.publish('a', data, { history });
    await node.end('a', { history });
    const page = await node.read(['a']);
    assert.deepEqual([dataOf(page.entries), page.ended], [['2', ''], [true]]);
    assert.equal(page.trimmed[0], first(page.entries).offset - 1);
  },

  async 'a newest-only channel keeps its newest event beside its end'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, events: 1, latest: true };
    for (const data of ['1', '2']) await node.publish('a', data, { history });
    await node.end('a', { history });
    await node.publish('b', '1', { history });
    await node.publish('b', '2', { history, isEnd: true });
    const page = await node.read(['a', 'b']);
    assert.deepEqual(dataOf(page.entries), ['2', '', '2', '']);
    assert.deepEqual(
      [page.trimmed, page.ended],
      [
        [0, 0],
        [true, true],
      ],
    );
  },

  async 'an end that is past its age leaves its channel unknown and usable'(nodes) {
    const node = await nodes.make('log');
    const history = { ...HISTORY, age: 30 };
    await node.publish('a', '1', { history, isEnd: true });
    await nodes.until(
      'the end to be past its age',
      async () => (await node.broker.channelState('a')) === 'unknown',
    );
    const page = await node.read(['a']);
    assert.deepEqual([page.entries, page.ended], [[], [false]]);
    await node.publish('a', '2');
    assert.deepEqual(await node.data('a'), ['2']);
  },

  async 'after close, a broker appends, reads and receives nothing'(nodes) {
    const node = await nodes.make('log');
    await node.listen('a');
    assert.equal(node.broker.state, 'open');
    await node.broker.close();
    await node.broker.close();
    assert.equal(node.broker.state, 'closed');
    await assert.rejects(node.publish('a', '1'), { code: 'ERR_SSE_CLOSED' });
    await assert.rejects(node.read(['a']), { code: 'ERR_SSE_CLOSED' });
    const { broker } = node;
    for (const call of [
      async () => broker.position(),
      async () => broker.channelState('a'),
      async () => broker.clear('a'),
    ]) {
      await assert.rejects(call(), { code: 'ERR_SSE_CLOSED' });
    }
    assert.deepEqual(node.received, []);
  },
};
