/** The code for React and Vue of docs/client.md, with the real packages in a real browser. */
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import express from 'express';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createChannels, sse } from '../../../src/index.ts';
import { pageOf } from '../../docs/pages.ts';
import { launchChromium } from '../../support/chromium.ts';
import { packageFolders } from '../../support/packages.ts';
import { serve } from '../../support/server.ts';
import { until } from '../../support/wait.ts';

const CLIENT = fileURLToPath(new URL('../../../dist/client/index.js', import.meta.url));

const { blocks } = await pageOf('docs/client.md');

/** The blocks of the page that contain the text. */
function blocksWith(text: string): string {
  const found = blocks.filter((block) => block.text.includes(text));
  if (found.length === 0) throw new Error(`no block of docs/client.md contains ${text}`);
  return found.map((block) => block.text).join('\n');
}

const REACT = `${blocksWith("from 'react'")}
${blocksWith('function Haikus()')}
import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
const root = createRoot(document.getElementById('app'));
root.render(<StrictMode><Haikus /></StrictMode>);
window.unmount = () => root.unmount();
`;

const VUE = `${blocksWith("from 'vue'")}
import { createApp, h } from 'vue';
const app = createApp({
  setup() {
    const { state, events } = useEvents('/listen', 'text');
    return () => h('ul', { 'aria-label': state.value }, events.value.map(({ id, text }) => h('li', { key: id }, text)));
  },
});
app.mount('#app');
window.unmount = () => app.unmount();
`;

let browser: Browser;

beforeAll(async () => {
  browser = await launchChromium();
});

afterAll(() => browser?.close());

/** Bundles the code with the packages and the published file of the client. */
async function bundle(contents: string): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents, loader: 'jsx', resolveDir: import.meta.dirname },
    bundle: true,
    write: false,
    format: 'esm',
    jsx: 'automatic',
    nodePaths: [...packageFolders],
    alias: { 'res-sse/client': CLIENT },
    // The development builds: React renders twice and subscribes twice in its strict mode.
    define: {
      'process.env.NODE_ENV': '"development"',
      __VUE_OPTIONS_API__: 'true',
      __VUE_PROD_DEVTOOLS__: 'false',
      __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: 'false',
    },
    tsconfigRaw: {},
  });
  return outputFiles[0]?.text ?? '';
}

async function serveApp(script: string) {
  const channels = createChannels();
  const events = sse({ channels, retry: 50 });
  const app = express();
  app.get('/', (_req, res) => {
    res
      .type('html')
      .send('<!doctype html><div id="app"></div><script type="module" src="/app.js"></script>');
  });
  app.get('/app.js', (_req, res) => void res.type('js').send(script));
  app.use(events);
  app.get('/listen', channels.listen('haiku'));
  const server = await serve(app);
  return {
    ...server,
    events,
    publish: (id: number) =>
      channels.publish('haiku', { id, text: `haiku ${id}` }, { event: 'text' }),
  };
}

async function openLive(page: Page, url: string): Promise<Page> {
  await page.goto(url);
  await page.locator('ul[aria-label=open]').waitFor({ state: 'attached' });
  return page;
}

async function expectList(page: Page, ids: readonly number[]): Promise<void> {
  await until(`${ids.length} haiku`, async () => (await page.locator('li').count()) >= ids.length);
  expect(await page.locator('li').allTextContents()).toEqual(ids.map((id) => `haiku ${id}`));
}

test.each([
  ['React', REACT],
  ['Vue', VUE],
])(
  'the code for %s shows each event once and the state, shares its connection, and ends it with the component',
  async (_name, code) => {
    await using server = await serveApp(await bundle(code));
    await using context = await browser.newContext();
    const errors: string[] = [];
    context.on('weberror', (error) => void errors.push(error.error().message));
    context.on('console', (message) => {
      if (message.type() === 'error') errors.push(message.text());
    });
    const pages = [
      await openLive(await context.newPage(), server.url),
      await openLive(await context.newPage(), server.url),
    ];
    for (const id of [1, 2, 3]) await server.publish(id);
    for (const page of pages) await expectList(page, [1, 2, 3]);
    expect(server.events.streams.size).toBe(1);
    for (const socket of server.sockets) socket.destroy();
    await server.publish(4);
    for (const page of pages) await expectList(page, [1, 2, 3, 4]);
    for (const page of pages) await page.evaluate('unmount()');
    await until('the end of the stream', () => server.events.streams.size === 0);
    expect(errors.filter((text) => !text.startsWith('Failed to load resource'))).toEqual([]);
  },
  60_000,
);
