/** Serves an example on port 3000, or `PORT`, and ends it as a real application should end. */
import type { AddressInfo } from 'node:net';
import type { Express } from 'express';
import type { SseMiddleware } from 'res-sse';

/** An app, and what has to be closed when it ends. */
export interface Example {
  app: Express;
  events: SseMiddleware;
  /** Channels, timers. */
  close?: () => unknown;
}

/** Serves until SIGTERM or SIGINT. */
export function serve({ app, events, close }: Example): void {
  const server = app.listen(Number(process.env['PORT'] || 3000), (error?: Error) => {
    if (error !== undefined) throw error;
    console.log(`http://localhost:${(server.address() as AddressInfo).port}`);
  });

  async function shutDown(): Promise<void> {
    // First, while the server still listens: clients are told when to come back, and who comes at once is sent away again.
    await events.close({ within: 2_000 });
    server.close();
    await close?.();
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void shutDown());
}
