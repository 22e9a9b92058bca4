/** A transport over real sockets. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { EventStream } from '../../src/index.ts';
import { watchWrites } from '../support/chunks.ts';
import { dial, requestText, type TestServer } from '../support/server.ts';
import { ChunkedBody } from '../support/chunked-body.ts';
import type { Link, Wire } from './link.ts';
import type { Transport } from './world.ts';

/**
 * Creates a transport over the loopback interface. All clients of one schedule connect to one
 * server.
 */
export function sockets(server: TestServer): Transport {
  return {
    async connect({ events }, lastEventId, _, opened, wrap) {
      const requested = once(server.server, 'request');
      const headers = lastEventId === '' ? {} : { 'Last-Event-ID': lastEventId };
      const socket = await dial(server.port, requestText('/', { ...headers, Connection: 'close' }));
      const [req, res] = (await requested) as [never, ServerResponse & { sse: EventStream }];
      const lastWrite = watchFraming(res.socket!);
      if (wrap !== undefined) wrapWrite(res, wrap);
      events(req, res, () => {
        const link = opened(res.sse);
        link.wire = new RawClient(socket, link, lastWrite);
      });
    },
    async settle() {
      // Wait one more turn for the kernel.
      await new Promise((resolve) => void setImmediate(resolve));
    },
  };
}

/** A client that reads the raw body of the response. */
class RawClient implements Wire {
  readonly #socket: Socket;
  readonly #link: Link;
  readonly #lastWrite: { isChunk: boolean };

  constructor(socket: Socket, link: Link, lastWrite: { isChunk: boolean }) {
    this.#socket = socket;
    this.#link = link;
    this.#lastWrite = lastWrite;
    const body = new ChunkedBody((bytes) => link.receive(bytes));
    socket.on('data', (bytes) => body.feed(bytes));
    socket.on('close', () => link.close());
  }

  get isEmpty(): boolean {
    const { stream } = this.#link;
    return stream.bufferedAmount === 0 && this.#link.bytesReceived === stream.bytesWritten;
  }

  get isPaused(): boolean {
    return this.#socket.isPaused();
  }

  get isDirect(): boolean {
    return this.#lastWrite.isChunk;
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
}

/**
 * Observes whether the last write to the socket was a complete HTTP chunk. Only the library writes
 * complete chunks; Node writes the parts of a chunk separately.
 */
function watchFraming(socket: Socket): { isChunk: boolean } {
  const lastWrite = { isChunk: false };
  watchWrites(socket, (parts) => {
    const chunk = parts.at(-1);
    lastWrite.isChunk =
      Buffer.isBuffer(chunk) && /^[0-9a-f]+\r\n[^]*\n\r\n$/.test(chunk.toString('latin1'));
  });
  return lastWrite;
}

function wrapWrite(
  res: ServerResponse,
  wrap: (link: undefined, passOn: () => boolean) => boolean,
): void {
  // oxlint-disable-next-line typescript/unbound-method -- called with the response as `this`
  const { write } = res;
  res.write = function wrapped(this: ServerResponse, ...args: Parameters<typeof write>): boolean {
    return wrap(undefined, () => Reflect.apply(write, this, args));
  } as typeof write;
}
