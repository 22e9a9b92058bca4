/** The HTTP interface of the haiku chat: statuses, texts of answers, streams, and shutdown. */
import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import request from 'supertest';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import type { PageData } from '../../demo/page.ts';
import { read } from '../support/reader.ts';
import { serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

const JSON_TYPE = { 'Content-Type': 'application/json' };

// The files in which demos store their haiku.
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'res-sse-haiku-'));
});

afterAll(() => rm(directory, { recursive: true, force: true }));

afterEach(() => {
  vi.restoreAllMocks();
});

describe('POST /speak', () => {
  it('answers 202 and sends text, author and time to every listener', async () => {
    await using server = await serve(createDemo().app);
    using one = await read(`${server.url}/listen`);
    using other = await read(`${server.url}/listen`);
    const before = Date.now();
    const response = await fetch(`${server.url}/speak`, {
      method: 'POST',
      headers: JSON_TYPE,
      body: JSON.stringify({
        text: '  an old, quiet pond \r\n a frog leaps\rsplash\n',
        author: ' Bashō ',
      }),
    });
    expect([response.status, await response.text()]).toEqual([202, 'Received text message.']);
    const event = await one.next();
    expect(event.event).toBe('text');
    expect(event.id).toMatch(/^[\w.-]+$/);
    const { id, at, ...haiku } = JSON.parse(event.data);
    expect(id).toMatch(/^[\da-f-]{36}$/);
    expect(haiku).toEqual({ text: 'an old, quiet pond\na frog leaps\nsplash', author: 'Bashō' });
    expect(new Date(at).toISOString()).toBe(at);
    expect(Date.parse(at)).toBeGreaterThanOrEqual(before);
    expect(Date.parse(at)).toBeLessThanOrEqual(Date.now());
    expect(await other.next()).toEqual(event);
  });

  it.each([
    ['one line', { text: 'snow' }, { text: 'snow' }],
    ['an empty name as no name', { text: 'snow', author: ' ' }, { text: 'snow' }],
    ['a tab within a line', { text: 'a\tb' }, { text: 'a\tb' }],
    ['300 characters', { text: '🌸'.repeat(300) }, { text: '🌸'.repeat(300) }],
    [
      'a name of 60 characters',
      { text: 'snow', author: '雪'.repeat(60) },
      { text: 'snow', author: '雪'.repeat(60) },
    ],
    ['markup as text', { text: '<b>&amp;' }, { text: '<b>&amp;' }],
  ])('accepts %s', async (_what, body, expected) => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/listen`);
    await request(server.url).post('/speak').send(body).expect(202, 'Received text message.');
    expect(JSON.parse((await reader.next()).data)).toEqual({
      ...expected,
      id: expect.any(String),
      at: expect.any(String),
    });
  });

  it.each([
    ['no text', {}],
    ['a text that is a number', { text: 5 }],
    ['a text of white space', { text: ' \n\t ' }],
    ['an invisible text', { text: '\u{200b}' }],
    ['four lines', { text: 'a\nb\nc\nd' }],
    ['four lines with uncommon line separators', { text: 'a\u{2028}b\u{85}c\fd' }],
    ['301 characters', { text: 'a'.repeat(301) }],
    ['a control character', { text: 'bell \u{7}' }],
    ['an author that is null', { text: 'snow', author: null }],
    ['an author of two lines', { text: 'snow', author: 'a\nb' }],
    ['an author of 61 characters', { text: 'snow', author: 'a'.repeat(61) }],
    ['an unknown field', { text: 'snow', colour: 'white' }],
    ['a list', ['snow']],
  ])('answers 400 and a sentence to %s, and publishes nothing', async (_what, body) => {
    const demo = createDemo();
    await using server = await serve(demo.app);
    const { text, type } = await request(server.url).post('/speak').send(body).expect(400);
    expect(type).toBe('text/plain');
    expect(text).toMatch(/^[A-Z].*\.$/);
    expect(demo.channels.stats().published).toBe(0);
  });

  it.each(['{"text": "<b>sn', '"snow"', 'null', ''])(
    'answers 400 to %j, which is not a JSON object, without quoting the body',
    async (body) => {
      await using server = await serve(createDemo().app);
      const { text, type } = await request(server.url)
        .post('/speak')
        .set(JSON_TYPE)
        .send(body)
        .expect(400);
      expect(type).toBe('text/plain');
      expect(text).toMatch(/^[A-Z].*\.$/);
      expect(text).not.toContain('sn');
    },
  );

  it('answers 413 to a body that is too large', async () => {
    await using server = await serve(createDemo().app);
    const { text } = await request(server.url)
      .post('/speak')
      .send({ text: 'a'.repeat(10_000) })
      .expect(413);
    expect(text).toMatch(/^That is too large.*\.$/);
  });

  it.each([
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    'application/problem+json',
    'application/json; charset=latin1',
  ])('answers 415 to %s', async (type) => {
    const demo = createDemo();
    await using server = await serve(demo.app);
    const { text } = await request(server.url)
      .post('/speak')
      .set('Content-Type', type)
      .send('{"text":"snow"}')
      .expect(415);
    expect(text).toMatch(/^Send JSON.*\.$/);
    expect(demo.channels.stats().published).toBe(0);
  });

  it('answers 415 to a compressed body', async () => {
    await using server = await serve(createDemo().app);
    const { text } = await request(server.url)
      .post('/speak')
      .set({ ...JSON_TYPE, 'Content-Encoding': 'gzip' })
      .send('{}')
      .expect(415);
    expect(text).toMatch(/not compressed\.$/);
  });

  it('answers 500 without the cause when publishing fails', async () => {
    const log = vi.spyOn(console, 'error').mockImplementation(() => {});
    const demo = createDemo();
    await using server = await serve(demo.app);
    await demo.channels.close();
    const { text } = await request(server.url).post('/speak').send({ text: 'snow' }).expect(500);
    expect(text).toBe('Something went wrong on our side.');
    expect(log).toHaveBeenCalledWith(expect.objectContaining({ code: 'ERR_SSE_CLOSED' }));
  });
});

describe('GET /', () => {
  it('contains the last fifty haiku and the cursor for the stream', async () => {
    await using server = await serve(createDemo().app);
    for (let number = 1; number <= 51; number++) {
      await request(server.url)
        .post('/speak')
        .send({ text: `${number}` })
        .expect(202);
    }
    const { cursor, haikus } = spokenIn(await (await fetch(server.url)).text());
    expect(haikus.map(({ text }) => text)).toEqual(
      Array.from({ length: 50 }, (_, index) => `${index + 2}`),
    );
    expect(new Set(haikus.map(({ id }) => id)).size).toBe(50);
    await request(server.url).post('/speak').send({ text: '52' });
    using reader = await read(`${server.url}/listen?lastEventId=${cursor}`);
    expect(JSON.parse((await reader.next()).data)).toMatchObject({ text: '52' });
  });

  it('contains the same haiku as the stream', async () => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/listen`);
    await request(server.url).post('/speak').send({ text: 'snow', author: 'Issa' });
    expect(spokenIn(await (await fetch(server.url)).text()).haikus).toEqual([
      JSON.parse((await reader.next()).data),
    ]);
  });

  it.each([
    '</script><img src=x onerror=alert(1)>',
    '<!--<script>',
    ']]>&lt;&amp;',
    '$& $` $1 $$',
    String.raw`\u003c"\'`,
  ])(
    'has the same HTML except for the data, which contain exactly the text %j that was typed',
    async (text) => {
      await using server = await serve(createDemo().app);
      const before = await (await fetch(server.url)).text();
      await request(server.url).post('/speak').send({ text, author: text }).expect(202);
      const after = await (await fetch(server.url)).text();
      expect(spokenIn(after).haikus).toMatchObject([{ text, author: text }]);
      expect(after.replace(DATA, '')).toBe(before.replace(DATA, ''));
      expect(DATA.exec(after)?.[1]).not.toMatch(/[<>&]/);
    },
  );

  it('must be revalidated for each request', async () => {
    await using server = await serve(createDemo().app);
    expect((await fetch(server.url)).headers.get('Cache-Control')).toBe('no-cache');
  });
});

describe('the event streams', () => {
  it('GET /listen is an event stream, or 406 without the Accept header', async () => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/listen`);
    expect(reader.response.status).toBe(200);
    expect(reader.response.headers.get('Content-Type')).toBe('text/event-stream');
    const refused = await request(server.url).get('/listen').expect(406);
    expect(refused.text).toContain('Accept: text/event-stream');
  });

  it('GET /time sends the time at once and every 5 s', async () => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/time`);
    const events = await reader.take(2);
    expect(events.map(({ event }) => event)).toEqual(['time', 'time']);
    const [first, second] = events.map(({ data }) => Date.parse(JSON.parse(data).time));
    expect(second! - first!).toBeGreaterThan(4_900);
    expect(second! - first!).toBeLessThan(7_000);
  });

  it.each(['/listen', '/time'])(
    'HEAD %s has the head of the stream, and leaves no stream open',
    async (path) => {
      const demo = createDemo();
      await using server = await serve(demo.app);
      const response = await fetch(server.url + path, {
        method: 'HEAD',
        headers: { Accept: 'text/event-stream' },
      });
      expect(response.status).toBe(200);
      expect(response.headers.get('Content-Type')).toBe('text/event-stream');
      expect(demo.events.streams.size).toBe(0);
    },
  );
});

describe('other routes', () => {
  it.each([
    ['/', 'text/html', '<title>Haiku</title>'],
    ['/app.js', 'text/javascript', 'connect('],
    ['/client.js', 'text/javascript', 'BroadcastChannel'],
    ['/syllables.js', 'text/javascript', 'countSyllables'],
    ['/style.css', 'text/css', 'color-scheme'],
  ])('GET %s is %s, and HEAD has the same head', async (path, type, content) => {
    await using server = await serve(createDemo().app);
    const response = await fetch(server.url + path);
    expect(response.status).toBe(200);
    expect(response.headers.get('Content-Type')).toContain(type);
    expect(await response.text()).toContain(content);
    const head = await fetch(server.url + path, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect(head.headers.get('Content-Length')).toBe(response.headers.get('Content-Length'));
  });

  it.each([
    ['GET', '/nothing'],
    ['GET', '/index.html'],
    ['GET', '/Listen'],
    ['GET', '/listen/'],
    ['GET', '/..%2fserver.ts'],
    ['GET', '/%'],
    ['GET', '/speak'],
    ['POST', '/'],
    ['POST', '/listen'],
    ['PUT', '/speak'],
    ['DELETE', '/time'],
    ['OPTIONS', '/speak'],
  ])('%s %s is 404 with a sentence', async (method, path) => {
    await using server = await serve(createDemo().app);
    const response = await fetch(server.url + path, { method });
    expect([response.status, await response.text()]).toEqual([404, 'There is nothing here.']);
    expect(response.headers.get('Content-Type')).toContain('text/plain');
  });

  it.each(['/', '/listen', '/nothing'])(
    '%s forbids foreign content and does not name the server',
    async (path) => {
      await using server = await serve(createDemo().app);
      const { headers } = await fetch(server.url + path);
      expect(headers.get('Content-Security-Policy')).toMatch(
        /^default-src 'none'; script-src 'self'; /,
      );
      expect(headers.get('Content-Security-Policy')).not.toContain('unsafe');
      expect(headers.get('X-Content-Type-Options')).toBe('nosniff');
      expect(headers.get('X-Powered-By')).toBeNull();
    },
  );
});

describe('demo/server.ts', () => {
  it('lets one curl receive what another curl sends', async () => {
    await using demo = await startDemo();
    await using listener = run('curl', [
      '-sSN',
      '-H',
      'Accept: text/event-stream',
      `${demo.url}/listen`,
    ]);
    // The first comment of the stream. From here on no haiku is missed.
    await until('the first comment in curl', () => listener.output.includes(':\n'));
    await using speaker = run('curl', [
      '-sS',
      '-H',
      'Content-Type: application/json',
      '-d',
      '{"text":"snow"}',
      `${demo.url}/speak`,
    ]);
    expect(await exitOf(speaker)).toBe(0);
    expect(speaker.output).toBe('Received text message.');
    await until('the haiku in curl', () => /event: text\n.*\nid: .*\n\n$/.test(listener.output));
    expect(listener.output).toMatch(
      /event: text\ndata: \{"id":"[^"]+","text":"snow","at":"[^"]+"\}\nid: [\w.-]+\n\n$/,
    );
  });

  it('keeps the haiku for its next start', async () => {
    const file = join(directory, 'kept.json');
    for (const text of ['first', 'second']) {
      await using demo = await startDemo(file);
      const body = JSON.stringify({ text });
      const headers = { 'Content-Type': 'application/json' };
      expect((await fetch(`${demo.url}/speak`, { method: 'POST', headers, body })).status).toBe(
        202,
      );
    }
    await using demo = await startDemo(file);
    const { haikus } = spokenIn(await (await fetch(demo.url)).text());
    expect(haikus.map(({ text }) => text)).toEqual(['first', 'second']);
  });

  it('answers 415 to curl -d without a content type', async () => {
    await using demo = await startDemo();
    await using speaker = run('curl', [
      '-sS',
      '-w',
      ' %{http_code}',
      '-d',
      '{"text":"snow"}',
      `${demo.url}/speak`,
    ]);
    expect(await exitOf(speaker)).toBe(0);
    expect(speaker.output).toBe('Send JSON, with the header Content-Type: application/json. 415');
  });

  it.each([
    ['taken', undefined, /^Port (\d+) is already in use; set PORT to another port\.\n$/],
    [
      'a word',
      'four',
      /^PORT is "four", which is not a port; set it to a number from 0 to 65535\.\n$/,
    ],
    ['a fraction', '44.5', /^PORT is "44\.5", which is not a port; /],
    ['too large', '65536', /^PORT is "65536", which is not a port; /],
    ['negative', '-1', /^PORT is "-1", which is not a port; /],
  ])(
    'prints an explanation and exits with exit code 1 if PORT is %s',
    async (_what, port, message) => {
      // Listen on all addresses, as the demo does.
      const other = createServer().listen(0);
      await once(other, 'listening');
      const usedPort = (other.address() as AddressInfo).port;
      await using program = run('node_modules/.bin/tsx', ['demo/server.ts'], {
        PORT: port ?? `${usedPort}`,
        HAIKU_FILE: join(directory, 'none.json'),
      });
      expect(await exitOf(program)).toBe(1);
      expect(program.output).toMatch(message);
      other.close();
    },
  );

  it.each(['SIGTERM', 'SIGINT'] as const)(
    'exits with code 0 on %s while streams are open, and sends a reconnection time',
    async (signal) => {
      await using demo = await startDemo();
      using listener = await read(`${demo.url}/listen`);
      using clock = await read(`${demo.url}/time`);
      await clock.next();
      expect(listener.ended).toBe(false);
      demo.process.child.kill(signal);
      await listener.end();
      await clock.end();
      // One reconnection time at the start, one at the end.
      expect([listener.retries.length, clock.retries.length]).toEqual([2, 2]);
      expect(await exitOf(demo.process)).toBe(0);
    },
  );
});

const DATA = /<script id="spoken" type="application\/json">(.*?)<\/script>/s;

/** The data in the page. */
function spokenIn(html: string): PageData {
  return JSON.parse(DATA.exec(html)?.[1] ?? '');
}

interface Process extends AsyncDisposable {
  readonly child: ChildProcess;
  /** The output of the program to stdout and stderr. */
  readonly output: string;
  readonly exit: Promise<unknown[]>;
}

/** Runs a program until it exits or is disposed. */
function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Process {
  const child = spawn(command, args, { env: { ...process.env, ...env } });
  const exit = once(child, 'close');
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => void (output += text));
  }
  return {
    child,
    exit,
    get output() {
      return output;
    },
    async [Symbol.asyncDispose]() {
      child.kill();
      await within(`the exit of ${command}`, exit);
    },
  };
}

/** The exit code of the program, or the signal that ended the program. */
async function exitOf(program: Process): Promise<unknown> {
  const [code, signal] = await within('the exit of the program', program.exit);
  return code ?? signal;
}

/** @param file stores the haiku. @defaultValue a new file */
async function startDemo(
  file = join(directory, `${randomUUID()}.json`),
): Promise<AsyncDisposable & { url: string; process: Process }> {
  const program = run('node_modules/.bin/tsx', ['demo/server.ts'], {
    PORT: '0',
    HAIKU_FILE: file,
  });
  const address = /http:\/\/localhost:[1-9]\d*/;
  await until('the address of the demo', () => {
    if (program.child.exitCode !== null) throw new Error(`the demo exited: ${program.output}`);
    return address.test(program.output);
  });
  const url = address.exec(program.output)?.[0] as string;
  return { url, process: program, [Symbol.asyncDispose]: () => program[Symbol.asyncDispose]() };
}
