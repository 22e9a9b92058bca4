import express, { type Express } from 'express';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, describe, expect, test, vi } from 'vitest';
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

async function collect(iterator: AsyncIterable<string>): Promise<string[]> {
  const tokens: string[] = [];
  for await (const token of iterator) tokens.push(token);
  return tokens;
}

function baseUrlOf(server: TestServer): string {
  return `${server.url}/v1`;
}

/** A model that produces tokens until it is cancelled, and records how it ended. */
function endlessModel(): { complete: Complete; state: { tokenCount: number; ended: string } } {
  const state = { tokenCount: 0, ended: '' };
  return {
    state,
    async *complete(_messages, signal) {
      try {
        for (;;) {
          yield `token ${state.tokenCount++}`;
          await delay(5, undefined, { signal });
        }
      } finally {
        state.ended = signal.aborted ? 'cancelled' : 'returned';
      }
    },
  };
}

describe('the openai SDK reads chat completions from a route that pipes', () => {
  test('with every token at once, up to [DONE]', async () => {
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
    const iterator = ask(baseUrlOf(server), 'größer')[Symbol.asyncIterator]();
    expect((await iterator.next()).value).toBe('You said: ');
    release();
    expect(await collect({ [Symbol.asyncIterator]: () => iterator })).toEqual([
      'größer 🐸\n',
      '',
      'data: [DONE]',
    ]);
    await until('at most one open socket', () => server.sockets.size <= 1);
  });

  test('with data of several lines, and without heartbeats', async () => {
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
          await until('two heartbeats', () => events.stats().bytes >= bytes + 6);
        }
        stream.send('[DONE]');
        stream.close();
      }),
    );
    await using server = await serve(app);
    expect(await collect(ask(baseUrlOf(server), 'hi'))).toEqual(['a', 'b']);
  });

  test('and aborts the model at once when the request is aborted', async () => {
    const { complete, state } = endlessModel();
    await using server = await serve(chat(complete));
    const abort = new AbortController();
    const tokens: string[] = [];
    for await (const token of ask(baseUrlOf(server), 'hi', abort.signal)) {
      if (tokens.push(token) === 5) abort.abort();
    }
    await until('the end of the model', () => state.ended !== '', 2_000);
    expect([state.ended, tokens.slice(0, 5)]).toEqual([
      'cancelled',
      ['token 0', 'token 1', 'token 2', 'token 3', 'token 4'],
    ]);
  });

  test('and aborts the model at once when the loop is left', async () => {
    const { complete, state } = endlessModel();
    await using server = await serve(chat(complete));
    for await (const token of ask(baseUrlOf(server), 'hi')) if (token === 'token 3') break;
    await until('the end of the model', () => state.ended !== '', 2_000);
    expect(state.ended).toBe('cancelled');
  });

  test('and its loop throws when the model fails', async () => {
    let fail!: () => void;
    const failure = new Promise<never>((_, reject) => {
      fail = () => reject(new Error('out of tokens'));
    });
    const app = chat(async function* () {
      yield 'a';
      await failure;
    });
    using log = vi.spyOn(console, 'error').mockImplementation(() => {});
    await using server = await serve(app);
    const tokens: string[] = [];
    async function read(): Promise<void> {
      for await (const token of ask(baseUrlOf(server), 'hi')) {
        tokens.push(token);
        fail();
      }
    }
    await expect(read()).rejects.toThrow('The model does not answer.');
    expect(tokens).toEqual(['a']);
    expect(log).toHaveBeenCalledOnce();
  });
});
