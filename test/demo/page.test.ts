/** Tests of the haiku page in a real browser. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { once } from 'node:events';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import { serve } from '../support/server.ts';
import { BROWSERS, expectText, items, lines, open, speak, state, write } from './visitor.ts';

const OLD_POND = ['an old, quiet pond', 'a frog leaps into its rings', 'sound of the water'];

describe.each(BROWSERS)('in %s', (_name, launch) => {
  let browser: Browser;

  beforeAll(async () => {
    browser = await launch();
  });

  afterAll(async () => {
    await browser?.close();
  });

  describe('receiving haiku', () => {
    it('a haiku that is spoken in one tab appears in another tab', async () => {
      await using server = await serve(createDemo().app);
      await using context = await browser.newContext();
      const one = await open(await context.newPage(), server.url);
      const other = await open(await context.newPage(), server.url);
      await write(one, OLD_POND);
      await one.getByLabel('Your name').fill('Bashō');
      await one.getByRole('button', { name: 'Speak' }).click();
      for (const page of [one, other]) {
        await items(page).first().waitFor();
        expect(await items(page).count()).toBe(1);
        expect(await items(page).locator('blockquote p').allTextContents()).toEqual(OLD_POND);
        expect(await items(page).locator('.by').textContent()).toBe('Bashō');
        const at = await items(page).locator('time').getAttribute('datetime');
        expect(Math.abs(Date.now() - Date.parse(at ?? ''))).toBeLessThan(60_000);
      }
      expect(await one.getByLabel('First line').inputValue()).toBe('');
      await expectText(one.locator('#answer'), 'Spoken.');
    });

    it('the newest haiku is on top, and each haiku is shown once', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      for (const text of ['first', 'second', 'third']) await speak(server.url, { text });
      await items(page).nth(2).waitFor();
      expect(await items(page).locator('blockquote').allTextContents()).toEqual([
        'third',
        'second',
        'first',
      ]);
      expect(await items(page).locator('.by').allTextContents()).toEqual([
        'somebody',
        'somebody',
        'somebody',
      ]);
    });

    it('HTML that a visitor types is shown as text', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      const text = '<img src=x onerror="document.title=1"><b>bold</b>&amp;';
      const author = '<script>document.title = 2</script>';
      await write(page, [text]);
      await page.getByLabel('Your name').fill(author);
      await page.getByRole('button', { name: 'Speak' }).click();
      await items(page).first().waitFor();
      expect(await items(page).locator('blockquote').textContent()).toBe(text);
      expect(await items(page).locator('.by').textContent()).toBe(author);
      expect(await items(page).locator('img, b, script').count()).toBe(0);
      expect(await page.title()).toBe('Haiku');
    });

    it('the page shows its state while the server stops and restarts', async () => {
      const first = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), first.url);
      await first[Symbol.asyncDispose]();
      await expectText(state(page), 'reconnecting');
      const restarted = createServer(createDemo().app).listen(first.port, '127.0.0.1');
      try {
        await once(restarted, 'listening');
        await expectText(state(page), 'live, list renewed');
        await speak(first.url, { text: 'after the storm' });
        await items(page).getByText('after the storm').waitFor();
      } finally {
        restarted.close();
        restarted.closeAllConnections();
      }
    });

    it('the page shows "closed" after a 404 and reconnects on a button press', async () => {
      await using server = await serve(createDemo().app);
      await using page = await browser.newPage();
      await page.route('**/listen?*', (route) => route.fulfill({ status: 404 }));
      await page.goto(server.url);
      await expectText(state(page), 'closed');
      const heading = page.locator('.heading');
      const box = await heading.boundingBox();
      await page.unroute('**/listen?*');
      await page.getByRole('button', { name: 'Connect again' }).click();
      await expectText(state(page), 'live');
      expect(await page.getByRole('button', { name: 'Connect again' }).count()).toBe(0);
      expect(await heading.boundingBox()).toEqual(box);
    });

    it('eight tabs use one connection, and all receive what is spoken', async () => {
      const demo = createDemo();
      await using server = await serve(demo.app);
      await using context = await browser.newContext();
      const pages: Page[] = [];
      for (let tab = 0; tab < 8; tab++) pages.push(await open(await context.newPage(), server.url));
      expect(demo.events.streams.size).toBe(1);
      await speak(server.url, { text: 'in all tabs' });
      for (const page of pages) await items(page).getByText('in all tabs').waitFor();
    });

    it('the page shows that the browser is offline, and receives later what was spoken', async () => {
      await using server = await serve(createDemo().app);
      await using context = await browser.newContext();
      const page = await open(await context.newPage(), server.url);
      await context.setOffline(true);
      await expectText(state(page), 'offline');
      await speak(server.url, { text: 'meanwhile' });
      await context.setOffline(false);
      await items(page).getByText('meanwhile').waitFor();
      await expectText(state(page), 'live');
    });

    it('the documents can be read from the page', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      await page.getByRole('link', { name: 'the documents' }).click();
      await page.getByRole('link', { name: 'The client', exact: true }).click();
      await page.getByText('one ES module without imports').waitFor();
      expect(new URL(page.url()).pathname).toBe('/docs/client.md');
    });

    it('the page sends requests only to its server and logs no error', async () => {
      await using server = await serve(createDemo().app);
      await using page = await browser.newPage();
      const requests: string[] = [];
      const errors: string[] = [];
      page.on('request', (request) => void requests.push(request.url()));
      page.on('pageerror', (error) => void errors.push(error.message));
      page.on('console', (message) => void errors.push(message.text()));
      await open(page, server.url);
      await speak(server.url, { text: 'snow', author: 'Issa' });
      await items(page).first().waitFor();
      const network = requests.filter((url) => !url.startsWith('data:'));
      expect(
        network.map((url) => url.replace(/\?lastEventId=[\w.-]+$/, '?lastEventId=…')).toSorted(),
      ).toEqual(
        ['/', '/app.js', '/client.js', '/listen?lastEventId=…', '/style.css', '/syllables.js'].map(
          (path) => server.url + path,
        ),
      );
      expect(errors).toEqual([]);
    });
  });

  describe('speaking a haiku', () => {
    it('the 5-7-5 hint counts syllables but does not prevent speaking', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      const hints = page.locator('.hint span[id]');
      expect(await hints.allTextContents()).toEqual([
        '0 of 5 syllables',
        '0 of 7 syllables',
        '0 of 5 syllables',
      ]);
      await page.getByLabel('First line').pressSequentially('an old');
      expect(await hints.first().textContent()).toBe('2 of 5 syllables');
      expect(await page.locator('.hint').first().locator('.on').count()).toBe(2);
      await write(page, OLD_POND);
      expect(await hints.allTextContents()).toEqual([
        '5 of 5 syllables',
        '7 of 7 syllables',
        '5 of 5 syllables',
      ]);
      expect(await page.locator('.hint.met').count()).toBe(3);
      await write(page, ['far too many syllables for a line', '', '']);
      expect(await hints.allTextContents()).toEqual([
        '10 of 5 syllables',
        '0 of 7 syllables',
        '0 of 5 syllables',
      ]);
      await page.getByRole('button', { name: 'Speak' }).click();
      await items(page).getByText('far too many').waitFor();
    });

    it('the hint counts syllables of English and of kana approximately', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      const hints: [line: string, hint: string][] = [
        ['the stone rippled', '4 of 5 syllables'],
        ['a table of lonely candles', '8 of 5 syllables'],
        ['every evening', '4 of 5 syllables'],
        ["don't", '1 of 5 syllables'],
        ['being in a rhythm', '6 of 5 syllables'],
        ['ふるいけや', '5 of 5 syllables'],
        ['きょうもコーヒー', '7 of 5 syllables'],
        ['… 7 –', '0 of 5 syllables'],
      ];
      const actual: typeof hints = [];
      for (const [line] of hints) {
        await page.getByLabel('First line').fill(line);
        actual.push([line, (await page.locator('#hint-1').textContent()) ?? '']);
      }
      expect(actual).toEqual(hints);
    });

    it('Enter moves from line to line and speaks after the last line', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      await page.getByLabel('First line').focus();
      for (const line of OLD_POND) {
        await page.keyboard.type(line);
        await page.keyboard.press('Enter');
      }
      await items(page).first().waitFor();
      expect(await items(page).locator('blockquote p').allTextContents()).toEqual(OLD_POND);
      expect(await page.evaluate(() => document.activeElement?.id)).toBe('line-1');
    });

    it('a pasted haiku is split into its lines', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      await page.evaluate((text) => {
        const source = document.createElement('textarea');
        source.value = text;
        document.body.append(source);
        source.select();
      }, OLD_POND.join('\n'));
      await page.keyboard.press('Control+c');
      await page.getByLabel('First line').focus();
      await page.keyboard.press('Control+v');
      expect(
        await lines(page).evaluateAll((inputs) =>
          inputs.map((input) => (input as HTMLInputElement).value),
        ),
      ).toEqual(OLD_POND);
    });

    it('an empty haiku is not sent, and the page shows the reason', async () => {
      const demo = createDemo();
      await using server = await serve(demo.app);
      await using page = await open(await browser.newPage(), server.url);
      await page.getByRole('button', { name: 'Speak' }).click();
      await expectText(page.locator('#answer'), 'One line is enough to begin.');
      expect(demo.channels.stats().published).toBe(0);
    });

    it('the lines are kept if the server is unreachable', async () => {
      const server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      await write(page, OLD_POND);
      await server[Symbol.asyncDispose]();
      await page.getByRole('button', { name: 'Speak' }).click();
      await expectText(
        page.locator('#answer'),
        'Nobody could hear that. Your lines are kept; try again in a moment.',
      );
      expect(await page.getByLabel('First line').inputValue()).toBe(OLD_POND[0]);
    });

    it('a request that hangs is shown, and sent again it is spoken once', async () => {
      const { app } = createDemo();
      let isFirst = true;
      await using server = await serve((req: IncomingMessage, res: ServerResponse) => {
        // The first request arrives, but its answer does not.
        if (req.url === '/speak' && isFirst) {
          isFirst = false;
          res.end = () => res;
        }
        app(req, res);
      });
      await using page = await browser.newPage();
      await page.clock.install();
      await open(page, server.url);
      await write(page, OLD_POND);
      await page.getByRole('button', { name: 'Speak' }).click();
      await items(page).first().waitFor();
      await page.clock.fastForward(2_000);
      await expectText(page.locator('#answer'), 'No answer yet …');
      await page.clock.fastForward(8_000);
      await expectText(
        page.locator('#answer'),
        'Nobody could hear that. Your lines are kept; try again in a moment.',
      );
      await page.getByRole('button', { name: 'Speak' }).click();
      await expectText(page.locator('#answer'), 'Spoken.');
      await speak(server.url, { text: 'next' });
      await items(page).getByText('next').waitFor();
      expect(await items(page).count()).toBe(2);
      await open(page, server.url);
      expect(await items(page).count()).toBe(2);
    });

    it('the name is remembered for the next visit', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage(), server.url);
      expect(await page.getByLabel('Your name').inputValue()).toBe('');
      await page.getByLabel('Your name').pressSequentially('Chiyo-ni');
      await page.getByLabel('First line').focus();
      await open(page, server.url);
      expect(await page.getByLabel('Your name').inputValue()).toBe('Chiyo-ni');
    });
  });

  describe('layout', () => {
    it.each([320, 390, 1280])(
      'no element overflows a screen that is %i pixels wide',
      async (width) => {
        await using server = await serve(createDemo().app);
        await using page = await open(
          await browser.newPage({ viewport: { width, height: 700 }, reducedMotion: 'reduce' }),
          server.url,
        );
        await speak(server.url, { text: 'm'.repeat(300), author: 'm'.repeat(60) });
        await speak(server.url, { text: OLD_POND.join('\n'), author: 'Bashō' });
        await items(page).nth(1).waitFor();
        const overflowing = await page.evaluate(() =>
          [
            ...document.querySelectorAll(
              'html, main, form, section, figure, blockquote, figcaption, .by',
            ),
          ]
            .filter(({ scrollWidth, clientWidth }) => clientWidth > 0 && scrollWidth > clientWidth)
            .map(({ tagName }) => tagName),
        );
        expect(overflowing).toEqual([]);
        // Check that the long text was broken into many lines.
        expect((await items(page).last().boundingBox())?.height).toBeGreaterThan(
          width < 1280 ? 300 : 150,
        );
      },
    );

    it.each([
      [390, 844],
      [1280, 720],
    ])('the form and the newest haiku are on a screen of %i × %i pixels', async (width, height) => {
      await using server = await serve(createDemo().app);
      await speak(server.url, { text: OLD_POND.join('\n'), author: 'Bashō' });
      await using page = await open(
        await browser.newPage({ viewport: { width, height } }),
        server.url,
      );
      for (const locator of [page.locator('#speak'), items(page).first(), page.locator('.sun')]) {
        const box = (await locator.boundingBox()) ?? { x: NaN, y: NaN, width: NaN, height: NaN };
        expect(box.x).toBeGreaterThanOrEqual(0);
        expect(box.y).toBeGreaterThanOrEqual(0);
        expect(box.x + box.width).toBeLessThanOrEqual(width);
        expect(box.y + box.height).toBeLessThanOrEqual(height);
      }
    });

    it('nothing is animated with reduced motion', async () => {
      await using server = await serve(createDemo().app);
      await using page = await open(await browser.newPage({ reducedMotion: 'reduce' }), server.url);
      await speak(server.url, { text: 'snow' });
      await items(page).first().waitFor();
      expect(await page.evaluate(() => document.getAnimations().length)).toBe(0);
    });

    it.each([390, 1280])(
      'only the list moves when a haiku is typed and spoken, on a screen %i pixels wide',
      async (width) => {
        await using server = await serve(createDemo().app);
        // A tall screen, so that the page does not scroll.
        await using page = await open(
          await browser.newPage({ viewport: { width, height: 1_600 } }),
          server.url,
        );
        const fixed = page.locator('h1, form, .line, button[type=submit], .heading, #state');
        const boxes = () =>
          fixed.evaluateAll((all) => all.map((one) => JSON.stringify(one.getBoundingClientRect())));
        const before = await boxes();
        expect(before.length).toBe(8);
        await write(page, OLD_POND);
        await page.getByRole('button', { name: 'Speak' }).click();
        await items(page).first().waitFor();
        await expectText(page.locator('#answer'), 'Spoken.');
        expect(await boxes()).toEqual(before);
      },
    );
  });
});
