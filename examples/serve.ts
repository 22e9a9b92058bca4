/** Starts an example on port 3000, or `PORT`, and shuts it down as an application should. */
import type { AddressInfo } from 'node:net';
import type { Express } from 'express';
import type { SseMiddleware } from 'res-sse';

/** An app, and the objects that have to be closed when it ends. */
export interface Example {
  app: Express;
  events: SseMiddleware;
  /** Closes channels and stops timers. */
  close?: () => unknown;
}

// Time in ms over which the streams are ended.
const SHUTDOWN_MS = 2_000;

/** Starts the server, and shuts down at SIGTERM or SIGINT. */
export function serve({ app, events, close }: Example): void {
  const server = app.listen(Number(process.env['PORT'] || 3000), (error?: Error) => {
    if (error !== undefined) throw error;
    console.log(`http://localhost:${(server.address() as AddressInfo).port}`);
  });

  async function shutDown(): Promise<void> {
    // The streams end first, while the server is still listening. Their clients are told when to
    // reconnect; a client that reconnects too early is refused by an answer that tells it again.
    await events.close({ within: SHUTDOWN_MS });
    server.close();
    await close?.();
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void shutDown());
}
