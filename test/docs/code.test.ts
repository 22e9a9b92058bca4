import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { packageFolders } from '../support/packages.ts';
import { pages, root, type Block } from './pages.ts';

const run = promisify(execFile);

const TIMEOUT = 120_000;

const LANGUAGES = ['js', 'ts'];

/**
 * A code block as a file. The file is at the path of its page, with the line numbers of the page.
 */
interface Source {
  readonly path: string;
  readonly line: number;
  readonly text: string;
  readonly block: Block;
  /** The next block of the page. */
  readonly next: Block | undefined;
}

const sources: Source[] = (await pages()).flatMap(({ path, blocks }) =>
  blocks.flatMap((block, index) => {
    // Skip code for other packages that are not installed.
    if (!LANGUAGES.includes(block.language) || block.words.includes('peer')) return [];
    const name = block.file ?? `line-${block.line}.${block.language}`;
    // If a page shows a later version of a file, that version gets its line as name, so that each
    // version is checked.
    const isLater = blocks
      .slice(0, index)
      .some(({ file }) => file !== undefined && file === block.file);
    return {
      path: join(path, isLater ? `line-${block.line}.${block.language}` : name),
      line: block.line,
      text: '\n'.repeat(block.line - 1) + block.text,
      block,
      next: blocks[index + 1],
    };
  }),
);

const entries = {
  'res-sse': 'index.ts',
  'res-sse/client': 'client/index.ts',
  'res-sse/testing': 'testing/index.ts',
  'res-sse/redis': 'brokers/redis.ts',
};

const compilerOptions = {
  module: 'nodenext',
  moduleDetection: 'force',
  target: 'es2023',
  lib: ['es2023', 'esnext.disposable', 'dom', 'dom.iterable'],
  types: ['node'],
  noEmit: true,
  skipLibCheck: true,
  allowImportingTsExtensions: true,
  paths: Object.fromEntries(
    Object.entries(entries).map(([name, file]) => [name, [join(root, 'src', file)]]),
  ),
};

// TypeScript code may import from JavaScript code. JavaScript code is checked for names and
// arguments, but not strictly.
const configs = {
  ts: {
    compilerOptions: { ...compilerOptions, strict: true, allowJs: true },
    include: ['**/*.ts'],
  },
  js: {
    compilerOptions: { ...compilerOptions, strict: false, allowJs: true, checkJs: true },
    include: ['**/*.js', 'given.d.ts'],
  },
};

// `new Promise<void>(…)` cannot be written in JavaScript without a comment.
const IGNORED_ERRORS = /error TS2810:/;

let outside: string;
let directory: string;

beforeAll(async () => {
  outside = await mkdtemp(join(tmpdir(), 'res-sse-pages-'));
  directory = join(outside, 'pages');
  await mkdir(directory);
  // Node and the compiler look for a package in each folder upwards.
  const [first = '', second = ''] = packageFolders;
  await symlink(first, join(directory, 'node_modules'));
  await symlink(second, join(outside, 'node_modules'));
  await symlink(join(root, 'test/docs/given.d.ts'), join(directory, 'given.d.ts'));
  await writeFile(join(directory, 'package.json'), '{ "type": "module" }');
  await writeFile(join(directory, 'tsconfig.json'), JSON.stringify(configs.js));
  await writeFile(join(directory, 'tsconfig.ts.json'), JSON.stringify(configs.ts));
  for (const { path, text } of sources) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), text);
  }
});

afterAll(() => rm(outside, { recursive: true, force: true }));

/** Returns the errors of the compiler in code of pages. */
async function errorsOf(config: string): Promise<string[]> {
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const output = await run(process.execPath, [tsc, '-p', config, '--pretty', 'false'], {
    cwd: directory,
  }).then(
    () => '',
    (error: { stdout: string }) => error.stdout,
  );
  return output
    .split('\n')
    .filter((line) => /^\S+\.md\/.*error/.test(line) && !IGNORED_ERRORS.test(line));
}

describe('a block of code', () => {
  test.each(LANGUAGES)(
    'in %s has no type errors, given the declarations of given.d.ts',
    { timeout: TIMEOUT },
    async (language) => {
      expect(sources.some(({ block }) => block.language === language)).toBe(true);
      expect(await errorsOf(language === 'ts' ? 'tsconfig.ts.json' : 'tsconfig.json')).toEqual([]);
    },
  );

  test('cleans up after stream.closed, not in an abort listener of stream.signal', async () => {
    const src = (await readdir(join(root, 'src'), { recursive: true })).filter((path) =>
      path.endsWith('.ts'),
    );
    const comments = await Promise.all(
      src.map(
        async (path) =>
          (await readFile(join(root, 'src', path), 'utf8')).match(/^ *\*.*$/gm)?.join('\n') ?? '',
      ),
    );
    for (const text of [...sources.map((source) => source.text), ...comments]) {
      expect(text).not.toMatch(/(stream|sse)\??\.signal\.addEventListener/);
    }
  });

  const runnable = sources
    .filter(({ block }) => block.words.includes('run'))
    .map((source) => [source.path, source] as const);

  test.each(runnable)(
    'that is marked as runnable prints the output below it: %s',
    { timeout: TIMEOUT },
    async (path, { next }) => {
      const { stdout } = await run(process.execPath, ['--import', 'tsx', path], {
        cwd: directory,
        timeout: TIMEOUT / 2,
      });
      expect(next?.words).toContain('output');
      expect(stdout.trim()).toBe(next?.text.trim());
    },
  );
});
