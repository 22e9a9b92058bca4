/** Compressed streams in real browsers. */
import { expect, test } from 'vitest';
import { createChannels } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { launchChromium } from '../support/chromium.ts';
import { launchFirefox } from '../support/firefox.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';

const PAGE = `<!doctype html><script>
  const got = [];
  const source = new EventSource('/');
  source.onmessage = ({ data }) => got.push(data);
  source.addEventListener('sse:end', () => { got.push('end'); source.close(); });
</script>`;

test.each([
  ['Chromium', launchChromium],
  ['Firefox', launchFirefox],
])('%s gets each event of a compressed stream at once, and its end', async (_name, launch) => {
  const channels = createChannels();
  await using server = await serveStreams((stream) => stream.subscribe('a'), {
    channels,
    compress: true,
  });
  server.app.get('/page', (_req, res) => void res.type('html').send(PAGE));
  // As many streams as a group needs for a dictionary.
  const others = await Promise.all(Array.from({ length: 16 }, () => read(server.url)));
  await using browser = await launch();
  const page = await browser.newPage();
  await page.goto(`${server.url}/page`);
  await until('the stream', () => server.events.stats().opened === others.length + 1);
  expect(server.streams.at(-1)?.res.getHeader('content-encoding')).toBe('gzip');
  const got = (): Promise<string[]> => page.evaluate<string[]>('got');
  const sent: string[] = [];
  for (let seq = 0; seq < 50; seq++) {
    sent.push(`event ${seq} ${'of the same kind '.repeat(10)}`);
    await channels.publish('a', sent.at(-1));
    await until('the event', async () => (await got()).length > seq);
  }
  await channels.end('a');
  await until('the end', async () => (await got()).at(-1) === 'end');
  expect(await got()).toEqual([...sent, 'end']);
});
