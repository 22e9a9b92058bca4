import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { root } from './pages.ts';

/** Runs the linter of documents on a text. @returns its status, and what it printed */
async function check(text: string): Promise<{ status: number; printed: string }> {
  const directory = await mkdtemp(join(tmpdir(), 'res-sse-prose-'));
  const file = join(directory, 'page.md');
  await writeFile(file, text);
  const result = await new Promise<{ status: number; printed: string }>((resolve) => {
    const child = execFile(
      process.execPath,
      [join(root, 'tools/check-prose.mjs'), file],
      (_error, _stdout, stderr) =>
        resolve({ status: child.exitCode ?? -1, printed: stderr.replaceAll(`${file}:`, '') }),
    );
  });
  await rm(directory, { recursive: true });
  return result;
}

test('tools/check-prose.mjs finds a sentence that does not begin with its subject', async () => {
  const { status, printed } = await check('# A page\n\nText. What\nis lost, comes back.\n');
  expect([status, printed]).toEqual([
    1,
    '3: ". What is lost,": begin with the noun, not with "What"\n',
  ]);
});

test('tools/check-prose.mjs finds words in lists and cells, with their lines', async () => {
  const { printed } = await check(
    '- Whoever\n- is here\n\n| a | b |\n| --- | --- |\n| c | simply d |\n',
  );
  expect(printed.split('\n')).toEqual([
    '1: "Whoever": name the thing or the person',
    '6: "simply": leave the word out',
    '',
  ]);
});

test('tools/check-prose.mjs accepts code, headings and questions', async () => {
  const text =
    '# What is promised, and more\n\nWhat is a gap? `simply`\n\n```js\n// Whoever\n```\n';
  expect(await check(text)).toEqual({ status: 0, printed: '' });
});
