import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, pages, resolved, root } from './pages.ts';

const all = [...(await pages()), await pageOf('llms.txt')];

async function exists(path: string): Promise<boolean> {
  return access(join(root, path)).then(
    () => true,
    () => false,
  );
}

describe.each(all)('$path', (page) => {
  test('links only to files and headings that exist', async () => {
    const broken: string[] = [];
    for (const link of page.links) {
      const target = resolved(page, link);
      if (target === undefined) continue;
      const { path, anchor } = target;
      const isBroken =
        !(await exists(path)) ||
        (anchor !== '' && path.endsWith('.md') && !(await pageOf(path)).anchors.includes(anchor));
      if (isBroken) broken.push(`${page.path}:${link.line} ${link.target}`);
    }
    expect(broken).toEqual([]);
  });
});

test.each(['docs/README.md', 'llms.txt'])('every guide is linked in %s', async (name) => {
  const index = await pageOf(name);
  const linked = new Set(index.links.map((link) => resolved(index, link)?.path));
  const guides = all
    .map(({ path }) => path)
    .filter((path) => /^docs\/[^/]+\.md$/.test(path) && path !== index.path);
  expect(guides.filter((path) => !linked.has(path))).toEqual([]);
});
