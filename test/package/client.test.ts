import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { root } from './packed.ts';

const MAX_BYTES = 4_000;

const bytes = await readFile(join(root, 'dist/client/index.js'));
const text = bytes.toString();

describe('the published file of res-sse/client', () => {
  test('is at most 4 kB with gzip', () => {
    expect(gzipSync(bytes, { level: 9 }).length).toBeLessThanOrEqual(MAX_BYTES);
  });

  test('imports nothing, so that a page can load it as it is', () => {
    expect(text).not.toMatch(/\bimport\b|\brequire\b|\bfrom\s*["']/);
  });

  test('exports connect() and nothing else', async () => {
    const client: object = await import(join(root, 'dist/client/index.js'));
    expect(Object.keys(client)).toEqual(['connect']);
  });

  test('has types without the types of the DOM or of Node', async () => {
    const types = await readFile(join(root, 'dist/client/types.d.ts'), 'utf8');
    expect(types).not.toMatch(/<reference|\b(?:MessageEvent|HeadersInit|NodeJS|Buffer)\b/);
  });
});
