/** TanStack AI reads runs that are published to channels, with the code of the docs. */
import { ChatClient, fetchServerSentEvents } from '@tanstack/ai-client';
import express, { type Express } from 'express';
import { afterAll, describe, expect, test } from 'vitest';
import { createChannels, sse } from '../../src/index.ts';
import { serve, type TestServer } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import { filesIn, pageOf, writeFiles } from './blocks.ts';

interface Chunk {
  type: string;
  messageId: string;
  role?: 'assistant';
  delta?: string;
}
type Answer = (messages: unknown) => AsyncIterable<Chunk>;
type Connection = ReturnType<typeof fetchServerSentEvents>;

const blocks = filesIn(await pageOf('clients.md'));
const names = ['tanstack-chat.js', 'tanstack-connection.js'];
const files = await writeFiles(
  Object.fromEntries(names.map((name) => [name, blocks[name] ?? ''])),
  ['@tanstack/ai-client', 'eventsource-parser', 'express', 'res-sse'],
);
const { tanstackChat } = (await files.load('tanstack-chat.js')) as {
  tanstackChat: (answer: Answer) => Express;
};
const { connectionTo } = (await files.load('tanstack-connection.js')) as {
  connectionTo: (url: string) => Connection;
};

afterAll(() => files[Symbol.asyncDispose]());

/** A model that writes a word each time it is told to. */
class Model {
  readonly #words: (string | Error | undefined)[] = [];
  #wake = (): void => {};

  tell(...words: (string | Error | undefined)[]): void {
    this.#words.push(...words);
    this.#wake();
  }

  answer = async function* (this: Model): AsyncGenerator<Chunk> {
    yield { type: 'TEXT_MESSAGE_START', messageId: 'm', role: 'assistant' };
    for (;;) {
      while (this.#words.length === 0) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
      const delta = this.#words.shift();
      if (delta instanceof Error) throw delta;
      if (delta === undefined) break;
      yield { type: 'TEXT_MESSAGE_CONTENT', messageId: 'm', delta };
    }
    yield { type: 'TEXT_MESSAGE_END', messageId: 'm' };
  }.bind(this);
}

interface ChatServer extends TestServer {
  /** For each request: method, path, and the `Last-Event-ID`. */
  readonly requests: (string | undefined)[][];
}

async function serveChat(model: Model): Promise<ChatServer> {
  const server = await serve(tanstackChat(model.answer));
  const requests: ChatServer['requests'] = [];
  server.server.prependListener('request', ({ method, url, headers }) => {
    requests.push([method, url, headers['last-event-id'] as string | undefined]);
  });
  return Object.assign(server, { requests });
}

/** The text of the newest answer. */
function answerOf(client: ChatClient): string {
  const message = client.getMessages().findLast(({ role }) => role === 'assistant');
  return (message?.parts ?? []).map((part) => (part.type === 'text' ? part.content : '')).join('');
}

/** Cuts the connection after the second word, and lets the model finish. */
async function answerAfterCut(connect: (url: string) => Connection): Promise<string> {
  const model = new Model();
  await using server = await serveChat(model);
  const client = new ChatClient({ connection: connect(`${server.url}/api/chat`) });
  const sent = client.sendMessage('hi');
  model.tell('one ', 'two ');
  await until('two words', () => answerOf(client) === 'one two ');
  for (const socket of server.sockets) socket.resetAndDestroy();
  model.tell('three', undefined);
  await within('the answer', sent);
  expect(server.requests.map(([method]) => method)).toEqual(['POST', 'POST']);
  expect(client.getStatus()).toBe('ready');
  client.dispose();
  return answerOf(client);
}

describe('a ChatClient of TanStack AI', () => {
  test('shows each word as soon as it is published, and ends with the run', async () => {
    const model = new Model();
    await using server = await serveChat(model);
    const client = new ChatClient({ connection: connectionTo(`${server.url}/api/chat`) });
    const sent = client.sendMessage('hi');
    model.tell('größer ');
    await until('one word', () => answerOf(client) === 'größer ');
    model.tell('🐸\n', undefined);
    await within('the answer', sent);
    expect([answerOf(client), client.getStatus()]).toEqual(['größer 🐸\n', 'ready']);
    expect(server.requests).toHaveLength(1);
    client.dispose();
  });

  test('resumes after a connection that was cut, with the connection of the docs', async () => {
    expect(await answerAfterCut(connectionTo)).toBe('one two three');
  });

  test('shows an event twice after a cut connection, with fetchServerSentEvents alone', async () => {
    expect(await answerAfterCut(fetchServerSentEvents)).toBe('one two two three');
  });

  test('is told of a source that throws', async () => {
    const model = new Model();
    await using server = await serveChat(model);
    const client = new ChatClient({ connection: connectionTo(`${server.url}/api/chat`) });
    model.tell('one ', new Error('quota of account 4711 exceeded'));
    await within('the answer', client.sendMessage('hi'));
    expect([client.getStatus(), client.getError()?.message]).toEqual(['error', 'No answer.']);
    client.dispose();
  });
});

test('joinRun of TanStack AI reads a running and a finished run from the beginning', async () => {
  const model = new Model();
  await using server = await serveChat(model);
  const connection = connectionTo(`${server.url}/api/chat`);
  const client = new ChatClient({ connection });
  const sent = client.sendMessage('hi');
  model.tell('one ');
  await until('one word', () => answerOf(client) === 'one ');
  const runId = client.getCurrentRunId() ?? '';
  const read = async (): Promise<string[]> => {
    const types: string[] = [];
    for await (const { type } of connection.joinRun(runId)) types.push(type);
    return types;
  };
  const joined = read();
  await until('the second request', () => server.requests.length === 2);
  model.tell(undefined);
  await sent;
  const all = [
    'RUN_STARTED',
    'TEXT_MESSAGE_START',
    'TEXT_MESSAGE_CONTENT',
    'TEXT_MESSAGE_END',
    'RUN_FINISHED',
  ];
  expect(await within('the running run', joined)).toEqual(all);
  expect(await within('the finished run', read())).toEqual(all);
  client.dispose();
});

test.each([
  ['after the last chunk', [{ type: 'RUN_FINISHED', threadId: 't', runId: 'r' }]],
  ['in a run that ends without a last chunk', []],
])('a ChatClient of TanStack AI takes a 204 for an error, %s', async (_when, last) => {
  const channels = createChannels();
  const app = express();
  const statuses: number[] = [];
  app.use((_req, res, next) => {
    res.on('finish', () => void statuses.push(res.statusCode));
    next();
  });
  app.use(sse({ channels, accept: 'any' }), channels.listen('a', { control: false }));
  await using server = await serve(app);
  let count = 0;
  const client = new ChatClient({
    connection: connectionTo(server.url),
    onChunk: () => void count++,
  });
  const sent = client.sendMessage('hi');
  await until('the subscription', () => channels.stats().subscriptions === 1);
  const chunks = [{ type: 'RUN_STARTED', threadId: 't', runId: 'r' }, ...last];
  for (const chunk of chunks) await channels.publish('a', chunk);
  await until('all chunks', () => count >= chunks.length);
  for (const socket of server.sockets) socket.resetAndDestroy();
  await channels.end('a');
  await within('the end', sent);
  expect([statuses, client.getStatus()]).toEqual([[204], 'error']);
  client.dispose();
});
