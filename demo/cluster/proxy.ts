/** The smallest reverse proxy in front of several nodes: each request goes to the next one. Streams pass as they come. */
import {
  createServer,
  request,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';

/** What belongs to one connection and not to the message (RFC 9110, 7.6.1). */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
]);

/** @param ports of the nodes on this machine */
export function createProxy(ports: readonly number[]): Server {
  let turn = 0;
  return createServer((req, res) => forward(req, res, turn++, ports.length));

  function forward(
    req: IncomingMessage,
    res: ServerResponse,
    index: number,
    attempts: number,
  ): void {
    // No status: an EventSource that gets one but 200 never comes back, one whose connection breaks does.
    if (attempts === 0 || res.destroyed) {
      res.destroy();
      return;
    }
    const node = index % ports.length;
    const { method, url: path, headers } = req;
    const upstream = request({
      host: '127.0.0.1',
      port: ports[node],
      method,
      path,
      headers: endToEnd(headers),
      agent: false,
    });
    let isConnected = false;
    upstream.once('socket', (socket) =>
      socket.once('connect', () => {
        isConnected = true;
        req.pipe(upstream);
      }),
    );
    // Nothing of the request has been read before it is connected, so that another node can have it.
    upstream.on('error', () =>
      isConnected ? res.destroy() : forward(req, res, index + 1, attempts - 1),
    );
    upstream.on('response', (response) => {
      res.writeHead(response.statusCode as number, {
        ...endToEnd(response.headers),
        'X-Node': `${node + 1}`,
      });
      res.flushHeaders();
      response.pipe(res);
      // A node that dies in the middle must not look like one that has finished.
      response.on('error', () => res.destroy());
    });
    // Nobody reads any more.
    res.once('close', () => upstream.destroy());
  }
}

function endToEnd(headers: IncomingMessage['headers']): IncomingMessage['headers'] {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !HOP_BY_HOP.has(name)));
}
