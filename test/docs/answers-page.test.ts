/** The page of docs/answers.md: whether it knows that an answer is whole. */
import { EventSource } from 'eventsource';
import express from 'express';
import { afterEach, expect, test, vi } from 'vitest';
import { createChannels, sse } from '../../src/index.ts';
import { filesIn, pageOf, writeFiles } from '../clients/blocks.ts';
import { serve, type TestServer } from '../support/server.ts';
import { within } from '../support/wait.ts';

interface Page {
  readonly showAnswer: (
    id: string,
    onToken: (text: string) => void,
    onEnd: (how: string) => void,
    lastEventId?: string,
  ) => void;
}

interface Answer {
  readonly server: TestServer;
  /** The ids of the question and of two tokens. */
  readonly ids: readonly string[];
}

afterEach(() => void vi.unstubAllGlobals());

/** Serves an answer that has ended, of which `kept` events are kept. */
async function serveAnswer(kept: number): Promise<Answer> {
  const channels = createChannels({ history: { events: kept } });
  const app = express();
  app.use(sse({ channels }));
  app.get('/answers/7', channels.listen('answer:7', { since: 'start' }));
  const ids: string[] = [];
  for (const [event, text] of [['question'], ['token', 'old '], ['token', 'pond']] as const) {
    ids.push((await channels.publish('answer:7', { text }, { event })).id);
  }
  await channels.end('answer:7', {}, { event: 'done' });
  return { server: await serve(app), ids };
}

/** @returns the texts, and how the answer has ended */
async function show({ server }: Answer, lastEventId?: string): Promise<string[]> {
  await using disposed = server;
  await using files = await writeFiles(filesIn(await pageOf('answers.md')), []);
  vi.stubGlobal(
    'EventSource',
    class extends EventSource {
      constructor(path: string) {
        super(`${disposed.url}${path}`);
      }
    },
  );
  const page = (await files.load('page.js')) as Page;
  const texts: string[] = [];
  const end = new Promise<string>((resolve) => {
    page.showAnswer('7', (text) => void texts.push(text), resolve, lastEventId);
  });
  const how = await within('the end of the answer', end);
  return [...texts, how];
}

test('a page shows an answer that is kept as a whole', async () => {
  expect(await show(await serveAnswer(10))).toEqual(['old ', 'pond', 'done']);
});

test.each([3, 2, 1])(
  'a page does not show an answer as complete of which only %i events are kept',
  async (kept) => {
    expect(await show(await serveAnswer(kept))).toEqual(['cut']);
  },
);

test('a page continues after the text that it has kept', async () => {
  const answer = await serveAnswer(10);
  expect(await show(answer, answer.ids[1])).toEqual(['pond', 'done']);
});

test('a page is told that some events after its own were lost', async () => {
  const answer = await serveAnswer(2);
  expect(await show(answer, answer.ids[0])).toEqual(['sse:gap']);
});
