import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { pageOf, resolved } from '../docs/pages.ts';
import { pack, root, run } from './packed.ts';

async function read(path: string): Promise<string> {
  return readFile(join(root, path), 'utf8');
}

async function sources(): Promise<string[]> {
  const files = await readdir(join(root, 'src'), { recursive: true });
  return files.filter((file) => file.endsWith('.ts')).toSorted();
}

function codesIn(text: string): string[] {
  return [...new Set(text.match(/ERR_SSE_[A-Z_]+/g))].toSorted();
}

describe('the built package', () => {
  // In a process of its own, because the test runner has its own module loader.
  async function loadPackage(): Promise<{ imported: string[]; required: string[]; same: boolean }> {
    const program = `
      import { createRequire } from 'node:module';
      const imported = await import('res-sse');
      const required = createRequire(import.meta.url)('res-sse');
      const names = Object.keys(imported);
      const same = names.every((name) => imported[name] === required[name]);
      console.log(JSON.stringify({ imported: names, required: Object.keys(required), same }));`;
    const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', program], {
      cwd: root,
    });
    return JSON.parse(stdout) as Awaited<ReturnType<typeof loadPackage>>;
  }

  test('exports exactly the documented names', async () => {
    expect((await loadPackage()).imported).toMatchInlineSnapshot(`
      [
        "EventStream",
        "LogEntry",
        "SseError",
        "createChannels",
        "memoryBroker",
        "sse",
        "stream",
      ]
    `);
  });

  test('provides the same objects for import and require()', async () => {
    const { imported, required, same } = await loadPackage();
    expect(required.filter((name) => name !== '__esModule' && name !== 'module.exports')).toEqual(
      imported,
    );
    expect(same).toBe(true);
  });

  test('has exactly the documented entries', async () => {
    expect((JSON.parse(await read('package.json')) as { exports: unknown }).exports)
      .toMatchInlineSnapshot(`
      {
        ".": {
          "default": "./dist/index.js",
          "types": "./dist/index.d.ts",
        },
        "./client": {
          "default": "./dist/client/index.js",
          "types": "./dist/client/index.d.ts",
        },
        "./package.json": "./package.json",
        "./redis": {
          "default": "./dist/brokers/redis.js",
          "types": "./dist/brokers/redis.d.ts",
        },
        "./testing": {
          "default": "./dist/testing/index.js",
          "types": "./dist/testing/index.d.ts",
        },
      }
    `);
  });

  test('contains only the build, its sources, the documents and the examples', async () => {
    const { files } = await pack('--dry-run');
    const expected = ['LICENSE', 'package.json', 'llms.txt', 'examples/tsconfig.json'];
    for (const file of await sources()) {
      expected.push(`src/${file}`);
      for (const extension of ['.d.ts', '.d.ts.map', '.js', '.js.map']) {
        expected.push(`dist/${file.replace(/\.ts$/, extension)}`);
      }
    }
    const documents = /^(\w+\.md|docs\/[\w-]+\.(md|svg)|examples\/[\w/.-]+\.(html|md|ts))$/;
    const others = files.map((file) => file.path).filter((path) => !documents.test(path));
    expect(others.toSorted()).toEqual(expected.toSorted());
  });

  // In `node_modules` there is nothing but the files of the package.
  test('has every file to which one of its documents links', async () => {
    const paths = (await pack('--dry-run')).files.map((file) => file.path);
    const documents = paths.filter((path) => /\.(md|txt)$/.test(path));
    expect(documents).toEqual(expect.arrayContaining(['README.md', 'llms.txt', 'docs/README.md']));
    const missing: string[] = [];
    for (const page of await Promise.all(documents.map(pageOf))) {
      for (const link of page.links) {
        const { path } = resolved(page, link) ?? {};
        if (path !== undefined && !paths.includes(path)) missing.push(`${page.path}: ${path}`);
      }
    }
    expect(missing).toEqual([]);
  });
});

describe('every error code', () => {
  async function declaredCodes(): Promise<string[]> {
    const [union] =
      /export type SseErrorCode =[^;]+;/.exec(await read('src/common/errors.ts')) ?? [];
    const codes = codesIn(union ?? '');
    expect(codes).toContain('ERR_SSE_OPTION');
    return codes;
  }

  /** All source without comments, because a code in a comment is not used. */
  async function code(): Promise<string> {
    const texts = await Promise.all((await sources()).map(async (file) => read(`src/${file}`)));
    return texts
      .join('\n')
      .replace(/export type SseErrorCode =[^;]+;/, '')
      .replaceAll(/\/\*[^]*?\*\/|^\s*\/\/.*$/gm, '');
  }

  test('of SseErrorCode is thrown in the source', async () => {
    const used = codesIn(await code());
    expect((await declaredCodes()).filter((each) => !used.includes(each))).toEqual([]);
  });

  test('of the source is in docs/reference.md, which has no other code', async () => {
    expect(codesIn(await read('docs/reference.md'))).toEqual(
      [...new Set([...(await declaredCodes()), ...codesIn(await code())])].toSorted(),
    );
  });
});
