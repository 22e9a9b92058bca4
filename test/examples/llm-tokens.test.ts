import { setTimeout as delay } from 'node:timers/promises';
import OpenAI from 'openai';
import { expect, test } from 'vitest';
import { createExample } from '../../examples/llm-tokens/app.ts';
import { parrot, type Model } from '../../examples/llm-tokens/model.ts';
import { read, type Reader } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import { post, serveExample } from './serve-example.ts';

/** The model of the example, with a record of its tokens and its end. */
function observedModel(): { model: Model; state: { tokens: number; ended: string } } {
  const state = { tokens: 0, ended: '' };
  return {
    state,
    async *model(prompt, options) {
      try {
        for await (const token of parrot(prompt, options)) {
          state.tokens++;
          yield token;
        }
        state.ended = 'complete';
      } finally {
        if (options.signal.aborted) state.ended = 'cancelled';
      }
    },
  };
}

function chat(url: string, prompt: string, accept = 'application/json'): Promise<Reader> {
  const headers = { 'Content-Type': 'application/json', Accept: accept };
  return read(`${url}/chat`, { method: 'POST', body: JSON.stringify({ prompt }), headers });
}

const ANSWER =
  'You said: hello. That is what I have been trained to say, one word after the other.';
const LONG = 'word '.repeat(1_000);

test.each(['application/json', '*/*', 'text/event-stream'])(
  'with Accept: %s the tokens arrive one by one, up to sse:end',
  async (accept) => {
    const { model, state } = observedModel();
    await using server = await serveExample(createExample(model));
    using reader = await chat(server.url, 'hello', accept);
    expect(JSON.parse((await reader.next()).data)).toEqual({ token: 'You' });
    expect(state.ended).toBe('');
    await reader.end();
    expect(reader.events.at(-1)?.event).toBe('sse:end');
    const tokens = reader.events.slice(0, -1).map(({ data }) => JSON.parse(data).token);
    expect(tokens.join('')).toBe(ANSWER);
    expect(tokens.length).toBe(state.tokens);
    expect(state.ended).toBe('complete');
  },
);

test('a disconnect of the client cancels the model, also between tokens', async () => {
  let ended = '';
  async function* slowModel(_prompt: string, { signal }: { signal: AbortSignal }) {
    yield 'Well';
    // Wait for one hour.
    await delay(3_600_000, undefined, { signal }).catch((error: Error) => {
      ended = error.name;
    });
  }
  await using server = await serveExample(createExample(slowModel));
  using reader = await chat(server.url, 'why?');
  await reader.next();
  reader.close();
  await until('the cancellation of the model', () => ended !== '');
  expect(ended).toBe('AbortError');
  expect(server.example.events.stats()).toMatchObject({ open: 0, closed: { client: 1 } });
});

test('the openai SDK reads the whole answer, and leaving its loop cancels the model', async () => {
  const { model, state } = observedModel();
  await using server = await serveExample(createExample(model));
  const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none' });
  async function ask(content: string, signal?: AbortSignal) {
    const messages = [{ role: 'user' as const, content }];
    return openai.chat.completions.create({ model: 'parrot', messages, stream: true }, { signal });
  }
  let answer = '';
  for await (const chunk of await ask('hello')) answer += chunk.choices[0]?.delta.content ?? '';
  expect(answer).toBe(ANSWER);
  expect(state.ended).toBe('complete');
  for await (const chunk of await ask(LONG)) {
    expect(chunk.choices[0]?.delta.content).toBe('You');
    break;
  }
  await until('the cancellation of the model', () => state.ended === 'cancelled');
});

test('a completion ends with [DONE], and a client without event streams gets 406', async () => {
  await using server = await serveExample(createExample());
  const messages = [{ role: 'user', content: 'hello' }];
  const whole = await (await post(`${server.url}/v1/chat/completions`, { messages })).text();
  expect(whole.endsWith('data: [DONE]\n\n')).toBe(true);
  const refused = await post(
    `${server.url}/chat`,
    { prompt: 'hello' },
    { headers: { Accept: 'text/event-stream;q=0, */*' } },
  );
  expect(refused.status).toBe(406);
});
