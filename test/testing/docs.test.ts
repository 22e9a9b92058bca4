import { execFile } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { countBlocks, filesIn, pageOf, root, writeFiles } from '../clients/blocks.ts';
import { startRedis } from '../support/redis-server.ts';

const run = promisify(execFile);
const TIMEOUT = 180_000;

interface Output {
  code: number;
  text: string;
}

/**
 * Runs a program until it exits, with any exit code. The environment contains nothing of the
 * current test runner.
 */
async function outputOf(
  cwd: string,
  args: string[],
  env: Record<string, string> = {},
): Promise<Output> {
  const { PATH = '', HOME = '' } = process.env;
  try {
    const { stdout, stderr } = await run(process.execPath, args, {
      cwd,
      env: { PATH, HOME, ...env },
    });
    return { code: 0, text: stdout + stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, text: stdout + stderr };
  }
}

describe('the code of docs/testing.md', () => {
  let page: string;
  let files: Record<string, string>;

  beforeAll(async () => {
    page = await pageOf('testing.md');
    files = { ...filesIn(page, 'js'), ...filesIn(page, 'ts') };
  });

  /** Returns the apps and the files whose names match. */
  function filesMatching(pattern: RegExp): Record<string, string> {
    const selected = Object.entries(files).filter(
      ([name]) => /^[a-z]+\.js$/.test(name) || pattern.test(name),
    );
    expect(selected.length).toBeGreaterThan(1);
    return Object.fromEntries(selected);
  }

  test('has a file name for each code block, so each block runs here', () => {
    expect(Object.keys(files)).toHaveLength(countBlocks(page, 'js') + countBlocks(page, 'ts'));
    const runners = [
      /^[a-z]+\.js$/,
      /^[a-z]+\.test\.ts$/,
      /\.node\.test\.js$/,
      /\.jest\.test\.js$/,
    ];
    expect(
      Object.keys(files).filter((name) => !runners.some((runner) => runner.test(name))),
    ).toEqual([]);
  });

  test('passes with vitest', { timeout: TIMEOUT }, async () => {
    const isTest = /^[a-z]+\.test\.ts$/;
    const selected = filesMatching(isTest);
    const packages = ['express', 'express-session', 'redis', 'res-sse', 'vitest'];
    await using folder = await writeFiles(selected, packages);
    await using redis = await startRedis();
    const { code, text } = await outputOf(
      folder.directory,
      ['node_modules/vitest/vitest.mjs', 'run'],
      { NO_COLOR: '1', REDIS_URL: redis.url },
    );
    expect({ code, text }).toMatchObject({
      code: 0,
      text: expect.stringMatching(/Tests +\d+ passed \(\d+\)/) as string,
    });
    const testFiles = Object.keys(selected).filter((name) => isTest.test(name));
    expect(text).toMatch(new RegExp(`Test Files +${testFiles.length} passed`));
  });

  test('passes with node:test', { timeout: TIMEOUT }, async () => {
    await using folder = await writeFiles(filesMatching(/\.node\.test\.js$/), [
      'express',
      'res-sse',
    ]);
    const { code, text } = await outputOf(folder.directory, ['--test', '--test-reporter=tap']);
    expect({ code, text }).toMatchObject({
      code: 0,
      text: expect.stringMatching(/^# fail 0$/m) as string,
    });
    expect(text).toMatch(/^ *ok \d+ - a haiku reaches a reader$/m);
    expect(text).toMatch(/^ *ok \d+ - different logs have different epochs$/m);
  });

  test('passes with jest', { timeout: TIMEOUT }, async () => {
    await using folder = await writeFiles(filesMatching(/\.jest\.test\.js$/), [
      'express',
      'res-sse',
    ]);
    await run(
      'npm',
      [
        'install',
        '--prefer-offline',
        '--no-audit',
        '--no-fund',
        '--no-save',
        '--prefix',
        'jest',
        'jest@30',
      ],
      {
        cwd: folder.directory,
      },
    );
    const env = { NODE_OPTIONS: '--experimental-vm-modules' };
    const { code, text } = await outputOf(
      folder.directory,
      ['jest/node_modules/jest/bin/jest.js', '--no-watchman'],
      env,
    );
    expect({ code, text }).toMatchObject({
      code: 0,
      text: expect.stringMatching(/Tests: +1 passed, 1 total/) as string,
    });
  });

  test('passes with require()', async () => {
    const program = "console.log(Object.keys(require('res-sse/testing')).join())";
    await using folder = await writeFiles({ 'program.cjs': program }, ['res-sse']);
    expect((await outputOf(folder.directory, ['--no-warnings', 'program.cjs'])).text).toContain(
      'brokerContract,readEvents',
    );
  });

  test('has no type errors', { timeout: TIMEOUT }, async () => {
    const tsconfig = {
      compilerOptions: {
        module: 'nodenext',
        target: 'es2023',
        lib: ['es2023', 'dom'],
        types: ['node'],
        strict: true,
        noEmit: true,
        allowJs: true,
      },
      include: ['*.ts', 'app.js'],
    };
    const clientFiles = filesIn(await pageOf('clients.md'), 'ts');
    expect(Object.keys(clientFiles)).toHaveLength(countBlocks(await pageOf('clients.md'), 'ts'));
    const selected = {
      ...filesMatching(/\.ts$/),
      ...clientFiles,
      'tsconfig.json': JSON.stringify(tsconfig),
    };
    await using folder = await writeFiles(selected, [
      '@types/express',
      '@types/node',
      'express',
      'express-session',
      'redis',
      'res-sse',
      'vitest',
    ]);
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    expect(await outputOf(folder.directory, [compiler, '-p', '.'])).toEqual({ code: 0, text: '' });
  });

  test('documents every option and member', async () => {
    const readEvents = await readFile(join(root, 'src/testing/read-events.ts'), 'utf8');
    const eventReader = await readFile(join(root, 'src/testing/event-reader.ts'), 'utf8');
    const [options = ''] = /export interface ReadOptions \{[^]*?^\}/m.exec(readEvents) ?? [];
    const [reader = ''] = /export class EventReader [^]*?^\}/m.exec(eventReader) ?? [];
    const names = [
      ...options.matchAll(/^ {2}(\w+)\?:/gm),
      ...reader.matchAll(/^ {2}(?:readonly |get |async )?(\w+)[(:]/gm),
    ].map(([, name]) => name as string);
    expect(names).toContain('timeout');
    expect(names).toContain('pause');
    const missing = names.filter(
      (name) =>
        name !== 'constructor' && !page.includes(`\`${name}\``) && !page.includes(`\`${name}(`),
    );
    expect(missing).toEqual([]);
  });
});

test('res-sse/testing imports only Node and this package', async () => {
  const directory = join(root, 'src/testing');
  for (const file of await readdir(directory)) {
    const imports = (await readFile(join(directory, file), 'utf8')).matchAll(/ from '([^']+)'/g);
    for (const [, from = ''] of imports) {
      expect(from).toMatch(/^(node:|\.\/|\.\.\/(index|common\/[\w-]+|client\/parser)\.ts$)/);
    }
  }
});
