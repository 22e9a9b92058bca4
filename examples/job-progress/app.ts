/**
 * The progress of a background job. Whoever follows it gets where it is at once, then each step, and the result at the end, also after
 * a dropped connection, a reload, or in a second tab; then the client is told not to come back.
 *
 *     npx tsx job-progress/server.ts
 *     curl -X POST localhost:3000/jobs                                              {"id":"…","events":"/jobs/…/events"}
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

/** How a job has ended. Not an event of the channel: it is kept, however late somebody asks. */
interface Outcome {
  event: 'done' | 'failed';
  data: unknown;
}

// So long, in ms, a job is known after its end.
const KEEP = 3_600_000;

export function createExample(work: Work = thumbnails): Example {
  // Only where the job is now matters: a newcomer gets that, and who lags skips to it.
  const channels = createChannels<Schema>({ history: { latest: true } });
  const events = sse({ channels, retry: 1_000 });
  const jobs = new Map<string, Promise<Outcome>>();
  const app = express();
  app.use(events);

  app.post('/jobs', (_req, res) => {
    const id = randomUUID();
    const outcome = run(id);
    jobs.set(id, outcome);
    void outcome.then(() => setTimeout(() => jobs.delete(id), KEEP).unref());
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
