import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { root } from './pages.ts';

async function json<T>(path: string): Promise<T> {
  return JSON.parse(await readFile(join(root, path), 'utf8')) as T;
}

test('the API reference covers exactly the entries of the package', async () => {
  const { exports } = await json<{ exports: Record<string, string | { default: string }> }>(
    'package.json',
  );
  const { entryPoints } = await json<{ entryPoints: string[] }>('docs/api-tool/typedoc.json');
  const sources = Object.values(exports).flatMap((entry) =>
    typeof entry === 'string'
      ? []
      : [entry.default.replace('./dist/', '../../src/').replace(/\.js$/, '.ts')],
  );
  expect(entryPoints.toSorted()).toEqual(sources.toSorted());
});
