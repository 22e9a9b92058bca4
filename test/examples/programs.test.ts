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

/** The programs; what the first lines of the second file say is run; so the answers begin. */
const PROGRAMS: [program: string, said: string, answers: RegExp[]][] = [
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
  '%s does what its first lines say, and ends at SIGTERM while a client listens',
  async (file, said, answers) => {
    await using program = await startProgram(file);
    const commands = await commandsIn(said, `npx tsx ${file}`);
    await tryOut(commands, { 3000: program.url }, answers, () => program.child.stop('SIGTERM'));
    expect([0, 'SIGTERM']).toContain(
      program.child.process.exitCode ?? program.child.process.signalCode,
    );
  },
);

test('dashboard/server.ts serves its page, and ends at SIGTERM', async () => {
  await commandsIn('dashboard/app.ts', 'npx tsx dashboard/server.ts');
  await using program = await startProgram('dashboard/server.ts');
  expect(await (await fetch(program.url)).text()).toContain("new EventSource('/load')");
  await program.child.stop('SIGTERM');
  expect(program.child.process.exitCode).toBe(0);
});

test('many-nodes/node.ts does what its first lines say, and ends at SIGTERM while a client listens', async () => {
  await using redis = await startRedis();
  const env = { REDIS_URL: redis.url };
  await using one = await startProgram('many-nodes/node.ts', env);
  await using other = await startProgram('many-nodes/node.ts', env);
  const commands = await commandsIn('many-nodes/node.ts', 'npx tsx many-nodes/node.ts');
  await tryOut(
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

/** The commands in a file's first comment; what stands behind two spaces is what they answer. */
async function commandsIn(file: string, starts: string): Promise<string[]> {
  const [comment = ''] = (await readFile(new URL(file, EXAMPLES), 'utf8')).split('*/');
  expect(comment).toContain(starts);
  return [...comment.matchAll(/^ \* {5}(curl .*?)(?: {2,}.*)?$/gm)].map(
    ([, command]) => command as string,
  );
}

/** Runs them one after the other; those that listen (`-N`) go on meanwhile, and are still there `atTheEnd`. */
async function tryOut(
  commands: string[],
  addresses: Record<number, string>,
  answers: RegExp[],
  atTheEnd: () => Promise<void>,
): Promise<void> {
  expect(commands.length).toBe(answers.length);
  const dir = mkdtempSync(join(tmpdir(), 'res-sse-examples-'));
  await using running = new Running();
  try {
    for (const command of commands) {
      const child = running.start(dir, filledIn(command, addresses, running.children[0]?.output));
      if (command.includes(' -N ')) {
        await until(`${command} to listen`, () => /^(:|data:)/m.test(child.output));
      } else await within(command, child.ended);
    }
    for (const [index, answer] of answers.entries()) {
      const child = running.children[index] as Child;
      await until(`${commands[index]} to be answered with ${answer}, not ${child.output}`, () =>
        answer.test(child.output),
      );
    }
    await atTheEnd();
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** The addresses of this run, and for `/jobs/…/events` the job that was begun. */
function filledIn(command: string, addresses: Record<number, string>, begun = ''): string {
  const job = /\/jobs\/[\w-]+\/events/.exec(begun)?.[0] ?? '';
  return command
    .replace(/localhost:(\d+)/, (_, port) => (addresses[port] as string).replace('http://', ''))
    .replace('/jobs/…/events', () => job);
}

class Running implements AsyncDisposable {
  readonly children: Child[] = [];

  /** `curl -sS`, so that nothing but the answer is printed; no globbing, which would take `[::1]` for a range. */
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
