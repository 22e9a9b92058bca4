import { createParser, type EventSourceMessage } from 'eventsource-parser';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { SseError } from '../src/common/errors.ts';
import {
  END_EVENT,
  FINAL_ID,
  HEARTBEAT_COMMENT,
  assertFields,
  formatComment,
  serializeData,
  countEventBytes,
  formatEvent,
  formatPing,
  formatRetry,
  type EventFields,
} from '../src/protocol/event-stream-format.ts';
import { codeOf } from './support/code-of.ts';
import { StrictParser } from './support/strict-parser.ts';

/** Checks and encodes an event as `send` and `publish` do. */
function encode(data: unknown, fields: EventFields = {}): Buffer {
  assertFields(fields);
  return Buffer.from(
    formatEvent(serializeData(data, JSON.stringify), fields.event, fields.id, fields.retry),
  );
}

function readStrictly(...parts: Uint8Array[]): StrictParser {
  const parser = new StrictParser();
  for (const part of parts) parser.feed(part);
  return parser;
}

function readByOther(text: string): EventSourceMessage[] {
  const events: EventSourceMessage[] = [];
  const parser = createParser({
    onEvent: (event) => void events.push(event),
    onError: (error) => {
      throw error;
    },
  });
  parser.feed(text);
  return events;
}

/** The text as a client receives it: every line break is LF, and UTF-8 has no lone surrogates. */
function asReceived(text: string): string {
  return Buffer.from(text)
    .toString()
    .replace(/\r\n|\r/g, '\n');
}

// Strings with many characters that have a meaning in the format.
const nasty = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc
    .array(
      fc.constantFrom(
        '\n',
        '\r',
        '\r\n',
        ' ',
        ':',
        'data',
        'id: ',
        'event: ',
        'retry: 1',
        '\0',
        '\uFEFF',
        '\u2028',
        '\u2029',
        '\u0085',
        '\uD800',
        '\uDC00',
        '😀',
        'é',
        'x',
      ),
    )
    .map((parts) => parts.join('')),
);
const eventName = nasty.map((text) => text.replace(/[\r\n]/g, '').replace(/^(sse:)+/, ''));
const eventId = fc
  .oneof(
    nasty.map((text) => text.replace(/[\r\n\0]/g, '')),
    fc.integer(),
    fc.bigInt(),
  )
  .filter((id) => id !== FINAL_ID);
const fields: fc.Arbitrary<EventFields> = fc.record(
  { event: eventName, id: eventId, retry: fc.nat() },
  { requiredKeys: [] },
);
const manyEvents = fc.array(fc.tuple(nasty, fields), { minLength: 1, maxLength: 6 });

describe('an event on the wire', () => {
  test.each([
    ['one line', 'hello', 'data: hello\n\n'],
    ['LF', 'a\nb', 'data: a\ndata: b\n\n'],
    ['CR', 'a\rb', 'data: a\ndata: b\n\n'],
    ['CRLF', 'a\r\nb', 'data: a\ndata: b\n\n'],
    ['LF CR is two line ends', 'a\n\rb', 'data: a\ndata: \ndata: b\n\n'],
    ['trailing newlines', 'a\n\n', 'data: a\ndata: \ndata: \n\n'],
    ['leading spaces', '  a', 'data:   a\n\n'],
    ['empty data', '', 'data: \n\n'],
    ['a colon first', ':a', 'data: :a\n\n'],
    ['a BOM inside', '\uFEFFa', 'data: \uFEFFa\n\n'],
    [
      'line separators that are none here',
      'a\u2028b\u2029c\u0085d',
      'data: a\u2028b\u2029c\u0085d\n\n',
    ],
  ])('%s', (_, data, wire) => {
    expect(encode(data).toString()).toBe(wire);
  });

  test('lone surrogates become U+FFFD', () => {
    expect(readStrictly(encode('a\uD800b')).events[0]?.data).toBe('a\uFFFDb');
  });

  test('1 MB of one line and of 100,000 lines arrive unchanged', () => {
    const line = 'é'.repeat(500_000);
    const lines = Array.from({ length: 100_000 }, (_, index) => `line ${index}`).join('\n');
    for (const data of [line, lines]) expect(readStrictly(encode(data)).events[0]?.data).toBe(data);
  });

  test('all fields, in one event', () => {
    expect(encode('x', { event: 'tick', id: 'a', retry: 5 }).toString()).toBe(
      'event: tick\nretry: 5\ndata: x\nid: a\n\n',
    );
  });

  test.each([
    ['id: 0', { id: 0 }, 'data: x\nid: 0\n\n'],
    ["id: ''", { id: '' }, 'data: x\nid: \n\n'],
    ['a bigint id', { id: 2n ** 64n }, 'data: x\nid: 18446744073709551616\n\n'],
    ['retry: 0', { retry: 0 }, 'retry: 0\ndata: x\n\n'],
    ['the longest retry', { retry: 2 ** 31 - 1 }, 'retry: 2147483647\ndata: x\n\n'],
    ["event: '' is a message", { event: '' }, 'data: x\n\n'],
    [
      'undefined is an absence',
      { id: undefined, event: undefined, retry: undefined },
      'data: x\n\n',
    ],
  ])('%s is a value', (_, given, wire) => {
    expect(encode('x', given).toString()).toBe(wire);
  });

  test("an empty id resets the client's last event ID", () => {
    const parser = readStrictly(encode('x', { id: 'a' }), encode('y', { id: '' }));
    expect(parser.events.map((event) => event.lastEventId)).toEqual(['a', '']);
  });

  test.each([
    [{ a: [1, 'ü'] }, '{"a":[1,"ü"]}'],
    [null, 'null'],
    [0, '0'],
    [false, 'false'],
    [new Date(0), '"1970-01-01T00:00:00.000Z"'],
  ])('data that is not a string goes through serialize: %j', (data, text) => {
    expect(readStrictly(encode(data)).events[0]?.data).toBe(text);
  });
});

describe('read back by a parser written from the standard and by eventsource-parser', () => {
  test('every event arrives as it was sent, for any content', () => {
    fc.assert(
      fc.property(manyEvents, (events) => {
        const bytes = Buffer.concat([
          Buffer.from(':\n'),
          ...events.map(([data, given]) => encode(data, given)),
        ]);
        let id = '';
        const expected = events.map(([data, given]) => {
          if (given.id !== undefined) id = asReceived(String(given.id));
          const type = asReceived(given.event ?? '');
          return { type: type === '' ? 'message' : type, data: asReceived(data), lastEventId: id };
        });
        expect(readStrictly(bytes).events).toEqual(expected);
        expect(
          readByOther(bytes.toString()).map((event) => ({
            type: event.event ?? 'message',
            data: event.data,
          })),
        ).toEqual(expected.map(({ type, data }) => ({ type, data })));
      }),
      { numRuns: 2_000 },
    );
  });

  test('bytes split at every position give the same events', () => {
    fc.assert(
      fc.property(manyEvents, (events) => {
        const bytes = Buffer.concat(events.map(([data, given]) => encode(data, given)));
        const whole = readStrictly(bytes).events;
        for (let at = 0; at <= bytes.length; at++) {
          expect(readStrictly(bytes.subarray(0, at), bytes.subarray(at)).events).toEqual(whole);
        }
        const text = bytes.toString();
        const parts: EventSourceMessage[] = [];
        const parser = createParser({ onEvent: (event) => void parts.push(event) });
        for (const unit of text) parser.feed(unit);
        expect(parts).toEqual(readByOther(text));
        expect(parts).toHaveLength(events.length);
      }),
      { numRuns: 200 },
    );
  });

  test('comments between events, of any text, are no part of them', () => {
    fc.assert(
      fc.property(nasty, nasty, (comment, data) => {
        const bytes = Buffer.concat([
          Buffer.from(formatComment(comment)),
          encode(data),
          Buffer.from(formatComment(comment)),
        ]);
        const parser = readStrictly(bytes);
        expect(parser.events).toEqual([
          { type: 'message', data: asReceived(data), lastEventId: '' },
        ]);
        expect(
          parser.comments
            .map((line) => line.replace(/^ /, ''))
            .slice(0, parser.comments.length / 2)
            .join('\n'),
        ).toBe(asReceived(comment));
      }),
    );
  });
});

describe('refused at the call, before a byte is written', () => {
  test.each([
    ['an event name with LF', { event: 'a\nb' }, 'ERR_SSE_EVENT'],
    ['an event name with CR', { event: 'a\rb' }, 'ERR_SSE_EVENT'],
    ["an event name of the library's", { event: 'sse:end' }, 'ERR_SSE_EVENT'],
    ['an event name that is no string', { event: 7 }, 'ERR_SSE_EVENT'],
    ['a null event name', { event: null }, 'ERR_SSE_EVENT'],
    ['an id with LF', { id: '1\ndata: forged' }, 'ERR_SSE_ID'],
    ['an id with CR', { id: '1\rdata: forged' }, 'ERR_SSE_ID'],
    ['an id with NUL', { id: 'a\0b' }, 'ERR_SSE_ID'],
    ['the final mark as an id', { id: FINAL_ID }, 'ERR_SSE_ID'],
    ['the final mark and a space as an id', { id: `${FINAL_ID} ` }, 'ERR_SSE_ID'],
    ['a space and the final mark as an id', { id: ` ${FINAL_ID}` }, 'ERR_SSE_ID'],
    ['the final mark between tabs as an id', { id: `\t${FINAL_ID}\t ` }, 'ERR_SSE_ID'],
    ['an id that is NaN', { id: Number.NaN }, 'ERR_SSE_ID'],
    ['an id that is an object', { id: { toString: () => 'x\n' } }, 'ERR_SSE_ID'],
    ['a null id', { id: null }, 'ERR_SSE_ID'],
    ['a negative retry', { retry: -1 }, 'ERR_SSE_RETRY'],
    ['a broken retry', { retry: 1.5 }, 'ERR_SSE_RETRY'],
    ['an infinite retry', { retry: Infinity }, 'ERR_SSE_RETRY'],
    ['a retry beyond what the timers of clients take', { retry: 2 ** 31 }, 'ERR_SSE_RETRY'],
    ['a retry in text', { retry: '1000\ndata: forged' }, 'ERR_SSE_RETRY'],
    ['a field that is none', { evnt: 'x' }, 'ERR_SSE_FIELD'],
  ])('%s', (_, given, code) => {
    expect(codeOf(() => encode('x', given as EventFields))).toBe(code);
  });

  test.each([
    ['undefined', undefined],
    ['a function', () => 'x'],
    ['a symbol', Symbol('x')],
    ['a Buffer', Buffer.from('x')],
    ['a typed array', new Uint8Array(1)],
    ['an ArrayBuffer', new ArrayBuffer(1)],
    ['a bigint, which JSON does not have', 1n],
  ])('data that is %s', (_, data) => {
    expect(codeOf(() => encode(data))).toBe('ERR_SSE_DATA');
  });

  test.each([
    ['a promise', () => Promise.resolve('x')],
    // oxlint-disable-next-line unicorn/no-thenable -- the case under test
    ['another thenable', () => ({ then() {} })],
  ])('data that is %s, even if serialize accepts it: the message says to await it', (_, make) => {
    for (const serialize of [JSON.stringify, () => 'text']) {
      expect(() => serializeData(make(), serialize)).toThrow(
        expect.objectContaining({
          code: 'ERR_SSE_DATA',
          message: expect.stringMatching(/promise; await it/),
        }),
      );
    }
  });

  test.each([
    ['a Map', new Map([['a', 1]])],
    ['a Set', new Set([1])],
    ['an Error', new TypeError('x')],
  ])(
    'data that is %s, of which JSON makes {}, but not with a serialize of its own, nor a toJSON',
    (_, data) => {
      expect(codeOf(() => serializeData(data, JSON.stringify))).toBe('ERR_SSE_DATA');
      expect(serializeData(data, () => 'own')).toBe('own');
      expect(serializeData(Object.assign(data, { toJSON: () => 'json' }), JSON.stringify)).toBe(
        '"json"',
      );
    },
  );

  test('data for which serialize throws, with its error as the cause', () => {
    const circular: Record<string, unknown> = {};
    circular['self'] = circular;
    expect(() => encode(circular)).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_DATA', cause: expect.any(TypeError) }),
    );
  });

  test.each([
    ['an object without a prototype', Object.create(null) as unknown],
    ['an object whose toString throws', { toString: () => JSON.parse('{') as string }],
    ['a symbol', Symbol('x')],
  ])('data whose toJSON throws %s', (_, thrown) => {
    const given = {
      toJSON(): never {
        throw thrown;
      },
    };
    expect(() => encode(given)).toThrow(
      expect.objectContaining({ code: 'ERR_SSE_DATA', cause: thrown }),
    );
  });

  test('a serialize that returns no string', () => {
    expect(codeOf(() => serializeData({}, () => undefined))).toBe('ERR_SSE_DATA');
  });

  test('a comment that is no string', () => {
    expect(codeOf(() => formatComment(7 as unknown as string))).toBe('ERR_SSE_COMMENT');
  });
});

describe('nothing can be forged', () => {
  const lineEnds = ['\n', '\r', '\r\n'];
  const payloads = lineEnds.flatMap((end) => [
    `x${end}data: forged`,
    `x${end}event: forged`,
    `x${end}id: forged`,
    `x${end}${end}data: forged${end}${end}`,
  ]);

  /**
   * Expects that the library refuses the text, or that an independent parser reads it as intended.
   */
  function expectNoForgery(attack: () => string | Buffer): void {
    let wire: string | Buffer;
    try {
      wire = attack();
    } catch (error) {
      expect(error).toBeInstanceOf(SseError);
      return;
    }
    const { events, lastEventId } = readStrictly(Buffer.from(wire), encode('next'));
    expect(events.filter((event) => event.data === 'forged' || event.type === 'forged')).toEqual(
      [],
    );
    expect(lastEventId).not.toBe('forged');
    // The event and the next event, or a comment and the next event.
    expect(events.length).toBeLessThanOrEqual(2);
  }

  // Found in other libraries in 2026; with the fields that the advisory names.
  test.each<[string, (keyof EventFields | 'data' | 'comment')[]]>([
    ['CVE-2026-29085', ['event', 'id', 'retry']],
    ['CVE-2026-33128', ['event', 'id', 'data']],
    ['CVE-2026-35515', ['event', 'id']],
    ['CVE-2026-44214', ['event', 'id', 'retry', 'data', 'comment']],
    ['CVE-2026-44217', ['event', 'id', 'retry', 'data', 'comment']],
    ['GHSA-4hxc-9384-m385', ['data', 'comment']],
  ])('%s: through %j', (_, ways) => {
    for (const way of ways) {
      for (const payload of payloads) {
        if (way === 'data') expectNoForgery(() => encode(payload));
        else if (way === 'comment') expectNoForgery(() => formatComment(payload));
        else {
          expect(codeOf(() => encode('x', { [way]: payload }))).toBe(
            `ERR_SSE_${way.toUpperCase()}`,
          );
        }
      }
    }
  });
});

describe("the library's own frames", () => {
  test('a heartbeat and a retry are lines without a blank line, for which some clients would dispatch an empty event', () => {
    expect(HEARTBEAT_COMMENT.toString()).toBe(':\n');
    expect(formatRetry(1_000)).toBe('retry: 1000\n');
    expect(formatComment('a\nb')).toBe(': a\n: b\n');
    expect(formatComment('')).toBe(':\n');
  });

  test('the final event and the visible heartbeat carry JSON', () => {
    const parser = readStrictly(Buffer.from(END_EVENT), formatPing(15_000));
    expect(parser.events).toEqual([
      { type: 'sse:end', data: '{}', lastEventId: FINAL_ID },
      { type: 'sse:ping', data: '{"interval":15000}', lastEventId: FINAL_ID },
    ]);
  });
});

test('the size of an event is computed without encoding the event', () => {
  fc.assert(
    fc.property(nasty, fc.option(eventName, { nil: undefined }), (data, event) => {
      expect(countEventBytes(data, event)).toBe(Buffer.byteLength(formatEvent(data, event)));
    }),
  );
});
