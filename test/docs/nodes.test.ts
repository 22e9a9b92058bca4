/** Applications of the pages, as they are written there, on two nodes that share a Redis. */
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { redisBroker } from '../../src/brokers/redis.ts';
import { createChannels } from '../../src/index.ts';
import { filesIn, pageOf, writeFiles, type Files } from '../clients/blocks.ts';
import { start, type Child } from '../support/child.ts';
import { read, type Reader } from '../support/reader.ts';
import { freePort, startRedis, type RedisServer } from '../support/redis-server.ts';
import { until, within } from '../support/wait.ts';

const PACKAGES = ['express', 'jose', 'redis', 'res-sse'];

const LISTEN = `
  const server = app.listen(0, '127.0.0.1', () => process.send(server.address().port));
`;

/** Two processes that run the files of a page. */
interface PageNodes extends AsyncDisposable {
  readonly urls: readonly string[];
  readonly children: readonly Child[];
}

let redis: RedisServer;

beforeAll(async () => {
  redis = await startRedis();
});

afterAll(() => redis[Symbol.asyncDispose]());

/** @param main a module that has `app` */
async function startNodes(page: string, main: string): Promise<PageNodes> {
  const blocks = filesIn(await pageOf(page));
  const files: Files = await writeFiles({ ...blocks, 'main.js': main + LISTEN }, PACKAGES);
  const children = [1, 2].map(() =>
    start(process.execPath, [join(files.directory, 'main.js')], { REDIS_URL: redis.url }),
  );
  const urls = await Promise.all(
    children.map(async (child) => {
      const [port] = (await within('the port', once(child.process, 'message'))) as [number];
      return `http://127.0.0.1:${port}`;
    }),
  );
  return {
    urls,
    children,
    async [Symbol.asyncDispose]() {
      for (const child of children) await child[Symbol.asyncDispose]();
      await files[Symbol.asyncDispose]();
    },
  };
}

describe('the resumable answer of answers.md', () => {
  let nodes: PageNodes;

  beforeAll(async () => {
    nodes = await startNodes(
      'answers.md',
      `import { redisBroker } from 'res-sse/redis';
       import { makeApp } from './answers.js';
       import { makeChannels } from './channels.js';
       const { app } = makeApp(makeChannels(redisBroker({ url: process.env.REDIS_URL })));`,
    );
  });

  afterAll(() => nodes[Symbol.asyncDispose]());

  /** Asks the first node. @returns the path of the answer */
  async function ask(prompt: string): Promise<string> {
    const response = await fetch(`${nodes.urls[0]}/answers`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ prompt }),
    });
    const { id } = (await response.json()) as { id: string };
    return `/answers/${id}`;
  }

  test('is received on another node, and resumed on the first', async () => {
    const prompt = 'word '.repeat(50).trim();
    const path = await ask(prompt);
    const first = await read(`${nodes.urls[1]}${path}`);
    const [, token] = await first.take(2);
    first.close();
    const headers = { 'Last-Event-ID': token?.id ?? '' };
    const second = await read(`${nodes.urls[0]}${path}`, { headers });
    await second.end();
    expect(textOf([...first.events.slice(0, 2), ...second.events])).toBe(`You said: ${prompt} `);
    expect(second.events.slice(-2)).toMatchObject([{ event: 'done' }, { event: 'sse:end' }]);
    const lastEventId = second.events.at(-2)?.id ?? '';
    const late = await read(`${nodes.urls[1]}${path}?lastEventId=${lastEventId}`);
    expect(late.response.status).toBe(204);
  });

  test('is stopped on another node', async () => {
    const path = await ask('word '.repeat(10_000));
    const readers = await Promise.all(nodes.urls.map((url) => read(`${url}${path}`)));
    await Promise.all(readers.map((reader) => reader.take(2)));
    await fetch(`${nodes.urls[1]}${path}`, { method: 'DELETE' });
    await Promise.all(readers.map((reader) => reader.end()));
    for (const { events } of readers) {
      expect(events.slice(-2)).toMatchObject([{ event: 'stopped' }, { event: 'sse:end' }]);
      expect(events.some(({ event }) => event === 'done')).toBe(false);
    }
    expect(nodes.children.map(({ output }) => output)).toEqual(['', '']);
  });

  test('that nobody has asked for is answered 404', async () => {
    const reader = await read(`${nodes.urls[1]}/answers/unknown`);
    expect(reader.response.status).toBe(404);
  });
});

function textOf(events: Reader['events']): string {
  return events
    .filter(({ event }) => event === 'token')
    .map(({ data }) => (JSON.parse(data) as { text: string }).text)
    .join('');
}

test('the notifications of notifications.md reach a user on another node, until the user is removed', async () => {
  await using nodes = await startNodes('notifications.md', `import { app } from './app.js';`);
  const [one = '', two = ''] = nodes.urls;
  const headers = { 'Content-Type': 'application/json' };
  const login = async (url: string, name: string): Promise<{ Cookie: string }> => {
    const body = JSON.stringify({ name });
    const response = await fetch(`${url}/login`, { method: 'POST', headers, body });
    return { Cookie: response.headers.get('set-cookie')?.split(';')[0] ?? '' };
  };
  const ann = await login(one, 'ann');
  const bob = await login(two, 'bob');
  const reader = await read(`${one}/notifications`, { headers: ann });
  const bobsReader = await read(`${one}/notifications`, { headers: bob });
  const body = JSON.stringify({ text: 'lunch?' });
  const target = `${two}/users/ann/notifications`;
  await fetch(target, { method: 'POST', headers: { ...headers, ...bob }, body });
  expect((await reader.next()).data).toBe('{"from":"bob","text":"lunch?"}');

  await fetch(`${two}/users/ann`, { method: 'DELETE', headers: bob });
  await reader.end();
  const refused = await read(`${one}/notifications`, { headers: ann });
  expect(refused.response.status).toBe(401);
  expect(bobsReader.ended).toBe(false);
  bobsReader.close();
});

test('the worker of workers.md publishes to the readers of a node', async () => {
  await using files = await writeFiles(filesIn(await pageOf('workers.md')), PACKAGES);
  const channels = createChannels({ broker: redisBroker({ url: redis.url }) });
  const events = channels.follow('job:7');
  await channels.cursor();
  await using worker = start(process.execPath, [join(files.directory, 'worker.js'), '7'], {
    REDIS_URL: redis.url,
  });
  const received: string[] = [];
  for await (const { event, data } of events) received.push(`${event} ${data}`);
  expect(received).toEqual([
    ...[25, 50, 75, 100].map((percent) => `progress {"percent":${percent}}`),
    'done {}',
  ]);
  await within('the end of the worker', worker.ended);
  expect([worker.process.exitCode, worker.output]).toEqual([0, '']);
  await channels.close();
});

test('the node of scaling.md serves a stream, and ends at SIGTERM with exit code 0', async () => {
  await using files = await writeFiles(filesIn(await pageOf('scaling.md')), PACKAGES);
  const port = await freePort();
  await using node = start(process.execPath, [join(files.directory, 'node.js')], {
    REDIS_URL: redis.url,
    PORT: String(port),
  });
  const url = `http://127.0.0.1:${port}/news`;
  await until('an answer of the node', () =>
    fetch(url).then(
      () => true,
      () => false,
    ),
  );
  using reader = await read(url);
  node.process.kill('SIGTERM');
  await reader.end();
  expect(reader.retries).toHaveLength(1);
  await within('the end of the node', node.ended);
  expect([node.process.exitCode, node.output]).toEqual([0, '']);
});

test('the presence list of presence.md is the same on all nodes', async () => {
  await using nodes = await startNodes(
    'presence.md',
    `import { createChannels } from 'res-sse';
     import { redisBroker } from 'res-sse/redis';
     import { makeApp } from './presence.js';
     const broker = redisBroker({ url: process.env.REDIS_URL, prefix: 'presence' });
     const { app } = makeApp(createChannels({ broker }));`,
  );
  const [ann, bob] = await Promise.all(
    ['ann', 'bob'].map((name, node) => read(`${nodes.urls[node]}/rooms/7?me=${name}`)),
  );
  const lists = (): Promise<unknown[]> =>
    Promise.all(nodes.urls.map(async (url) => (await fetch(`${url}/rooms/7/people`)).json()));
  const untilLists = (names: string[]): Promise<void> =>
    until(`a list of ${names.join()}`, async () =>
      (await lists()).every((list) => JSON.stringify(list) === JSON.stringify(names)),
    );
  await untilLists(['ann', 'bob']);
  ann?.close();
  await untilLists(['bob']);
  bob?.close();
  await untilLists([]);
});
