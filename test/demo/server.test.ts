/** The haiku chat's promises to any client: statuses, sentences, streams, and a good end. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import request from 'supertest';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import type { PageData } from '../../demo/page.ts';
import { read } from '../support/reader.ts';
import { serve } from '../support/server.ts';
import { until, within } from '../support/wait.ts';

const JSON_TYPE = { 'Content-Type': 'application/json' };

afterEach(() => {
  vi.restoreAllMocks();
});

describe('POST /speak', () => {
  it('answers 202 and tells every listener the text, the author and the time', async () => {
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
    ['an empty name, which is none', { text: 'snow', author: ' ' }, { text: 'snow' }],
    ['a tab within a line', { text: 'a\tb' }, { text: 'a\tb' }],
    ['300 characters', { text: '🌸'.repeat(300) }, { text: '🌸'.repeat(300) }],
    [
      'a name of 60 characters',
      { text: 'snow', author: '雪'.repeat(60) },
      { text: 'snow', author: '雪'.repeat(60) },
    ],
    ['markup, as the text that it is', { text: '<b>&amp;' }, { text: '<b>&amp;' }],
  ])('takes %s', async (_what, body, expected) => {
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
    ['a text that is nothing but space', { text: ' \n\t ' }],
    ['a text that nobody can see', { text: '\u{200b}' }],
    ['four lines', { text: 'a\nb\nc\nd' }],
    ['four lines by a separator that only some screens break at', { text: 'a\u{2028}b\u{85}c\fd' }],
    ['301 characters', { text: 'a'.repeat(301) }],
    ['a control character', { text: 'bell \u{7}' }],
    ['an author that is null', { text: 'snow', author: null }],
    ['an author of two lines', { text: 'snow', author: 'a\nb' }],
    ['an author of 61 characters', { text: 'snow', author: 'a'.repeat(61) }],
    ['something else besides', { text: 'snow', colour: 'white' }],
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
    'answers 400 to %j, which is no JSON object, and quotes none of it',
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

  it('answers 415 to a compressed body, so that none can swell', async () => {
    await using server = await serve(createDemo().app);
    const { text } = await request(server.url)
      .post('/speak')
      .set({ ...JSON_TYPE, 'Content-Encoding': 'gzip' })
      .send('{}')
      .expect(415);
    expect(text).toMatch(/not compressed\.$/);
  });

  it('answers 500 without a word about the cause when publishing fails', async () => {
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
  it('has the last fifty haikus in it, the newest last, and the cursor from which the stream goes on', async () => {
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

  it('has the same haiku in it as the stream', async () => {
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
    'is the same HTML, but for data that are the very same text, where %j was typed',
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

  it('is asked for anew each time', async () => {
    await using server = await serve(createDemo().app);
    expect((await fetch(server.url)).headers.get('Cache-Control')).toBe('no-cache');
  });
});

describe('the streams', () => {
  it('GET /listen is an event stream, and 406 with a sentence for who did not ask for one', async () => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/listen`);
    expect(reader.response.status).toBe(200);
    expect(reader.response.headers.get('Content-Type')).toBe('text/event-stream');
    const refused = await request(server.url).get('/listen').expect(406);
    expect(refused.text).toContain('Accept: text/event-stream');
  });

  it('GET /time tells the time at once and every 5 s', async () => {
    await using server = await serve(createDemo().app);
    using reader = await read(`${server.url}/time`);
    const events = await reader.take(2);
    expect(events.map(({ event }) => event)).toEqual(['time', 'time']);
    const [first, second] = events.map(({ data }) => Date.parse(JSON.parse(data).time));
    expect(second! - first!).toBeGreaterThan(4_900);
    expect(second! - first!).toBeLessThan(7_000);
  });

  it.each(['/listen', '/time'])(
    'HEAD %s has the head of the stream, and leaves none open',
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

describe('everything else', () => {
  it.each([
    ['/', 'text/html', '<title>Haiku</title>'],
    ['/app.js', 'text/javascript', 'EventSource'],
    ['/syllables.js', 'text/javascript', 'countSyllables'],
    ['/style.css', 'text/css', 'color-scheme'],
  ])('GET %s is %s, and HEAD its head', async (path, type, content) => {
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
    '%s lets nothing foreign in and tells nobody what serves it',
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
  it('lets curl hear what curl speaks', async () => {
    await using demo = await startDemo();
    await using listener = run('curl', [
      '-sSN',
      '-H',
      'Accept: text/event-stream',
      `${demo.url}/listen`,
    ]);
    // The first comment of the stream: from here on nothing is missed.
    await until('curl to be connected', () => listener.output.includes(':\n'));
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
    await until('curl to hear it', () => /event: text\n.*\nid: .*\n\n$/.test(listener.output));
    expect(listener.output).toMatch(
      /event: text\ndata: \{"id":"[^"]+","text":"snow","at":"[^"]+"\}\nid: [\w.-]+\n\n$/,
    );
  });

  it('answers 415 to what curl -d sends without a type', async () => {
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
    'says what is wrong and ends with exit code 1 where PORT is %s',
    async (_what, port, sentence) => {
      // On all addresses, as the demo does.
      const other = createServer().listen(0);
      await once(other, 'listening');
      const taken = (other.address() as AddressInfo).port;
      await using program = run('node_modules/.bin/tsx', ['demo/server.ts'], {
        PORT: port ?? `${taken}`,
      });
      expect(await exitOf(program)).toBe(1);
      expect(program.output).toMatch(sentence);
      other.close();
    },
  );

  it.each(['SIGTERM', 'SIGINT'] as const)(
    'ends with exit code 0 at %s while streams are open, and tells them when to return',
    async (signal) => {
      await using demo = await startDemo();
      using listener = await read(`${demo.url}/listen`);
      using clock = await read(`${demo.url}/time`);
      await clock.next();
      expect(listener.ended).toBe(false);
      demo.process.child.kill(signal);
      await listener.end();
      await clock.end();
      // Once on opening, once at the end.
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
  /** What it has written to stdout and stderr. */
  readonly output: string;
  readonly exit: Promise<unknown[]>;
}

/** Runs a program until it ends or is disposed of. */
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
      await within(`the end of ${command}`, exit);
    },
  };
}

/** The exit code, or the signal that ended it. */
async function exitOf(program: Process): Promise<unknown> {
  const [code, signal] = await within('the exit', program.exit);
  return code ?? signal;
}

async function startDemo(): Promise<AsyncDisposable & { url: string; process: Process }> {
  const program = run('node_modules/.bin/tsx', ['demo/server.ts'], { PORT: '0' });
  const address = /http:\/\/localhost:[1-9]\d*/;
  await until('the demo to print its address', () => {
    if (program.child.exitCode !== null) throw new Error(`the demo has ended: ${program.output}`);
    return address.test(program.output);
  });
  const url = address.exec(program.output)?.[0] as string;
  return { url, process: program, [Symbol.asyncDispose]: () => program[Symbol.asyncDispose]() };
}
