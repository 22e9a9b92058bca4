import type { IncomingMessage } from 'node:http';
import { describe, expect, test } from 'vitest';
import {
  asksForEventStream,
  readLastEventId,
  preferredType,
  refusesEventStream,
} from '../src/protocol/request-headers.ts';

function request(headers: Record<string, string>, url = '/'): IncomingMessage {
  return { headers, url } as unknown as IncomingMessage;
}

describe('a request asks for an event stream when Accept names it', () => {
  test.each([
    'text/event-stream',
    'TEXT/Event-Stream',
    'text/event-stream;charset=utf-8',
    'text/event-stream; charset="utf-8"; q=0.1',
    'text/html, application/json;q=0.9, text/event-stream;q=0.001',
    'application/json, text/event-stream',
    '*/*;q=0.1,text/event-stream',
  ])('%s', (accept) => {
    expect(asksForEventStream(request({ accept }))).toBe(true);
    expect(refusesEventStream(request({ accept }))).toBe(false);
  });

  test.each([
    '*/*',
    'text/*',
    'text/html',
    '',
    'text/event-stream;q=0',
    'text/event-stream; q=0.000, */*',
    'text/event-streams',
    'x-text/event-stream',
  ])('and not when it says %j', (accept) => {
    expect(asksForEventStream(request({ accept }))).toBe(false);
  });

  test('names it within the first 1,024 characters: later characters are not parsed', () => {
    const others = 'a/b;q=0.1,'.repeat(1_600);
    expect(asksForEventStream(request({ accept: `text/event-stream,${others}` }))).toBe(true);
    expect(asksForEventStream(request({ accept: `${others}text/event-stream` }))).toBe(false);
    expect(
      asksForEventStream(request({ accept: `${'a/b,'.repeat(200)}text/event-stream,${others}` })),
    ).toBe(true);
    expect(refusesEventStream(request({ accept: `${others}text/event-stream;q=0` }))).toBe(false);
    // Cut between media types, not inside a parameter.
    const accept = `text/event-stream;a=${'x'.repeat(1_000)};q=0`;
    expect(asksForEventStream(request({ accept: `${accept},a/b` }))).toBe(false);
    expect(
      preferredType(request({ accept: `application/json,${others}` }), [
        'text/plain',
        'application/json',
      ]),
    ).toBe('application/json');
    expect(
      preferredType(request({ accept: `${others}application/json` }), [
        'text/plain',
        'application/json',
      ]),
    ).toBe('text/plain');
  });

  test('and not when there is no Accept', () => {
    expect(asksForEventStream(request({}))).toBe(false);
  });
});

describe('a request refuses an event stream only by name and q = 0', () => {
  test.each([
    'text/event-stream;q=0',
    'application/json, Text/Event-Stream ; charset=utf-8 ; q=0.000',
    '*/*, text/event-stream;q=0.0',
  ])('%s', (accept) => {
    expect(refusesEventStream(request({ accept }))).toBe(true);
  });

  test.each([
    'application/json',
    '*/*',
    'text/event-stream;q=0.01',
    'text/html;q=0, application/json',
    'x-text/event-stream;q=0',
  ])('not %s', (accept) => {
    expect(refusesEventStream(request({ accept }))).toBe(false);
  });
});

describe('the last event ID', () => {
  test('is the header, decoded as the UTF-8 that browsers send', () => {
    const bytes = Buffer.from('größer 😀').toString('latin1');
    expect(readLastEventId(request({ 'last-event-id': bytes }))).toBe('größer 😀');
  });

  test('is the query parameter if there is no header', () => {
    expect(readLastEventId(request({}, '/listen?a=1&lastEventId=e.5%2B%C3%BC'))).toBe('e.5+ü');
    expect(readLastEventId(request({ 'last-event-id': 'h' }, '/listen?lastEventId=q'))).toBe('h');
  });

  test('is that of the original URL if middleware has removed the query', () => {
    const rewritten = Object.assign(request({}, '/'), { originalUrl: '/listen?lastEventId=q' });
    expect(readLastEventId(rewritten)).toBe('q');
    expect(
      readLastEventId(
        Object.assign(request({}, '/?lastEventId=own'), { originalUrl: '/listen?lastEventId=q' }),
      ),
    ).toBe('own');
  });

  test("is '' without both", () => {
    expect(readLastEventId(request({}, '/listen'))).toBe('');
    expect(readLastEventId(request({}, '/listen?other=1'))).toBe('');
    expect(readLastEventId({ headers: {} } as unknown as IncomingMessage)).toBe('');
  });
});
