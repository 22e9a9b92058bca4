/** Bare sockets, the least work for Node: one encoding per event, one write per connection. */
import net from 'node:net';
import { LISTEN, ready } from './control.mjs';

const HEAD = [
  'HTTP/1.1 200 OK',
  'Content-Type: text/event-stream',
  'Cache-Control: no-cache',
  'Connection: close',
  '\r\n',
].join('\r\n');

const sockets = new Set();

const server = net.createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', () => {
    socket.write(HEAD);
    sockets.add(socket);
  });
  socket.on('close', () => sockets.delete(socket));
});

function publish(data) {
  const bytes = Buffer.from(`data: ${data}\n\n`);
  for (const socket of sockets) socket.write(bytes);
}

server.listen(LISTEN, () =>
  ready(server.address().port, { publish, connections: () => sockets.size }),
);
