/** Tabs of a real browser with the published file of the client, and their server. */
import { fileURLToPath } from 'node:url';
import express, { type Express } from 'express';
import type { Browser, BrowserContext, Page } from 'playwright-core';
import { createChannels, sse, type Channels, type SseMiddleware } from '../../../src/index.ts';
import { serve, type TestServer } from '../../support/server.ts';
import { until } from '../../support/wait.ts';

const CLIENT = fileURLToPath(new URL('../../../dist/client/index.js', import.meta.url));

// The page connects with the options of the query, and keeps what it was given.
const PAGE = `<!doctype html><title>tab</title><script type="module">
  import { connect } from '/client.js';
  Object.assign(window, { got: [], states: [], gaps: [], ends: 0 });
  const { path = '/events', ...options } = JSON.parse(new URLSearchParams(location.search).get('options') ?? '{}');
  window.live = connect(path, {
    share: true,
    ...options,
    on: { message: (data) => got.push(data) },
    onState: (state) => states.push(state),
    onGap: (gap) => gaps.push(gap),
    onEnd: () => { window.ends++; },
  });
</script>`;

export interface TabServer extends TestServer {
  readonly app: Express;
  readonly channels: Channels;
  readonly events: SseMiddleware;
  /** The largest number of streams that were open at the same time. */
  readonly peak: number;
}

/** Serves the page, the client, and the channel `news` at `/events`. */
export async function serveTabs(
  options: { heartbeat?: number | { interval: number; visible: true }; history?: number } = {},
): Promise<TabServer> {
  const { heartbeat = 15_000, history = 1_000 } = options;
  const channels = createChannels({ history: { events: history } });
  const events = sse({ channels, heartbeat, retry: 50, warnings: false });
  const app = express();
  let peak = 0;
  app.get('/', (_req, res) => void res.type('html').send(PAGE));
  app.get(
    '/other',
    (_req, res) => void res.type('html').send('<!doctype html><title>other</title>'),
  );
  app.get('/client.js', (_req, res) => res.sendFile(CLIENT));
  app.use(events);
  const listen = channels.listen('news');
  app.get('/events', (req, res, next) => {
    listen(req, res, next);
    setImmediate(() => (peak = Math.max(peak, events.streams.size)));
  });
  app.get('/from-start', channels.listen('news', { since: 'start' }));
  const server = await serve(app);
  return {
    ...server,
    app,
    channels,
    events,
    get peak() {
      return peak;
    },
  };
}

/** Opens a tab that connects. */
export async function openTab(
  context: BrowserContext | Browser,
  { url }: TestServer,
  options: Record<string, unknown> = {},
): Promise<Page> {
  const page = await context.newPage();
  await page.goto(`${url}/?options=${encodeURIComponent(JSON.stringify(options))}`);
  return page;
}

/** Opens a tab with a worker that connects. The tab keeps what its worker was given. */
export async function openWorker(context: BrowserContext, server: TabServer): Promise<Page> {
  server.app.get('/worker.js', (_req, res) => {
    res.type('js').send(`import { connect } from '/client.js';
      connect('/events', { share: true, on: { message: (data) => postMessage(['got', data]) },
        onState: (state) => postMessage(['states', state]) });`);
  });
  const page = await context.newPage();
  await page.goto(`${server.url}/other`);
  await page.evaluate(`Object.assign(window, { got: [], states: [] });
    new Worker('/worker.js', { type: 'module' }).onmessage = ({ data: [list, item] }) => {
      window[list].push(item);
    };`);
  return page;
}

export const gotOf = (page: Page): Promise<unknown[]> => page.evaluate('got');
export const statesOf = (page: Page): Promise<string[]> => page.evaluate('states');

/** The last state of the tab. */
export async function stateOf(page: Page): Promise<string | undefined> {
  return (await statesOf(page)).at(-1);
}

export async function untilState(
  pages: readonly Page[],
  state: string,
  ms?: number,
): Promise<void> {
  await until(
    `the state ${state} of all tabs`,
    async () => {
      const states = await Promise.all(pages.map(stateOf));
      return states.every((each) => each === state);
    },
    ms,
  );
}

export async function untilGot(pages: readonly Page[], count: number, ms?: number): Promise<void> {
  await until(
    `${count} events in all tabs`,
    async () => {
      const lengths = await Promise.all(pages.map((page) => page.evaluate<number>('got.length')));
      return lengths.every((length) => length >= count);
    },
    ms,
  );
}

/** The tab that holds the lock. */
export async function leaderOf(pages: readonly Page[]): Promise<Page> {
  for (const page of pages) {
    const isLeader = await page.evaluate<boolean>(`(async () => {
      const { held } = await navigator.locks.query();
      const name = 'probe' + Math.random();
      const own = await navigator.locks.request(name, async () =>
        (await navigator.locks.query()).held.find((lock) => lock.name === name).clientId);
      return held.some((lock) => lock.clientId === own);
    })()`);
    if (isLeader) return page;
  }
  throw new Error('no tab holds the lock');
}

/** The numbers from 0 on. */
export function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, number) => number);
}

/** Publishes numbers, a few in each turn of the event loop. */
export async function publishNumbers(channels: Channels, from: number, to: number): Promise<void> {
  for (let number = from; number < to; number++) {
    await channels.publish('news', number);
    if (number % 5 === 4) await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
