/** Reads the code blocks of a page of docs, and runs them. */
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { packageFolder } from '../support/packages.ts';

export const root: string = fileURLToPath(new URL('../..', import.meta.url));

export async function pageOf(path: string): Promise<string> {
  return readFile(join(root, 'docs', path), 'utf8');
}

/**
 * Returns the blocks of a language whose first line is a comment with a file name, without that
 * line.
 */
export function filesIn(page: string, language = 'js'): Record<string, string> {
  const blocks = page.matchAll(
    new RegExp(`^\`\`\`${language}\\n// (\\S+)\\n([^]*?)^\`\`\`$`, 'gm'),
  );
  return Object.fromEntries([...blocks].map(([, name = '', text = '']) => [name, text]));
}

/** Number of blocks of a language, with or without a file name. */
export function countBlocks(page: string, language = 'js'): number {
  return page.match(new RegExp(`^\`\`\`${language}$`, 'gm'))?.length ?? 0;
}

export interface Files extends AsyncDisposable {
  readonly directory: string;
  load(name: string): Promise<unknown>;
}

/**
 * Writes files into a temporary directory in which the packages can be imported. `res-sse` is this
 * repository, as built by `npm run build`. The directory is removed on dispose.
 */
export async function writeFiles(
  files: Record<string, string>,
  packages: readonly string[],
): Promise<Files> {
  const directory = await mkdtemp(join(tmpdir(), 'res-sse-docs-'));
  for (const name of packages) {
    const link = join(directory, 'node_modules', name);
    await mkdir(dirname(link), { recursive: true });
    await symlink(name === 'res-sse' ? root : packageFolder(name), link);
  }
  for (const [name, text] of Object.entries({ 'package.json': '{ "type": "module" }', ...files })) {
    await writeFile(join(directory, name), text);
  }
  return {
    directory,
    load: (name) => import(pathToFileURL(join(directory, name)).href) as Promise<unknown>,
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}
