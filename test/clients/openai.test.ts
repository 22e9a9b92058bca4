import express, { type Express } from 'express';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { sse, stream } from '../../src/index.ts';
import { serve, type TestServer } from '../support/server.ts';
import { until } from '../support/wait.ts';
import { filesIn, pageOf, writeFiles } from './blocks.ts';

interface Message {
  role: string;
  content: string;
}
type Complete = (messages: Message[], signal: AbortSignal) => AsyncIterable<string>;
type Ask = (baseURL: string, prompt: string, signal?: AbortSignal) => AsyncIterable<string>;

const { 'chat.js': chatFile = '', 'ask.js': askFile = '' } = filesIn(await pageOf('clients.md'));
const files = await writeFiles({ 'chat.js': chatFile, 'ask.js': askFile }, [
  'express',
  'openai',
  'res-sse',
]);
const { chat } = (await files.load('chat.js')) as { chat: (complete: Complete) => Express };
const { ask } = (await files.load('ask.js')) as { ask: Ask };

afterAll(() => files[Symbol.asyncDispose]());

async function all(answer: AsyncIterable<string>): Promise<string[]> {
  const tokens: string[] = [];
  for await (const token of answer) tokens.push(token);
  return tokens;
}

function baseOf(server: TestServer): string {
  return `${server.url}/v1`;
}

/** A model that goes on until nobody listens, and tells what became of it. */
function endless(): { complete: Complete; state: { given: number; ended: string } } {
  const state = { given: 0, ended: '' };
  return {
    state,
    async *complete(_messages, signal) {
      try {
        for (;;) {
          yield `token ${state.given++}`;
          await delay(5, undefined, { signal });
        }
      } finally {
        state.ended = signal.aborted ? 'cancelled' : 'let go';
      }
    },
  };
}

describe('the openai SDK reads chat completions from a route that pipes', () => {
  test('every token, as it comes, up to [DONE]', async () => {
    let release!: () => void;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    await using server = await serve(
      chat(async function* ([message]) {
        yield 'You said: ';
        await released;
        yield `${message?.content} 🐸\n`;
        yield '';
        yield 'data: [DONE]';
      }),
    );
    const answer = ask(baseOf(server), 'größer')[Symbol.asyncIterator]();
    expect((await answer.next()).value).toBe('You said: ');
    release();
    expect(await all({ [Symbol.asyncIterator]: () => answer })).toEqual([
      'größer 🐸\n',
      '',
      'data: [DONE]',
    ]);
    await until('the connection to be over', () => server.sockets.size <= 1);
  });

  test('data of many lines, and no heartbeats', async () => {
    const app = express();
    const events = sse({
      accept: 'any',
      heartbeat: 10,
      serialize: (data) => JSON.stringify(data, null, 2),
    });
    app.post(
      '/v1/chat/completions',
      events,
      stream(async (stream) => {
        for (const content of ['a', 'b']) {
          stream.send({ choices: [{ index: 0, delta: { content } }] });
          const { bytes } = events.stats();
          await until('some heartbeats', () => events.stats().bytes >= bytes + 6);
        }
        stream.send('[DONE]');
        stream.close();
      }),
    );
    await using server = await serve(app);
    expect(await all(ask(baseOf(server), 'hi'))).toEqual(['a', 'b']);
  });

  test('and when it is aborted midway, the model is told at once', async () => {
    const { complete, state } = endless();
    await using server = await serve(chat(complete));
    const abort = new AbortController();
    const tokens: string[] = [];
    for await (const token of ask(baseOf(server), 'hi', abort.signal)) {
      if (tokens.push(token) === 5) abort.abort();
    }
    await until('the model to stop', () => state.ended !== '', 2_000);
    expect([state.ended, tokens.slice(0, 5)]).toEqual([
      'cancelled',
      ['token 0', 'token 1', 'token 2', 'token 3', 'token 4'],
    ]);
  });

  test('and when its loop is left, the model is told at once', async () => {
    const { complete, state } = endless();
    await using server = await serve(chat(complete));
    for await (const token of ask(baseOf(server), 'hi')) if (token === 'token 3') break;
    await until('the model to stop', () => state.ended !== '', 2_000);
    expect(state.ended).toBe('cancelled');
  });

  test('and when the model fails, the loop fails instead of ending as if all had come', async () => {
    let fail!: () => void;
    const failure = new Promise<never>((_, reject) => {
      fail = () => reject(new Error('out of tokens'));
    });
    const app = chat(async function* () {
      yield 'a';
      await failure;
    });
    // As Express does it by itself, without its log.
    app.use(
      (
        _error: unknown,
        req: express.Request,
        _res: express.Response,
        _next: express.NextFunction,
      ) => {
        req.socket.destroy();
      },
    );
    await using server = await serve(app);
    const tokens: string[] = [];
    async function read(): Promise<void> {
      for await (const token of ask(baseOf(server), 'hi')) {
        tokens.push(token);
        fail();
      }
    }
    await expect(read()).rejects.toThrow('terminated');
    expect(tokens).toEqual(['a']);
  });
});
