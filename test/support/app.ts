/** A minimal Express app with streams. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import express, { type Express, type NextFunction, type Request, type Response } from 'express';
import {
  sse,
  stream,
  type EventStream,
  type SseMiddleware,
  type SseOptions,
} from '../../src/index.ts';
import { serve, type TestServer } from './server.ts';

export interface StreamServer extends TestServer {
  readonly app: Express;
  readonly events: SseMiddleware;
  /** The streams for which the handler was called, in this order. */
  readonly streams: EventStream[];
  /**
   * Errors that handlers threw. A test takes the errors that it expects out of this list. Disposing
   * of the server throws the others, so that no failed expectation in a handler is lost.
   */
  readonly errors: unknown[];
}

/**
 * Serves an Express 5 app that runs the handler for each request for a stream to `/`, of any
 * method.
 */
export async function serveStreams(
  handler: (stream: EventStream, req: Request) => unknown = () => {},
  options: SseOptions = {},
): Promise<StreamServer> {
  const app = express();
  const events = sse(options);
  const streams: EventStream[] = [];
  const errors: unknown[] = [];
  function note(message: unknown): void {
    const { stream: failed, error } = message as { stream: EventStream; error: unknown };
    if (streams.includes(failed)) errors.push(error);
  }
  subscribe('res-sse:error', note);
  app.use(events);
  app.all(
    '/',
    stream((given, req: Request) => {
      streams.push(given);
      return handler(given, req);
    }),
  );
  const server = await serve(app);
  // Added later, so that it comes after the routes that the test adds.
  setImmediate(() =>
    app.use((error: unknown, _req: Request, res: Response, _next: NextFunction) => {
      errors.push(error);
      if (!res.headersSent) res.status(500).end();
    }),
  );
  return Object.assign(server, {
    app,
    events,
    streams,
    errors,
    [Symbol.asyncDispose]: disposal(server, () => {
      unsubscribe('res-sse:error', note);
      if (errors.length > 0) throw errors[0];
    }),
  });
}

function disposal(server: TestServer, then: () => void): () => Promise<void> {
  const dispose = server[Symbol.asyncDispose].bind(server);
  return async () => {
    await dispose();
    then();
  };
}
