/** Serves an example in the process of the test, so that the test can inspect it. */
import type { Example } from '../../examples/serve.ts';
import { serve, type TestServer } from '../support/server.ts';

/**
 * Starts a server with the app of an example.
 * @example await using server = await serveExample(createExample());
 */
export async function serveExample<E extends Example>(
  example: E,
): Promise<TestServer & { example: E }> {
  const server = await serve(example.app);
  const dispose = server[Symbol.asyncDispose].bind(server);
  return Object.assign(server, {
    example,
    async [Symbol.asyncDispose]() {
      await example.close?.();
      await dispose();
    },
  });
}

/** Sends a POST request with a JSON body. */
export async function post(
  url: string,
  body: unknown = {},
  init: RequestInit = {},
): Promise<Response> {
  const headers = {
    'Content-Type': 'application/json',
    ...(init.headers as Record<string, string> | undefined),
  };
  return fetch(url, { ...init, method: 'POST', headers, body: JSON.stringify(body) });
}
