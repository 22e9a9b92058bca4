/** The Vercel AI SDK reads answers that are published to channels, with the code of the docs. */
import {
  AbstractChat,
  DefaultChatTransport,
  createUIMessageStream,
  type ChatState,
  type UIMessage,
  type UIMessageChunk,
} from 'ai';
import express, { type Express } from 'express';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import { createChannels, sse, type Channels, type SubscribeOptions } from '../../src/index.ts';
import { RedisNodes, memoryNodes } from '../promises/nodes.ts';
import { serve, type TestServer } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import { filesIn, pageOf, writeFiles } from './blocks.ts';

type Answer = (messages: UIMessage[]) => AsyncIterable<UIMessageChunk>;

const { 'ai-chat.js': file = '' } = filesIn(await pageOf('clients.md'));
const files = await writeFiles({ 'ai-chat.js': file }, ['express', 'res-sse']);
const { aiChat } = (await files.load('ai-chat.js')) as {
  aiChat: (answer: Answer, channels?: Channels, runs?: Map<string, string>) => Express;
};

afterAll(() => files[Symbol.asyncDispose]());

const USER: UIMessage = { id: 'u1', role: 'user', parts: [{ type: 'text', text: 'größer 🐸' }] };

/** The state that the bindings for React and Vue keep for a chat. */
class PlainState implements ChatState<UIMessage> {
  status: ChatState<UIMessage>['status'] = 'ready';
  error: Error | undefined;
  messages: UIMessage[] = [];
  pushMessage = (message: UIMessage): void => void this.messages.push(message);
  popMessage = (): void => void this.messages.pop();
  replaceMessage = (index: number, message: UIMessage): void => {
    this.messages[index] = message;
  };
  snapshot = <T>(value: T): T => structuredClone(value);
}

class Chat extends AbstractChat<UIMessage> {
  /** The reasons of the answers that the SDK takes for complete. */
  readonly finishReasons: (string | undefined)[];

  constructor(id: string, server: TestServer) {
    const finishReasons: (string | undefined)[] = [];
    super({
      id,
      transport: transportOf(server),
      state: new PlainState(),
      onFinish: ({ finishReason }) => void finishReasons.push(finishReason),
    });
    this.finishReasons = finishReasons;
  }

  /** The text of the newest answer. */
  get answer(): string {
    const message = this.messages.findLast(({ role }) => role === 'assistant');
    return (message?.parts ?? []).map((part) => ('text' in part ? part.text : '')).join('');
  }
}

function transportOf(server: TestServer, path = '/api/chat'): DefaultChatTransport<UIMessage> {
  return new DefaultChatTransport({ api: `${server.url}${path}` });
}

function send(
  transport: DefaultChatTransport<UIMessage>,
  abortSignal?: AbortSignal,
): Promise<ReadableStream<UIMessageChunk>> {
  const trigger = 'submit-message';
  return transport.sendMessages({
    trigger,
    chatId: 'c1',
    messageId: undefined,
    messages: [USER],
    abortSignal,
  });
}

/** A model that writes a word each time it is told to. */
function modelOf(): {
  answer: Answer;
  write: (word: string) => void;
  finish: (error?: Error) => void;
} {
  const words: (string | Error | undefined)[] = [];
  let wake = (): void => {};
  const tell = (word: string | Error | undefined): void => {
    words.push(word);
    wake();
  };
  async function next(): Promise<string | Error | undefined> {
    while (words.length === 0) await new Promise<void>((resolve) => (wake = resolve));
    return words.shift();
  }
  return {
    write: tell,
    finish: tell,
    answer: () =>
      createUIMessageStream({
        async execute({ writer }) {
          writer.write({ type: 'text-start', id: 't' });
          for (let word = await next(); word !== undefined; word = await next()) {
            if (word instanceof Error) throw word;
            writer.write({ type: 'text-delta', id: 't', delta: word });
          }
          writer.write({ type: 'text-end', id: 't' });
          writer.write({ type: 'finish', finishReason: 'stop' });
        },
        onError: () => 'The model has failed.',
      }),
  };
}

/** The text deltas of parts. */
function textOf(parts: readonly UIMessageChunk[]): string {
  return parts.map((part) => (part.type === 'text-delta' ? part.delta : '')).join('');
}

async function readAll(stream: ReadableStream<UIMessageChunk> | null): Promise<UIMessageChunk[]> {
  const parts: UIMessageChunk[] = [];
  for await (const part of stream ?? []) parts.push(part);
  return parts;
}

describe('DefaultChatTransport of the AI SDK', () => {
  test('receives each part as soon as it is published, and ends with the run', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const reader = (await send(transportOf(server))).getReader();
    const types = ['start', 'text-start'];
    for (const type of types) expect((await reader.read()).value).toMatchObject({ type });
    for (const delta of ['größer ', '🐸\n']) {
      model.write(delta);
      expect((await reader.read()).value).toEqual({ type: 'text-delta', id: 't', delta });
    }
    model.finish();
    for (const type of ['text-end', 'finish']) {
      expect((await reader.read()).value).toMatchObject({ type });
    }
    expect((await within('the end', reader.read())).done).toBe(true);
  });

  test('reconnectToStream resumes a running answer on another request, and ends', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const abort = new AbortController();
    const first = (await send(transportOf(server), abort.signal)).getReader();
    model.write('one ');
    for (let n = 0; n < 3; n++) await first.read();
    abort.abort();
    model.write('two ');
    const resumed = await transportOf(server).reconnectToStream({ chatId: 'c1' });
    const second = await transportOf(server).reconnectToStream({ chatId: 'c1' });
    model.write('three');
    model.finish();
    for (const parts of await Promise.all([readAll(resumed), readAll(second)])) {
      expect(textOf(parts)).toBe('one two three');
      expect([parts.at(0)?.type, parts.at(-1)?.type]).toEqual(['start', 'finish']);
    }
  });

  test('reconnectToStream resumes a run that has published no part yet', async () => {
    const model = modelOf();
    const held = new Promise<void>((resolve) => setImmediate(resolve));
    await using server = await serve(
      aiChat(async function* (messages) {
        await held;
        yield* model.answer(messages);
      }),
    );
    void send(transportOf(server)).then(readAll);
    await until('the run', async () => {
      const resumed = await transportOf(server).reconnectToStream({ chatId: 'c1' });
      void resumed?.cancel();
      return resumed !== null;
    });
    const resumed = await transportOf(server).reconnectToStream({ chatId: 'c1' });
    model.write('text');
    model.finish();
    expect(textOf(await readAll(resumed))).toBe('text');
  });

  test('reconnectToStream resolves with null for a run that is finished or unknown', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const transport = transportOf(server);
    expect(await transport.reconnectToStream({ chatId: 'c1' })).toBeNull();
    model.finish();
    await readAll(await send(transport));
    expect(await transport.reconnectToStream({ chatId: 'c1' })).toBeNull();
    expect(await transport.reconnectToStream({ chatId: 'c2' })).toBeNull();
  });
});

describe('a chat of the AI SDK', () => {
  test('shows the answer, and a second chat resumes it', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const chat = new Chat('c1', server);
    const sent = chat.sendMessage({ text: 'hi' });
    model.write('one ');
    await until('the first word', () => chat.answer === 'one ');
    const other = new Chat('c1', server);
    const resumed = other.resumeStream();
    await until('the first word in the other chat', () => other.answer === 'one ');
    model.write('two');
    model.finish();
    await within('both chats', Promise.all([sent, resumed]));
    expect([chat.answer, other.answer]).toEqual(['one two', 'one two']);
    expect([chat.status, other.status]).toEqual(['ready', 'ready']);
    expect([chat.finishReasons, other.finishReasons]).toEqual([['stop'], ['stop']]);
    await other.resumeStream();
    expect([other.status, other.messages.length]).toEqual(['ready', 1]);
  });

  test('resumes after a connection that was cut, without words twice', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const chat = new Chat('c1', server);
    const sent = chat.sendMessage({ text: 'hi' });
    model.write('one ');
    await until('the first word', () => chat.answer === 'one ');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await within('the error', sent);
    expect(chat.status).toBe('error');
    model.write('two');
    const resumed = chat.resumeStream();
    await until('the second word', () => chat.answer === 'one two');
    model.finish();
    await within('the rest', resumed);
    expect(chat.status).toBe('ready');
    expect(chat.messages.map(({ role }) => role)).toEqual(['user', 'assistant']);
  });

  test('keeps half an answer that was finished while its connection was cut', async () => {
    const model = modelOf();
    await using server = await serve(aiChat(model.answer));
    const chat = new Chat('c1', server);
    const sent = chat.sendMessage({ text: 'hi' });
    model.write('one ');
    await until('the first word', () => chat.answer === 'one ');
    for (const socket of server.sockets) socket.resetAndDestroy();
    await within('the error', sent);
    model.write('two');
    model.finish();
    await until('the end of the run', async () => {
      const resumed = await transportOf(server).reconnectToStream({ chatId: 'c1' });
      void resumed?.cancel();
      return resumed === null;
    });
    await chat.resumeStream();
    expect([chat.status, chat.answer]).toEqual(['ready', 'one ']);
  });

  test('is told of a source that throws', async () => {
    await using server = await serve(
      aiChat(async function* () {
        yield { type: 'text-start', id: 't' };
        throw new Error('quota of account 4711 exceeded');
      }),
    );
    const chat = new Chat('c1', server);
    await within('the error', chat.sendMessage({ text: 'hi' }));
    expect([chat.status, chat.error?.message]).toEqual(['error', 'No answer.']);
  });
});

test('a chat takes half an answer for the whole, if its producer dies', async () => {
  await using nodes = memoryNodes();
  const model = modelOf();
  const runs = new Map<string, string>();
  await using server = await serve(aiChat(model.answer, nodes.publisher, runs));
  const chat = new Chat('c1', server);
  const sent = chat.sendMessage({ text: 'hi' });
  model.write('one ');
  await until('the first word', () => chat.answer === 'one ');
  // As another node does when the lease has run out.
  await nodes.publisher.end(runs.get('c1') ?? '');
  await within('the end', sent);
  expect([chat.status, chat.answer]).toEqual(['ready', 'one ']);
  expect(chat.finishReasons).toEqual([undefined]);
});

test('with a Redis broker an answer is resumed on another node', async () => {
  const redis = new RedisNodes();
  await redis.start();
  onTestFinished(() => redis.stop());
  await using nodes = redis.make();
  const model = modelOf();
  const runs = new Map<string, string>();
  await using server = await serve(aiChat(model.answer, nodes.publisher, runs));
  await using otherServer = await serve(aiChat(model.answer, nodes.reader, runs));
  const chat = new Chat('c1', server);
  const other = new Chat('c1', otherServer);
  const sent = chat.sendMessage({ text: 'hi' });
  await until('the run', () => runs.size === 1);
  const resumed = other.resumeStream();
  model.write('one ');
  await until('the first word on both nodes', () =>
    [chat, other].every(({ answer }) => answer === 'one '),
  );
  model.write('two');
  model.finish();
  await within('both chats', Promise.all([sent, resumed]));
  expect([chat.answer, other.answer]).toEqual(['one two', 'one two']);
  expect(await transportOf(otherServer).reconnectToStream({ chatId: 'c1' })).toBeNull();
});

describe('without the settings of the docs the AI SDK', () => {
  async function serveRun(options: SubscribeOptions, heartbeat = 15_000): Promise<TestServer> {
    const channels = createChannels();
    const app = express();
    app.use(sse({ channels, accept: 'any', heartbeat }));
    app.post(
      '/any',
      (_req, _res, next) => {
        void channels.publish('a', { type: 'text-start', id: 't' });
        setTimeout(() => void channels.end('a', { type: 'finish' }), 50);
        next();
      },
      channels.listen('a', { since: 'start', ...options }),
    );
    app.use('/strict', sse({ channels }), channels.listen('a'));
    app.use(
      '/missing',
      channels.listen(() => undefined),
    );
    return serve(app);
  }

  test('sees no heartbeats', async () => {
    await using server = await serveRun({ control: false }, 10);
    const parts = await readAll(await send(transportOf(server, '/any')));
    expect(parts.map(({ type }) => type)).toEqual(['text-start', 'finish']);
  });

  test('fails at the events of the library, without control: false', async () => {
    await using server = await serveRun({});
    const failed = readAll(await send(transportOf(server, '/any')));
    await expect(failed).rejects.toThrow('Type validation failed');
  });

  test('throws at a 404 to reconnectToStream', async () => {
    await using server = await serveRun({});
    const failed = transportOf(server, '/missing').reconnectToStream({ chatId: 'c1' });
    await expect(failed).rejects.toThrow('nothing to follow');
  });
});
