/** Leases of `channels.pipe()` when Redis refuses commands, or loses a part of its keys. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { until } from '../support/wait.ts';
import { HISTORY, LeaseNodes, untilOpen } from './lease-nodes.ts';

let nodes: LeaseNodes;

beforeEach(async () => {
  nodes = await LeaseNodes.start();
});

afterEach(async () => {
  await nodes[Symbol.asyncDispose]();
});

/** Collects the errors that are reported meanwhile. */
function collectErrors(): { messages: string[] } & Disposable {
  const messages: string[] = [];
  const note = (message: unknown): void =>
    void messages.push(String((message as { error: unknown }).error));
  subscribe('res-sse:error', note);
  return { messages, [Symbol.dispose]: () => void unsubscribe('res-sse:error', note) };
}

test('an end that Redis refuses is reported and tried again, until Redis accepts it', async () => {
  const { redis, relay, client } = nodes;
  const [producer, other] = [nodes.make(relay.url), nodes.make(redis.url)];
  await untilOpen(producer.channels, other.channels);
  producer.broker.hold('run', HISTORY);
  await producer.channels.publish('run', 'event');
  await nodes.untilHeld('run');
  relay.sever();
  using errors = collectErrors();
  await client.sendCommand(['ACL', 'SETUSER', 'default', '-xadd']);
  const isReported = (): boolean =>
    errors.messages.some((text) => /could not be ended yet/.test(text));
  await until('the refusal', async () => isReported() || (await nodes.leases()).length === 0);
  expect(await nodes.leases()).toEqual(['run']);
  expect(await other.channels.state('run')).toBe('open');
  await client.sendCommand(['ACL', 'SETUSER', 'default', '+xadd']);
  await until('the end', async () => (await other.channels.state('run')) === 'ended');
  expect(await nodes.leases()).toEqual([]);
  expect(isReported()).toBe(true);
});

test('an end that Redis refuses when a node closes is left to another node', async () => {
  const { redis, relay, client } = nodes;
  const [closing, other] = [nodes.make(relay.url), nodes.make(redis.url)];
  await untilOpen(closing.channels, other.channels);
  closing.broker.hold('run', HISTORY);
  await closing.channels.publish('run', 'event');
  await nodes.untilHeld('run');
  await client.sendCommand(['ACL', 'SETUSER', 'default', '-xadd']);
  await closing.channels.close();
  expect(await nodes.leases()).toEqual(['run']);
  await client.sendCommand(['ACL', 'SETUSER', 'default', '+xadd']);
  await until('the end', async () => (await other.channels.state('run')) === 'ended');
});
