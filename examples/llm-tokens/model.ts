/** A local model that knows one answer. A real one is asked the same way: a prompt, a signal, tokens as they come. */
import { setTimeout as delay } from 'node:timers/promises';

export type Model = (prompt: string, options: { signal: AbortSignal }) => AsyncIterable<string>;

export const parrot: Model = async function* (prompt, { signal }) {
  const answer = `You said: ${prompt}. That is what I have been trained to say, one word after the other.`;
  for (const token of answer.match(/\s*\S+/g) ?? []) {
    // What the signal is for: a reader that leaves costs not one token more.
    await delay(100, undefined, { signal });
    yield token;
  }
};
