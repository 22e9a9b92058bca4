/** Clients over real sockets. */
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { EventStream } from '../../src/index.ts';
import { watchWrites } from '../support/chunks.ts';
import { dial, requestText, type TestServer } from '../support/server.ts';
import { ChunkedBody } from './chunked-body.ts';
import type { Link, Wire } from './link.ts';
import type { Transport } from './world.ts';

/** Clients over the loopback, all of one schedule to one server. */
export function sockets(server: TestServer): Transport {
  return {
    async connect({ events }, lastEventId, _, opened, wrap) {
      const requested = once(server.server, 'request');
      const headers = lastEventId === '' ? {} : { 'Last-Event-ID': lastEventId };
      const socket = await dial(server.port, requestText('/', { ...headers, Connection: 'close' }));
      const [req, res] = (await requested) as [never, ServerResponse & { sse: EventStream }];
      const framed = watchFraming(res.socket!);
      if (wrap !== undefined) wrapWrite(res, wrap);
      events(req, res, () => {
        const link = opened(res.sse);
        link.wire = new RawClient(socket, link, framed);
      });
    },
    async settle() {
      // A turn for the kernel, too.
      await new Promise((resolve) => void setImmediate(resolve));
    },
  };
}

/** A client that reads the body as it is. */
class RawClient implements Wire {
  readonly #socket: Socket;
  readonly #link: Link;
  readonly #framed: { isLast: boolean };

  constructor(socket: Socket, link: Link, framed: { isLast: boolean }) {
    this.#socket = socket;
    this.#link = link;
    this.#framed = framed;
    const body = new ChunkedBody((bytes) => link.take(bytes));
    socket.on('data', (bytes) => body.feed(bytes));
    socket.on('close', () => link.close());
  }

  get isEmpty(): boolean {
    const { stream } = this.#link;
    return stream.bufferedAmount === 0 && this.#link.taken === stream.bytesWritten;
  }

  get isPaused(): boolean {
    return this.#socket.isPaused();
  }

  get isDirect(): boolean {
    return this.#framed.isLast;
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

/** Notes whether what is written to the socket last was a whole chunk: Node itself writes its parts one by one. */
function watchFraming(socket: Socket): { isLast: boolean } {
  const framed = { isLast: false };
  watchWrites(socket, (parts) => {
    const chunk = parts.at(-1);
    framed.isLast =
      Buffer.isBuffer(chunk) && /^[0-9a-f]+\r\n[^]*\n\r\n$/.test(chunk.toString('latin1'));
  });
  return framed;
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
