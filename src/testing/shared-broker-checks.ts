/** The checks of the broker contract for brokers whose nodes share a log. */
import assert from 'node:assert/strict';
import type { Checks } from './broker-checks.ts';
import { dataOf, numbers } from './broker-node.ts';

/** Checks for brokers whose nodes share a log. */
export const SHARED_CHECKS: Checks = {
  async 'nodes of one log receive the entries of all nodes in one order, with the same ids'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await one.listen('a', 'b');
    await other.listen('a', 'b');
    await Promise.all(
      numbers(40).map((data, index) =>
        (index % 2 === 0 ? one : other).publish(index % 3 === 0 ? 'a' : 'b', data),
      ),
    );
    await nodes.until(
      'all entries on both nodes',
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

  async 'a node reads entries that another node has appended'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    for (const data of numbers(5)) await one.publish('a', data);
    await nodes.until('the entries', async () => (await other.data('a')).length === 5);
    assert.deepEqual(await other.data('a'), numbers(5));
    assert.deepEqual((await other.read(['a'])).trimmed, [0]);
  },

  async 'a position waits until the node has reached the cursor of a client of another node'(
    nodes,
  ) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    for (const data of numbers(20)) await one.publish('a', data);
    const cursor = await one.broker.position();
    const position = await other.broker.position(cursor);
    assert.ok(
      position.offset >= cursor.offset,
      `position ${position.offset} is before the cursor ${cursor.offset}`,
    );
    assert.deepEqual(
      dataOf(other.received),
      numbers(20),
      'entries at or below the position have been received',
    );
  },

  async 'a key that was used on one node is known on the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    const id = await one.publish('a', '1', { key: 'k' });
    assert.equal(await other.publish('a', 'again', { key: 'k' }), id);
    assert.deepEqual(await one.data('a'), ['1']);
  },

  async 'events that one node clears are deleted on the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    await one.publish('a', '1');
    const { offset } = await one.broker.position();
    await nodes.until('the entry', () => other.received.length === 1);
    await one.broker.clear('a');
    await nodes.until('the event to be deleted', async () => (await other.data('a')).length === 0);
    assert.deepEqual((await other.read(['a'])).trimmed, [offset]);
  },

  async 'a channel that ends on one node has ended on all nodes'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    const id = await one.publish('a', '1', { isEnd: true });
    await nodes.until('both entries', () => other.received.length === 2);
    assert.equal(other.received.at(-1)?.id, id);
    assert.equal(await other.broker.channelState('a'), 'ended');
    assert.deepEqual((await other.read(['a'])).ended, [true]);
    assert.equal(await other.end('a'), id);
    await assert.rejects(other.publish('a', '2'), { code: 'ERR_SSE_ENDED' });
    await one.broker.clear('a');
    await nodes.until('the end to be deleted', async () => !(await other.read(['a'])).ended[0]);
    assert.equal(await other.broker.channelState('a'), 'unknown');
  },

  async 'closing one node does not affect the others'(nodes) {
    const [one, other] = [await nodes.make('log'), await nodes.make('log')];
    await other.listen('a');
    await one.publish('a', '1');
    await one.broker.close();
    await other.publish('a', '2');
    await nodes.until('both entries', () => other.received.length >= 2);
    assert.deepEqual(dataOf(other.received), ['1', '2']);
    assert.deepEqual(await other.data('a'), ['1', '2']);
  },
};
