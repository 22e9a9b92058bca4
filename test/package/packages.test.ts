/** The packages of `test/apps`, which knip does not look into. */
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { root } from './packed.ts';

interface Manifest {
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
}

async function manifestOf(folder: string): Promise<Manifest> {
  return JSON.parse(await readFile(join(root, folder, 'package.json'), 'utf8')) as Manifest;
}

/** The text of all files of a folder with one of these extensions. */
async function textOf(folder: string, extensions: RegExp): Promise<string> {
  const entries = await readdir(join(root, folder), { withFileTypes: true });
  const texts = entries.map(async (entry) => {
    const path = join(folder, entry.name);
    if (entry.name === 'node_modules') return '';
    if (entry.isDirectory()) return textOf(path, extensions);
    return extensions.test(entry.name) ? readFile(join(root, path), 'utf8') : '';
  });
  return (await Promise.all(texts)).join('\n');
}

test('every package of test/apps is used', async () => {
  const { dependencies = {} } = await manifestOf('test/apps');
  const texts = await Promise.all(
    ['test', 'docs'].map((folder) => textOf(folder, /\.(?:ts|mjs|md)$/)),
  );
  const text = texts.join('\n');
  const isUsed = (name: string): boolean =>
    [`'${name}'`, `'${name}/`, `apps/node_modules/${name}/`].some((use) => text.includes(use));
  // A peer dependency of `@tanstack/ai-client`.
  const names = Object.keys(dependencies).filter((name) => name !== '@tanstack/ai');
  expect(names.filter((name) => !isUsed(name))).toEqual([]);
});

test('no package of test/apps is one of the root', async () => {
  const [apps, own] = await Promise.all([manifestOf('test/apps'), manifestOf('.')]);
  const names = Object.keys({ ...own.dependencies, ...own.devDependencies });
  expect(Object.keys(apps.dependencies ?? {}).filter((name) => names.includes(name))).toEqual([]);
});
