/** Random wrappers of `res.write()` that act within each write. */
import { once } from 'node:events';
import {
  createServer,
  get,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import http2 from 'node:http2';
import { buffer } from 'node:stream/consumers';
import type { Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { sse, type EventStream } from '../../src/index.ts';
import { listening } from '../support/server.ts';
import { within } from '../support/wait.ts';

type Act = 'sends' | 'sends much' | 'writes' | 'ends' | 'closes' | 'nothing';
type Step = Act | 'wraps' | 'waits';

interface Wrapper {
  /** The acts before and after the wrapper passes bytes of the stream on, in turns. */
  readonly acts: readonly Act[];
  /** The number of writes after which the wrapper takes itself off. */
  readonly writes: number;
}

interface Schedule {
  readonly wrappers: readonly Wrapper[];
  readonly steps: readonly Step[];
}

// Removed from the body before it is compared: it may stand inside of a large event.
const OWN = '§own§';

const act = fc.constantFrom<Act>(
  ...(['sends', 'sends much', 'writes', 'writes', 'nothing', 'nothing', 'nothing'] as const),
);
const lastAct = fc.constantFrom<Act>('ends', 'closes', 'nothing', 'nothing');
const wrapper: fc.Arbitrary<Wrapper> = fc.record({
  acts: fc.tuple(fc.array(act, { maxLength: 8 }), lastAct).map(([acts, last]) => acts.concat(last)),
  writes: fc.constantFrom(1, 3, Infinity, Infinity),
});
const step = fc.oneof(
  { weight: 4, arbitrary: act },
  { weight: 2, arbitrary: fc.constantFrom<Step>('wraps', 'waits') },
);
const schedule: fc.Arbitrary<Schedule> = fc.record({
  wrappers: fc.array(wrapper, { maxLength: 4 }),
  steps: fc.array(step, { maxLength: 12 }),
});

/** One stream, whose response the wrappers of one schedule wrap. */
class Run {
  readonly #res: ServerResponse;
  readonly #wrappers: Wrapper[];
  readonly #steps: readonly Step[];
  readonly sent: string[] = [];
  #stream: EventStream | undefined;
  #depth = 0;

  constructor(res: ServerResponse, { wrappers, steps }: Schedule) {
    this.#res = res;
    this.#wrappers = [...wrappers];
    this.#steps = steps;
    // One wrapper in front, if there is one; the steps put on the others.
    this.#wrap();
  }

  async follow(stream: EventStream): Promise<void> {
    this.#stream = stream.open();
    for (const each of this.#steps) {
      if (each === 'wraps') this.#wrap();
      else if (each === 'waits') await setImmediate();
      else this.#act(each);
    }
    stream.close();
  }

  #act(kind: Act): void {
    const stream = this.#stream;
    if (stream?.readyState !== 1) return;
    if (kind === 'sends') this.#send(stream, 'x');
    else if (kind === 'sends much') this.#send(stream, 'x'.repeat(40_000));
    else if (kind === 'writes') this.#res.write(OWN);
    else if (kind === 'ends') this.#res.end(OWN);
    else if (kind === 'closes') stream.close();
  }

  #send(stream: EventStream, data: string): void {
    const text = `${this.sent.length} ${data}`;
    // Before the call: a wrapper may send the next event within it.
    this.sent.push(`data: ${text}\n\n`);
    stream.send(text);
  }

  #wrap(): void {
    const next = this.#wrappers.shift();
    if (next === undefined) return;
    const res = this.#res;
    const acts = [...next.acts];
    // oxlint-disable-next-line typescript/unbound-method -- called with the response as `this`
    const { write } = res;
    let writes = 0;
    const wrapped = (chunk: unknown): unknown => {
      // Only bytes of the library are buffers.
      const isOfStream = Buffer.isBuffer(chunk) && this.#stream !== undefined;
      if (isOfStream) this.#actInside(acts.shift());
      const answer: unknown = Reflect.apply(write, res, [chunk]);
      if (isOfStream) this.#actInside(acts.shift());
      if (isOfStream && ++writes === next.writes && res.write === wrapped) res.write = write;
      return answer;
    };
    res.write = wrapped as typeof write;
  }

  /** Acts within acts are limited. */
  #actInside(kind: Act = 'nothing'): void {
    if (this.#depth > 3) return;
    this.#depth++;
    this.#act(kind);
    this.#depth--;
  }
}

/** A server that follows the schedules. @returns the body and what it should be */
async function serveRuns(transport: string) {
  const errors: unknown[] = [];
  const events = sse({
    maxBuffered: 100_000_000,
    heartbeat: false,
    warnings: false,
    onError: (error) => void errors.push(error),
  });
  let current: Schedule = { wrappers: [], steps: [] };
  let run: Run | undefined;
  const handler: RequestListener = (req, res) => {
    const begun = new Run(res, current);
    run = begun;
    events(req, res, () => void begun.follow((res as { sse?: EventStream }).sse as EventStream));
  };
  const isHttp2 = transport === 'HTTP/2';
  const server = await listening(
    isHttp2 ? (http2.createServer(handler as never) as unknown as Server) : createServer(handler),
  );
  const session = isHttp2 ? http2.connect(server.url) : undefined;
  const accept = 'text/event-stream';
  return {
    async bodyOf(given: Schedule) {
      current = given;
      errors.length = 0;
      const body: Readable =
        session?.request({ ':path': '/', accept }) ??
        ((await once(get(server.url, { headers: { accept } }), 'response')) as [Readable])[0];
      const text = String(await within('the end of the response', buffer(body)));
      return { text: text.replaceAll(OWN, ''), sent: run?.sent ?? [], errors: [...errors] };
    },
    async [Symbol.asyncDispose]() {
      session?.destroy();
      await server[Symbol.asyncDispose]();
    },
  };
}

describe.each(['HTTP/1.1', 'HTTP/2'])('over %s', (transport) => {
  test('wrappers that send, write, end and close lose, repeat and divide no event', async () => {
    await using server = await serveRuns(transport);
    await fc.assert(
      fc.asyncProperty(schedule, async (given) => {
        const { text, sent, errors } = await server.bodyOf(given);
        expect(errors).toEqual([]);
        expect(text.slice(0, 2)).toBe(':\n');
        expect(text.slice(2).replaceAll(/x+/g, 'x')).toBe(sent.join('').replaceAll(/x+/g, 'x'));
        expect(text.length).toBe(2 + sent.join('').length);
      }),
      { numRuns: 1_000 },
    );
  });
});
