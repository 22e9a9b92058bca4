import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { pageOf, root } from './pages.ts';

const { text, blocks } = await pageOf('README.md');

test('the README has at most 900 words, code included', () => {
  expect(text.split(/\s+/).filter(Boolean).length).toBeLessThanOrEqual(900);
});

test('the README names the commands of a fresh machine, which package.json has', async () => {
  const manifest = await readFile(join(root, 'package.json'), 'utf8');
  const { scripts } = JSON.parse(manifest) as { scripts: Record<string, string> };
  const commands = blocks
    .at(-1)
    ?.text.split('\n')
    .map((line) => line.replace(/ *#.*/, ''));
  expect(commands).toEqual(['npm install && npm run demo', 'npm install && npm test', '']);
  expect(scripts).toMatchObject({ demo: expect.any(String), test: expect.any(String) });
});

test('the README marks five lines of res-sse on the server, and shows three on the page', () => {
  const [server, page] = blocks.filter(({ language }) => language === 'js');
  expect(server?.text.match(/\/\/ \d$/gm)).toEqual(['// 1', '// 2', '// 3', '// 4', '// 5']);
  expect(page?.text.trim().split('\n')).toHaveLength(3);
});
