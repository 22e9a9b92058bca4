/** Disposable servers on a free port. */
import { createServer, type RequestListener, type Server } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { watchWrites, type Part } from './chunks.ts';

export interface TestServer extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  readonly server: Server;
  /** The sockets that are open on the server's side. */
  readonly sockets: ReadonlySet<Socket>;
}

/**
 * Serves a handler or an app on a free port of the loopback until the server is disposed of.
 * @example await using server = await serve(app);
 */
export async function serve(handler: unknown): Promise<TestServer> {
  return listening(createServer(handler as RequestListener));
}

/** The same for an existing server, for example of `https` or `http2`, or with options. */
export async function listening(server: Server, protocol = 'http'): Promise<TestServer> {
  const sockets = new Set<Socket>();
  for (const event of ['connection', 'secureConnection'] as const) {
    server.on(event, (socket: Socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
    });
  }
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `${protocol}://127.0.0.1:${port}`,
    port,
    server,
    sockets,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/**
 * Records the packets that the server writes to sockets that connect from now on.
 * @returns for each packet its parts
 */
export function packetsOf({ server }: TestServer): Part[][] {
  const packets: Part[][] = [];
  server.on('connection', (socket: Socket) => {
    watchWrites(socket, (parts) => packets.push(parts));
  });
  return packets;
}

/** A raw client: sends bytes, and reads only when a test asks for it. */
export async function dial(port: number, request: string): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.write(request);
  return socket;
}

/** A request for an event stream, as bytes. */
export function requestText(
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
): string {
  const lines = Object.entries({ Host: 'localhost', Accept: 'text/event-stream', ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  );
  return `${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}
