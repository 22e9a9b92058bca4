/** better-sse in Express, as in its documentation: a session for each response, and a channel. */
import { createChannel, createEventBuffer, createSession } from 'better-sse';
import express from 'express';
import { LISTEN, ready } from './control.mjs';

const app = express();
const channel = createChannel();

app.get('/listen', async (req, res) => {
  channel.register(await createSession(req, res));
});

const publish = (data) => void channel.broadcast(data);

// The same work as a session of better-sse does for each event and each client.
function encode(data) {
  const buffer = createEventBuffer();
  buffer.push(data, 'message', '1');
  return Buffer.from(buffer.read());
}

const server = app.listen(LISTEN, () =>
  ready(server.address().port, { publish, encode, connections: () => channel.sessionCount }),
);
