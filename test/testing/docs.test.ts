import { execFile } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { countBlocks, filesIn, pageOf, root, writeFiles } from '../clients/blocks.ts';

const run = promisify(execFile);
const TIMEOUT = 180_000;

interface Output {
  code: number;
  text: string;
}

/** Runs a program to its end, whatever that is. The runner that runs this is not to be noticed. */
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

describe('what the docs say of testing', () => {
  let page: string;
  let files: Record<string, string>;

  beforeAll(async () => {
    page = await pageOf('testing.md');
    files = { ...filesIn(page, 'js'), ...filesIn(page, 'ts') };
  });

  /** The app and the tests whose names end so. */
  function some(end: RegExp): Record<string, string> {
    const chosen = Object.entries(files).filter(([name]) => name === 'app.js' || end.test(name));
    expect(chosen.length).toBeGreaterThan(1);
    return Object.fromEntries(chosen);
  }

  test('is all run here: each piece of code has a name', () => {
    expect(Object.keys(files)).toHaveLength(countBlocks(page, 'js') + countBlocks(page, 'ts'));
    const runners = [/^app\.js$/, /^[a-z]+\.test\.ts$/, /\.node\.test\.js$/, /\.jest\.test\.js$/];
    expect(
      Object.keys(files).filter((name) => !runners.some((runner) => runner.test(name))),
    ).toEqual([]);
  });

  test('passes with vitest', { timeout: TIMEOUT }, async () => {
    const chosen = some(/^[a-z]+\.test\.ts$/);
    await using there = await writeFiles(chosen, ['express', 'res-sse', 'vitest']);
    const { code, text } = await outputOf(
      there.directory,
      ['node_modules/vitest/vitest.mjs', 'run'],
      { NO_COLOR: '1' },
    );
    expect({ code, text }).toMatchObject({
      code: 0,
      text: expect.stringMatching(/Tests +\d+ passed \(\d+\)/) as string,
    });
    expect(text).toMatch(new RegExp(`Test Files +${Object.keys(chosen).length - 1} passed`));
  });

  test('passes with node:test', { timeout: TIMEOUT }, async () => {
    await using there = await writeFiles(some(/\.node\.test\.js$/), ['express', 'res-sse']);
    const { code, text } = await outputOf(there.directory, ['--test', '--test-reporter=tap']);
    expect({ code, text }).toMatchObject({
      code: 0,
      text: expect.stringMatching(/^# fail 0$/m) as string,
    });
    expect(text).toMatch(/^ *ok \d+ - a haiku reaches who listens$/m);
    expect(text).toMatch(/^ *ok \d+ - two logs have two epochs$/m);
  });

  test('passes with jest', { timeout: TIMEOUT }, async () => {
    await using there = await writeFiles(some(/\.jest\.test\.js$/), ['express', 'res-sse']);
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
        cwd: there.directory,
      },
    );
    const env = { NODE_OPTIONS: '--experimental-vm-modules' };
    const { code, text } = await outputOf(
      there.directory,
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
    await using there = await writeFiles({ 'program.cjs': program }, ['res-sse']);
    expect((await outputOf(there.directory, ['--no-warnings', 'program.cjs'])).text).toContain(
      'brokerContract,readEvents',
    );
  });

  test('is typed', { timeout: TIMEOUT }, async () => {
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
    const ofClients = filesIn(await pageOf('clients.md'), 'ts');
    expect(Object.keys(ofClients)).toHaveLength(countBlocks(await pageOf('clients.md'), 'ts'));
    const chosen = { ...some(/\.ts$/), ...ofClients, 'tsconfig.json': JSON.stringify(tsconfig) };
    await using there = await writeFiles(chosen, [
      '@types/express',
      '@types/node',
      'express',
      'res-sse',
      'vitest',
    ]);
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    expect(await outputOf(there.directory, [compiler, '-p', '.'])).toEqual({ code: 0, text: '' });
  });

  test('names every option and member that there is', async () => {
    const source = await readFile(join(root, 'src/testing/read-events.ts'), 'utf8');
    const [options = ''] = /export interface ReadOptions \{[^]*?^\}/m.exec(source) ?? [];
    const [reader = ''] = /export class EventReader [^]*?^\}/m.exec(source) ?? [];
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

test('the kit imports nothing but Node and this package', async () => {
  const directory = join(root, 'src/testing');
  for (const file of await readdir(directory)) {
    const imports = (await readFile(join(directory, file), 'utf8')).matchAll(/ from '([^']+)'/g);
    for (const [, from = ''] of imports) {
      expect(from).toMatch(/^(node:|\.\/|\.\.\/(index|common\/[\w-]+)\.ts$)/);
    }
  }
});
