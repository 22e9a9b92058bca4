import { readFile } from 'node:fs/promises';
import express from 'express';
import request from 'supertest';
import { describe, expect, test } from 'vitest';
import { SseError, sse, type SseOptions } from '../src/index.ts';
import { drawRetry } from '../src/common/retry-range.ts';
import { resolveStreamOptions } from '../src/stream/stream-options.ts';
import { serveStreams } from './support/app.ts';
import { read } from './support/reader.ts';

function refusal(options: unknown): string {
  try {
    sse(options as SseOptions);
  } catch (error) {
    expect(error).toBeInstanceOf(SseError);
    expect((error as SseError).code).toBe('ERR_SSE_OPTION');
    // Without the address of the section of the code.
    return (error as SseError).message.replace(/ \(res-sse\/docs\/[^)]*\)$/, '');
  }
  return 'nothing was thrown';
}

const keyOf = (): string => 'all';

describe('sse(options)', () => {
  test('an unknown option is refused with the names of those there are', () => {
    expect(refusal({ hartbeat: 5 })).toBe(
      'unknown option `hartbeat` of sse(); it takes channels, heartbeat, retry, serialize, maxBuffered, onSlow, stallTimeout, maxLifetime, maxSubscriptions, headers, maxStreams, maxStreamsPer, whenFull, identity, authorize, warnings, accept, onError',
    );
    expect(refusal({ toString: 5 })).toContain('unknown option `toString`');
  });

  test('the refusal names the option, the range, the unit and what was given', () => {
    expect(refusal({ stallTimeout: 0 })).toBe(
      'expected `stallTimeout` of sse() to be a whole number of ms from 1 to 2147483647 or false, got 0 (number)',
    );
    expect(refusal({ maxBuffered: '1mb' })).toBe(
      'expected `maxBuffered` of sse() to be a whole number of bytes from 0 to 9007199254740991, got "1mb" (string)',
    );
  });

  test.each([
    [null],
    ['heartbeat'],
    [{ heartbeat: true }],
    [{ heartbeat: 0 }],
    [{ heartbeat: 2_147_483_648 }],
    [{ heartbeat: 1.5 }],
    [{ heartbeat: { interval: 0 } }],
    [{ heartbeat: { every: 5 } }],
    [{ retry: -1 }],
    [{ retry: 2 ** 31 }],
    [{ retry: { min: 5, max: 2 ** 31 } }],
    [{ retry: { min: 5, max: 4 } }],
    [{ retry: { min: 5 } }],
    [{ retry: '5' }],
    [{ serialize: 'json' }],
    [{ onSlow: 'wait' }],
    [{ maxLifetime: false }],
    [{ maxSubscriptions: 0 }],
    [{ maxSubscriptions: Infinity }],
    [{ headers: [] }],
    [{ headers: { 'X-A': 'a\r\nX-B: forged' } }],
    [{ headers: { 'X A': 'a' } }],
    [{ headers: { 'content-type': 'text/plain' } }],
    [{ headers: { 'Content-Type': 'text/event-stream' } }],
    [{ headers: { 'Content-Type': ['text/event-stream; charset=utf-8'] } }],
    [{ headers: { Connection: 'close' } }],
    [{ headers: { 'X-A': {} } }],
    [{ accept: 'all' }],
    [{ channels: {} }],
    [{ maxStreams: -1 }],
    [{ maxStreams: Infinity }],
    [{ maxStreamsPer: 6 }],
    [{ maxStreamsPer: { limit: 6 } }],
    [{ maxStreamsPer: { key: 'ip', limit: 6 } }],
    [{ maxStreamsPer: { key: keyOf } }],
    [{ maxStreamsPer: { key: keyOf, limit: 1.5 } }],
    [{ maxStreamsPer: { key: keyOf, limit: 6, perHour: 5 } }],
    [{ maxStreamsPer: { key: keyOf, limit: 6, perMinute: '5' } }],
    [{ whenFull: 'wait' }],
    [{ warnings: 'off' }],
    [{ onError: true }],
  ])('%j is refused', (options) => {
    expect(refusal(options)).toMatch(/^expected /);
  });

  test.each([
    [{ heartbeat: undefined, retry: undefined, accept: undefined }],
    [{ heartbeat: false, stallTimeout: false }],
    [{ heartbeat: { visible: true } }],
    [{ heartbeat: { interval: 5, visible: false } }],
    [{ retry: 0 }],
    [{ retry: { min: 0, max: 0 } }],
    [{ headers: { 'X-A': 'a', 'X-N': 1, 'Set-Cookie': ['a=1', 'b=2'] } }],
    [{ headers: { 'content-type': 'text/event-stream; charset=utf-8' } }],
    [{ maxBuffered: 0 }],
    [{ maxSubscriptions: 1 }],
    [{ maxStreams: 0, whenFull: 'reject', warnings: false }],
    [{ maxStreamsPer: { key: keyOf, limit: 6 } }],
    [{ maxStreamsPer: { key: keyOf, limit: 6, perMinute: 60 } }],
  ])('%j is taken', (options) => {
    expect(refusal(options)).toBe('nothing was thrown');
  });
});

test('app.use(sse), without a call, throws at the first request and says to call it', async () => {
  const app = express();
  app.use(sse as never);
  app.use(
    (
      error: { code: string; message: string },
      _req: unknown,
      res: express.Response,
      _next: unknown,
    ) => res.status(500).json([error.code, error.message]),
  );
  const { body } = await request(app).get('/').expect(500);
  expect(body).toEqual(['ERR_SSE_OPTION', expect.stringContaining('app.use(sse())')]);
});

test('headers may name the charset that an event stream has anyway', async () => {
  const headers = { 'Content-Type': 'text/event-stream; charset=utf-8', 'X-A': 'a' };
  await using server = await serveStreams((stream) => void stream.send('x'), { headers });
  using reader = await read(server.url);
  expect((await reader.next()).data).toBe('x');
  expect(reader.response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
});

test('the defaults are those that the table in docs/reference.md names', () => {
  expect(resolveStreamOptions({})).toEqual({
    heartbeat: 15_000,
    pingEvent: undefined,
    retry: undefined,
    serialize: JSON.stringify,
    maxBuffered: 1_048_576,
    onSlow: 'close',
    stallTimeout: 30_000,
    maxLifetime: undefined,
    maxSubscriptions: 100,
    headers: [],
  });
});

test('the table in docs/reference.md names the options that there are, in their order', async () => {
  const reference = await readFile(new URL('../docs/reference.md', import.meta.url), 'utf8');
  const section = /^### sse\(\)\n([^]*?)\n#/m.exec(reference)?.[1] ?? '';
  const named = [...section.matchAll(/^\| `([a-z]\w*)` \|/gm)].map(([, name]) => name);
  expect(refusal({ hartbeat: 5 })).toBe(
    `unknown option \`hartbeat\` of sse(); it takes ${named.join(', ')}`,
  );
});

test('a retry range is drawn from evenly, both ends included', () => {
  const drawn = new Set(Array.from({ length: 1_000 }, () => drawRetry({ min: 3, max: 6 })));
  expect([...drawn].toSorted()).toEqual([3, 4, 5, 6]);
});
