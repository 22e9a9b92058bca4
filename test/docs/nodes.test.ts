/** The resumable answer of docs/llm.md, as it is written there, on two nodes that share a Redis. */
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { filesIn, pageOf, writeFiles, type Files } from '../clients/blocks.ts';
import { start, type Child } from '../support/child.ts';
import { read, type Reader } from '../support/reader.ts';
import { startRedis, type RedisServer } from '../support/redis-server.ts';
import { within } from '../support/wait.ts';

const PACKAGES = ['express', 'redis', 'res-sse'];

const SERVER = `
  import { app } from './answers.js';
  const server = app.listen(0, '127.0.0.1', () => process.send(server.address().port));
`;

let redis: RedisServer;
let files: Files;
let children: Child[];
/** The URLs of two nodes. */
let urls: string[];

beforeAll(async () => {
  redis = await startRedis();
  const blocks = filesIn(await pageOf('llm.md'));
  files = await writeFiles({ ...blocks, 'server.js': SERVER }, PACKAGES);
  children = [1, 2].map(() =>
    start(process.execPath, [join(files.directory, 'server.js')], { REDIS_URL: redis.url }),
  );
  urls = await Promise.all(
    children.map(async (child) => {
      const [port] = (await within('the port', once(child.process, 'message'))) as [number];
      return `http://127.0.0.1:${port}`;
    }),
  );
});

afterAll(async () => {
  for (const child of children) await child[Symbol.asyncDispose]();
  await files[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
});

/** Asks the first node. @returns the path of the answer */
async function ask(prompt: string): Promise<string> {
  const response = await fetch(`${urls[0]}/answers`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ prompt }),
  });
  const { id } = (await response.json()) as { id: string };
  return `/answers/${id}`;
}

function textOf(readers: Reader[]): string {
  return readers
    .flatMap(({ events }) => events)
    .filter(({ event }) => event === 'token')
    .map(({ data }) => (JSON.parse(data) as { text: string }).text)
    .join('');
}

test('a reader receives the answer of another node, and resumes it on a third connection', async () => {
  const prompt = 'word '.repeat(50).trim();
  const path = await ask(prompt);
  const first = await read(`${urls[1]}${path}`);
  const [, token] = await first.take(2);
  first.close();
  first.events.splice(2);
  const headers = { 'Last-Event-ID': token?.id ?? '' };
  const second = await read(`${urls[0]}${path}`, { headers });
  await second.end();
  expect(textOf([first, second])).toBe(`You said: ${prompt} `);
  expect(second.events.slice(-2)).toMatchObject([{ event: 'done' }, { event: 'sse:end' }]);
  const late = await fetch(`${urls[1]}${path}`, {
    headers: { Accept: 'text/event-stream', 'Last-Event-ID': second.events.at(-2)?.id ?? '' },
  });
  expect(late.status).toBe(204);
});

test('an answer is stopped on another node', async () => {
  const path = await ask('word '.repeat(10_000));
  const readers = await Promise.all(urls.map((url) => read(`${url}${path}`)));
  await Promise.all(readers.map((reader) => reader.take(2)));
  await fetch(`${urls[1]}${path}`, { method: 'DELETE' });
  await Promise.all(readers.map((reader) => reader.end()));
  for (const { events } of readers) {
    expect(events.at(-1)).toMatchObject({ event: 'sse:end' });
    expect(events.some(({ event }) => event === 'done')).toBe(false);
  }
  expect(children.map(({ output }) => output)).toEqual(['', '']);
});

test('an answer that nobody has asked for is answered 404', async () => {
  const reader = await read(`${urls[1]}/answers/unknown`);
  expect(reader.response.status).toBe(404);
});
