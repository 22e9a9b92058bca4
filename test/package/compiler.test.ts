/** Errors of the compiler for wrong programs, and the members of a stream that an editor offers. */
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { root, run } from './packed.ts';

const TIMEOUT = 120_000;

const PREAMBLE = `
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

const MISSING_EVENT = `channel haiku has no event message; pass { event: 'text' }`;
const NAMES = `'"haiku" | "news"'`;

const cases: [program: string, texts: readonly string[]][] = [
  [`channels.publish('haiku', { text: 'x' })`, [MISSING_EVENT]],
  [`channels.publish('haiku', body)`, [MISSING_EVENT]],
  [`haiku.publish({ text: 'x' })`, [MISSING_EVENT]],
  [`haiku.publish(body)`, [MISSING_EVENT]],
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

/** Returns the errors of the compiler in a program that imports the package from `entry`. */
async function compileErrors(name: string, text: string, entry: string): Promise<string> {
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

describe('the compiler names the wrong channel or event, and the valid names, for', () => {
  const FIRST = PREAMBLE.split('\n').length;
  /** The errors with their details, by the line of the program. */
  const errors = new Map<number, string[]>();

  beforeAll(async () => {
    const text = PREAMBLE + cases.map(([program]) => `void ${program};\n`).join('');
    for (const error of (await compileErrors('wrong', text, 'src/index.ts')).split(/^(?=\S)/m)) {
      const line = Number(/^wrong\.ts\((\d+),/.exec(error)?.[1] ?? 0);
      errors.set(line, [...(errors.get(line) ?? []), error]);
    }
  }, TIMEOUT);

  test.each(cases.map(([program, texts], index) => [program, texts, FIRST + index] as const))(
    '%s',
    (_program, texts, line) => {
      const lineErrors = errors.get(line) ?? [];
      expect(lineErrors).toHaveLength(1);
      for (const text of texts) expect(lineErrors[0]).toContain(text);
      expect(lineErrors[0]).not.toMatch(/'never'|No overload/);
    },
  );

  test('no other line', () => {
    expect([...errors.keys()].toSorted((a, b) => a - b)).toEqual(
      cases.map((_, index) => FIRST + index),
    );
  });
});

test(
  'an editor offers the documented members of a stream, and no internal members',
  { timeout: TIMEOUT },
  async () => {
    const text = `
import type { EventStream } from 'res-sse';
type Members<T> = \`\${keyof T & string}.\`;
export const members: 'none' = '' as Members<EventStream>;`;
    const [, union = ''] =
      /^members\.ts\(4,\d+\): error TS2322: Type '(.+)' is not/m.exec(
        await compileErrors('members', text, 'dist/index.d.ts'),
      ) ?? [];
    expect(
      union
        .split(' | ')
        .map((name) => name.slice(1, -2))
        .toSorted(),
    ).toEqual([
      'bufferedAmount',
      'channels',
      'close',
      'closed',
      'comment',
      'cursor',
      'drained',
      'id',
      'lag',
      'lastEventId',
      'open',
      'openedAt',
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
