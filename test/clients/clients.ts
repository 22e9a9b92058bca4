/** Runs the clients of the table in `docs/clients.md`, each with the code of that page. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { EventSource } from 'eventsource';
import express, { type Express } from 'express';
import type { Browser, Page } from 'playwright-core';
import { launchChromium } from '../support/chromium.ts';
import { launchFirefox } from '../support/firefox.ts';
import { packageFolders } from '../support/packages.ts';
import { StrictParser } from '../support/strict-parser.ts';
import { filesIn, pageOf, root, writeFiles } from './blocks.ts';

/** The columns of the table, in order. */
export const PROMISES = [
  'messages',
  'named events',
  'lines',
  'ids',
  'heartbeats unseen',
  'comes back',
  'resumes',
  'stops at a final end',
  'is noticed when it leaves',
] as const;

export type PromiseName = (typeof PROMISES)[number];

export interface ShownEvent {
  type: string;
  data: string;
  id?: string | null;
}

/** A client that follows a stream. */
export interface Following extends AsyncDisposable {
  /**
   * The events that the client has passed to the application, without the events of the library.
   */
  shownEvents(): Promise<ShownEvent[]>;
  /** Whether the client has stopped and will not reconnect. */
  isOver(): Promise<boolean>;
  /** Makes the client close its connection. */
  disconnect(): Promise<void>;
}

/** A server to which pages can be added. */
export interface PageServer {
  readonly url: string;
  readonly app: Express;
}

export interface Client {
  readonly name: string;
  /**
   * For each column: `'yes'` if the client does it by itself, `'code'` with the code of the docs,
   * `'no'` if it cannot.
   */
  readonly promises: Readonly<Record<PromiseName, 'yes' | 'code' | 'no'>>;
  /**
   * Starts the client.
   * @param page the server of the page in which a browser client runs; usually the server of the
   * stream
   */
  follow(url: string, page: PageServer): Promise<Following>;
}

type Follow = (
  url: string,
  show: (event: ShownEvent) => void,
  signal: AbortSignal,
) => Promise<void>;

const BLOCKS = filesIn(await pageOf('clients.md'));

const allPromises = {
  messages: 'yes',
  'named events': 'yes',
  lines: 'yes',
  ids: 'yes',
  'heartbeats unseen': 'yes',
  'comes back': 'yes',
  resumes: 'yes',
  'stops at a final end': 'yes',
  'is noticed when it leaves': 'yes',
} as const;

/** All clients except `openai`, which reads only completions and has its own tests. */
export const CLIENTS: readonly Client[] = [
  {
    name: 'res-sse/client (Chromium)',
    promises: allPromises,
    follow: followInPage('res-sse-client.js'),
  },
  {
    name: 'res-sse/client (Firefox)',
    promises: allPromises,
    follow: followInPage('res-sse-client.js', 'Firefox'),
  },
  {
    name: 'res-sse/client (Node)',
    promises: allPromises,
    follow: followInNode('res-sse-client.js'),
  },
  {
    name: 'EventSource (Chromium)',
    promises: allPromises,
    follow: followInPage('event-source.js'),
  },
  {
    name: 'EventSource (Firefox)',
    promises: allPromises,
    follow: followInPage('event-source.js', 'Firefox'),
  },
  { name: 'eventsource (npm)', promises: allPromises, follow: followInNode('event-source.js') },
  {
    name: 'fetch and eventsource-parser',
    promises: {
      ...allPromises,
      'comes back': 'code',
      resumes: 'code',
      'stops at a final end': 'code',
    },
    follow: followInNode('fetch-and-parser.js'),
  },
  {
    name: '@microsoft/fetch-event-source',
    promises: { ...allPromises, 'comes back': 'code', 'stops at a final end': 'code' },
    follow: followInPage('fetch-event-source.js'),
  },
  {
    name: 'sse.js',
    promises: { ...allPromises, 'stops at a final end': 'code' },
    follow: followInPage('sse-js.js'),
  },
  {
    name: 'curl -N',
    promises: { ...allPromises, 'comes back': 'no', resumes: 'no', 'stops at a final end': 'no' },
    follow: followByCurl,
  },
];

export const OPENAI: Omit<Client, 'follow'> = {
  name: 'openai (Node SDK)',
  promises: { ...allPromises, 'named events': 'no', ids: 'no', 'comes back': 'no', resumes: 'no' },
};

const LAUNCHES = { Chromium: launchChromium, Firefox: launchFirefox } as const;

export type BrowserName = keyof typeof LAUNCHES;

/** The browsers that tests of this file have started. */
const browsers = new Map<BrowserName, Promise<Browser>>();

/** Closes the browsers after all tests. */
export async function closeBrowser(): Promise<void> {
  for (const browser of browsers.values()) await (await browser).close();
}

/** Starts Firefox before the tests: it takes many seconds on a busy machine. */
export async function startFirefox(): Promise<void> {
  await browserOf('Firefox');
}

/** Returns the browser, which is started when it is first asked for. */
export async function browserOf(name: BrowserName): Promise<Browser> {
  const running = browsers.get(name) ?? LAUNCHES[name]();
  browsers.set(name, running);
  return running;
}

function followInNode(file: string): Client['follow'] {
  return async (url) => {
    // Provide the packages that the code blocks import, and the global `EventSource` of browsers.
    Object.assign(globalThis, { EventSource });
    const files = await writeFiles({ [file]: BLOCKS[file] ?? '' }, [
      'eventsource-parser',
      'res-sse',
    ]);
    const { follow } = (await files.load(file)) as { follow: Follow };
    const events: ShownEvent[] = [];
    const abort = new AbortController();
    let isOver = false;
    const finished = follow(url, (event) => void events.push(event), abort.signal).then(
      () => (isOver = true),
    );
    return {
      shownEvents: () => Promise.resolve(events.filter(isApplicationEvent)),
      isOver: () => Promise.resolve(isOver),
      disconnect: () => Promise.resolve(abort.abort()),
      async [Symbol.asyncDispose]() {
        abort.abort();
        await finished;
        await files[Symbol.asyncDispose]();
      },
    };
  };
}

// The import map of a page for the packages that the code blocks import. One of the packages omits
// file extensions in its imports.
const MODULES = {
  '@microsoft/fetch-event-source': '/modules/@microsoft/fetch-event-source/lib/esm/index.js',
  'sse.js': '/modules/sse.js/lib/sse.js',
  'res-sse/client': '/client/index.js',
};

/** Serves the files of the packages below `/modules`. */
export function serveModules({ app }: PageServer): void {
  app.use('/client', express.static(join(root, 'dist/client')));
  for (const folder of packageFolders) {
    app.use('/modules', express.static(folder, { extensions: ['js'] }));
  }
}

/** Opens a page with an import map for the packages. */
export async function openPage(server: PageServer, name: BrowserName = 'Chromium'): Promise<Page> {
  const { url, app } = server;
  serveModules(server);
  const imports = JSON.stringify({ imports: MODULES });
  app.get(
    '/page',
    (_req, res) => void res.send(`<!doctype html><script type="importmap">${imports}</script>`),
  );
  const page = await (await browserOf(name)).newPage();
  await page.goto(new URL('/page', url).href);
  return page;
}

function followInPage(file: string, browser: BrowserName = 'Chromium'): Client['follow'] {
  return async (url, server) => {
    server.app.get('/block.js', (_req, res) => void res.type('text/javascript').send(BLOCKS[file]));
    const page = await openPage(server, browser);
    await page.evaluate(`import('/block.js').then(({ follow }) => {
      window.events = [];
      window.isOver = false;
      window.abort = new AbortController();
      const finished = follow(${JSON.stringify(url)}, (event) => events.push(event), abort.signal);
      finished.then(() => (isOver = true));
    })`);
    return {
      shownEvents: async () =>
        (await page.evaluate<ShownEvent[]>('events')).filter(isApplicationEvent),
      isOver: () => page.evaluate<boolean>('isOver'),
      disconnect: () => page.evaluate('abort.abort()'),
      [Symbol.asyncDispose]: () => page.close(),
    };
  };
}

async function followByCurl(url: string): Promise<Following> {
  const curl = spawn('curl', ['-sN', '-H', 'Accept: text/event-stream', url]);
  const exit = once(curl, 'exit');
  const parser = StrictParser.of(curl.stdout);
  return {
    shownEvents: () =>
      Promise.resolve(
        parser.events
          .map(({ type, data, lastEventId: id }) => ({ type, data, id }))
          .filter(isApplicationEvent),
      ),
    isOver: () => Promise.resolve(curl.exitCode !== null),
    disconnect: () => Promise.resolve(void curl.kill()),
    async [Symbol.asyncDispose]() {
      curl.kill();
      await exit;
    },
  };
}

function isApplicationEvent({ type }: ShownEvent): boolean {
  return !type.startsWith('sse:');
}
