/** Streams without sockets, for tests with thousands of streams. */
import {
  sse,
  type Channels,
  type EventStream,
  type SseMiddleware,
  type SseOptions,
} from '../../src/index.ts';
import { FakeResponse } from '../model/fake-response.ts';

/** A stream whose reader takes every byte at once. */
export interface CrowdStream {
  readonly stream: EventStream;
  readonly res: FakeResponse;
}

/** @param onBytes called with the bytes of each write */
export function connectFake(
  events: SseMiddleware,
  onBytes: (bytes: Buffer) => void = () => {},
  lastEventId = '',
  url = '/',
): CrowdStream {
  const headers = {
    accept: 'text/event-stream',
    ...(lastEventId === '' ? {} : { 'last-event-id': lastEventId }),
  };
  const res = new FakeResponse({ method: 'GET', url, headers, socket: {} }, true, onBytes);
  let stream: EventStream | undefined;
  events(res.req as never, res.asResponse, () => {
    stream = (res as unknown as { sse: EventStream }).sse;
  });
  return { stream: stream as EventStream, res };
}

/** A stream of a middleware of its own, with everything that was written to its reader. */
export interface RecordedStream {
  readonly stream: EventStream;
  readonly text: () => string;
}

export function connectRecorded(
  channels: Channels,
  lastEventId = '',
  options: SseOptions = {},
): RecordedStream {
  let text = '';
  const events = sse({ channels, warnings: false, ...options });
  const { stream } = connectFake(events, (bytes) => (text += bytes.toString()), lastEventId);
  return { stream, text: () => text };
}

/** Returns the data of the events of a text whose data is one word. */
export function dataOf(text: string): string[] {
  return [...text.matchAll(/^data: (\w+)$/gm)].map(([, data = '']) => data);
}

/** Adds numbers for each turn of the event loop. */
export class TurnMeter implements Disposable {
  /** The largest sum of one turn. */
  most = 0;
  total = 0;
  #now = 0;
  #next: NodeJS.Immediate;

  constructor() {
    const count = (): void => {
      this.#now = 0;
      this.#next = setImmediate(count);
    };
    this.#next = setImmediate(count);
  }

  add(amount: number): void {
    this.total += amount;
    this.#now += amount;
    this.most = Math.max(this.most, this.#now);
  }

  [Symbol.dispose](): void {
    clearImmediate(this.#next);
  }
}
