import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, root } from './pages.ts';

const page = await pageOf('docs/errors.md');

function codesIn(text: string, prefix: string): string[] {
  return [...new Set(text.match(new RegExp(`\\b${prefix}_[A-Z_]+`, 'g')))].toSorted();
}

/** The sections of the page, by error code. */
const sections = new Map(
  page.text
    .split(/^### /m)
    .slice(1)
    .map((section) => [section.split('\n')[0]?.replaceAll('`', '').split(' ')[0] ?? '', section]),
);

/** All source without comments, because a code in a comment is not used. */
async function source(): Promise<string> {
  const files = await readdir(join(root, 'src'), { recursive: true });
  const texts = await Promise.all(
    files
      .filter((file) => file.endsWith('.ts'))
      .map((file) => readFile(join(root, 'src', file), 'utf8')),
  );
  return texts.join('\n').replaceAll(/\/\*[^]*?\*\/|^\s*\/\/.*$/gm, '');
}

describe('docs/errors.md', () => {
  test.each(['ERR_SSE', 'RES_SSE'])(
    'has a section for each code %s_… of the source, and no other sections',
    async (prefix) => {
      const documentedCodes = [...sections.keys()]
        .filter((code) => code.startsWith(prefix))
        .toSorted();
      expect(documentedCodes).toEqual(codesIn(await source(), prefix));
    },
  );

  test('names no code that the source does not have', async () => {
    const code = await source();
    for (const prefix of ['ERR_SSE', 'RES_SSE']) {
      const codes = codesIn(code, prefix);
      expect(codesIn(page.text, prefix).filter((each) => !codes.includes(each))).toEqual([]);
    }
  });

  test.each([...sections])('explains the meaning, the cause and the fix of %s', (code, section) => {
    expect(section).toMatch(/^\*\*What\.\*\* /m);
    expect(section).toMatch(/^\*\*Why\.\*\* /m);
    expect(section).toMatch(/^\*\*Fix\.\*\* /m);
    expect(code).toMatch(/^(ERR|RES)_SSE_[A-Z_]+$/);
  });
});
