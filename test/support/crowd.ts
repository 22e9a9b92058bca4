/** Streams without sockets, for tests with thousands of streams. */
import type { EventStream, SseMiddleware } from '../../src/index.ts';
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
