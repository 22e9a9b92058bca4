/** Serves the haiku chat on port 4444, or `PORT`, until SIGTERM or SIGINT. */
import type { AddressInfo } from 'node:net';
import { createDemo } from './app.ts';
import { explainPort, portFromEnvironment } from './port.ts';

const port = portFromEnvironment();
const { app, events, channels } = createDemo();
const server = app.listen(port, (error?: Error) => {
  if (error !== undefined) {
    explainPort(port, error);
    return;
  }
  console.log(`Haiku are spoken on http://localhost:${(server.address() as AddressInfo).port}`);
});

// Longer than this nobody waits: a request that is still being sent is cut off.
const WITHIN = 3_000;

async function shutDown(): Promise<void> {
  await events.close({ within: WITHIN });
  server.close();
  setTimeout(() => server.closeAllConnections(), WITHIN).unref();
  // Last: a broker that cannot be reached must not keep the server open.
  await channels.close();
}

process.on('SIGTERM', () => void shutDown());
process.on('SIGINT', () => void shutDown());
