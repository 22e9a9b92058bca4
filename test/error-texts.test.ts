/** The texts of errors and warnings end with the address of their section in `docs/errors.md`. */
import { readFile, readdir } from 'node:fs/promises';
import express from 'express';
import request from 'supertest';
import { expect, test } from 'vitest';
import { emitWarning } from '../src/common/emit-warning.ts';
import { createChannels, sse, SseError } from '../src/index.ts';
import { pageOf } from './docs/pages.ts';

const PREFIX = 'res-sse/docs/errors.md#';
const SRC = new URL('../src/', import.meta.url);

/** Returns the members of a union of codes, as a file of `src` declares it. */
async function codesOf<Code extends string>(file: string, union: string): Promise<Code[]> {
  const text = await readFile(new URL(file, SRC), 'utf8');
  const [declaration = ''] = new RegExp(`export type ${union} =[^;]+;`).exec(text) ?? [];
  return [...declaration.matchAll(/'(\w+)'/g)].map(([, code]) => code as Code);
}

/** Returns the anchor in the address at the end of a text. */
function anchorAtEnd(text: string): string | undefined {
  return new RegExp(`\\(${PREFIX}(\\w+)\\)$`).exec(text)?.[1];
}

test('the message of each error ends with the address of its section', async () => {
  const { anchors } = await pageOf('docs/errors.md');
  const codes = await codesOf<SseError['code']>('common/errors.ts', 'SseErrorCode');
  expect(codes).toContain('ERR_SSE_OPTION');
  for (const code of codes) {
    const { message } = new SseError(code, 'something is wrong');
    expect(message).toBe(`something is wrong (${PREFIX}${code.toLowerCase()})`);
    expect(anchors).toContain(anchorAtEnd(message));
  }
});

test('the detail of each warning ends with the address of its section', async () => {
  const { anchors } = await pageOf('docs/errors.md');
  const codes = await codesOf<Parameters<typeof emitWarning>[0]>(
    'common/emit-warning.ts',
    'WarningCode',
  );
  expect(codes).toContain('RES_SSE_MOUNTED_TWICE');
  const details: string[] = [];
  const note = (warning: Error): void =>
    void details.push((warning as Error & { detail: string }).detail);
  process.on('warning', note);
  for (const code of codes) emitWarning(code, 'a test', 'Ignore this.');
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', note);
  expect(details).toHaveLength(codes.length);
  for (const detail of details) expect(anchors).toContain(anchorAtEnd(detail));
});

test('all warnings of the library are emitted by emitWarning()', async () => {
  const files = (await readdir(SRC, { recursive: true })).filter((file) => file.endsWith('.ts'));
  const emitting: string[] = [];
  for (const file of files) {
    const code = (await readFile(new URL(file, SRC), 'utf8')).replaceAll(/^ *\*.*$/gm, '');
    if (code.includes('process.emitWarning')) emitting.push(file);
  }
  expect(emitting).toEqual(['common/emit-warning.ts']);
});

test('an answer to a client has no address of a document of the server', async () => {
  const channels = createChannels();
  const app = express();
  app.use(sse({ channels, maxStreams: 0, whenFull: 'reject' }));
  app.get('/', channels.listen('news'));
  for (const type of ['text/plain', 'application/json', 'text/event-stream']) {
    const { status, text } = await request(app).get('/').set('Accept', type);
    expect([406, 503]).toContain(status);
    expect(text).not.toContain('docs/');
  }
});
