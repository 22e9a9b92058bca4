/** The promises about clients behind buffers, and clients that know no event names. */
import { serveStreams } from '../support/app.ts';
import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { EventSource } from 'eventsource';
import { describe, expect, test } from 'vitest';
import { sse, type Channels, type SseOptions, type SubscribeOptions } from '../../src/index.ts';
import express from 'express';
import { serve, type TestServer } from '../support/server.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import type { MakeNodes } from './nodes.ts';

interface ListenServer extends TestServer {
  readonly events: ReturnType<typeof sse>;
}

/** A server whose route `/` follows the channel `a`. */
export async function serveListen(
  channels: Channels,
  options: SubscribeOptions = {},
  sseOptions: SseOptions = {},
): Promise<ListenServer> {
  const app = express();
  const events = sse({ channels, ...sseOptions });
  app.use(events);
  app.get('/', channels.listen('a', options));
  return Object.assign(await serve(app), { events });
}

/** A proxy that holds every response back to its end, as some virus scanners do. */
export async function startHoldingProxy(port: number): Promise<{ url: string; server: Server }> {
  const server = createServer((req, res) => {
    const { method, url, headers } = req;
    const upstream = httpRequest({ port, method, path: url, headers }, (answer) => {
      const parts: Buffer[] = [];
      answer.on('data', (part: Buffer) => parts.push(part));
      answer.on('end', () => {
        res.writeHead(answer.statusCode ?? 502, { 'Content-Type': answer.headers['content-type'] });
        res.end(Buffer.concat(parts));
      });
      answer.on('error', () => res.destroy());
    });
    upstream.on('error', () => res.destroy());
    res.on('close', () => upstream.destroy());
    upstream.end();
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, server };
}

/** Tests the promises of DESIGN 5.5. */
export function testBuffers(make: MakeNodes): void {
  describe('polling with ssePoll=1', () => {
    test('an unchanged EventSource receives all events, once and in order, through a proxy that holds responses', async () => {
      await using nodes = make();
      await using server = await serveListen(nodes.reader);
      const proxy = await startHoldingProxy(server.port);
      const source = new EventSource(`${proxy.url}/?ssePoll=1`);
      const received: string[] = [];
      source.addEventListener('message', ({ data }) => received.push(data as string));
      await until('the first poll', () => server.events.stats().opened > 0);
      const sent = Array.from({ length: 100 }, (_, n) => `${n}`);
      for (const text of sent) {
        await nodes.publisher.publish('a', text);
        // Some events come while no request is open, others while a response is being held.
        if (Number(text) % 7 === 0) {
          await until('the event', () => received.includes(text));
        }
      }
      await until('all events', () => received.length >= sent.length);
      expect(received).toEqual(sent);
      source.close();
      proxy.server.closeAllConnections();
      proxy.server.close();
    });

    test('ends soon after an event, with a checkpoint and retry: 50', async () => {
      await using nodes = make();
      await using server = await serveListen(nodes.reader);
      const { id } = await nodes.publisher.publish('a', 'before');
      const reader = await read(`${server.url}?ssePoll=1&lastEventId=${id}`);
      await until('the stream', () => server.events.stats().opened > 0);
      expect(reader.ended).toBe(false);
      await nodes.publisher.publish('a', '1');
      await nodes.publisher.publish('a', '2');
      await reader.end();
      expect(reader.events.map(({ data }) => data)).toEqual(['1', '2']);
      expect(reader.retries).toEqual([50]);
      expect(server.events.stats().closed).toEqual({ server: 1 });
    });

    test('ends soon after a gap, and after the end of the channel', async () => {
      await using nodes = make({ history: { events: 1 } });
      await using server = await serveListen(nodes.reader);
      const since = await nodes.publisher.cursor();
      await nodes.publisher.publish('a', 'lost');
      await nodes.publisher.clear('a');
      const reader = await read(`${server.url}?ssePoll=1&lastEventId=${since}`);
      await reader.end();
      expect(reader.events).toMatchObject([{ event: 'sse:gap' }]);
      const waiting = await read(`${server.url}?ssePoll=1`);
      await until('the stream', () => server.events.stats().opened === 2);
      await nodes.publisher.end('a');
      await waiting.end();
      expect(waiting.events).toMatchObject([{ event: 'sse:end' }]);
    });

    test('events that the filter rejects are not a delivery, and the checkpoint comes after them', async () => {
      await using nodes = make();
      await using server = await serveListen(nodes.reader, {
        filter: ({ data }) => data === 'mine',
      });
      const reader = await read(`${server.url}?ssePoll=1`);
      await until('the stream', () => server.events.stats().opened > 0);
      await nodes.publisher.publish('a', 'other');
      await nodes.publisher.publish('a', 'mine');
      await nodes.publisher.publish('a', 'other');
      const end = await nodes.publisher.cursor();
      await reader.end();
      expect(reader.events.map(({ data }) => data)).toEqual(['mine']);
      expect(reader.checkpoints.at(-1)).toBe(end);
    });

    test('ends with a checkpoint also if `checkpoints` is false', async () => {
      await using nodes = make();
      await using server = await serveListen(nodes.reader, { checkpoints: false });
      const reader = await read(`${server.url}?ssePoll=1`);
      await until('the stream', () => server.events.stats().opened > 0);
      await nodes.publisher.publish('a', '1');
      await reader.end();
      expect(reader.checkpoints.length).toBeGreaterThan(0);
    });

    test('does not count for perMinute, and counts while it is open', async () => {
      await using nodes = make();
      const maxStreamsPer = { key: () => 'one', limit: 1, perMinute: 3 };
      await using server = await serveListen(nodes.reader, {}, { maxStreamsPer });
      for (let n = 0; n < 10; n++) {
        const reader = await read(`${server.url}?ssePoll=1`);
        expect(reader.response.status).toBe(200);
        await until('the stream', () => server.events.stats().open === 1);
        const second = await read(`${server.url}?ssePoll=1`);
        await second.end();
        expect(second.retries[0]).toBeGreaterThan(1_000);
        await nodes.publisher.publish('a', `${n}`);
        await reader.end();
        await until('the end', () => server.events.stats().open === 0);
      }
    });
  });

  describe('control: false', () => {
    test('sends none of the events of the library', async () => {
      await using nodes = make();
      const heartbeat = { interval: 20, visible: true };
      await using server = await serveListen(nodes.reader, { control: false }, { heartbeat });
      using reader = await read(server.url);
      await until('the stream', () => server.events.stats().opened > 0);
      await nodes.publisher.publish('a', '1');
      await until('a heartbeat', () => reader.comments.length > 1);
      await nodes.publisher.end('a', '2');
      await reader.end();
      expect(reader.events.map(({ data }) => data)).toEqual(['1', '2']);
      expect(reader.text).not.toContain('sse:');
      expect(server.events.stats().closed).toEqual({ final: 1 });
    });

    test.each(['elsewhere.3', 'the id before the lost events'])(
      'a gap is answered 410 before the stream opens: %s',
      async (id) => {
        await using nodes = make({ history: { events: 1 } });
        await using server = await serveListen(nodes.reader, { control: false });
        const before = await nodes.publisher.cursor();
        for (const text of ['1', '2']) await nodes.publisher.publish('a', text);
        const lastEventId = id.startsWith('the id') ? before : id;
        const response = await fetch(server.url, {
          headers: {
            Accept: 'text/event-stream, application/json;q=0.9',
            'Last-Event-ID': lastEventId,
          },
        });
        expect(response.status).toBe(410);
        expect(nodes.reader.names()).toEqual([]);
      },
    );

    test.each<[string, string | string[], boolean]>([
      ['beside a channel without history', ['a', 'live'], false],
      ['if the application has given the id', 'a', true],
    ])('a gap is answered 410 %s', async (_, names, isSince) => {
      await using nodes = make({
        historyFor: (name) => (name === 'live' ? false : { events: 1 }),
      });
      const before = await nodes.publisher.cursor();
      for (const text of ['1', '2']) await nodes.publisher.publish('a', text);
      const options = { control: false, ...(isSince ? { since: before } : {}) } as const;
      await using server = await serveStreams((stream) => stream.subscribe(names, options), {
        channels: nodes.reader,
      });
      const headers: Record<string, string> = isSince ? {} : { 'Last-Event-ID': before };
      const response = await fetch(server.url, {
        headers: { Accept: 'text/event-stream', ...headers },
      });
      expect(response.status).toBe(410);
      await response.body?.cancel();
    });

    test('a gap ends an open stream, whose client then gets the 410', async () => {
      await using nodes = make({ history: { events: 1 } });
      await using server = await serveListen(nodes.reader, { control: false });
      using reader = await read(server.url);
      await until('the stream', () => server.events.stats().opened > 0);
      await nodes.publisher.publish('a', '1');
      const { id } = await reader.next();
      // The client reads nothing, and the history loses what it has not received.
      const [stream] = server.events.streams;
      const [socket] = server.sockets;
      socket?.cork();
      stream?.send('x'.repeat(100_000));
      for (const text of ['2', '3', '4']) await nodes.publisher.publish('a', text);
      await until('the stream to fall behind', () => nodes.reader.stats().behind === 1);
      socket?.uncork();
      await reader.end();
      expect(reader.text).not.toContain('sse:');
      const again = await fetch(server.url, {
        headers: { Accept: 'text/event-stream', 'Last-Event-ID': id! },
      });
      expect(again.status).toBe(410);
    });

    test('with onGap the stream opens and continues', async () => {
      await using nodes = make({ history: { events: 1 } });
      await using server = await serveListen(nodes.reader, {
        control: false,
        onGap: (stream, { cursor }) => {
          stream.send('snapshot');
          return cursor;
        },
      });
      using reader = await read(`${server.url}?lastEventId=elsewhere.3`);
      expect((await reader.next()).data).toBe('snapshot');
      await nodes.publisher.publish('a', '1');
      expect((await reader.next()).data).toBe('1');
      expect(reader.text).not.toContain('sse:');
    });

    test('a request whose id is followed only by the end is answered 204', async () => {
      await using nodes = make();
      await using server = await serveListen(nodes.reader, { control: false });
      const { id } = await nodes.publisher.end('a', '1');
      const response = await fetch(server.url, {
        headers: { Accept: 'text/event-stream', 'Last-Event-ID': id },
      });
      expect(response.status).toBe(204);
    });
  });
}
