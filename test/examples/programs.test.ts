import { mkdtempSync, rmSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { start, type Child } from '../support/child.ts';
import { startRedis } from '../support/redis-server.ts';
import { until, within } from '../support/wait.ts';
import { startProgram } from './program.ts';

const EXAMPLES = new URL('../../examples/', import.meta.url);

/** The programs, the files whose first comment has the commands, and the start of each answer. */
const PROGRAMS: [program: string, commandFile: string, answers: RegExp[]][] = [
  [
    'job-progress/server.ts',
    'job-progress/app.ts',
    [/^\{"id":"[\w-]+","events":"\/jobs\/[\w-]+\/events"\}$/, /data: \{"percent":0\}/],
  ],
  ['llm-tokens/server.ts', 'llm-tokens/app.ts', [/data: \{"token":"You"\}/]],
  [
    'private-channels/server.ts',
    'private-channels/app.ts',
    [/^$/, /data: \{"from":"ada","text":"hello"\}/, /^Accepted$/, /^$/],
  ],
  ['frameworks/fastify.ts', 'frameworks/fastify.ts', [/data: \{"text":"hello"\}/, /^$/]],
  ['frameworks/koa.ts', 'frameworks/koa.ts', [/data: \{"text":"hello"\}/, /^Accepted$/]],
  ['frameworks/nestjs.ts', 'frameworks/nestjs.ts', [/data: \{"text":"hello"\}/, /^$/]],
];

test.each(PROGRAMS)(
  '%s answers the commands of its comment, and exits on SIGTERM with an open stream',
  async (file, commandFile, answers) => {
    await using program = await startProgram(file);
    const commands = await commandsIn(commandFile, `npx tsx ${file}`);
    await runCommands(commands, { 3000: program.url }, answers, () =>
      program.child.stop('SIGTERM'),
    );
    expect([0, 'SIGTERM']).toContain(
      program.child.process.exitCode ?? program.child.process.signalCode,
    );
  },
);

test('dashboard/server.ts serves its page, and exits on SIGTERM', async () => {
  await commandsIn('dashboard/app.ts', 'npx tsx dashboard/server.ts');
  await using program = await startProgram('dashboard/server.ts');
  expect(await (await fetch(program.url)).text()).toContain("connect('/load'");
  const client = await fetch(new URL('/client.js', program.url));
  expect(client.headers.get('content-type')).toContain('javascript');
  expect(await client.text()).toContain('connect');
  await program.child.stop('SIGTERM');
  expect(program.child.process.exitCode).toBe(0);
});

test('many-nodes/node.ts answers the commands of its comment, and exits on SIGTERM', async () => {
  await using redis = await startRedis();
  const env = { REDIS_URL: redis.url };
  await using one = await startProgram('many-nodes/node.ts', env);
  await using other = await startProgram('many-nodes/node.ts', env);
  const commands = await commandsIn('many-nodes/node.ts', 'npx tsx many-nodes/node.ts');
  await runCommands(
    commands,
    { 3001: one.url, 3002: other.url },
    [/data: \{"text":"hello"\}/, /^\{"id":"[\w.-]+"\}$/],
    async () => {
      for (const { child } of [one, other]) {
        await child.stop('SIGTERM');
        expect(child.process.exitCode).toBe(0);
      }
    },
  );
});

test('the README names every example', async () => {
  const readme = await readFile(new URL('README.md', EXAMPLES), 'utf8');
  const entries = await readdir(EXAMPLES, { withFileTypes: true });
  const folders = entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  expect(folders.filter((name) => !readme.includes(`](${name}/`))).toEqual([]);
});

/**
 * Returns the commands in the first comment of a file. Text after two spaces is the answer and is
 * ignored.
 */
async function commandsIn(file: string, starts: string): Promise<string[]> {
  const [comment = ''] = (await readFile(new URL(file, EXAMPLES), 'utf8')).split('*/');
  expect(comment).toContain(starts);
  return [...comment.matchAll(/^ \* {5}(curl .*?)(?: {2,}.*)?$/gm)].map(
    ([, command]) => command as string,
  );
}

/**
 * Runs the commands one after the other and compares their answers. Commands with `-N` keep running
 * until `atTheEnd` has resolved.
 */
async function runCommands(
  commands: string[],
  addresses: Record<number, string>,
  answers: RegExp[],
  atTheEnd: () => Promise<void>,
): Promise<void> {
  expect(commands.length).toBe(answers.length);
  const dir = mkdtempSync(join(tmpdir(), 'res-sse-examples-'));
  await using running = new RunningCommands();
  try {
    for (const command of commands) {
      const child = running.start(dir, fillIn(command, addresses, running.children[0]?.output));
      if (command.includes(' -N ')) {
        await until(`the start of ${command}`, () => /^(:|data:)/m.test(child.output));
      } else await within(command, child.ended);
    }
    for (const [index, answer] of answers.entries()) {
      const child = running.children[index] as Child;
      await until(`answer ${answer} of ${commands[index]} instead of ${child.output}`, () =>
        answer.test(child.output),
      );
    }
    await atTheEnd();
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** Replaces the addresses by those of this run, and `/jobs/…/events` by the started job. */
function fillIn(command: string, addresses: Record<number, string>, jobOutput = ''): string {
  const job = /\/jobs\/[\w-]+\/events/.exec(jobOutput)?.[0] ?? '';
  return command
    .replace(/localhost:(\d+)/, (_, port) => (addresses[port] as string).replace('http://', ''))
    .replace('/jobs/…/events', () => job);
}

class RunningCommands implements AsyncDisposable {
  readonly children: Child[] = [];

  /**
   * `curl -sS` prints only the answer. `-g` disables globbing, which would treat `[::1]` as a
   * range.
   */
  start(dir: string, command: string): Child {
    const child = start('sh', [
      '-c',
      `cd '${dir}' && exec ${command.replace(/^curl/, 'curl -sSg')}`,
    ]);
    this.children.push(child);
    return child;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.children.map((child) => child[Symbol.asyncDispose]()));
  }
}
