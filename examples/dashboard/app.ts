/**
 * A page with a live plot of what this process does. The channel keeps the newest sample only: a tab that lags skips to it, and
 * however many tabs look, a sample is taken and encoded once.
 *
 *     npx tsx dashboard/server.ts
 *
 * Open http://localhost:3000, and again in a second tab; stop the server and start it again.
 */
import { fileURLToPath } from 'node:url';
import express from 'express';
import { createChannels, sse } from 'res-sse';
import type { Example } from '../serve.ts';
import { sampler, type Sample } from './sampler.ts';

interface Schema {
  load: { sample: Sample };
}

const PAGE = fileURLToPath(new URL('page.html', import.meta.url));

/** @param take what is plotted; asked each `interval` ms */
export function createExample(take: () => Sample = sampler(), interval = 250): Example {
  const channels = createChannels<Schema>({ history: { latest: true } });
  const events = sse({ channels, retry: 1_000 });
  const app = express();
  app.use(events);
  app.get('/', (_req, res) => res.sendFile(PAGE));
  app.get('/load', channels.listen('load', { since: 'start' }));

  const timer = setInterval(
    () => void channels.publish('load', take(), { event: 'sample' }),
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
