/** Tests of the haiku page: no haiku is lost while the page is not connected. */
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import type { Haiku } from '../../demo/haiku.ts';
import { MemoryStore } from '../../demo/store.ts';
import { serve } from '../support/server.ts';
import { until } from '../support/wait.ts';
import { BROWSERS, expectSoon, expectText, items, lines, open, speak, state } from './visitor.ts';

// The page of a node with a different log than the node of the stream.
const PAGE_OF_ANOTHER_LOG =
  '<script id="spoken" type="application/json">{"cursor":"another.1","haikus":[]}</script>';

describe.each(BROWSERS)('in %s', (_name, launch) => {
  let browser: Browser;

  beforeAll(async () => {
    browser = await launch();
  });

  afterAll(async () => {
    await browser?.close();
  });

  describe('a new page', () => {
    it('shows the last haiku, the newest on top, before it is connected', async () => {
      await using server = await serve(createDemo().app);
      for (const text of ['first', 'second', 'third']) {
        await speak(server.url, { text, author: 'Issa' });
      }
      await using page = await browser.newPage();
      await holdRequests(page, '**/listen?*');
      await page.goto(server.url);
      await expectList(page, ['third', 'second', 'first']);
      expect(await items(page).locator('.by').allTextContents()).toEqual(['Issa', 'Issa', 'Issa']);
      expect(await state(page).textContent()).toBe('connecting');
      expect(await page.locator('#quiet').isVisible()).toBe(false);
    });

    it('shows at most fifty haiku and removes the oldest', async () => {
      await using server = await serve(createDemo().app);
      for (let number = 1; number <= 51; number++) {
        await speak(server.url, { text: String(number) });
      }
      await using page = await open(await browser.newPage(), server.url);
      expect(await items(page).count()).toBe(50);
      await speak(server.url, { text: '52' });
      await items(page).getByText('52', { exact: true }).waitFor();
      await until(
        'the removal of the oldest haiku',
        async () => (await items(page).count()) === 50,
      );
      expect(await items(page).last().locator('blockquote').textContent()).toBe('3');
    });

    it('shows markup of a visitor as text', async () => {
      await using server = await serve(createDemo().app);
      const text =
        '</script><img src=x onerror="document.title=1">\n' +
        '<!--<script>document.title=2</script>\n&lt; $& $` %3Cb>';
      const author = '</script><script>document.title=3</script>';
      await speak(server.url, { text, author });
      await using page = await open(await browser.newPage(), server.url);
      expect(await items(page).locator('blockquote p').allTextContents()).toEqual(text.split('\n'));
      expect(await items(page).locator('.by').textContent()).toBe(author);
      expect(await page.title()).toBe('Haiku');
      expect(await page.locator('img, script:not(#spoken, [src="/app.js"])').count()).toBe(0);
    });

    it('receives a haiku once that is spoken before its stream is open', async () => {
      await using server = await serve(createDemo().app);
      await speak(server.url, { text: 'early' });
      await using page = await browser.newPage();
      const release = await holdRequests(page, '**/listen?*');
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
        class extends InterceptedStore {
          override async last(): Promise<readonly Haiku[]> {
            await this.intercept();
            return super.last();
          }
        },
      ],
      [
        'after the list was read',
        class extends InterceptedStore {
          override async last(): Promise<readonly Haiku[]> {
            const haikus = await super.last();
            await this.intercept();
            return haikus;
          }
        },
      ],
    ])('receives a haiku once that is spoken during rendering, %s', async (_when, Store) => {
      const store = new Store();
      await using server = await serve(createDemo(store).app);
      await speak(server.url, { text: 'early' });
      store.intercept = async () => {
        store.intercept = async () => {};
        await speak(server.url, { text: 'meanwhile' });
      };
      await using page = await open(await browser.newPage(), server.url);
      await speak(server.url, { text: 'late' });
      await expectList(page, ['late', 'meanwhile', 'early']);
    });

    it('receives a haiku once that is being stored while the page is rendered', async () => {
      const { promise: mayStore, resolve: store } = deferred();
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
      await until('the start of storing', () => isStoring);
      await using page = await open(await browser.newPage(), server.url);
      store();
      await spoken;
      await speak(server.url, { text: 'late' });
      await expectList(page, ['late', 'slow']);
    });
  });

  // Concurrent, because these tests mostly wait for the browser to reconnect.
  describe.concurrent('a page whose connection breaks', () => {
    it('receives missed haiku from the stream, in order and once', async () => {
      const demo = createDemo();
      await using server = await serve(demo.app);
      await speak(server.url, { text: 'early' });
      await using page = await openPaused(await browser.newPage(), server.url);
      await speak(server.url, { text: 'heard' });
      await expectList(page, ['heard', 'early']);
      const states = await recordStates(page);
      const documents = requestsOf(page, `${server.url}/`);
      const release = await holdRequests(page, '**/listen?*');
      for (const socket of server.sockets) socket.destroy();
      await expectText(state(page), 'reconnecting');
      await speak(server.url, { text: 'missed' });
      await speak(server.url, { text: 'missed, too' });
      release();
      await reconnect(page);
      await expectText(state(page), 'catching up');
      await expectList(page, ['missed, too', 'missed', 'heard', 'early']);
      expect(await stateAfterAMoment(page)).toBe('live');
      expect(await states()).toEqual(['reconnecting', 'catching up', 'live']);
      expect(documents).toEqual([]);
      expect(demo.channels.stats().gaps).toBe(0);
    });

    it.each([390, 1280])(
      'shows its state without moving the layout, %i pixels wide, also without missed haiku',
      async (width) => {
        await using server = await serve(createDemo().app);
        await speak(server.url, { text: 'snow' });
        // Without reduced motion, the bounding box of the rotating arc would change.
        const options = { viewport: { width, height: 900 }, reducedMotion: 'reduce' } as const;
        await using page = await openPaused(await browser.newPage(options), server.url);
        const fixed = page.locator('h1, h2, form, .heading, .connection svg, #haiku li');
        const boxes = () =>
          fixed.evaluateAll((all) => all.map((one) => JSON.stringify(one.getBoundingClientRect())));
        const before = await boxes();
        expect(before.length).toBe(7);
        for (const socket of server.sockets) socket.destroy();
        await expectText(state(page), 'reconnecting');
        expect(await boxes()).toEqual(before);
        await reconnect(page);
        await expectText(state(page), 'catching up');
        expect(await boxes()).toEqual(before);
        // The first checkpoint of the stream starts the timer for this state.
        await expectSoon(() => stateAfterAMoment(page), 'live');
        expect(await boxes()).toEqual(before);
      },
    );
  });

  describe.concurrent('a page whose server restarts', () => {
    it.each([
      ['has kept the haiku', (store: MemoryStore) => store, ['new', 'old']],
      ['has lost the haiku', () => new MemoryStore(), ['new']],
    ])(
      'shows the list of a server that %s, and keeps text that is being typed',
      async (_what, storeOf, expected) => {
        const store = new MemoryStore();
        const first = await serve(createDemo(store).app);
        await speak(first.url, { text: 'old' });
        await using page = await openPaused(await browser.newPage(), first.url);
        await lines(page).first().pressSequentially('half a hai');
        const states = await recordStates(page);
        const releaseStream = await holdRequests(page, '**/listen?*');
        const releasePage = await holdRequests(page, `${first.url}/`);
        await first[Symbol.asyncDispose]();
        await expectText(state(page), 'reconnecting');

        const demo = createDemo(storeOf(store));
        await using restarted = await serveOnPort(demo.app, first.port);
        await speak(restarted.url, { text: 'new' });
        releaseStream();
        await reconnect(page);
        await expectText(state(page), 'catching up');
        // The page does not show the state "live" before the new list has arrived.
        await until(
          'the gap and the end of the stream',
          () => demo.channels.stats().gaps === 1 && demo.events.streams.size === 0,
        );
        expect(await states()).toEqual(['reconnecting', 'catching up']);
        const releaseNext = await holdRequests(page, '**/listen?*');
        releasePage();
        await expectList(page, expected);
        await speak(restarted.url, { text: 'in between' });
        releaseNext();
        await expectText(state(page), 'live, list renewed');
        await page.keyboard.type('ku');
        expect(await lines(page).first().inputValue()).toBe('half a haiku');
        await speak(restarted.url, { text: 'late' });
        await expectList(page, ['late', 'in between', ...expected]);
        // The record belongs to the document, so the page was not loaded again.
        expect(await states()).toEqual(['reconnecting', 'catching up', 'live, list renewed']);
        expect(demo.channels.stats()).toMatchObject({ gaps: 1, subscriptions: 1 });
      },
    );

    it('shows an empty list of the server, and "list renewed" for a moment', async () => {
      const first = await serve(createDemo().app);
      await speak(first.url, { text: 'old' });
      await using page = await openPaused(await browser.newPage(), first.url);
      await expectList(page, ['old']);
      await first[Symbol.asyncDispose]();
      await using restarted = await serveOnPort(createDemo().app, first.port);
      await expectText(state(page), 'reconnecting');
      await reconnect(page);
      await page.getByText('It is quiet.').waitFor();
      await expectList(page, []);
      await expectText(state(page), 'live, list renewed');
      await page.clock.fastForward(3_000);
      await expectText(state(page), 'live');
      await speak(restarted.url, { text: 'new' });
      await expectList(page, ['new']);
      expect(await page.getByText('It is quiet.').isVisible()).toBe(false);
    });

    it.each([
      ['cannot be fetched', { status: 502, body: 'Bad gateway' }],
      ['has a cursor of another server', { body: PAGE_OF_ANOTHER_LOG }],
    ])('retries after some seconds if the list %s', async (_what, answer) => {
      const first = await serve(createDemo().app);
      await using page = await openPaused(await browser.newPage(), first.url);
      const states = await recordStates(page);
      await page.route(`${first.url}/`, (route) => route.fulfill(answer), { times: 1 });
      await first[Symbol.asyncDispose]();
      await using restarted = await serveOnPort(createDemo().app, first.port);
      await speak(restarted.url, { text: 'new' });
      await expectText(state(page), 'reconnecting');
      await reconnect(page);
      await expectSoon(states, ['reconnecting', 'catching up', 'reconnecting']);
      await page.clock.fastForward(3_000);
      await expectText(state(page), 'live, list renewed');
      await expectList(page, ['new']);
    });
  });
});

/** A store that calls `intercept` while it is read. */
abstract class InterceptedStore extends MemoryStore {
  intercept = async (): Promise<void> => {};
}

/**
 * Opens the page, waits until it is live, and stops its timers, so that a temporary state stays
 * until the test has read it.
 */
async function openPaused(page: Page, url: string): Promise<Page> {
  await page.clock.install();
  await open(page, url);
  await page.clock.pauseAt(Date.now() + 60_000);
  return page;
}

/** Lets the time pass after which the page reconnects. */
async function reconnect(page: Page): Promise<void> {
  await page.clock.fastForward(3_000);
}

/** Advances the clock of the page by a moment and returns the shown state. */
async function stateAfterAMoment(page: Page): Promise<string | null> {
  await page.clock.fastForward(800);
  return state(page).textContent();
}

/** Delays requests of the page for the URL until the returned function is called. */
async function holdRequests(page: Page, url: string): Promise<() => void> {
  const { promise: released, resolve: release } = deferred();
  await page.route(url, async (route) => {
    await released;
    await route.fallback();
  });
  return release;
}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

/** Starts a server on a given port. */
async function serveOnPort(
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

/** Records the shown states of the page from here on, in its document. */
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

/** Records the requests of the page for the URL from here on. */
function requestsOf(page: Page, url: string): string[] {
  const urls: string[] = [];
  page.on('request', (request) => {
    if (request.url() === url) urls.push(url);
  });
  return urls;
}

/** Waits until the page shows exactly these haiku, from the top. */
async function expectList(page: Page, texts: readonly string[]): Promise<void> {
  await expectSoon(() => items(page).locator('blockquote').allTextContents(), [...texts]);
}
