/** The code blocks of the documentation, run as they stand there. */
import { readFile } from 'node:fs/promises';

const ROOT = new URL('../../', import.meta.url);

const BLOCK = /^```(?:js|ts) (\S+)\n([^]*?)^```$/gm;

const IMPORT = /^import (?:(\w+)(?:, )?)?(?:\{([^}]*)\})? from '([^']+)';$/gm;

/** The blocks of a page that have a name after their language, by that name. */
export async function snippetsOf(page: string): Promise<ReadonlyMap<string, string>> {
  const text = await readFile(new URL(page, ROOT), 'utf8');
  return new Map([...text.matchAll(BLOCK)].map(([, name = '', code = '']) => [name, code]));
}

/**
 * Runs a snippet with the modules that it imports and the names that it takes for granted.
 * @param wanted the names that it declares and the caller wants
 */
export async function runSnippet<Wanted extends string = never>(
  code: string | undefined,
  modules: Record<string, object>,
  given: Record<string, unknown> = {},
  wanted: readonly Wanted[] = [],
  // The declarations of this file are known to the page only.
  // oxlint-disable-next-line typescript/no-explicit-any
): Promise<Record<Wanted, any>> {
  if (code === undefined) throw new Error('there is no snippet of this name');
  const body = code.replaceAll(
    IMPORT,
    (line, byDefault: string | undefined, named: string | undefined, from: string) => {
      if (modules[from] === undefined) {
        throw new Error(`the snippet has an import that the test has not: ${line}`);
      }
      const module = `modules[${JSON.stringify(from)}]`;
      const first = byDefault === undefined ? '' : `const ${byDefault} = ${module}.default; `;
      return (
        first +
        (named === undefined ? '' : `const {${named.replaceAll(' as ', ': ')}} = ${module};`)
      );
    },
  );
  const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor as FunctionConstructor;
  const names = Object.keys(given);
  const run = new AsyncFunction('modules', ...names, `${body}\nreturn { ${wanted.join(', ')} };`);
  return run(modules, ...names.map((name) => given[name]));
}
