import { readFile, readdir } from 'node:fs/promises';
import compression from 'compression';
import express, { type Request, type Response } from 'express';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { sse, stream, type SseOptions } from '../src/index.ts';
import { read } from './support/reader.ts';
import { serve, type TestServer } from './support/server.ts';
import { until } from './support/wait.ts';

interface CodedWarning extends Error {
  code: string;
  detail: string;
}

let told: CodedWarning[] = [];

const note = (warning: Error): void => {
  if ('code' in warning && String(warning.code).startsWith('RES_SSE_')) {
    told.push(warning as CodedWarning);
  }
};

beforeEach(() => {
  told = [];
  process.on('warning', note);
});

afterEach(() => {
  process.off('warning', note);
});

/** The codes of the warnings so far. Node emits a warning in the next turn. */
async function codes(): Promise<string[]> {
  await new Promise((resolve) => setImmediate(resolve));
  return told.map(({ code }) => code);
}

const opening = stream((given) => void given.open());

function appWith(options: SseOptions, ...before: express.RequestHandler[]): express.Express {
  const app = express();
  if (before.length > 0) app.use(before);
  app.use(sse(options));
  app.get('/', opening);
  return app;
}

async function openOnce({ url }: TestServer, headers: Record<string, string> = {}): Promise<void> {
  using reader = await read(url, { headers });
  expect(reader.response.status).toBe(200);
}

describe('reported once, with a code and the fix, is', () => {
  test('an sse() that is in front of a route twice', async () => {
    const app = express();
    app.use(sse());
    app.get('/', sse(), opening);
    app.get('/other', sse({ heartbeat: undefined }), opening);
    await using server = await serve(app);
    await openOnce(server);
    await openOnce(server);
    await openOnce({ ...server, url: `${server.url}/other` });
    expect(await codes()).toEqual(['RES_SSE_MOUNTED_TWICE']);
    expect(told[0]?.detail).toContain('options');
  });

  test('the same middleware in front of a route twice', async () => {
    const app = express();
    const events = sse({ heartbeat: 1_000 });
    app.use(events, events);
    app.get('/', opening);
    await using server = await serve(app);
    await openOnce(server);
    await openOnce(server);
    expect(await codes()).toEqual(['RES_SSE_MOUNTED_TWICE']);
  });

  test('an sse() that is made for each request', async () => {
    const app = express();
    app.get('/', (req: Request, res: Response, next) => sse()(req, res, next), opening);
    await using server = await serve(app);
    for (let n = 0; n < 5; n++) await openOnce(server);
    expect(await codes()).toEqual(['RES_SSE_CREATED_PER_REQUEST']);
    expect(told[0]?.message).toContain('warnings.test.ts');
  });

  test('middleware that compresses the stream, where no-transform was taken out', async () => {
    await using server = await serve(
      appWith({ headers: { 'Cache-Control': 'no-cache' } }, compression({ threshold: 0 })),
    );
    await openOnce(server, { 'Accept-Encoding': 'gzip' });
    await openOnce(server, { 'Accept-Encoding': 'gzip' });
    expect(await codes()).toEqual(['RES_SSE_BODY_TRANSFORMED']);
    expect(told[0]?.message).toContain('gzip');
    expect(told[0]?.detail).toContain('no-transform');
  });

  test.each<[string, SseOptions['heartbeat'], Record<string, string>]>([
    ['a proxy', 60_000, { 'X-Forwarded-For': '192.0.2.7' }],
    ['a proxy', false, { Via: '1.1 edge' }],
    [
      'CloudFront',
      { interval: 45_000, visible: true },
      { 'X-Amz-Cf-Id': 'x', 'X-Forwarded-For': '192.0.2.7' },
    ],
  ])('a heartbeat that is too long for %s in front: %j', async (name, heartbeat, headers) => {
    await using server = await serve(appWith({ heartbeat }));
    await openOnce(server, headers);
    await openOnce(server, headers);
    expect(await codes()).toEqual(['RES_SSE_HEARTBEAT_TOO_LONG']);
    expect(told[0]?.message).toContain(name);
  });
});

describe('no warning is emitted for', () => {
  test('an sse() with options of its own that is mounted after another', async () => {
    const app = express();
    app.use(sse());
    app.get('/', sse({ heartbeat: 5_000 }), opening);
    await using server = await serve(app);
    await openOnce(server);
    expect(await codes()).toEqual([]);
  });

  test('an sse() that is made at the first request and kept', async () => {
    const app = express();
    let kept: ReturnType<typeof sse> | undefined;
    app.get('/', (req: Request, res: Response, next) => (kept ??= sse())(req, res, next), opening);
    await using server = await serve(app);
    for (let n = 0; n < 3; n++) await openOnce(server);
    expect(await codes()).toEqual([]);
  });

  test('compression() that respects no-transform', async () => {
    await using server = await serve(appWith({}, compression({ threshold: 0 })));
    await openOnce(server, { 'Accept-Encoding': 'gzip' });
    expect(await codes()).toEqual([]);
  });

  test('a heartbeat that is short enough, or a connection without a proxy', async () => {
    await using soon = await serve(appWith({}));
    await using direct = await serve(appWith({ heartbeat: false }));
    await openOnce(soon, { 'X-Forwarded-For': '192.0.2.7' });
    await openOnce(direct);
    expect(await codes()).toEqual([]);
  });

  test('five streams of a browser, six one after the other, six of programs, or six through a proxy', async () => {
    const app = express();
    const events = sse();
    app.use(events);
    app.get('/', opening);
    await using server = await serve(app);
    const browser = { 'User-Agent': 'Mozilla/5.0 (test)' };
    const kinds: [number, Record<string, string>][] = [
      [5, browser],
      [6, { 'User-Agent': 'node' }],
      [6, { ...browser, 'X-Forwarded-For': '192.0.2.7' }],
    ];
    const readers = await Promise.all(
      kinds.flatMap(([count, headers]) =>
        Array.from({ length: count }, () => read(server.url, { headers })),
      ),
    );
    for (let n = 0; n < 3; n++) {
      readers[n]?.close();
      await until('it to leave', () => events.streams.size === readers.length - 1);
      readers[n] = await read(server.url, { headers: browser });
    }
    expect(await codes()).toEqual([]);
    for (const reader of readers) reader.close();
  });

  test('anything with warnings: false', async () => {
    const app = express();
    app.use(compression({ threshold: 0 }));
    app.use(sse({ warnings: false, heartbeat: false, headers: { 'Cache-Control': 'no-cache' } }));
    app.get('/', sse(), opening);
    app.get(
      '/made',
      (req: Request, res: Response, next) => sse({ warnings: false })(req, res, next),
      opening,
    );
    await using server = await serve(app);
    const headers = { 'Accept-Encoding': 'gzip', 'X-Forwarded-For': '192.0.2.7' };
    for (const path of ['/', '/made', '/made', '/made']) {
      await openOnce({ ...server, url: server.url + path }, headers);
    }
    expect(await codes()).toEqual([]);
  });
});

test('docs/reference.md lists every code of a warning, and no others', async () => {
  const src = new URL('../src/', import.meta.url);
  const files = (await readdir(src, { recursive: true })).filter((file) => file.endsWith('.ts'));
  const sources = await Promise.all(files.map((file) => readFile(new URL(file, src), 'utf8')));
  const reference = await readFile(new URL('../docs/reference.md', import.meta.url), 'utf8');
  const codesIn = (text: string): string[] =>
    [...new Set(text.match(/RES_SSE_[A-Z_]+/g))].toSorted();
  expect(codesIn(reference)).toEqual(codesIn(sources.join('\n')));
});

describe('a warning about times that are probably in seconds', () => {
  beforeEach(() => {
    vi.resetModules();
    vi.stubEnv('NODE_ENV', 'production');
  });

  afterEach(() => vi.unstubAllEnvs());

  test.each<[string, SseOptions]>([
    ['heartbeat', { heartbeat: 15 }],
    ['heartbeat', { heartbeat: { interval: 15, visible: true } }],
    ['retry', { retry: 3 }],
    ['retry', { retry: { min: 1, max: 5 } }],
    ['maxLifetime', { maxLifetime: 60 }],
    ['stallTimeout', { stallTimeout: 30 }],
  ])('is emitted once for %s below a second: %j', async (name, options) => {
    const { sse: fresh } = await import('../src/index.ts');
    fresh(options);
    fresh(options);
    expect(await codes()).toEqual(['RES_SSE_TIME_IN_SECONDS']);
    expect(told[0]?.message).toContain(`\`${name}\``);
  });

  test('is emitted once for the age of a history below a second', async () => {
    const { createChannels: fresh } = await import('../src/index.ts');
    fresh({ history: { age: 3_600 } });
    expect(await codes()).toEqual([]);
    fresh({ history: { age: 600 } });
    fresh({ history: { age: 600 } });
    expect(await codes()).toEqual(['RES_SSE_TIME_IN_SECONDS']);
    expect(told[0]?.message).toContain('`age` of the history');
  });

  test('is not emitted for times that may be intended, with warnings: false, or in a test', async () => {
    const { sse: fresh } = await import('../src/index.ts');
    fresh({
      heartbeat: 1_000,
      retry: { min: 0, max: 1_000 },
      maxLifetime: 60_000,
      stallTimeout: false,
    });
    fresh({ heartbeat: false, retry: 0 });
    fresh({ heartbeat: 15, warnings: false });
    vi.stubEnv('NODE_ENV', 'test');
    fresh({ heartbeat: 15 });
    expect(await codes()).toEqual([]);
  });
});

describe('a maxStreamsPer.key', () => {
  async function ask(
    count: number,
    key: (n: number) => string | undefined,
    options: SseOptions = {},
  ): Promise<string[]> {
    let n = 0;
    await using server = await serve(
      appWith({ maxStreamsPer: { key: () => key(n++), limit: 1_000 }, ...options }),
    );
    for (let asked = 0; asked < count; asked++) await openOnce(server);
    return await codes();
  }

  test('that is undefined for each of the first 100 requests limits nothing, and warns once', async () => {
    expect(await ask(99, () => undefined)).toEqual([]);
    expect(await ask(205, () => undefined)).toEqual(['RES_SSE_KEY_UNDEFINED']);
  });

  test('that is undefined for some requests causes no warning', async () => {
    expect(await ask(120, (n) => (n === 50 ? 'ann' : undefined))).toEqual([]);
    expect(await ask(120, () => undefined, { warnings: false })).toEqual([]);
  });
});
