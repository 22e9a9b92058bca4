import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, root } from './pages.ts';

async function json<T>(path: string): Promise<T> {
  return JSON.parse(await readFile(join(root, path), 'utf8')) as T;
}

/** The source of each entry, by the heading of its section in the reference. */
const entries = {
  'res-sse': 'src/index.ts',
  'res-sse/redis': 'src/brokers/redis.ts',
  'res-sse/client': 'src/client/index.ts',
  'res-sse/testing': 'src/testing/index.ts',
};

// The contract of brokers and the types of a schema: the reference names them, and the source
// describes their members.
const NAMED_ONLY = new Set([
  'Broker',
  'Cursor',
  'HistoryLimits',
  'Lease',
  'LogBounds',
  'LogEntry',
  'LogEntryInit',
  'LogRead',
  'OwnEvents',
  'Page',
  'Publication',
  'Receiver',
  'RedisClient',
  'TypedEventSource',
  'TypedMessageEvent',
]);

/** An exported name, and the file that declares it. */
interface Export {
  readonly name: string;
  readonly file: string;
}

/** Returns the exports of an entry. */
async function exportsOf(entry: string): Promise<Export[]> {
  const text = await readFile(join(root, entry), 'utf8');
  const own = [...text.matchAll(/^export (?:function|interface|class) (\w+)/gm)];
  const passedOn = [...text.matchAll(/^export (?:type )?\{([^}]*)\} from '([^']+)'/gm)];
  return [
    ...own.map(([, name = '']) => ({ name, file: entry })),
    ...passedOn.flatMap(([, names = '', from = '']) =>
      [...names.matchAll(/\w+/g)].map(([name]) => ({ name, file: join(dirname(entry), from) })),
    ),
  ];
}

/** Returns the members of an interface or class, or none if the name is something else. */
async function membersOf({ name, file }: Export): Promise<string[]> {
  const text = await readFile(join(root, file), 'utf8');
  const declaration = new RegExp(
    `^export (?:interface|class) ${name}\\b[^{]*\\{\\n([^]*?)^\\}`,
    'm',
  );
  const [, body = ''] = declaration.exec(text) ?? [];
  // The comment before a member says whether the member is internal.
  const code = body.replaceAll(/^ *\/\*\*[^]*?\*\/\n/gm, (comment) =>
    comment.includes('@internal') ? '@internal\n' : '',
  );
  return [...code.matchAll(/^ {2}(?:readonly |async |get )*(\w+)\??[(:<]/gm)]
    .filter(({ index }) => !code.slice(0, index).endsWith('@internal\n'))
    .map(([, member = '']) => member)
    .filter((member) => !['constructor', 'static'].includes(member));
}

/**
 * Returns the names that a section describes: in the code of first cells, in objects such as
 * `{ id, events }`, and in the code of a line that names the type.
 */
function describedIn(section: string, type: string): Set<string> {
  const cells = [...section.matchAll(/^\| ((?:`[^`]*`|[^|`])*) \|/gm)].map(([, cell = '']) => cell);
  const objects = [...section.matchAll(/`\{[^`]*\}`/g)].map(([text]) => text);
  const lines = section.split('\n').filter((line) => new RegExp(`\`${type}\\b`).test(line));
  const code = lines.flatMap((line) => line.match(/`[^`]*`/g) ?? []);
  return new Set([...cells, ...objects, ...code].flatMap((text) => text.match(/\w+/g) ?? []));
}

const { text: page } = await pageOf('docs/reference.md');
const sections = new Map(
  page.split(/^## /m).map((section) => [section.split('\n')[0] ?? '', section]),
);

describe.each(Object.entries(entries))('the section of %s in docs/reference.md', (name, entry) => {
  const section = sections.get(name) ?? '';

  test('names every export of the entry', async () => {
    const exported = await exportsOf(entry);
    expect(exported.length).toBeGreaterThan(1);
    const missing = exported.filter(({ name: each }) => !new RegExp(`\\b${each}\\b`).test(section));
    expect(missing).toEqual([]);
  });

  test('names every option and every member of the exported types', async () => {
    const missing: string[] = [];
    let count = 0;
    for (const each of await exportsOf(entry)) {
      if (NAMED_ONLY.has(each.name)) continue;
      const members = await membersOf(each);
      const described = describedIn(section, each.name);
      count += members.length;
      for (const member of members.filter((one) => !described.has(one))) {
        missing.push(`${each.name}.${member}`);
      }
    }
    expect(missing).toEqual([]);
    expect(count).toBeGreaterThan(4);
  });
});

test('the entries above are the entries of the package, and of the generated reference', async () => {
  const { exports } = await json<{ exports: Record<string, string | { default: string }> }>(
    'package.json',
  );
  const { entryPoints } = await json<{ entryPoints: string[] }>('docs/api-tool/typedoc.json');
  const sources = Object.values(exports).flatMap((entry) =>
    typeof entry === 'string'
      ? []
      : [entry.default.replace('./dist/', 'src/').replace(/\.js$/, '.ts')],
  );
  expect(Object.values(entries).toSorted()).toEqual(sources.toSorted());
  expect(entryPoints.map((path) => path.replace('../../', '')).toSorted()).toEqual(
    sources.toSorted(),
  );
});
