/** As little as Node can do: bare sockets, each event encoded once, one `socket.write` for each connection. */
import net from 'node:net';
import { LISTEN, ready } from './control.mjs';

const HEAD =
  'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n';

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
