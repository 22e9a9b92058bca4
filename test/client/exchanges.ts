/** A server of a test, in the place of `fetch`, with fake timers. */
import { vi } from 'vitest';

/** A request, and the response that the test makes. */
export interface Exchange {
  readonly url: URL;
  readonly signal: AbortSignal;
  /** Answers with a stream that stays open. */
  open(): void;
  send(text: string): void;
  end(): void;
  answer(status: number, headers?: Record<string, string>): void;
  /** The connection fails. */
  fail(): void;
}

export const URL_OF_STREAM = 'http://server/events';

/** The requests of the test. */
export const exchanges: Exchange[] = [];

/** Replaces `fetch`, the timers and the random numbers, until {@link restoreGlobals}. */
export function stubGlobals(): void {
  exchanges.length = 0;
  vi.useFakeTimers();
  vi.spyOn(Math, 'random').mockReturnValue(0);
  vi.stubGlobal('fetch', (url: URL, { signal }: { signal: AbortSignal }) => {
    const { promise, resolve, reject } = promiseWithResolvers<Response>();
    let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
    const body = new ReadableStream<Uint8Array>({
      start(given) {
        controller = given;
      },
    });
    signal.addEventListener('abort', () => {
      reject(signal.reason as Error);
      controller?.error(signal.reason);
    });
    exchanges.push({
      url,
      signal,
      open: () => resolve(new Response(body, { headers: { 'Content-Type': 'text/event-stream' } })),
      send: (text) => controller?.enqueue(new TextEncoder().encode(text)),
      end: () => controller?.close(),
      answer: (status, headers = {}) => resolve(new Response(null, { status, headers })),
      fail: () => reject(new TypeError('fetch failed')),
    });
    return promise;
  });
}

export function restoreGlobals(): void {
  vi.useRealTimers();
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
}

function promiseWithResolvers<T>() {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((onValue, onError) => {
    resolve = onValue;
    reject = onError;
  });
  return { promise, resolve, reject };
}

export const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

/** The newest request. */
export function last(): Exchange {
  return exchanges.at(-1) as Exchange;
}

/** Lets the next request open, and sends a text. */
export async function open(text = ':\n'): Promise<void> {
  await pass(0);
  last().open();
  last().send(text);
  await pass(0);
}

/** Time in ms until the next request. */
export async function untilRequest(): Promise<number> {
  const count = exchanges.length;
  const start = Date.now();
  while (exchanges.length === count) {
    if (Date.now() - start > 600_000) throw new Error('no request within ten minutes');
    await pass(50);
  }
  return Date.now() - start;
}
