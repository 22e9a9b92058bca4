/** The embedded copy of the Lua script. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { script } from '../../src/brokers/redis/script.ts';

test('script.ts contains log.lua; run `npm run build` after a change', async () => {
  const path = new URL('../../src/brokers/redis/log.lua', import.meta.url);
  expect(script.source).toBe(await readFile(path, 'utf8'));
});

test('the name under which Redis caches the script is its SHA-1', () => {
  expect(script.sha).toBe(createHash('sha1').update(script.source).digest('hex'));
});
