/** Express with `res.write()`, as most tutorials show it. */
import express from 'express';
import { LISTEN, ready } from './control.mjs';

const app = express();
const responses = new Set();

app.get('/listen', (req, res) => {
  res.writeHead(200, {
    'Content-Type': 'text/event-stream',
    'Cache-Control': 'no-cache',
    Connection: 'keep-alive',
  });
  res.flushHeaders();
  responses.add(res);
  res.on('close', () => responses.delete(res));
});

/** The text is encoded once per event, and framed as a chunk once per response. */
function publish(data) {
  const text = `data: ${data}\n\n`;
  for (const res of responses) res.write(text);
}

const encode = (data) => Buffer.from(`id: 1\nevent: message\ndata: ${data}\n\n`);

const server = app.listen(LISTEN, () =>
  ready(server.address().port, { publish, encode, connections: () => responses.size }),
);
