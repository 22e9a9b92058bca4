/** Runs the code blocks of the documentation without changes. */
import { readFile } from 'node:fs/promises';

const ROOT = new URL('../../', import.meta.url);

const BLOCK = /^```(?:js|ts) (\S+)\n([^]*?)^```$/gm;

const IMPORT = /^import (?:(\w+)(?:, )?)?(?:\{([^}]*)\})? from '([^']+)';$/gm;

/** @returns the code blocks of a page that have a name after their language, by that name */
export async function snippetsOf(page: string): Promise<ReadonlyMap<string, string>> {
  const text = await readFile(new URL(page, ROOT), 'utf8');
  return new Map([...text.matchAll(BLOCK)].map(([, name = '', code = '']) => [name, code]));
}

/**
 * Runs a snippet with the modules that it imports and the variables that it uses but does not
 * declare.
 * @param wanted names of variables that the snippet declares and that are returned
 */
export async function runSnippet<Wanted extends string = never>(
  code: string | undefined,
  modules: Record<string, object>,
  given: Record<string, unknown> = {},
  wanted: readonly Wanted[] = [],
  // The types of these variables are known only in the page.
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
