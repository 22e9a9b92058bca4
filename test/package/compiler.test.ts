/** What the compiler says of wrong programs, and what an editor offers of a stream. */
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { root, run } from './packed.ts';

const TIMEOUT = 120_000;

const BEFORE = `
import { createChannels, stream as route, type EventStream, type PublishOptions } from 'res-sse';
interface Schema {
  haiku: { text: { text: string }; typing: { author: string } };
  news: { message: string; flash: { headline: string } };
}
const channels = createChannels<Schema>();
declare const body: any;
declare const stream: EventStream<Schema>;
const [haiku, news] = [channels.channel('haiku'), channels.channel('news')];
`;

const FORGOTTEN = `channel haiku has no event message; pass { event: 'text' }`;
const NAMES = `'"haiku" | "news"'`;

const wrong: [program: string, says: readonly string[]][] = [
  [`channels.publish('haiku', { text: 'x' })`, [FORGOTTEN]],
  [`channels.publish('haiku', body)`, [FORGOTTEN]],
  [`haiku.publish({ text: 'x' })`, [FORGOTTEN]],
  [`haiku.publish(body)`, [FORGOTTEN]],
  [
    `channels.publish('haiku', { text: 'x' }, { retry: 1_000 })`,
    [`Property 'event' is missing`, `"text" | "typing"`],
  ],
  [
    `haiku.publish({ text: 'x' }, { retry: 1_000 })`,
    [`Property 'event' is missing`, `"text" | "typing"`],
  ],
  [
    `channels.publish('haiku', { text: 'x' }, { event: 'txt' })`,
    [`'"txt"'`, `'"text" | "typing"'`],
  ],
  [`haiku.publish({ text: 'x' }, { event: 'txt' })`, [`'"txt"'`, `'"text" | "typing"'`]],
  [
    `channels.publish('haiku', { txt: 'x' }, { event: 'text' })`,
    [`'txt' does not exist in type '{ text: string; }'`],
  ],
  [
    `channels.publish('news', { headline: 'x' })`,
    [`is not assignable to parameter of type 'string'`],
  ],
  [`news.publish({ headline: 'x' })`, [`is not assignable to parameter of type 'string'`]],
  [`channels.publish('hiaku', { text: 'x' }, { event: 'text' })`, [`'"hiaku"'`, NAMES]],
  [`channels.publish('nwes', 'x')`, [`'"nwes"'`, NAMES]],
  [`channels.channel('hiaku')`, [`'"hiaku"'`, NAMES]],
  [`channels.clear('hiaku')`, [`'"hiaku"'`, NAMES]],
  [`channels.listen('hiaku')`, [`'"hiaku"'`, `"haiku" | "news"`]],
  [`channels.listen(['haiku', 'hiaku'])`, [`'"hiaku"'`, NAMES]],
  [`channels.listen(() => 'hiaku')`, [`'"hiaku"'`, `"haiku" | "news"`]],
  [`channels.subscribe(stream, 'hiaku')`, [`'"hiaku"'`, `"haiku" | "news"`]],
  [`channels.subscribe(stream, ['haiku', 'hiaku'])`, [`'"hiaku"'`, NAMES]],
  [`stream.subscribe('hiaku')`, [`'"hiaku"'`, `"haiku" | "news"`]],
  [
    `route((stream: EventStream<Schema>) => stream.subscribe('hiaku'))`,
    [`'"hiaku"'`, `"haiku" | "news"`],
  ],
];

let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'res-sse-compiler-'));
  await symlink(join(root, 'node_modules'), join(directory, 'node_modules'));
  await writeFile(join(directory, 'package.json'), '{ "type": "module" }');
});

afterAll(() => rm(directory, { recursive: true, force: true }));

/** What the compiler finds in a program that imports the package from the entry. */
async function findings(name: string, text: string, entry: string): Promise<string> {
  const compilerOptions = {
    module: 'nodenext',
    target: 'es2023',
    types: ['node'],
    noEmit: true,
    strict: true,
    noErrorTruncation: true,
    allowImportingTsExtensions: true,
    skipLibCheck: true,
    paths: { 'res-sse': [join(root, entry)] },
  };
  const config = join(directory, `${name}.json`);
  await writeFile(config, JSON.stringify({ compilerOptions, files: [`${name}.ts`] }));
  await writeFile(join(directory, `${name}.ts`), text);
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  return run(process.execPath, [tsc, '-p', config, '--pretty', 'false'], { cwd: directory }).then(
    () => '',
    (error: { stdout: string }) => error.stdout,
  );
}

describe('the compiler names the channel or the event that is wrong, and those that there are, for', () => {
  const FIRST = BEFORE.split('\n').length;
  /** Each error with its details, by the line of its program. */
  const errors = new Map<number, string[]>();

  beforeAll(async () => {
    const text = BEFORE + wrong.map(([program]) => `void ${program};\n`).join('');
    for (const error of (await findings('wrong', text, 'src/index.ts')).split(/^(?=\S)/m)) {
      const line = Number(/^wrong\.ts\((\d+),/.exec(error)?.[1] ?? 0);
      errors.set(line, [...(errors.get(line) ?? []), error]);
    }
  }, TIMEOUT);

  test.each(wrong.map(([program, says], index) => [program, says, FIRST + index] as const))(
    '%s',
    (_program, says, line) => {
      const found = errors.get(line) ?? [];
      expect(found).toHaveLength(1);
      for (const text of says) expect(found[0]).toContain(text);
      expect(found[0]).not.toMatch(/'never'|No overload/);
    },
  );

  test('nothing else', () => {
    expect([...errors.keys()].toSorted((a, b) => a - b)).toEqual(
      wrong.map((_, index) => FIRST + index),
    );
  });
});

test(
  'an editor offers these members of a stream, and none of the library’s own',
  { timeout: TIMEOUT },
  async () => {
    const text = `
import type { EventStream } from 'res-sse';
type Members<T> = \`\${keyof T & string}.\`;
export const members: 'none' = '' as Members<EventStream>;`;
    const [, union = ''] =
      /^members\.ts\(4,\d+\): error TS2322: Type '(.+)' is not/m.exec(
        await findings('members', text, 'dist/index.d.ts'),
      ) ?? [];
    expect(
      union
        .split(' | ')
        .map((name) => name.slice(1, -2))
        .toSorted(),
    ).toEqual([
      'bufferedAmount',
      'close',
      'closed',
      'comment',
      'drained',
      'lastEventId',
      'open',
      'pipe',
      'readyState',
      'req',
      'res',
      'send',
      'signal',
      'subscribe',
    ]);
  },
);
