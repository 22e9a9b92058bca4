/** The function of docs/proxies.md that polls if a proxy holds the stream back. */
import { EventSource } from 'eventsource';
import express from 'express';
import { afterEach, expect, test, vi } from 'vitest';
import { createChannels, sse } from '../../src/index.ts';
import { filesIn, pageOf, writeFiles } from '../clients/blocks.ts';
import { startHoldingProxy } from '../promises/buffers.ts';
import { serve } from '../support/server.ts';
import { until } from '../support/wait.ts';

type Connect = (url: string, listen: (source: EventSource) => void, wait?: number) => () => void;

const WAIT_MS = 300;

afterEach(() => vi.unstubAllGlobals());

test.each([
  ['streams if the stream opens', false],
  ['polls through a proxy that holds responses back', true],
])('connect() %s', async (_what, isHeld) => {
  await using files = await writeFiles(filesIn(await pageOf('proxies.md')), []);
  const { connect } = (await files.load('connect.js')) as { connect: Connect };
  vi.stubGlobal('EventSource', EventSource);
  const channels = createChannels();
  const app = express();
  const events = sse({ channels });
  app.use(events);
  app.get('/news', channels.listen('news'));
  await using server = await serve(app);
  const proxy = await startHoldingProxy(server.port);
  const received: string[] = [];
  const urls: string[] = [];
  const base = isHeld ? proxy.url : server.url;
  const disconnect = connect(
    `${base}/news${isHeld ? '?page=1' : ''}`,
    (source) => {
      urls.push(source.url);
      source.addEventListener('message', ({ data }) => received.push(data as string));
    },
    WAIT_MS,
  );
  await until('the last EventSource', () => urls.length === (isHeld ? 2 : 1));
  await until('its stream', () =>
    [...events.streams].some(({ req, channels: { length } }) => {
      return length > 0 && req.url?.includes('ssePoll') === isHeld;
    }),
  );
  for (const text of ['1', '2', '3']) {
    await channels.publish('news', text);
    await until('the event', () => received.at(-1) === text);
  }
  expect(received).toEqual(['1', '2', '3']);
  expect(urls.at(-1)?.endsWith('ssePoll=1')).toBe(isHeld);
  disconnect();
  proxy.server.closeAllConnections();
  proxy.server.close();
});
