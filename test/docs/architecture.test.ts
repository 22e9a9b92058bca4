import { readFile, readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, root } from './pages.ts';

const { text } = await pageOf('docs/architecture.md');
const files = (await readdir(join(root, 'src'), { recursive: true })).filter((file) => file.endsWith('.ts')).toSorted();

/** The files that a section names, in its order. */
function named(heading: string): string[] {
  const [section = ''] = text.slice(text.indexOf(heading) + heading.length).split(/^## /m);
  return [...section.matchAll(/^\|.*$/gm)].flatMap(([row]) =>
    [...row.matchAll(/`([\w/-]+\.ts)`/g)].map(([, file]) => file ?? ''),
  );
}

async function imports(file: string): Promise<string[]> {
  const source = await readFile(join(root, 'src', file), 'utf8');
  return [...source.matchAll(/^(?:import|export|\}).* from '(\.[^']+)';$/gm)].map(([, path = '']) => join(dirname(file), path));
}

describe('docs/architecture.md', () => {
  test.each(['## The house', '## File by file'])('names every file of src once under "%s", and no others', (heading) => {
    expect(named(heading).toSorted()).toEqual(files);
  });

  test('names no file anywhere that is not there', () => {
    const everywhere = new Set([...text.matchAll(/`((?:[\w-]+\/)*[\w-]+\.ts)`/g)].map(([, file]) => file));
    expect([...everywhere].filter((file) => !files.includes(file ?? ''))).toEqual([]);
  });

  test('names each file of the house before all that it imports', async () => {
    const house = named('## The house');
    const wrong: string[] = [];
    for (const file of house) {
      for (const imported of await imports(file)) {
        if (house.indexOf(imported) <= house.indexOf(file)) wrong.push(`${file} imports ${imported}`);
      }
    }
    expect(wrong).toEqual([]);
  });
});
