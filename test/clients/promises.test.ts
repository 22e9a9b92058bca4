import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createChannels, type EventStream } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { until, within } from '../support/wait.ts';
import { countBlocks, filesIn, pageOf } from './blocks.ts';
import {
  CLIENTS,
  OPENAI,
  PROMISES,
  closeBrowser,
  startFirefox,
  type Client,
  type Following,
  type PromiseName,
} from './clients.ts';

beforeAll(startFirefox);
afterAll(closeBrowser);

async function untilEvents(following: Following, count: number): Promise<void> {
  await until(`${count} events`, async () => (await following.shownEvents()).length >= count);
}

/** Returns the newest stream of the server. */
function streamOf(server: StreamServer): EventStream {
  return server.streams.at(-1) as EventStream;
}

const checks: Record<PromiseName, (client: Client) => Promise<void>> = {
  async messages(client) {
    await using server = await serveStreams((stream) => stream.send('first'));
    await using following = await client.follow(server.url, server);
    // Each event arrives at once, while the stream stays open.
    await untilEvents(following, 1);
    streamOf(server).send({ text: 'größer 🐸 \u2028' });
    await untilEvents(following, 2);
    expect((await following.shownEvents()).map(({ type, data }) => [type, data])).toEqual([
      ['message', 'first'],
      ['message', '{"text":"größer 🐸 \u2028"}'],
    ]);
  },

  async 'named events'(client) {
    await using server = await serveStreams((stream) => {
      stream.send('1', { event: 'text' });
      stream.send('2');
      stream.send('3', 'text');
    });
    await using following = await client.follow(server.url, server);
    await untilEvents(following, 3);
    expect((await following.shownEvents()).map(({ type, data }) => type + data)).toEqual([
      'text1',
      'message2',
      'text3',
    ]);
  },

  async lines(client) {
    const texts = [
      'two\nlines',
      '  spaces  ',
      '',
      'ends\n\n',
      ': no comment\ndata: 1',
      'after\uFEFFall',
    ];
    await using server = await serveStreams((stream) => {
      for (const text of texts) stream.send(text);
      stream.send('CR\rand\r\nCRLF');
    });
    await using following = await client.follow(server.url, server);
    await untilEvents(following, texts.length + 1);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual([
      ...texts,
      'CR\nand\nCRLF',
    ]);
  },

  async ids(client) {
    await using server = await serveStreams((stream) => {
      stream.send('a', { id: 7 });
      stream.send('b', { id: 'größer 🐸' });
      stream.send('c', { id: 12_345_678_901_234_567_890n, event: 'text' });
    });
    await using following = await client.follow(server.url, server);
    await untilEvents(following, 3);
    expect((await following.shownEvents()).map(({ id }) => id)).toEqual([
      '7',
      'größer 🐸',
      '12345678901234567890',
    ]);
  },

  async 'heartbeats unseen'(client) {
    await using server = await serveStreams((stream) => stream.send('before'), { heartbeat: 20 });
    await using following = await client.follow(server.url, server);
    await untilEvents(following, 1);
    const { bytes } = server.events.stats();
    await until('two heartbeats', () => server.events.stats().bytes >= bytes + 6);
    streamOf(server).send('after');
    await untilEvents(following, 2);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['before', 'after']);
  },

  async 'comes back'(client) {
    // If the client ignored the later reconnection times, this test would take a minute.
    await using server = await serveStreams(
      (stream) => {
        stream.send(`request ${server.streams.length}`, { id: `request-${server.streams.length}` });
        if (server.streams.length === 1) stream.close({ retry: 30 });
      },
      { retry: 60_000 },
    );
    await using following = await client.follow(server.url, server);
    await untilEvents(following, 2);
    expect(streamOf(server).lastEventId).toBe('request-1');
    streamOf(server).send('reconnect soon', { retry: 30, id: 'cut' });
    await untilEvents(following, 3);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await untilEvents(following, 4);
    expect(streamOf(server).lastEventId).toBe('cut');
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual([
      'request 1',
      'request 2',
      'reconnect soon',
      'request 3',
    ]);
    await server.events.close({ retry: 20 });
    await until(
      'two rejected reconnects during the shutdown',
      () => server.events.stats().rejected >= 2,
    );
    expect(await following.isOver()).toBe(false);
  },

  async resumes(client) {
    const channels = createChannels();
    await using server = await serveStreams((stream) => stream.subscribe('a'), {
      channels,
      retry: 20,
    });
    await using following = await client.follow(server.url, server);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    const ids: string[] = [];
    async function publish(): Promise<void> {
      for (let count = 0; count < 50; count++) {
        ids.push((await channels.publish('a', `${ids.length}`)).id);
      }
    }
    // From here on the client has an id for a reconnect.
    await publish();
    await untilEvents(following, 1);
    for (let drop = 1; drop <= 3; drop++) {
      await publish();
      for (const socket of server.sockets) socket.resetAndDestroy();
      await publish();
      await until(
        'a reconnect',
        () => server.streams.length > drop && channels.stats().subscriptions === 1,
      );
    }
    await untilEvents(following, ids.length);
    const events = (await following.shownEvents()).map(({ data, id }) => [data, id]);
    expect(events).toEqual(ids.map((id, index) => [`${index}`, id]));
    expect(channels.stats().gaps).toBe(0);
  },

  async 'stops at a final end'(client) {
    await using server = await serveStreams((stream) => {
      stream.send('only');
      stream.close({ final: true, retry: 20 });
    });
    await using following = await client.follow(server.url, server);
    await until('the client to stop', () => following.isOver());
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['only']);
    expect(server.streams).toHaveLength(1);
  },

  async 'is noticed when it leaves'(client) {
    await using server = await serveStreams((stream) => stream.send('x'));
    await using following = await client.follow(server.url, server);
    await untilEvents(following, 1);
    await following.disconnect();
    expect(await within('the close reason', streamOf(server).closed, 10_000)).toBe('client');
  },
};

const cases = CLIENTS.flatMap((client) =>
  PROMISES.filter((promise) => client.promises[promise] !== 'no').map((promise) => ({
    name: client.name,
    promise,
    client,
  })),
);

describe('a client behaves as the table in docs/clients.md says:', () => {
  test.each(cases)('$name: $promise', async ({ promise, client }) => {
    await expect(checks[promise](client)).resolves.toBeUndefined();
  });

  test('the tests cover each cell of the table', async () => {
    const [, table = ''] =
      /^(\| client \| messages [^]*?)\n\n/m.exec(await pageOf('clients.md')) ?? [];
    const rows = table.split('\n');
    const cells = rows.map((row) =>
      row
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
    const clients = [...CLIENTS.slice(0, -1), OPENAI, ...CLIENTS.slice(-1)];
    expect(cells[0]).toEqual(['client', ...PROMISES]);
    const rowOf = ({ promises }: Pick<Client, 'promises'>): string[] =>
      PROMISES.map((promise) => promises[promise]);
    expect(cells.slice(2)).toEqual(clients.map((client) => [client.name].concat(rowOf(client))));
  });

  test('every code block of docs/clients.md has a file name, so it is tested', async () => {
    const page = await pageOf('clients.md');
    expect(Object.keys(filesIn(page))).toHaveLength(countBlocks(page));
  });
});
