import { EventSource } from 'eventsource';
import { describe, expect, test } from 'vitest';
import { createChannels, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { until, within } from '../support/wait.ts';

function open(url: string): {
  source: EventSource;
  got: [string, string, string][];
  opened: () => number;
  [Symbol.dispose]: () => void;
} {
  const source = new EventSource(url);
  const got: [string, string, string][] = [];
  let opened = 0;
  for (const type of ['message', 'tick', 'sse:end']) {
    source.addEventListener(type, (event) => void got.push([type, event.data, event.lastEventId]));
  }
  source.addEventListener('open', () => opened++);
  return { source, got, opened: () => opened, [Symbol.dispose]: () => source.close() };
}

describe('the npm eventsource client', () => {
  test('receives messages, named events, lines and ids', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('plain');
      stream.send('two\nlines', { event: 'tick', id: 5 });
      stream.send('', { event: 'tick' });
      stream.send('  spaces and ü\u2028 \uFEFF\n\n', { id: '' });
    });
    using client = open(server.url);
    await until('four events', () => client.got.length === 4);
    expect(client.got).toEqual([
      ['message', 'plain', ''],
      ['tick', 'two\nlines', '5'],
      // By the standard this would be 5, too; the npm client tells only an event's own id.
      ['tick', '', ''],
      ['message', '  spaces and ü\u2028 \uFEFF\n\n', ''],
    ]);
  });

  test('reports open before the first event', async () => {
    await using server = await serveStreams((stream) => stream.open());
    using client = open(server.url);
    await until('open', () => client.opened() === 1);
    expect(client.source.readyState).toBe(1);
  });

  test('comes back after the reconnection time it was told, with the last event ID', async () => {
    const ids: string[] = [];
    await using server = await serveStreams(
      (stream) => {
        ids.push(stream.lastEventId);
        if (ids.length === 1) {
          stream.send('first', { id: 'größer-7' });
          stream.close({ retry: 30 });
        } else {
          stream.send('second');
        }
      },
      { retry: 60_000 },
    );
    using client = open(server.url);
    const begun = performance.now();
    await until('both events', () => client.got.length === 2);
    // Had the later retry not counted, it would have taken a minute.
    expect(performance.now() - begun).toBeLessThan(10_000);
    expect(ids[0]).toBe('');
    expect(ids).toHaveLength(2);
  });

  test('resumes with an id that this library gave', async () => {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels, retry: 20 });
    using client = open(server.url);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    const { id } = await channels.publish('a', '1');
    await until('the event', () => client.got.length === 1);
    (server.streams[0] as EventStream).close();
    await until('it to come back', () => server.streams.length === 2);
    expect((server.streams[1] as EventStream).lastEventId).toBe(id);
  });

  test('resumes across dropped connections with nothing lost and nothing repeated', async () => {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), { channels, retry: 20 });
    using client = open(server.url);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    let published = 0;
    for (let drop = 1; drop <= 5; drop++) {
      for (let count = 0; count < 50; count++) void channels.publish('a', `${published++}`);
      // Before, while and after they are written.
      if (drop % 2 === 0) await new Promise((resolve) => setImmediate(resolve));
      for (const socket of server.sockets) socket.resetAndDestroy();
      for (let count = 0; count < 50; count++) void channels.publish('a', `${published++}`);
      await until('it to come back', () => server.streams.length > drop && channels.stats().subscriptions === 1);
    }
    await until('everything', () => client.got.length >= published);
    expect(client.got.map(([, data]) => data)).toEqual(Array.from({ length: published }, (_, index) => `${index}`));
    expect(channels.stats().gaps).toBe(0);
  });

  test('stops reconnecting after a final end', async () => {
    let requests = 0;
    await using server = await serveStreams((stream) => {
      requests++;
      stream.send('only');
      stream.close({ final: true, retry: 20 });
    });
    using client = open(server.url);
    await until('the client to give up', () => client.source.readyState === 2);
    expect(requests).toBe(1);
    expect(client.got).toEqual([
      ['message', 'only', ''],
      ['sse:end', '{}', 'sse:end'],
    ]);
  });

  test('comes back when the server is shut down', async () => {
    await using server = await serveStreams((stream) => stream.send('x'));
    using client = open(server.url);
    await until('the event', () => client.got.length === 1);
    await server.events.close({ retry: 20 });
    await until('it to try again', () => server.events.stats().rejected >= 1);
    expect(client.source.readyState).not.toBe(2);
  });

  test('is noticed when it closes', async () => {
    await using server = await serveStreams((stream) => stream.send('x'));
    const client = open(server.url);
    await until('the event', () => client.got.length === 1);
    client.source.close();
    expect(await within('the reason', (server.streams[0] as EventStream).closed, 2_000)).toBe('client');
  });
});
