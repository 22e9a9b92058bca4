/**
 * Fastify: `reply.hijack()`, and the request and response objects of Node.
 *
 *     npx tsx frameworks/fastify.ts
 *     curl -N -H 'Accept: text/event-stream' localhost:3000/rooms/blue
 *     curl -H 'Content-Type: application/json' -d '{"text":"hello"}' localhost:3000/rooms/blue
 */
import fastify, { type FastifyReply, type FastifyRequest } from 'fastify';
import { createChannels, sse, type RouteHandler } from 'res-sse';

interface Room {
  Params: { room: string };
}

const channels = createChannels();
const events = sse({ channels });
const app = fastify();

app.get<Room>('/rooms/:room', (request, reply) => {
  const { room } = request.params;
  handOver(
    request,
    reply,
    channels.listen(() => (room === 'secret' ? null : `room:${room}`)),
  );
});
app.post<Room>('/rooms/:room', async (request, reply) => {
  await channels.publish(`room:${request.params.room}`, request.body);
  return reply.code(202).send();
});

/**
 * Lets the handler answer the request. Fastify sends nothing, and its `onSend` hooks are not
 * called.
 */
function handOver(request: FastifyRequest, reply: FastifyReply, handler: RouteHandler): void {
  // Keep the headers that plugins have set, for example those of CORS.
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    reply.raw.setHeader(name, value ?? '');
  }
  reply.hijack();
  const { raw: req } = request;
  const { raw: res } = reply;
  events(req, res, (error) => (error === undefined ? handler(req, res, fail) : fail(error)));

  // Called only before anything is sent. Later errors end the stream.
  function fail(error: unknown): void {
    request.log.error(error);
    res.writeHead(500).end('Internal Server Error');
  }
}

console.log(await app.listen({ port: Number(process.env['PORT'] || 3000) }));

async function shutDown(): Promise<void> {
  // The streams end first. Fastify answers 503 as soon as it closes, and an EventSource does not
  // reconnect after a 503.
  await events.close({ within: 2_000 });
  await app.close();
  await channels.close();
}
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void shutDown());
