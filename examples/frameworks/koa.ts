/**
 * Koa: `ctx.respond = false`, and the request and response objects of Node.
 *
 *     npx tsx frameworks/koa.ts
 *     curl -N -H 'Accept: text/event-stream' localhost:3000/rooms/blue
 *     curl -H 'Content-Type: application/json' -d '{"text":"hello"}' localhost:3000/rooms/blue
 */
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';
import Koa, { type Context } from 'koa';
import { createChannels, sse, type Next, type RouteHandler } from 'res-sse';

const channels = createChannels();
const events = sse({ channels });
const app = new Koa();

app.use(async (ctx) => {
  const room = /^\/rooms\/([^/]+)$/.exec(ctx.path)?.[1];
  if (room === undefined) return;
  if (ctx.method === 'POST') {
    await channels.publish(`room:${room}`, await json(ctx.req));
    ctx.status = 202;
  } else {
    await handOver(
      ctx,
      channels.listen(() => (room === 'secret' ? null : `room:${room}`)),
    );
  }
});

/**
 * Lets the handler answer the request.
 * @returns a promise that resolves when the response is closed, and rejects with an error of the
 * handler, which Koa then answers
 */
async function handOver(ctx: Context, handler: RouteHandler): Promise<void> {
  const { req, res } = ctx;
  ctx.respond = false;
  await new Promise<void>((resolve, reject) => {
    const fail: Next = reject;
    res.once('close', resolve);
    events(req, res, (error) => (error === undefined ? handler(req, res, fail) : fail(error)));
  });
}

const server = app.listen(Number(process.env['PORT'] || 3000), () => {
  console.log(`http://localhost:${(server.address() as AddressInfo).port}`);
});

async function shutDown(): Promise<void> {
  await events.close({ within: 2_000 });
  server.close();
  await channels.close();
}
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void shutDown());
