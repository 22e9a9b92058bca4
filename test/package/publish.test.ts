import { execFile } from 'node:child_process';
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { root } from './packed.ts';

const run = promisify(execFile);

const MANIFEST = {
  name: 'nothing',
  version: '1.2.3',
  repository: { type: 'git', url: 'git+https://example.com/nothing.git' },
};

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'res-sse-publish-'));
  await mkdir(join(directory, '.ci'));
  await copyFile(join(root, '.ci/publish'), join(directory, '.ci/publish'));
  await write('package.json', JSON.stringify(MANIFEST));
  await write('CHANGELOG.md', '# Changelog\n\n## [1.2.3] - 2026-11-20\n');
  await git('init', '--quiet');
  await commit();
  await git('tag', 'v1.2.3');
});

afterEach(() => rm(directory, { recursive: true, force: true }));

async function write(file: string, text: string): Promise<void> {
  await writeFile(join(directory, file), text);
}

async function git(...args: string[]): Promise<void> {
  const identity = [
    '-c',
    'user.name=test',
    '-c',
    'user.email=test@example.com',
    '-c',
    'commit.gpgsign=false',
  ];
  await run('git', [...identity, ...args], { cwd: directory });
}

async function commit(): Promise<void> {
  await git('add', '--all');
  await git('commit', '--quiet', '--message', 'all');
}

/** Returns the error of the script, or an empty text if it would publish. */
async function publishError(): Promise<string> {
  return run(join(directory, '.ci/publish'), ['--dry-run'], { cwd: directory }).then(
    () => '',
    (error: { stderr: string }) => error.stderr.trim(),
  );
}

describe('.ci/publish', () => {
  test(
    'publishes a commit with the tag of its version and an entry in the changelog',
    { timeout: 60_000 },
    async () => {
      expect(await publishError()).toBe('');
    },
  );

  test('does not publish uncommitted changes', async () => {
    await write('more.js', '');
    expect(await publishError()).toBe('Something here is not committed.');
  });

  test('does not publish without the tag of the version', async () => {
    await write('more.js', '');
    await commit();
    expect(await publishError()).toBe(
      'This commit is not tagged v1.2.3, the version of package.json.',
    );
  });

  test('does not publish a version without an entry in the changelog', async () => {
    await write('CHANGELOG.md', '# Changelog\n\n## [Unreleased]\n');
    await commit();
    await git('tag', '--force', 'v1.2.3');
    expect(await publishError()).toBe('CHANGELOG.md says nothing of 1.2.3.');
  });

  test('does not publish without a repository field, which provenance needs', async () => {
    await write('package.json', JSON.stringify({ ...MANIFEST, repository: undefined }));
    await commit();
    await git('tag', '--force', 'v1.2.3');
    expect(await publishError()).toBe(
      'package.json names no repository; npm makes no provenance without one.',
    );
  });
});
