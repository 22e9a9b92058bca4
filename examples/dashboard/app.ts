/**
 * A page with a live plot of the load of this process. The channel keeps only the newest sample: a
 * slow tab skips to the newest sample, and each sample is taken and encoded once for all tabs.
 *
 *     npx tsx dashboard/server.ts
 *
 * Open http://localhost:3000 in two tabs. Then stop the server and start it again.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import express from 'express';
import { createChannels, sse } from 'res-sse';
import type { Example } from '../serve.ts';
import { createSampler, type Sample } from './sampler.ts';

interface Schema {
  load: { sample: Sample };
}

const PAGE = fileURLToPath(new URL('page.html', import.meta.url));

// The published file of the client. The page needs no bundler.
const CLIENT = createRequire(import.meta.url).resolve('res-sse/client');

/**
 * @param takeSample returns the current sample
 * @param interval time in ms between two samples
 */
export function createExample(takeSample: () => Sample = createSampler(), interval = 250): Example {
  const channels = createChannels<Schema>({ history: { latest: true } });
  const events = sse({ channels, retry: 1_000 });
  const app = express();
  app.use(events);
  app.get('/', (_req, res) => res.sendFile(PAGE));
  app.get('/client.js', (_req, res) => res.sendFile(CLIENT));
  // A new tab gets the newest sample at once, because the history contains it.
  app.get('/load', channels.listen('load', { since: 'start' }));

  const timer = setInterval(
    () => void channels.publish('load', takeSample(), { event: 'sample' }),
    interval,
  );
  return {
    app,
    events,
    close: () => {
      clearInterval(timer);
      return channels.close();
    },
  };
}
