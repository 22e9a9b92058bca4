/** The clients, each followed by the code that `docs/clients.md` shows. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { EventSource } from 'eventsource';
import express, { type Express } from 'express';
import type { Browser, Page } from 'playwright-core';
import { launchChromium } from '../support/chromium.ts';
import { packageFolders } from '../support/packages.ts';
import { StrictParser } from '../support/strict-parser.ts';
import { filesIn, pageOf, writeFiles } from './blocks.ts';

/** What a client may promise, in the order of the table. */
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

export interface Shown {
  type: string;
  data: string;
  id?: string | null;
}

/** A client at work. */
export interface Following extends AsyncDisposable {
  /** What it has shown so far, the library's own events apart. */
  shown(): Promise<Shown[]>;
  /** Whether it has stopped for good. */
  isOver(): Promise<boolean>;
  /** Leaves. */
  leave(): Promise<void>;
}

/** A server that can be given pages. */
export interface PageServer {
  readonly url: string;
  readonly app: Express;
}

export interface Client {
  readonly name: string;
  /** What it does by itself, what it does with the code in the docs, and what it cannot. */
  readonly promises: Readonly<Record<PromiseName, 'yes' | 'code' | 'no'>>;
  /** @param page a server for the page that follows, where the client needs one; usually the one that is followed */
  follow(url: string, page: PageServer): Promise<Following>;
}

type Follow = (url: string, show: (event: Shown) => void, signal: AbortSignal) => Promise<void>;

const BLOCKS = filesIn(await pageOf('clients.md'));

const all = {
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

/** All clients; `openai`, which reads nothing but completions, has tests of its own. */
export const CLIENTS: readonly Client[] = [
  { name: 'EventSource (Chromium)', promises: all, follow: inPage('event-source.js') },
  { name: 'eventsource (npm)', promises: all, follow: inNode('event-source.js') },
  {
    name: 'fetch and eventsource-parser',
    promises: { ...all, 'comes back': 'code', resumes: 'code', 'stops at a final end': 'code' },
    follow: inNode('fetch-and-parser.js'),
  },
  {
    name: '@microsoft/fetch-event-source',
    promises: { ...all, 'comes back': 'code', 'stops at a final end': 'code' },
    follow: inPage('fetch-event-source.js'),
  },
  {
    name: 'sse.js',
    promises: { ...all, 'stops at a final end': 'code' },
    follow: inPage('sse-js.js'),
  },
  {
    name: 'curl -N',
    promises: { ...all, 'comes back': 'no', resumes: 'no', 'stops at a final end': 'no' },
    follow: byCurl,
  },
];

export const OPENAI: Omit<Client, 'follow'> = {
  name: 'openai (Node SDK)',
  promises: { ...all, 'named events': 'no', ids: 'no', 'comes back': 'no', resumes: 'no' },
};

let browser: Promise<Browser> | undefined;

/** To be called when all is done. */
export async function closeBrowser(): Promise<void> {
  await (await browser)?.close();
}

function inNode(file: string): Client['follow'] {
  return async (url) => {
    // The packages that the pieces import; and what browsers have.
    Object.assign(globalThis, { EventSource });
    const files = await writeFiles({ [file]: BLOCKS[file] ?? '' }, ['eventsource-parser']);
    const { follow } = (await files.load(file)) as { follow: Follow };
    const shown: Shown[] = [];
    const abort = new AbortController();
    let isOver = false;
    const over = follow(url, (event) => void shown.push(event), abort.signal).then(
      () => (isOver = true),
    );
    return {
      shown: () => Promise.resolve(shown.filter(isOthers)),
      isOver: () => Promise.resolve(isOver),
      leave: () => Promise.resolve(abort.abort()),
      async [Symbol.asyncDispose]() {
        abort.abort();
        await over;
        await files[Symbol.asyncDispose]();
      },
    };
  };
}

// Where a page finds what the pieces import; one of the packages leaves the extensions of its files out.
const MODULES = {
  '@microsoft/fetch-event-source': '/modules/@microsoft/fetch-event-source/lib/esm/index.js',
  'sse.js': '/modules/sse.js/lib/sse.js',
};

/** A page that finds the packages by their names. */
export async function openPage({ url, app }: PageServer): Promise<Page> {
  for (const folder of packageFolders) {
    app.use('/modules', express.static(folder, { extensions: ['js'] }));
  }
  const imports = JSON.stringify({ imports: MODULES });
  app.get(
    '/page',
    (_req, res) => void res.send(`<!doctype html><script type="importmap">${imports}</script>`),
  );
  browser ??= launchChromium();
  const page = await (await browser).newPage();
  await page.goto(new URL('/page', url).href);
  return page;
}

function inPage(file: string): Client['follow'] {
  return async (url, server) => {
    server.app.get('/block.js', (_req, res) => void res.type('text/javascript').send(BLOCKS[file]));
    const page = await openPage(server);
    await page.evaluate(`import('/block.js').then(({ follow }) => {
      window.shown = [];
      window.isOver = false;
      window.abort = new AbortController();
      follow(${JSON.stringify(url)}, (event) => shown.push(event), abort.signal).then(() => (isOver = true));
    })`);
    return {
      shown: async () => (await page.evaluate<Shown[]>('shown')).filter(isOthers),
      isOver: () => page.evaluate<boolean>('isOver'),
      leave: () => page.evaluate('abort.abort()'),
      [Symbol.asyncDispose]: () => page.close(),
    };
  };
}

async function byCurl(url: string): Promise<Following> {
  const curl = spawn('curl', ['-sN', '-H', 'Accept: text/event-stream', url]);
  const exit = once(curl, 'exit');
  const parser = StrictParser.of(curl.stdout);
  return {
    shown: () =>
      Promise.resolve(
        parser.events
          .map(({ type, data, lastEventId: id }) => ({ type, data, id }))
          .filter(isOthers),
      ),
    isOver: () => Promise.resolve(curl.exitCode !== null),
    leave: () => Promise.resolve(void curl.kill()),
    async [Symbol.asyncDispose]() {
      curl.kill();
      await exit;
    },
  };
}

function isOthers({ type }: Shown): boolean {
  return !type.startsWith('sse:');
}
