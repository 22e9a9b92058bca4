/**
 * res-sse in Express, as in an application: history, heartbeats and cursors are on. `HISTORY=off`
 * switches the history off. `BROKER=redis` uses the Redis at `REDIS_URL`.
 */
import process from 'node:process';
import express from 'express';
import { createChannels, LogEntry, sse } from 'res-sse';
import { LISTEN, ready } from './control.mjs';

const app = express();
const { HISTORY, BROKER, REDIS_URL } = process.env;
const broker =
  BROKER === 'redis'
    ? (await import('res-sse/redis')).redisBroker({
        url: REDIS_URL,
        prefix: `bench-${process.pid}`,
      })
    : undefined;
const channels = createChannels({ broker, ...(HISTORY === 'off' && { history: false }) });
const streams = sse({ channels });
app.use(streams);

app.get('/listen', channels.listen('news'));

// A set of three channels for each group of the client. Events are published to the channel that
// all sets have in common.
app.get(
  '/listen/:group',
  channels.listen(({ params }) => ['news', `group-${params.group}`, `more-of-${params.group}`]),
);

app.get('/open', (req, res) => {
  res.sse.open();
});

const server = app.listen(LISTEN, () =>
  ready(server.address().port, {
    publish: (data) => channels.publish('news', data),
    // The same work as `publish()` does once for all streams.
    encode: (data) =>
      new LogEntry({ channel: 'news', epoch: 'e', offset: 1, event: 'message', data }).frame,
    connections: () => streams.streams.size,
    cursor: () => channels.cursor(),
  }),
);
