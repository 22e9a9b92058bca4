/** Reads an event stream with `fetch` and an independent parser. */
import type { EventSourceMessage } from 'eventsource-parser';
import { EventCollector } from './event-collector.ts';
import { within } from './wait.ts';

export interface Reader extends Disposable {
  readonly response: Response;
  /** The events without checkpoints. */
  readonly events: EventSourceMessage[];
  /** The ids of the checkpoints. */
  readonly checkpoints: string[];
  readonly comments: string[];
  readonly retries: number[];
  /** The received text, unchanged. */
  readonly text: string;
  /** Whether the stream has ended. */
  readonly ended: boolean;
  /** Resolves with the next event that was not returned yet. */
  next(): Promise<EventSourceMessage>;
  /** Resolves with the next `count` events. */
  take(count: number): Promise<EventSourceMessage[]>;
  /** Resolves when the stream has ended, for any reason. */
  end(): Promise<void>;
  /** Closes the connection. */
  close(): void;
}

/** Reads a stream in the background. Resolves when its head has arrived. */
export async function read(url: string, init: RequestInit = {}): Promise<Reader> {
  const abort = new AbortController();
  const headers = {
    Accept: 'text/event-stream',
    ...(init.headers as Record<string, string> | undefined),
  };
  const response = await within(
    `the head of ${url}`,
    fetch(url, { ...init, headers, signal: abort.signal }),
  );
  const collector = new EventCollector();
  const { events, checkpoints, comments, retries } = collector;
  let handedOut = 0;
  let text = '';
  let ended = false;
  let wake: (() => void) | undefined;
  const done = (async () => {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    try {
      for await (const chunk of response.body ?? []) {
        const part = decoder.decode(chunk, { stream: true });
        text += part;
        collector.feed(part);
        wake?.();
      }
    } catch {
      // The connection was closed by either side.
    }
    ended = true;
    wake?.();
  })();

  async function next(): Promise<EventSourceMessage> {
    while (events.length <= handedOut) {
      if (ended) {
        throw new Error(
          `the stream has ended after ${events.length} events: ${JSON.stringify(text.slice(-200))}`,
        );
      }
      await within(
        `event ${handedOut + 1} of ${url}`,
        new Promise<void>((resolve) => {
          wake = resolve;
        }),
      );
    }
    return events[handedOut++] as EventSourceMessage;
  }

  return {
    response,
    events,
    comments,
    checkpoints,
    retries,
    get text() {
      return text;
    },
    get ended() {
      return ended;
    },
    next,
    async take(count) {
      const taken: EventSourceMessage[] = [];
      while (taken.length < count) taken.push(await next());
      return taken;
    },
    end: () => within(`the end of ${url}`, done),
    close: () => abort.abort(),
    // Does not wait for the loop: if the abort comes just before the end, undici leaves a read
    // pending.
    [Symbol.dispose]: () => abort.abort(),
  };
}

/** Connects readers, 50 at a time: a loaded machine could not answer all of them in time. */
export async function readMany(count: number, connect: () => Promise<Reader>): Promise<Reader[]> {
  const readers: Reader[] = [];
  while (readers.length < count) {
    const length = Math.min(50, count - readers.length);
    readers.push(...(await Promise.all(Array.from({ length }, connect))));
  }
  return readers;
}
