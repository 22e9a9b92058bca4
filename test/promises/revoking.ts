/** The promises about revoking, for each broker. */
import express from 'express';
import { describe, expect, test } from 'vitest';
import {
  sse,
  stream as streamRoute,
  type Channels,
  type EventStream,
  type SseMiddleware,
  type SseOptions,
} from '../../src/index.ts';
import type { Revocations } from '../../src/channels/revocations.ts';
import { revocationSource } from '../../src/stream/revocation-types.ts';
import { serve, type TestServer } from '../support/server.ts';
import { read, readMany, type Reader } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import type { MakeNodes } from './nodes.ts';

interface UserServer extends TestServer {
  readonly events: SseMiddleware;
  /** The streams that were made, in order. */
  readonly streams: EventStream[];
}

/** A server whose route `/` follows the channel `a`; the user is in the query. */
export async function serveUsers(
  channels: Channels,
  options: SseOptions = {},
): Promise<UserServer> {
  const app = express();
  const streams: EventStream[] = [];
  const events = sse({
    channels,
    identity: (req) => (req.query as { user?: string }).user,
    warnings: false,
    onError: () => {},
    ...options,
  });
  app.use(events);
  app.get(
    '/',
    streamRoute(async (stream, req) => {
      streams.push(stream);
      const { wait } = req.query as { wait?: string };
      if (wait !== undefined) await until('the test', () => waits.delete(wait));
      await stream.subscribe(['a', 'x']);
    }),
  );
  const server = Object.assign(await serve(app), { events, streams });
  // Streams that are made before the node knows its place in the log may have missed revocations.
  const { [revocationSource]: revocations } = channels as { [revocationSource]?: Revocations };
  const isReady = (): boolean => revocations?.isCurrent === true;
  if (!('identity' in options)) await until('the place in the log', isReady);
  return server;
}

/** Names of requests whose handlers go on. */
const waits = new Set<string>();

function connect(server: UserServer, user: string, more = ''): Promise<Reader> {
  return read(`${server.url}/?user=${user}${more}`);
}

function dataOf({ events }: Reader): string[] {
  return events.map(({ data }) => data);
}

/** Tests the promises of DESIGN 5.10 that hold with every broker. */
export function testRevoking(make: MakeNodes): void {
  const options = { historyFor: (name: string) => (name === 'x' ? (false as const) : undefined) };

  describe('events.revoke()', () => {
    test('ends the streams of the identity on every node, and no later event reaches them', async () => {
      await using nodes = make(options);
      await using here = await serveUsers(nodes.publisher);
      await using there = await serveUsers(nodes.reader);
      const readers = await Promise.all(
        [here, there].flatMap((server) => [connect(server, 'ann'), connect(server, 'bob')]),
      );
      await until('the streams', () =>
        [nodes.publisher, nodes.reader].every((node) => node.stats().subscriptions >= 4),
      );
      await nodes.publisher.publish('a', 'before');
      await here.events.revoke('ann');
      await Promise.all([nodes.publisher.publish('a', 'after'), nodes.reader.publish('x', 'live')]);
      await Promise.all([readers[0]!.end(), readers[2]!.end()]);
      for (const reader of [readers[1]!, readers[3]!]) {
        await until('the events', () => reader.events.length === 3);
        reader.close();
      }
      expect([dataOf(readers[0]!), dataOf(readers[2]!)]).toEqual([['before'], ['before']]);
      expect(here.events.stats().closed.revoked).toBe(1);
      expect(there.events.stats().closed.revoked).toBe(1);
      for (const reader of readers) expect(reader.text).not.toMatch(/ann|bob|revoked/);
      expect([...nodes.reader.names(), ...nodes.publisher.names()]).not.toContain('\u0000revoked');
    });

    test('a client that reconnects is authenticated again by the application', async () => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader);
      const reader = await connect(server, 'ann');
      await until('the stream', () => nodes.reader.stats().subscriptions >= 2);
      await server.events.revoke('ann');
      await reader.end();
      using again = await connect(server, 'ann');
      await until('the stream', () => nodes.reader.stats().subscriptions >= 2);
      await nodes.publisher.publish('a', 'again');
      expect((await again.next()).data).toBe('again');
    });

    test('ends a stream whose request came before, and which opens afterwards', async () => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader);
      await using other = await serveUsers(nodes.publisher);
      // A stream that is open makes sure that the node knows of the revocation.
      const open = await connect(server, 'ann');
      const waiting = connect(server, 'ann', '&wait=late');
      await until('both requests', () => server.streams.length === 2);
      await other.events.revoke('ann');
      await open.end();
      waits.add('late');
      const reader = await waiting;
      await reader.end();
      expect(await server.streams[1]!.closed).toBe('revoked');
      expect(dataOf(reader)).toEqual([]);
      expect(reader.retries[0]).toBeGreaterThan(1_000);
    });

    test('sends clients a reconnection time, or tells them not to reconnect', async () => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader);
      const [soon, never] = [await connect(server, 'ann'), await connect(server, 'bob')];
      await server.events.revoke('ann', { retry: 70_000 });
      await server.events.revoke('bob', { final: true });
      await Promise.all([soon.end(), never.end()]);
      expect(soon.retries).toEqual([70_000]);
      expect(never.events).toMatchObject([{ event: 'sse:end' }]);
    });

    test('does not affect streams without an identity', async () => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader);
      using reader = await read(server.url);
      await until('the stream', () => nodes.reader.stats().subscriptions >= 2);
      await server.events.revoke('undefined');
      await nodes.publisher.publish('a', 'on');
      expect((await reader.next()).data).toBe('on');
    });

    test('a thousand streams of one identity end', async () => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader);
      const readers = await readMany(1_000, () => connect(server, 'ann'));
      await server.events.revoke('ann');
      await Promise.all(readers.map((reader) => reader.end()));
      expect(server.events.stats().closed).toEqual({ revoked: 1_000 });
    });

    test('an identity that throws or is no string ends the stream', async () => {
      await using nodes = make(options);
      const errors: unknown[] = [];
      for (const identity of [
        () => {
          throw new Error('no session');
        },
        () => 7 as never,
      ]) {
        await using server = await serveUsers(nodes.reader, {
          identity,
          onError: (error) => errors.push(error),
        });
        const reader = await read(server.url);
        await reader.end();
        expect(server.events.stats().closed).toEqual({ error: 1 });
      }
      expect(errors).toMatchObject([{ message: 'no session' }, { code: 'ERR_SSE_OPTION' }]);
    });

    test.each<[string, SseOptions, string, object]>([
      ['an empty identity', {}, '', {}],
      ['a wrong option', {}, 'ann', { within: 5 }],
      ['a middleware without identity', { identity: undefined }, 'ann', {}],
    ])('refuses %s', async (_what, sseOptions, identity, closeOptions) => {
      await using nodes = make(options);
      await using server = await serveUsers(nodes.reader, sseOptions);
      await expect(server.events.revoke(identity, closeOptions)).rejects.toMatchObject({
        code: 'ERR_SSE_OPTION',
      });
    });
  });
}
