/** A language model that runs in this process and always gives the same answer. */
import { setTimeout as delay } from 'node:timers/promises';

/** A language model: yields the tokens of its answer, until the signal is aborted. */
export type Model = (prompt: string, options: { signal: AbortSignal }) => AsyncIterable<string>;

const SENTENCE = 'That is what I have been trained to say, one word after the other.';

/** Yields one word every 100 ms. */
export const parrot: Model = async function* (prompt, { signal }) {
  const answer = `You said: ${prompt}. ${SENTENCE}`;
  for (const token of answer.match(/\s*\S+/g) ?? []) {
    // The signal is aborted when the client leaves, so that no further token is computed.
    await delay(100, undefined, { signal });
    yield token;
  }
};
