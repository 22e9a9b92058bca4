/** The parts of a gzip body. */
import { gunzipSync } from 'node:zlib';
import fc from 'fast-check';
import type { Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import { Audience, type Member } from '../src/channels/audience.ts';
import { Frame } from '../src/channels/frame.ts';
import { LogEntry } from '../src/log/log-entry.ts';
import { GzipBody } from '../src/protocol/gzip-body.ts';
import {
  GZIP_HEADER,
  NO_TOTALS,
  addToTotals,
  deflateBlock,
  gzipTrailer,
  moveTotals,
  storeBlock,
  type GzipTotals,
} from '../src/protocol/gzip.ts';

const bytes = fc.uint8Array({ maxLength: 500 });

function totalsOf(...parts: readonly Uint8Array[]): GzipTotals {
  let totals = NO_TOTALS;
  for (const part of parts) totals = addToTotals(totals, part);
  return totals;
}

describe('a gzip body', () => {
  test('of stored and compressed blocks decodes to its text', () => {
    const step = fc.record({ text: bytes, kind: fc.constantFrom('stored', 'alone', 'continued') });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
        let text = Buffer.alloc(0);
        const blocks = steps.map(({ text: part, kind }) => {
          const before = text.subarray(-300);
          text = Buffer.concat([text, part]);
          if (kind === 'stored') return storeBlock(part);
          return deflateBlock(part, kind === 'alone' ? undefined : before);
        });
        const body = Buffer.concat([GZIP_HEADER, ...blocks, gzipTrailer(totalsOf(text))]);
        expect(gunzipSync(body).equals(text)).toBe(true);
      }),
    );
  });

  test('keeps no more memory than its bytes while it waits', () => {
    for (const length of [100, 10_000, 100_000]) {
      const block = deflateBlock(Buffer.alloc(length, 'abcdefg'));
      expect(block.buffer.byteLength).toBe(block.length);
    }
  });

  test('may have a stored block of more than 64 KiB', () => {
    const text = Buffer.alloc(200_000, 'abcdefg');
    const body = Buffer.concat([GZIP_HEADER, storeBlock(text), gzipTrailer(totalsOf(text))]);
    expect(gunzipSync(body).equals(text)).toBe(true);
  });
});

describe('totals', () => {
  test('moved by what a group has received are those of the whole text', () => {
    fc.assert(
      fc.property(bytes, bytes, bytes, (own, before, received) => {
        const from = totalsOf(before);
        const to = totalsOf(before, received);
        expect(moveTotals(totalsOf(own), from, to)).toEqual(totalsOf(own, received));
      }),
    );
  });

  test('count the length modulo 2^32', () => {
    const almost: GzipTotals = { checksum: 0, length: 2 ** 32 - 1 };
    expect(addToTotals(almost, Buffer.from('ab')).length).toBe(1);
    const to = addToTotals(almost, Buffer.from('ab'));
    expect(moveTotals(NO_TOTALS, almost, to)).toEqual(totalsOf(Buffer.from('ab')));
  });
});

test('a stream that was attached for 5 GiB of text ends with its checksum and its length', () => {
  const entry = new LogEntry({ channel: 'a', epoch: 'e', offset: 1, data: 'x'.repeat(65_000) });
  const first = new Frame([entry]);
  const body = new GzipBody();
  const audience = new Audience(['a'], [], 0, true);
  let direct = 0;
  const socket = { writable: true, writableLength: 0, write: () => direct++ } as unknown as Socket;
  const member = {
    listIndex: -1,
    isCompressed: true,
    takeFrame: (frame: Frame, window) => {
      body.encodeShared(frame, window);
      return socket;
    },
    onAttached: ({ gzip }) => body.onAttached(gzip as GzipTotals),
    onDetached: ({ gzip }) => body.onDetached(gzip as GzipTotals),
  } as Partial<Member> as Member;
  audience.add(member);
  body.encode(Buffer.from(':\n'));
  let totals = totalsOf(Buffer.from(':\n'));
  let offset = 0;
  for (let length = 0; length < 5 * 2 ** 30; length += first.bytes.length) {
    const frame: Frame = Object.create(first, {
      firstOffset: { value: ++offset },
      lastOffset: { value: offset },
      gzip: { value: first.gzip },
    }) as Frame;
    totals = addToTotals(totals, frame.bytes);
    audience.startFrame(frame);
    audience.deliver(1);
  }
  audience.delete(member);
  expect(direct).toBeGreaterThan(80_000);
  expect(body.end(Buffer.alloc(0)).subarray(-10)).toEqual(gzipTrailer(totals));
}, 60_000);
