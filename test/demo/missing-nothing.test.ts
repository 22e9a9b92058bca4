/** The haiku page's promises about what was spoken while nobody was connected. */
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import type { Haiku } from '../../demo/haiku.ts';
import { MemoryStore } from '../../demo/store.ts';
import { launchChromium } from '../support/chromium.ts';
import { serve } from '../support/server.ts';
import { until } from '../support/wait.ts';
import { expectSoon, expectText, items, lines, open, speak, state } from './visitor.ts';

// What a node that knows nothing of the stream's node would answer.
const PAGE_OF_ANOTHER =
  '<script id="spoken" type="application/json">{"cursor":"another.1","haikus":[]}</script>';

let browser: Browser;

beforeAll(async () => {
  browser = await launchChromium();
});

afterAll(async () => {
  await browser?.close();
});

describe('a page that is opened', () => {
  it('shows the last haikus, the newest on top, before it is connected', async () => {
    await using server = await serve(createDemo().app);
    for (const text of ['first', 'second', 'third']) {
      await speak(server.url, { text, author: 'Issa' });
    }
    await using page = await browser.newPage();
    await hold(page, '**/listen?*');
    await page.goto(server.url);
    await expectList(page, ['third', 'second', 'first']);
    expect(await items(page).locator('.by').allTextContents()).toEqual(['Issa', 'Issa', 'Issa']);
    expect(await state(page).textContent()).toBe('connecting');
    expect(await page.locator('#quiet').isVisible()).toBe(false);
  });

  it('shows fifty at most, the oldest leaving', async () => {
    await using server = await serve(createDemo().app);
    for (let number = 1; number <= 51; number++) await speak(server.url, { text: String(number) });
    await using page = await open(await browser.newPage(), server.url);
    expect(await items(page).count()).toBe(50);
    await speak(server.url, { text: '52' });
    await items(page).getByText('52', { exact: true }).waitFor();
    await until('the oldest to leave', async () => (await items(page).count()) === 50);
    expect(await items(page).last().locator('blockquote').textContent()).toBe('3');
  });

  it('shows as text what a visitor typed to break out of it', async () => {
    await using server = await serve(createDemo().app);
    const text =
      '</script><img src=x onerror="document.title=1">\n<!--<script>document.title=2</script>\n&lt; $& $` %3Cb>';
    const author = '</script><script>document.title=3</script>';
    await speak(server.url, { text, author });
    await using page = await open(await browser.newPage(), server.url);
    expect(await items(page).locator('blockquote p').allTextContents()).toEqual(text.split('\n'));
    expect(await items(page).locator('.by').textContent()).toBe(author);
    expect(await page.title()).toBe('Haiku');
    expect(await page.locator('img, script:not(#spoken, [src="/app.js"])').count()).toBe(0);
  });

  it('gets, once, what is spoken before its stream is open', async () => {
    await using server = await serve(createDemo().app);
    await speak(server.url, { text: 'early' });
    await using page = await browser.newPage();
    const release = await hold(page, '**/listen?*');
    await page.goto(server.url);
    await items(page).getByText('early').waitFor();
    await speak(server.url, { text: 'in between' });
    release();
    await expectText(state(page), 'live');
    await speak(server.url, { text: 'late' });
    await expectList(page, ['late', 'in between', 'early']);
  });

  it.each([
    [
      'before the list is read',
      class extends MeddledStore {
        override async last(): Promise<readonly Haiku[]> {
          await this.meddle();
          return super.last();
        }
      },
    ],
    [
      'after the list was read',
      class extends MeddledStore {
        override async last(): Promise<readonly Haiku[]> {
          const haikus = await super.last();
          await this.meddle();
          return haikus;
        }
      },
    ],
  ])('gets, once, what is spoken while it is made, %s', async (_when, Store) => {
    const store = new Store();
    await using server = await serve(createDemo(store).app);
    await speak(server.url, { text: 'early' });
    store.meddle = async () => {
      store.meddle = async () => {};
      await speak(server.url, { text: 'meanwhile' });
    };
    await using page = await open(await browser.newPage(), server.url);
    await speak(server.url, { text: 'late' });
    await expectList(page, ['late', 'meanwhile', 'early']);
  });

  it('gets, once, what is on its way into the store while it is made', async () => {
    const { promise: mayStore, resolve: store } = gate();
    let isStoring = false;
    class SlowStore extends MemoryStore {
      override async add(haiku: Haiku): Promise<void> {
        isStoring = true;
        await mayStore;
        await super.add(haiku);
      }
    }
    await using server = await serve(createDemo(new SlowStore()).app);
    const spoken = speak(server.url, { text: 'slow' });
    await until('the haiku to be stored', () => isStoring);
    await using page = await open(await browser.newPage(), server.url);
    store();
    await spoken;
    await speak(server.url, { text: 'late' });
    await expectList(page, ['late', 'slow']);
  });
});

// Side by side: most of their time they wait for the browser to come back.
describe.concurrent('a page whose connection breaks', () => {
  it('gets what was spoken meanwhile, in order and once, from the stream; and says that it is catching up', async () => {
    const demo = createDemo();
    await using server = await serve(demo.app);
    await speak(server.url, { text: 'early' });
    await using page = await openPaused(await browser.newPage(), server.url);
    await speak(server.url, { text: 'heard' });
    await expectList(page, ['heard', 'early']);
    const states = await recordStates(page);
    const documents = requestsOf(page, `${server.url}/`);
    const release = await hold(page, '**/listen?*');
    for (const socket of server.sockets) socket.destroy();
    await expectText(state(page), 'reconnecting');
    await speak(server.url, { text: 'missed' });
    await speak(server.url, { text: 'missed, too' });
    release();
    await expectText(state(page), 'catching up');
    await expectList(page, ['missed, too', 'missed', 'heard', 'early']);
    expect(await afterAMoment(page)).toBe('live');
    expect(await states()).toEqual(['reconnecting', 'catching up', 'live']);
    expect(documents).toEqual([]);
    expect(demo.channels.stats().gaps).toBe(0);
  });

  it.each([390, 1280])(
    'says so also where nothing was missed, and then that it is live, and nothing moves, %i pixels wide',
    async (width) => {
      await using server = await serve(createDemo().app);
      await speak(server.url, { text: 'snow' });
      // A turning arc has another box with each moment.
      const options = { viewport: { width, height: 900 }, reducedMotion: 'reduce' } as const;
      await using page = await openPaused(await browser.newPage(options), server.url);
      const fixed = page.locator('h1, h2, form, .heading, .connection svg, #haiku li');
      const boxes = () =>
        fixed.evaluateAll((all) => all.map((one) => JSON.stringify(one.getBoundingClientRect())));
      const before = await boxes();
      expect(before.length).toBe(7);
      for (const socket of server.sockets) socket.destroy();
      for (const said of ['reconnecting', 'catching up']) {
        await expectText(state(page), said);
        expect(await boxes()).toEqual(before);
      }
      // The stream's first checkpoint sets the clock that says so.
      await expectSoon(() => afterAMoment(page), 'live');
      expect(await boxes()).toEqual(before);
    },
  );
});

describe.concurrent('a page whose server is started anew', () => {
  it.each([
    ['has kept the haikus', (store: MemoryStore) => store, ['new', 'old']],
    ['has lost the haikus', () => new MemoryStore(), ['new']],
  ])(
    'is told, and shows what the server has, which %s; what is being typed stays',
    async (_what, storeOf, expected) => {
      const store = new MemoryStore();
      const first = await serve(createDemo(store).app);
      await speak(first.url, { text: 'old' });
      await using page = await openPaused(await browser.newPage(), first.url);
      await lines(page).first().pressSequentially('half a hai');
      const states = await recordStates(page);
      const releaseStream = await hold(page, '**/listen?*');
      const releasePage = await hold(page, `${first.url}/`);
      await first[Symbol.asyncDispose]();
      await expectText(state(page), 'reconnecting');

      const demo = createDemo(storeOf(store));
      await using again = await serveAgain(demo.app, first.port);
      await speak(again.url, { text: 'new' });
      releaseStream();
      await expectText(state(page), 'catching up');
      // As long as the list has not come, nothing is claimed.
      await until(
        'the gap to be told',
        () => demo.channels.stats().gaps === 1 && demo.events.streams.size === 0,
      );
      expect(await states()).toEqual(['reconnecting', 'catching up']);
      const releaseNext = await hold(page, '**/listen?*');
      releasePage();
      await expectList(page, expected);
      await speak(again.url, { text: 'in between' });
      releaseNext();
      await expectText(state(page), 'live, list renewed');
      await lines(page).first().pressSequentially('ku');
      expect(await lines(page).first().inputValue()).toBe('half a haiku');
      await speak(again.url, { text: 'late' });
      await expectList(page, ['late', 'in between', ...expected]);
      // The record is the document's: it was not loaded again.
      expect(await states()).toEqual(['reconnecting', 'catching up', 'live, list renewed']);
      expect(demo.channels.stats()).toMatchObject({ gaps: 1, subscriptions: 1 });
    },
  );

  it('is quiet again where the server has no haikus any more, and says only for a while that the list is new', async () => {
    const first = await serve(createDemo().app);
    await speak(first.url, { text: 'old' });
    await using page = await openPaused(await browser.newPage(), first.url);
    await expectList(page, ['old']);
    await first[Symbol.asyncDispose]();
    await using again = await serveAgain(createDemo().app, first.port);
    await page.getByText('It is quiet.').waitFor();
    await expectList(page, []);
    await expectText(state(page), 'live, list renewed');
    await page.clock.fastForward(3_000);
    await expectText(state(page), 'live');
    await speak(again.url, { text: 'new' });
    await expectList(page, ['new']);
    expect(await page.getByText('It is quiet.').isVisible()).toBe(false);
  });

  it.each([
    ['cannot be fetched', { status: 502, body: 'Bad gateway' }, []],
    ['has a cursor of another server', { body: PAGE_OF_ANOTHER }, ['live, list renewed']],
  ])('tries again after some time where the list %s', async (_what, answer, said) => {
    const first = await serve(createDemo().app);
    await using page = await openPaused(await browser.newPage(), first.url);
    const states = await recordStates(page);
    await page.route(`${first.url}/`, (route) => route.fulfill(answer), { times: 1 });
    await first[Symbol.asyncDispose]();
    await using again = await serveAgain(createDemo().app, first.port);
    await speak(again.url, { text: 'new' });
    await expectSoon(states, ['reconnecting', 'catching up', ...said, 'reconnecting']);
    await page.clock.fastForward(3_000);
    await expectText(state(page), 'live, list renewed');
    await expectList(page, ['new']);
  });
});

/** A store in which something else happens while it is read. */
abstract class MeddledStore extends MemoryStore {
  meddle = async (): Promise<void> => {};
}

/** The page once it is live, its timers stopped, so that what it says for a moment stays until the test has seen it. */
async function openPaused(page: Page, url: string): Promise<Page> {
  await page.clock.install();
  await open(page, url);
  await page.clock.pauseAt(Date.now() + 60_000);
  return page;
}

/** What the page says when a moment has passed on its clock. */
async function afterAMoment(page: Page): Promise<string | null> {
  await page.clock.fastForward(800);
  return state(page).textContent();
}

/** Holds back the page's requests for the URL until the returned function is called. */
async function hold(page: Page, url: string): Promise<() => void> {
  const { promise: released, resolve: release } = gate();
  await page.route(url, async (route) => {
    await released;
    await route.fallback();
  });
  return release;
}

function gate(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

/** Serves on a port that was served on before. */
async function serveAgain(
  app: ReturnType<typeof createDemo>['app'],
  port: number,
): Promise<AsyncDisposable & { url: string }> {
  const server = createServer(app).listen(port, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

/** What the page says about its connection from here on, kept in its document. */
async function recordStates(page: Page): Promise<() => Promise<string[]>> {
  const record = await state(page).evaluateHandle((element) => {
    const states: string[] = [];
    new MutationObserver(() => void states.push(element.textContent)).observe(element, {
      childList: true,
    });
    return states;
  });
  return () => record.jsonValue();
}

/** The page's requests for the URL from here on. */
function requestsOf(page: Page, url: string): string[] {
  const urls: string[] = [];
  page.on('request', (request) => {
    if (request.url() === url) urls.push(url);
  });
  return urls;
}

/** Waits until exactly these haikus are shown, from the top. */
async function expectList(page: Page, texts: readonly string[]): Promise<void> {
  await expectSoon(() => items(page).locator('blockquote').allTextContents(), [...texts]);
}
