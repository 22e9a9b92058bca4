/**
 * A transport without sockets: fake responses, and readers that receive the written bytes at the
 * end of a turn.
 */
import type { EventStream } from '../../src/index.ts';
import { FakeResponse } from './fake-response.ts';
import type { Link, Wire } from './link.ts';
import type { WorkMeter } from './work.ts';
import type { Transport } from './world.ts';

/**
 * Creates a transport for one schedule.
 * @param work counts the written bytes
 */
export function fakes(work: WorkMeter): Transport {
  const readers = new Set<FakeReader>();
  return {
    connect({ events }, lastEventId, eager, opened, wrap) {
      const req = {
        method: 'GET',
        url: '/',
        headers: {
          accept: 'text/event-stream',
          ...(lastEventId === '' ? {} : { 'last-event-id': lastEventId }),
        },
        socket: {},
      };
      const early: Buffer[] = [];
      let link: Link | undefined;
      const res = new FakeResponse(
        req,
        eager,
        (bytes) => void (link === undefined ? early.push(bytes) : link.receive(bytes)),
        (bytes) => work.onWrite(res, bytes.length),
      );
      if (wrap !== undefined) {
        const write = res.write.bind(res);
        res.write = (bytes) => wrap(link, () => write(bytes));
      }
      events(req as never, res.asResponse, () => {
        link = opened((res as unknown as { sse: EventStream }).sse);
        for (const bytes of early) link.receive(bytes);
        const reader = new FakeReader(res, link);
        link.wire = reader;
        readers.add(reader);
        res.on('close', () => {
          readers.delete(reader);
          reader.drop();
        });
      });
    },
    settle() {
      work.whileReading(() => {
        for (const reader of readers) reader.read();
      });
    },
  };
}

class FakeReader implements Wire {
  readonly #res: FakeResponse;
  readonly #link: Link;
  isPaused = false;

  constructor(res: FakeResponse, link: Link) {
    this.#res = res;
    this.#link = link;
  }

  get isEmpty(): boolean {
    return this.#res.writableLength === 0;
  }

  read(): void {
    if (!this.isPaused) this.#res.deliver(Infinity);
  }

  pause(): void {
    this.isPaused = true;
    this.#res.isEager = false;
  }

  resume(): void {
    this.isPaused = false;
  }

  sip(writes: number): void {
    if (this.isPaused) this.#res.deliver(writes);
  }

  drop(): void {
    this.#link.close(this.#res.unread.splice(0));
    this.#res.destroy();
  }
}
