import { describe, expect, test } from 'vitest';
import { createChannels, type EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { launchChromium } from '../support/chromium.ts';
import { snippetsOf } from '../support/snippets.ts';
import { until } from '../support/wait.ts';

const page = await snippetsOf('docs/observability.md');

describe('if a connection is dead without an error, in a browser,', () => {
  /** A page whose first stream is dead once it has had an event; what it has got is in `got`. */
  async function deadLine(script: string) {
    const channels = createChannels();
    const server = await serveStreams((given) => given.subscribe('haiku'), {
      channels,
      heartbeat: { interval: 100, visible: true },
    });
    server.app.get('/page', (_req, res) => {
      res
        .type('html')
        .send(`<!doctype html><script>${script.replaceAll('40_000', '1_000')}</script>`);
    });
    const browser = await launchChromium();
    const tab = await browser.newPage();
    await tab.goto(`${server.url}/page`);
    const got = (): Promise<string[]> => tab.evaluate('got');
    await until('the stream', () => server.events.streams.size === 1);
    await channels.publish('haiku', 'one', { event: 'text' });
    await until('the first', async () => (await got()).length === 1);
    const { socket } = (server.streams[0] as EventStream).res;
    // The line of a laptop that slept: it stays open, and nothing that is written arrives any more.
    if (socket !== null) socket.write = () => true;
    await channels.publish('haiku', 'two', { event: 'text' });
    await until('another stream', () => server.streams.length > 1);
    return {
      channels,
      got,
      async [Symbol.asyncDispose]() {
        await browser.close();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  test('the watchdog reloads the page', async () => {
    await using line = await deadLine(`
      const source = new EventSource('/');
      const got = [];
      source.addEventListener('text', ({ data }) => got.push(data));
      ${page.get('watchdog')}`);
    await until('the new page', async () => (await line.got()).length === 0);
    await line.channels.publish('haiku', 'three', { event: 'text' });
    await until('its first', async () => (await line.got()).length > 0);
    expect(await line.got()).toEqual(['three']);
  });

  test('listen() reconnects and resumes at the last event', async () => {
    await using line = await deadLine(`
      ${page.get('listen')}
      const got = [];
      listen('/', ['text'], ({ data }) => got.push(data));`);
    await line.channels.publish('haiku', 'three', { event: 'text' });
    await until('the rest', async () => (await line.got()).length >= 3);
    expect(await line.got()).toEqual(['one', 'two', 'three']);
  });
});
