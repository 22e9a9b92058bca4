import { createParser } from 'eventsource-parser';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { EventStreamParser, type ReceivedEvent } from '../../src/testing/parser.ts';
import { StrictParser } from '../support/strict-parser.ts';

interface Parsed {
  events: ReceivedEvent[];
  comments: string[];
  retries: number[];
  lastEventId: string;
}

function parse(pieces: readonly string[]): Parsed {
  const parsed: Parsed = { events: [], comments: [], retries: [], lastEventId: '' };
  const parser = new EventStreamParser({
    onEvent: (event) => void parsed.events.push(event),
    onComment: (text) => void parsed.comments.push(text),
    onRetry: (ms) => void parsed.retries.push(ms),
  });
  for (const piece of pieces) parser.feed(piece);
  return { ...parsed, lastEventId: parser.lastEventId };
}

/** By an independent parser that is in wide use. */
function parseElsewhere(pieces: readonly string[]): Omit<Parsed, 'lastEventId'> {
  const parsed: Omit<Parsed, 'lastEventId'> = { events: [], comments: [], retries: [] };
  const parser = createParser({
    onEvent: ({ event = 'message', data, id }) =>
      void parsed.events.push({ event, data, ...(id !== undefined && { id }) }),
    onComment: (text) => void parsed.comments.push(text),
    onRetry: (ms) => void parsed.retries.push(ms),
  });
  for (const piece of pieces) parser.feed(piece);
  return parsed;
}

// What is near the edges of the format, and anything at all.
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
const pieces = fc.array(
  fc.array(fragment, { maxLength: 6 }).map((parts) => parts.join('')),
  { maxLength: 12 },
);
// What comes last is not told by parsers that wait for more, for the LF that may follow a CR.
const END = ['x', '\n\n', 'x'];

test('the kit reads any text in any pieces as eventsource-parser does', () => {
  fc.assert(
    fc.property(pieces, (given) => {
      const { lastEventId: _, ...parsed } = parse([...given, ...END]);
      expect(parsed).toEqual(parseElsewhere([...given, ...END]));
    }),
    { numRuns: 5_000 },
  );
});

test('the kit reads any text in any pieces as a parser written from the standard does', () => {
  fc.assert(
    fc.property(pieces, (given) => {
      const { events, lastEventId, retries } = parse([...given, ...END]);
      const strict = new StrictParser();
      for (const piece of [...given, ...END]) strict.feed(Buffer.from(piece));
      expect(events.map(({ event, data }) => [event, data])).toEqual(
        strict.events.map(({ type, data }) => [type, data]),
      );
      expect(lastEventId).toBe(strict.lastEventId);
      expect(retries.at(-1)).toBe(strict.reconnectionTime);
    }),
    { numRuns: 5_000 },
  );
});

test('the kit tells an event with the line that ends it, and reads the same however the text is cut', () => {
  expect(parse(['data: x\r\r']).events).toEqual([{ event: 'message', data: 'x' }]);
  const text =
    '\uFEFF:hi\r\nid: ü\r\nevent: tick\r\ndata: \uFEFFa\r\ndata\r\n\r\nretry: 5\r\n\r\nid\r\ndata: b\n\n';
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
