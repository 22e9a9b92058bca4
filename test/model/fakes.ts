/** Clients without sockets: a fake response, and a reader who takes what was written when a turn is over. */
import type { EventStream } from '../../src/index.ts';
import { FakeResponse } from './fake-response.ts';
import type { Link, Wire } from './link.ts';
import type { WorkMeter } from './work.ts';
import type { Transport } from './world.ts';

/** @returns clients for one schedule */
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
        (bytes) => void (link === undefined ? early.push(bytes) : link.take(bytes)),
        (bytes) => work.wrote(res, bytes.length),
      );
      if (wrap !== undefined) {
        const write = res.write.bind(res);
        res.write = (bytes) => wrap(link, () => write(bytes));
      }
      events(req as never, res.asResponse, () => {
        link = opened((res as unknown as { sse: EventStream }).sse);
        for (const bytes of early) link.take(bytes);
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
      work.reading(() => {
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
    if (!this.isPaused) this.#res.take(Infinity);
  }

  pause(): void {
    this.isPaused = true;
    this.#res.eager = false;
  }

  resume(): void {
    this.isPaused = false;
  }

  sip(writes: number): void {
    if (this.isPaused) this.#res.take(writes);
  }

  drop(): void {
    this.#link.close(this.#res.untaken.splice(0));
    this.#res.destroy();
  }
}
