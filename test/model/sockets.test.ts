import { createServer, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { once } from 'node:events';
import { test } from 'vitest';
import type { EventStream } from '../../src/index.ts';
import { dial, listening, type TestServer } from '../support/server.ts';
import { useClock } from './clock.ts';
import type { Link, Wire } from './link.ts';
import { expectKept } from './runs.ts';
import { schedules } from './draw.ts';
import type { Transport } from './world.ts';

const clock = useClock();

// A kernel takes megabytes from a sender before the sender notices that nobody reads.
const SCALE = 20;

/** A client that reads the body as it is: HTTP 1.0 knows no chunks. */
class RawClient implements Wire {
  readonly #socket: Socket;
  readonly #link: Link;
  // Until the head of the response is through.
  #head: Buffer | undefined = Buffer.alloc(0);

  constructor(socket: Socket, link: Link) {
    this.#socket = socket;
    this.#link = link;
    socket.on('data', (bytes) => this.#read(bytes));
    socket.on('close', () => link.close());
  }

  get isEmpty(): boolean {
    const { stream } = this.#link;
    return stream.bufferedAmount === 0 && this.#link.taken === stream.given;
  }

  get isPaused(): boolean {
    return this.#socket.isPaused();
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  sip(): void {
    this.#socket.once('data', () => this.#socket.pause());
    this.#socket.resume();
  }

  drop(): void {
    this.#link.close();
    this.#socket.destroy();
  }

  #read(bytes: Buffer): void {
    if (this.#head === undefined) {
      this.#link.take(bytes);
      return;
    }
    this.#head = Buffer.concat([this.#head, bytes]);
    const end = this.#head.indexOf('\r\n\r\n');
    if (end === -1) return;
    const body = this.#head.subarray(end + 4);
    this.#head = undefined;
    this.#link.take(body);
  }
}

/** Clients over the loopback, all of one schedule to one server. */
function sockets(server: TestServer): Transport {
  return {
    async connect({ events }, lastEventId, _, opened) {
      const requested = once(server.server, 'request');
      const header = lastEventId === '' ? '' : `Last-Event-ID: ${lastEventId}\r\n`;
      const socket = await dial(server.port, `GET / HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n${header}\r\n`);
      const [req, res] = (await requested) as [never, ServerResponse & { sse: EventStream }];
      events(req, res, () => {
        const link = opened(res.sse);
        link.wire = new RawClient(socket, link);
      });
    },
    async settle() {
      // A turn for the kernel, too.
      await new Promise((resolve) => void setImmediate(resolve));
    },
  };
}

test('over real sockets every promise is kept', { timeout: 300_000 }, async () => {
  await using server = await listening(createServer());
  await expectKept('over real sockets', schedules(25), 300, () => ({
    transport: sockets(server),
    isDistant: false,
    clock,
    scale: SCALE,
  }));
});
