import express from 'express';
import { expect, onTestFinished, test } from 'vitest';
import { sse, stream } from '../../src/index.ts';
import { launchChromium } from '../support/chromium.ts';
import { serve } from '../support/server.ts';
import { until } from '../support/wait.ts';

test('one warning is emitted for a browser with six open streams over HTTP/1.1, whose pages can load nothing more', async () => {
  const warnings: { code: string; detail: string }[] = [];
  const onWarning = (warning: Error): void => {
    if ('code' in warning && String(warning.code).startsWith('RES_SSE_')) {
      warnings.push(warning as unknown as { code: string; detail: string });
    }
  };
  process.on('warning', onWarning);
  onTestFinished(() => void process.off('warning', onWarning));
  const app = express();
  app.use(sse());
  app.get(
    '/',
    stream((given) => void given.open()),
  );
  app.get('/page', (_req, res) => void res.type('html').send('<!doctype html>'));
  await using server = await serve(app);
  await using browser = await launchChromium();
  const page = await browser.newPage();
  await page.goto(`${server.url}/page`);
  await page.evaluate(() => {
    Array.from({ length: 7 }, () => new EventSource('/'));
  });
  await until('the warning', () => warnings.length > 0);
  // A further warning would come in the next turn.
  await new Promise((resolve) => setImmediate(resolve));
  expect(warnings.map(({ code }) => code)).toEqual(['RES_SSE_SIX_STREAMS']);
  expect(warnings[0]?.detail).toContain('HTTP/2');
});
