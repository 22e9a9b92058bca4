import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, root } from './pages.ts';

const { text } = await pageOf('docs/architecture.md');
const entries = await readdir(join(root, 'src'), { recursive: true, withFileTypes: true });
const paths = entries.map((entry) => ({
  path: join(entry.parentPath, entry.name).slice(join(root, 'src').length + 1),
  entry,
}));
const files = paths.filter(({ path }) => path.endsWith('.ts')).map(({ path }) => path);
const folders = paths.filter(({ entry }) => entry.isDirectory()).map(({ path }) => `${path}/`);

/** Returns the names in the first column of the table of a section. */
function firstColumn(heading: string): string[] {
  const [section = ''] = text.slice(text.indexOf(heading) + heading.length).split(/^## /m);
  return [...section.matchAll(/^\| (`[^|]*`) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name),
  );
}

describe('docs/architecture.md', () => {
  test('names every folder of src, and index.ts, in the table of layers', () => {
    expect(firstColumn('## Layers').toSorted()).toEqual([...folders, 'index.ts'].toSorted());
  });

  test('names every file of src once in the table of files', () => {
    expect(firstColumn('## File by file').toSorted()).toEqual(files.toSorted());
  });

  test('names no file that does not exist', () => {
    const everywhere = new Set(
      [...text.matchAll(/`((?:[\w-]+\/)*[\w-]+\.ts)`/g)].map(([, file = '']) => file),
    );
    expect([...everywhere].filter((file) => !files.includes(file))).toEqual([]);
  });
});
