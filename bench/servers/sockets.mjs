/**
 * The least work in Express: each event is framed once as a chunk, and written by one
 * `socket.write` for each response. Back-pressure and the state of the response are ignored.
 */
import express from 'express';
import { LISTEN, ready } from './control.mjs';

const app = express();
const sockets = new Set();

app.get('/listen', (req, res) => {
  res.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
  res.flushHeaders();
  const { socket } = res;
  sockets.add(socket);
  res.on('close', () => sockets.delete(socket));
});

function publish(data) {
  const event = `data: ${data}\n\n`;
  const chunk = Buffer.from(`${Buffer.byteLength(event).toString(16)}\r\n${event}\r\n`);
  for (const socket of sockets) socket.write(chunk);
}

const server = app.listen(LISTEN, () =>
  ready(server.address().port, { publish, connections: () => sockets.size }),
);
