/** Clients stop when a channel has ended. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createChannels, type Channels } from '../../src/index.ts';
import { serveStreams, type StreamServer } from '../support/app.ts';
import { until } from '../support/wait.ts';
import { CLIENTS, closeBrowser, startFirefox, type Client } from './clients.ts';

beforeAll(startFirefox);
afterAll(closeBrowser);

interface EndServer extends StreamServer {
  readonly channels: Channels;
  /** For each request to `/listen`: the client's last event id, and the status of the answer. */
  readonly requests: { lastEventId: string | undefined; status?: number }[];
}

/** A server whose route `/listen` follows a channel. Streams of `/` end, and are asked for again. */
async function serveEnds(): Promise<EndServer> {
  const channels = createChannels();
  const server = await serveStreams((stream) => stream.close(), { channels, retry: 20 });
  const requests: EndServer['requests'] = [];
  server.app.get(
    '/listen',
    (req, res, next) => {
      const { lastEventId } = req.query as { lastEventId?: string };
      const request: EndServer['requests'][number] = {
        lastEventId: req.get('Last-Event-ID') ?? lastEventId,
      };
      requests.push(request);
      res.on('finish', () => (request.status = res.statusCode));
      next();
    },
    channels.listen('a'),
  );
  // `sse()` answers the final mark before the route is reached.
  server.server.prependListener('request', (req, res) => {
    if (req.url !== '/listen' || req.headers['last-event-id'] !== 'sse:end') return;
    requests.push({ lastEventId: 'sse:end' });
    res.on('finish', () => Object.assign(requests.at(-1)!, { status: res.statusCode }));
  });
  return Object.assign(server, { channels, requests });
}

/** Waits for a time in which the client would have made many more requests. */
async function untilOthersHaveReconnected(client: Client, server: EndServer): Promise<void> {
  const before = server.streams.length;
  const other = await client.follow(server.url, server);
  await until('six reconnects of another stream', () => server.streams.length > before + 6);
  await other[Symbol.asyncDispose]();
}

const stopping = CLIENTS.filter(({ promises }) => promises['stops at a final end'] !== 'no');

describe.each(stopping)('$name', (client) => {
  test('makes no further request after sse:end, or one that is answered 204', async () => {
    await using server = await serveEnds();
    const { channels, requests } = server;
    await using following = await client.follow(`${server.url}/listen`, server);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '1');
    await channels.end('a', '2');
    await until('the client to stop', () => following.isOver());
    await untilOthersHaveReconnected(client, server);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['1', '2']);
    // Clients that do not know `sse:end` ask once more, the others need not.
    const asksOnceMore =
      client.promises['stops at a final end'] === 'yes' &&
      !client.name.startsWith('res-sse/client');
    expect(requests.map(({ status }) => status)).toEqual(
      [200, 204].slice(0, asksOnceMore ? 2 : requests.length),
    );
  });

  test('stops at the 204 to an id that is followed only by the end', async () => {
    await using server = await serveEnds();
    const { channels, requests } = server;
    await using following = await client.follow(`${server.url}/listen`, server);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    const { id } = await channels.publish('a', '1');
    await until('one event', async () => (await following.shownEvents()).length === 1);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.end('a');
    await until('the client to stop', () => following.isOver());
    await untilOthersHaveReconnected(client, server);
    expect(requests.slice(1)).toEqual([{ lastEventId: id, status: 204 }]);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['1']);
  });

  test('receives what it missed before the end, and then stops', async () => {
    await using server = await serveEnds();
    const { channels, requests } = server;
    await using following = await client.follow(`${server.url}/listen`, server);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    await channels.publish('a', '1');
    await until('one event', async () => (await following.shownEvents()).length === 1);
    for (const socket of server.sockets) socket.resetAndDestroy();
    await channels.publish('a', '2');
    await channels.end('a', '3');
    await until('the client to stop', () => following.isOver());
    await untilOthersHaveReconnected(client, server);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['1', '2', '3']);
    expect(requests.length).toBeLessThanOrEqual(3);
  });

  test('stops at the end of a channel that it polls', async () => {
    await using server = await serveEnds();
    const { channels } = server;
    let polls = 0;
    server.server.on('request', ({ url }) => {
      if (url === '/listen?ssePoll=1') polls++;
    });
    await using following = await client.follow(`${server.url}/listen?ssePoll=1`, server);
    await until('the subscription', () => channels.stats().subscriptions === 1);
    for (const text of ['1', '2', '3']) {
      await channels.publish('a', text);
      await until(`event ${text}`, async () => (await following.shownEvents()).length >= +text);
    }
    await channels.end('a', '4');
    await until('the client to stop', () => following.isOver());
    const before = polls;
    await untilOthersHaveReconnected(client, server);
    expect((await following.shownEvents()).map(({ data }) => data)).toEqual(['1', '2', '3', '4']);
    expect(polls).toBe(before);
  });
});
