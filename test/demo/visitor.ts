/** Helpers for tests of the haiku page in a browser. */
import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Browser, Locator, Page } from 'playwright-core';
import { expect } from 'vitest';
import { launchChromium } from '../support/chromium.ts';
import { launchFirefox } from '../support/firefox.ts';

/** The browsers in which the page is tested: the name of each, and the function that starts it. */
export const BROWSERS: readonly (readonly [string, () => Promise<Browser>])[] = [
  ['Chromium', launchChromium],
  // Playwright cannot set the motion of a page in Firefox.
  ['Firefox', () => launchFirefox({ firefoxUserPrefs: { 'ui.prefersReducedMotion': 1 } })],
];

/** Opens the page and waits until its stream is live. */
export async function open(page: Page, url: string): Promise<Page> {
  await page.goto(url);
  await expectText(state(page), 'live');
  return page;
}

export function state(page: Page): Locator {
  return page.locator('#state');
}

export function items(page: Page): Locator {
  return page.getByRole('log', { name: 'Spoken' }).getByRole('listitem');
}

export function lines(page: Page): Locator {
  return page.getByRole('form', { name: 'Speak' }).getByLabel(/line$/);
}

export async function write(page: Page, text: readonly string[]): Promise<void> {
  for (const [index, line] of text.entries()) await lines(page).nth(index).fill(line);
}

export async function speak(url: string, haiku: { text: string; author?: string }): Promise<void> {
  const response = await fetch(`${url}/speak`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(haiku),
  });
  expect(response.status).toBe(202);
}

/** Waits until the element has exactly this text. */
export async function expectText(locator: Locator, text: string): Promise<void> {
  await expectSoon(() => locator.textContent(), text);
}

/** Waits until the value equals `expected`. `expect.poll` does not work in concurrent tests. */
export async function expectSoon<T>(actual: () => Promise<T>, expected: T): Promise<void> {
  const deadline = Date.now() + 10_000;
  let value = await actual();
  while (!isDeepStrictEqual(value, expected) && Date.now() < deadline) {
    await delay(20);
    value = await actual();
  }
  expect(value).toEqual(expected);
}
