import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { read } from '../support/reader.ts';
import { within } from '../support/wait.ts';
import { pack, root, run } from './packed.ts';

const TIMEOUT = 180_000;

// From the oldest compiler that accepts the types in CommonJS to the compiler that builds this
// package.
const COMPILERS = {
  'TypeScript 5.8': 'typescript58@npm:typescript@5.8.3',
  'TypeScript 5.9': 'typescript59@npm:typescript@5.9.3',
  'TypeScript 6': 'typescript6@npm:typescript@6.0.3',
  'TypeScript 7': 'typescript7@npm:typescript@7.0.2',
};
const compilers = Object.entries(COMPILERS).map(
  ([name, spec]) => [name, `compilers/node_modules/${spec.split('@')[0]}/bin/tsc`] as const,
);

const compilerOptions = {
  module: 'nodenext',
  target: 'es2022',
  lib: ['es2023'],
  types: ['node'],
  strict: true,
  exactOptionalPropertyTypes: true,
  skipLibCheck: false,
};

/** The code of every app after its imports. */
const BODY = `
const app = express();
app.use(sse({ channels }));
app.get('/hello', (req, res) => {
  res.sse?.send({ hello: 'world' }, { event: 'greeting', id: 1 });
});
app.get('/listen', channels.listen('haiku'));
app.post('/speak', async (req, res) => {
  await channels.publish('haiku', { text: 'old pond' }, { event: 'text' });
  res.status(202).end();
});
const server = app.listen(0, '127.0.0.1', () => console.log(JSON.stringify(server.address())));
`;

const ESM = `
import express from 'express';
import { createChannels, sse } from 'res-sse';
const channels = createChannels();
${BODY}`;

const COMMONJS = `
const express = require('express');
const { createChannels, sse } = require('res-sse');
const channels = createChannels();
${BODY}`;

const TYPED = `
import express from 'express';
import { createChannels, sse, type EventStream } from 'res-sse';
interface Schema {
  haiku: { text: { text: string } };
}
const channels = createChannels<Schema>();
export function greet(stream: EventStream | undefined): boolean | undefined {
  return stream?.send('hello', 'greeting', 1n);
}
${BODY}`;

// Express and its types are not installed with this app, and must not be required.
const BARE = `
import { createServer } from 'node:http';
import { createChannels, sse, stream } from 'res-sse';
const channels = createChannels();
const events = sse({ channels });
const hello = stream((stream, req) => {
  stream.send({ hello: 'world', agent: req.headers['user-agent'] }, { event: 'greeting', id: 1 });
});
const listen = channels.listen('haiku');
const server = createServer((req, res) => {
  events(req, res, () => {
    if (req.url === '/hello') hello(req, res, console.error);
    else if (req.url === '/listen') listen(req, res, console.error);
    else void channels.publish('haiku', { text: 'old pond' }, { event: 'text' })
      .then(() => res.writeHead(202).end());
  });
});
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify(server.address())));
`;

let directory: string;
let tarball: string;
/** The versions of the development dependencies. */
let versions: Record<string, string>;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'res-sse-consumers-'));
  tarball = join(directory, (await pack('--pack-destination', directory)).filename);
  const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
    devDependencies: Record<string, string>;
  };
  versions = manifest.devDependencies;
  await install('compilers', Object.values(COMPILERS));
}, TIMEOUT);

afterAll(() => rm(directory, { recursive: true, force: true }));

/** Creates an app with these files, and installs the tarball and the packages. */
async function project(
  name: string,
  files: Record<string, string>,
  packages: readonly string[],
): Promise<string> {
  const cwd = join(directory, name);
  await mkdir(cwd);
  for (const [path, text] of Object.entries(files)) await writeFile(join(cwd, path), text);
  const specs = packages.map((each) => (each in versions ? `${each}@${versions[each]}` : each));
  await install(name, [tarball, ...specs]);
  return cwd;
}

async function install(name: string, specs: readonly string[]): Promise<void> {
  const cwd = join(directory, name);
  await mkdir(cwd, { recursive: true });
  await run(
    'npm',
    ['install', '--prefer-offline', '--no-audit', '--no-fund', '--no-save', ...specs],
    { cwd },
  );
}

async function compile(cwd: string, compiler: string): Promise<string> {
  // The compiler writes its findings to stdout.
  return run(process.execPath, [join(directory, compiler), '-p', '.'], { cwd }).then(
    () => '',
    (error: { stdout: string }) => error.stdout,
  );
}

/** Starts the app, and reads an event that it sends and an event that it publishes. */
async function expectEvents(cwd: string, file: string): Promise<void> {
  const app = spawn(process.execPath, [file], { cwd, stdio: ['ignore', 'pipe', 'inherit'] });
  const exit = once(app, 'exit');
  try {
    const [line] = await within<string[]>(
      `the address of ${file}`,
      once(createInterface(app.stdout), 'line'),
    );
    const { port } = JSON.parse(line ?? '') as { port: number };
    const url = `http://127.0.0.1:${port}`;

    using hello = await read(`${url}/hello`);
    expect(await hello.next()).toMatchObject({
      event: 'greeting',
      id: '1',
      data: expect.stringContaining('"hello":"world"'),
    });

    using reader = await read(`${url}/listen`);
    expect((await fetch(`${url}/speak`, { method: 'POST' })).status).toBe(202);
    expect(await reader.next()).toMatchObject({ event: 'text', data: '{"text":"old pond"}' });
  } finally {
    app.kill();
    await exit;
  }
}

test('an Express app in ES modules receives events', { timeout: TIMEOUT }, async () => {
  const cwd = await project('esm', { 'package.json': '{ "type": "module" }', 'app.js': ESM }, [
    'express',
  ]);
  await expectEvents(cwd, 'app.js');
});

test('an Express app in CommonJS receives events', { timeout: TIMEOUT }, async () => {
  const cwd = await project(
    'commonjs',
    { 'package.json': '{ "type": "commonjs" }', 'app.js': COMMONJS },
    ['express'],
  );
  await expectEvents(cwd, 'app.js');
});

describe('a strict TypeScript app without skipLibCheck', () => {
  let app: string;

  beforeAll(async () => {
    const files = {
      'package.json': '{ "type": "module" }',
      'app.ts': TYPED,
      'app.cts': TYPED.replace(
        "import express from 'express'",
        "import express = require('express')",
      ),
    };
    app = await project('typed', files, ['express', '@types/express', '@types/node']);
  }, TIMEOUT);

  test.each(compilers)(
    'compiles with %s, in ES modules and in CommonJS, and receives events',
    { timeout: TIMEOUT },
    async (_, compiler) => {
      await writeFile(
        join(app, 'tsconfig.json'),
        JSON.stringify({ compilerOptions, files: ['app.ts', 'app.cts'] }),
      );
      for (const file of ['app.js', 'app.cjs']) await rm(join(app, file), { force: true });
      expect(await compile(app, compiler)).toBe('');
      await expectEvents(app, 'app.js');
      await expectEvents(app, 'app.cjs');
    },
  );

  // `tsc -p test` checks these types in the sources. This test checks them in the package, also
  // with older compilers.
  test.each(compilers)(
    'passes the type tests of this repository with %s',
    { timeout: TIMEOUT },
    async (_, compiler) => {
      const types = join(root, 'test/types');
      const files = await readdir(types);
      expect(files.filter((file) => file.endsWith('.test-d.ts'))).not.toEqual([]);
      for (const file of files) {
        const text = await readFile(join(types, file), 'utf8');
        const imports = text
          .replaceAll('../../src/index.ts', 'res-sse')
          .replaceAll('../../src/client/index.ts', 'res-sse/client');
        await writeFile(join(app, file), imports);
      }
      const options = { ...compilerOptions, noEmit: true, allowImportingTsExtensions: true };
      await writeFile(
        join(app, 'tsconfig.json'),
        JSON.stringify({ compilerOptions: options, files }),
      );
      expect(await compile(app, compiler)).toBe('');
    },
  );
});

describe('a strict TypeScript app without Express and its types', () => {
  let app: string;

  beforeAll(async () => {
    const tsconfig = JSON.stringify({ compilerOptions, files: ['app.ts'] });
    const files = {
      'package.json': '{ "type": "module" }',
      'tsconfig.json': tsconfig,
      'app.ts': BARE,
    };
    app = await project('bare', files, ['@types/node']);
  }, TIMEOUT);

  test('has no Express packages', async () => {
    const packages = await readdir(join(app, 'node_modules'));
    expect(packages).toContain('res-sse');
    expect(packages).not.toContain('express');
    expect(await readdir(join(app, 'node_modules/@types'))).not.toContain('express');
  });

  test.each(compilers)(
    'compiles with %s and receives events',
    { timeout: TIMEOUT },
    async (_, compiler) => {
      await rm(join(app, 'app.js'), { force: true });
      expect(await compile(app, compiler)).toBe('');
      await expectEvents(app, 'app.js');
    },
  );
});
