import { expect, test } from 'vitest';
import { createChannels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { launchChromium } from '../support/chromium.ts';
import { until } from '../support/wait.ts';

test('EventSource in Chromium resumes across dropped connections with nothing lost and nothing repeated', async () => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), { channels, retry: 50 });
  server.app.get('/page', (_req, res) => void res.send('<!doctype html><title>reader</title>'));
  await using browser = await launchChromium();
  const page = await browser.newPage();
  await page.goto(`${server.url}/page`);
  await page.evaluate(`
    window.got = [];
    window.source = new EventSource('/');
    source.onmessage = ({ data, lastEventId }) => got.push([data, lastEventId]);
  `);
  await until('the subscription', () => channels.stats().subscriptions === 1);
  const ids: string[] = [];
  async function publish(): Promise<void> {
    for (let count = 0; count < 50; count++) ids.push((await channels.publish('a', `${ids.length}`)).id);
  }
  for (let drop = 1; drop <= 3; drop++) {
    await publish();
    const { streams } = server;
    for (const socket of server.sockets) socket.resetAndDestroy();
    await publish();
    await until('it to come back', () => streams.length > drop && channels.stats().subscriptions === 1);
  }
  await until('everything', async () => (await page.evaluate<number>('got.length')) >= ids.length);
  expect(await page.evaluate('got')).toEqual(ids.map((id, index) => [`${index}`, id]));
  expect(channels.stats().gaps).toBe(0);
});

test('EventSource in Chromium stops after a final end, and returns in the time that a close names', async () => {
  let requests = 0;
  await using server = await serveStreams(
    (stream) => {
      requests++;
      stream.send(`request ${requests}`);
      stream.close(requests === 1 ? { retry: 30 } : { final: true, retry: 30 });
    },
    { retry: 60_000 },
  );
  server.app.get('/page', (_req, res) => void res.send('<!doctype html><title>reader</title>'));
  await using browser = await launchChromium();
  const page = await browser.newPage();
  await page.goto(`${server.url}/page`);
  await page.evaluate(`
    window.got = [];
    window.source = new EventSource('/');
    source.onmessage = ({ data }) => got.push(data);
  `);
  await until('it to give up', async () => (await page.evaluate<number>('source.readyState')) === 2);
  expect(await page.evaluate('got')).toEqual(['request 1', 'request 2']);
  expect(requests).toBe(2);
});
