/**
 * Tokens of a language model, over POST, as fast as the client reads them. A client that leaves cancels the model.
 *
 *     npx tsx llm-tokens/server.ts
 *     curl -N -H 'Content-Type: application/json' -d '{"prompt":"hello"}' localhost:3000/chat
 *
 * `/v1/chat/completions` says it in OpenAI's words, so that any client of theirs reads it:
 *
 *     const openai = new OpenAI({ baseURL: 'http://localhost:3000/v1', apiKey: 'none' });
 *     const messages = [{ role: 'user', content: 'hello' }];
 *     for await (const chunk of await openai.chat.completions.create({ model: 'parrot', messages, stream: true })) …
 */
import express from 'express';
import { sse, stream } from 'res-sse';
import type { Example } from '../serve.ts';
import { parrot, type Model } from './model.ts';

export function createExample(complete: Model = parrot): Example {
  // Clients of language models say `Accept: application/json`, curl says `*/*`, and both read a stream.
  const events = sse({ accept: 'any' });
  const app = express();
  app.use(events, express.json());

  // What is yielded is sent; at the end comes an `sse:end` event, which says that the answer is whole.
  app.post(
    '/chat',
    stream(async function* (stream, req) {
      const { prompt } = req.body as { prompt: string };
      for await (const token of complete(prompt, { signal: stream.signal })) yield { token };
    }),
  );

  app.post(
    '/v1/chat/completions',
    stream(async (stream, req) => {
      const { messages } = req.body as { messages: { content: string }[] };
      const tokens = complete(messages.at(-1)?.content ?? '', { signal: stream.signal });
      await stream.pipe(tokens, { map: chunkOf });
      stream.send('[DONE]');
      stream.close();
    }),
  );

  return { app, events };
}

function chunkOf(content: string): object {
  return {
    object: 'chat.completion.chunk',
    choices: [{ index: 0, delta: { content }, finish_reason: null }],
  };
}
