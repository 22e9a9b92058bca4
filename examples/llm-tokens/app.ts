/**
 * Tokens of a language model over POST, no faster than the client reads them. If the client leaves,
 * the model is cancelled.
 *
 *     npx tsx llm-tokens/server.ts
 *     curl -N -H 'Content-Type: application/json' -d '{"prompt":"hello"}' localhost:3000/chat
 *
 * `/v1/chat/completions` uses the format of OpenAI, so that clients for OpenAI can read it:
 *
 *     const openai = new OpenAI({ baseURL: 'http://localhost:3000/v1', apiKey: 'none' });
 *     const messages = [{ role: 'user', content: 'hello' }];
 *     const options = { model: 'parrot', messages, stream: true };
 *     for await (const chunk of await openai.chat.completions.create(options)) …
 */
import express from 'express';
import { sse, stream } from 'res-sse';
import type { Example } from '../serve.ts';
import { parrot, type Model } from './model.ts';

/** @param complete the language model */
export function createExample(complete: Model = parrot): Example {
  // Clients of language models send `Accept: application/json`, and curl sends `*/*`. Both can read
  // an event stream, but do not name its type.
  const events = sse({ accept: 'any' });
  const app = express();
  app.use(events, express.json());

  // Each yielded value is sent as an event. The `sse:end` event at the end tells the client that
  // the answer is complete.
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
      await stream.pipe(tokens, { map: toChunk });
      stream.send('[DONE]');
      stream.close();
    }),
  );

  return { app, events };
}

/** @returns a token in the format of OpenAI */
function toChunk(content: string): object {
  return {
    object: 'chat.completion.chunk',
    choices: [{ index: 0, delta: { content }, finish_reason: null }],
  };
}
