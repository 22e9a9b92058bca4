import fastify from 'fastify';
import type { IncomingMessage, RequestListener } from 'node:http';
import { describe, expect, test } from 'vitest';
import { readEvents } from '../../src/testing/index.ts';
import { expectHello, listener } from '../support/hello.ts';

// Koa's types do not compile with those of its `content-disposition`.
const koaPackage: string = 'koa';
const { default: Koa } = (await import(koaPackage)) as { default: new () => KoaApp };
interface KoaApp {
  use(
    middleware: (context: {
      respond: boolean;
      req: IncomingMessage;
      res: Parameters<RequestListener>[1];
    }) => void,
  ): void;
  callback(): RequestListener;
}

describe('readEvents reads', () => {
  test('the callback of a Koa app', async () => {
    const koa = new Koa();
    koa.use((context) => {
      context.respond = false;
      listener(context.req, context.res);
    });
    await expectHello(koa.callback());
  });

  test('the server of a Fastify app', async () => {
    const app = fastify();
    app.get('/', (request, reply) => {
      reply.hijack();
      listener(request.raw, reply.raw);
    });
    await app.ready();
    await expectHello(app.server);
    await app.close();
  });
});

test.each<[string, unknown, string]>([
  ['a Fastify app', fastify(), 'pass its `server`'],
  ['a Koa app', new Koa(), 'pass the return value of its `callback()`'],
])('readEvents refuses %s itself, and names the fix', async (_, target, fix) => {
  await expect(readEvents(target as string, { timeout: 600_000 })).rejects.toMatchObject({
    name: 'SseError',
    code: 'ERR_SSE_OPTION',
    message: expect.stringMatching(/^expected the target of readEvents\(\) to be /) as string,
  });
  await expect(readEvents(target as string)).rejects.toThrow(fix);
});
