import { createParser } from 'eventsource-parser';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { EventStreamParser, type ReceivedEvent } from '../../src/client/parser.ts';
import { StrictParser } from '../support/strict-parser.ts';

interface Parsed {
  events: ReceivedEvent[];
  comments: string[];
  retries: number[];
  lastEventId: string;
}

function parse(chunks: readonly string[]): Parsed {
  const parsed: Parsed = { events: [], comments: [], retries: [], lastEventId: '' };
  const parser = new EventStreamParser({
    onEvent: (event) => void parsed.events.push(event),
    onComment: (text) => void parsed.comments.push(text),
    onRetry: (ms) => void parsed.retries.push(ms),
  });
  for (const chunk of chunks) parser.feed(chunk);
  return { ...parsed, lastEventId: parser.lastEventId };
}

/** Parses with `eventsource-parser`, an independent and widely used parser. */
function parseWithReference(chunks: readonly string[]): Omit<Parsed, 'lastEventId'> {
  const parsed: Omit<Parsed, 'lastEventId'> = { events: [], comments: [], retries: [] };
  const parser = createParser({
    onEvent: ({ event = 'message', data, id }) =>
      void parsed.events.push({ event, data, ...(id !== undefined && { id }) }),
    onComment: (text) => void parsed.comments.push(text),
    onRetry: (ms) => void parsed.retries.push(ms),
  });
  for (const chunk of chunks) parser.feed(chunk);
  return parsed;
}

// Tokens of the format and arbitrary text.
const fragment = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.constantFrom(
      'data',
      'event',
      'id',
      'retry',
      'Data',
      'nonsense',
      ':',
      ': ',
      '  ',
      '12',
      '-1',
      '\0',
    ),
  },
  { weight: 4, arbitrary: fc.constantFrom('\n', '\r', '\r\n', '\n\n', '\r\r', '\r\n\r\n') },
  {
    weight: 2,
    arbitrary: fc
      .string({ unit: 'grapheme', maxLength: 5 })
      .filter((text) => !text.includes('\uFEFF')),
  },
);
const chunks = fc.array(
  fc.array(fragment, { maxLength: 6 }).map((parts) => parts.join('')),
  { maxLength: 12 },
);
// Text after the last event. Some parsers wait for more text, because an LF may follow a CR.
const END = ['x', '\n\n', 'x'];

test('the parser reads any text in any chunks like eventsource-parser', () => {
  fc.assert(
    fc.property(chunks, (input) => {
      const { lastEventId: _, ...parsed } = parse([...input, ...END]);
      expect(parsed).toEqual(parseWithReference([...input, ...END]));
    }),
    { numRuns: 5_000 },
  );
});

test('the parser reads any text in any chunks like a parser of the HTML standard', () => {
  fc.assert(
    fc.property(chunks, (input) => {
      const { events, lastEventId, retries } = parse([...input, ...END]);
      const strict = new StrictParser();
      for (const chunk of [...input, ...END]) strict.feed(Buffer.from(chunk));
      expect(events.map(({ event, data }) => [event, data])).toEqual(
        strict.events.map(({ type, data }) => [type, data]),
      );
      expect(lastEventId).toBe(strict.lastEventId);
      expect(retries.at(-1)).toBe(strict.reconnectionTime);
    }),
    { numRuns: 5_000 },
  );
});

test('the parser emits an event with its last line, and accepts any chunks', () => {
  expect(parse(['data: x\r\r']).events).toEqual([{ event: 'message', data: 'x' }]);
  const text =
    '\uFEFF:hi\r\nid: ü\r\nevent: tick\r\ndata: \uFEFFa\r\ndata\r\n\r\n' +
    'retry: 5\r\n\r\nid\r\ndata: b\n\n';
  expect(parse(text.split(''))).toEqual(parse([text]));
  expect(parse([text])).toEqual({
    events: [
      { event: 'tick', data: '\uFEFFa\n', id: 'ü' },
      { event: 'message', data: 'b', id: '' },
    ],
    comments: ['hi'],
    retries: [5],
    lastEventId: '',
  });
});
