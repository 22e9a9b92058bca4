/**
 * The progress of a background job. A client gets the current progress at once, then each step, and
 * the result at the end; also after a lost connection, a reload, or in a second tab. After the
 * result the client is told not to reconnect.
 *
 *     npx tsx job-progress/server.ts
 *     curl -X POST localhost:3000/jobs    {"id":"…","events":"/jobs/…/events"}
 *     curl -N -H 'Accept: text/event-stream' localhost:3000/jobs/…/events
 *
 * In a page:
 *
 *     const source = new EventSource(job.events);
 *     source.addEventListener('progress', ({ data }) => (bar.value = JSON.parse(data).percent));
 *     source.addEventListener('done', ({ data }) => show(JSON.parse(data)));
 */
import { randomUUID } from 'node:crypto';
import express, { type Request } from 'express';
import { createChannels, sse, stream } from 'res-sse';
import type { Example } from '../serve.ts';
import { thumbnails, type Work } from './work.ts';

interface Schema {
  [job: `job:${string}`]: { progress: { percent: number } };
}

/**
 * The result of a job. The result is not an event of the channel, because the channel keeps only
 * the newest event, and clients may ask for the result much later.
 */
interface Outcome {
  event: 'done' | 'failed';
  data: unknown;
}

// Time in ms for which the result of a job is kept.
const RESULT_LIFETIME_MS = 3_600_000;

/** @param work the job, which reports its progress */
export function createExample(work: Work = thumbnails): Example {
  // Only the current progress matters: a new client gets it, and a slow client skips to it.
  const channels = createChannels<Schema>({ history: { latest: true } });
  const events = sse({ channels, retry: 1_000 });
  const jobs = new Map<string, Promise<Outcome>>();
  const app = express();
  app.use(events);

  app.post('/jobs', (_req, res) => {
    const id = randomUUID();
    const outcome = run(id);
    jobs.set(id, outcome);
    void outcome.then(() => setTimeout(() => jobs.delete(id), RESULT_LIFETIME_MS).unref());
    res.status(202).json({ id, events: `/jobs/${id}/events` });
  });

  app.get(
    '/jobs/:id/events',
    stream(async (stream, req: Request<{ id: string }>, res) => {
      const { id } = req.params;
      const outcome = jobs.get(id);
      if (outcome === undefined) {
        res.status(404).send('There is no such job.');
        return;
      }
      await stream.subscribe(`job:${id}`, { since: 'start' });
      const { event, data } = await outcome;
      stream.send(data, event);
      stream.close({ final: true });
    }),
  );

  async function run(id: string): Promise<Outcome> {
    try {
      const result = await work((percent) =>
        channels.publish(`job:${id}`, { percent }, { event: 'progress' }),
      );
      return { event: 'done', data: result };
    } catch (error) {
      console.error(error);
      return { event: 'failed', data: { message: 'The job has failed.' } };
    }
  }

  return { app, events, close: () => channels.close() };
}
