import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { readFile } from 'node:fs/promises';
import { root } from './pages.ts';

test('docs/nothing-lost.svg is what tools/draw-picture.mjs draws, and is small', async () => {
  const drawn = await promisify(execFile)(process.execPath, [join(root, 'tools/draw-picture.mjs')]);
  expect(await readFile(join(root, 'docs/nothing-lost.svg'), 'utf8')).toBe(drawn.stdout);
  expect(drawn.stdout.length).toBeLessThan(16_384);
});
