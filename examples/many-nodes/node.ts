/**
 * One of several nodes that share a Redis. A client may use any node and reconnect to any other
 * node, and receives the events that it missed.
 *
 *     redis-server --port 6400 --save ''
 *     REDIS_URL=redis://localhost:6400 PORT=3001 npx tsx many-nodes/node.ts
 *     REDIS_URL=redis://localhost:6400 PORT=3002 npx tsx many-nodes/node.ts
 *     curl -N -H 'Accept: text/event-stream' localhost:3001/listen
 *     curl -H 'Content-Type: application/json' -d '{"text":"hello"}' localhost:3002/speak
 *
 * Any proxy can be put in front of the nodes. Sticky sessions are not needed.
 */
import express from 'express';
import { createChannels, sse } from 'res-sse';
import { redisBroker } from 'res-sse/redis';
import { serve } from '../serve.ts';

// The only line that differs from an app on one node.
const channels = createChannels({ broker: redisBroker({ url: process.env['REDIS_URL'] }) });
const events = sse({ channels, retry: { min: 500, max: 1_500 } });
const app = express();

app.use(events);
app.get('/listen', channels.listen('news'));
app.post('/speak', express.json(), async (req, res) => {
  const { id } = await channels.publish('news', req.body);
  res.status(202).json({ id });
});

serve({ app, events, close: () => channels.close() });
