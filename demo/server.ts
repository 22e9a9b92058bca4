/** Starts the haiku chat on port 4444, or `PORT`. SIGTERM and SIGINT end the server. */
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { createDemo } from './app.ts';
import { explainPort, readPort } from './port.ts';
import { FileStore } from './store.ts';

// Maximum time in ms for ending the streams, and then for requests that are still running.
const SHUTDOWN_MS = 3_000;

// The haiku of earlier runs. `HAIKU_FILE` overrides the path.
const file = process.env['HAIKU_FILE'] || fileURLToPath(new URL('haiku.json', import.meta.url));

const port = readPort();
const { app, events, channels } = createDemo(new FileStore(file));
const server = app.listen(port, (error?: Error) => {
  if (error !== undefined) {
    explainPort(port, error);
    return;
  }
  const { port: listeningPort } = server.address() as AddressInfo;
  console.log(`Haiku chat listening on http://localhost:${listeningPort}`);
});

/** Ends the streams, then the server, then the channels. */
async function shutDown(): Promise<void> {
  await events.close({ within: SHUTDOWN_MS });
  server.close();
  setTimeout(() => server.closeAllConnections(), SHUTDOWN_MS).unref();
  // Last, because closing the broker could take long if the broker is unreachable.
  await channels.close();
}

process.on('SIGTERM', () => void shutDown());
process.on('SIGINT', () => void shutDown());
