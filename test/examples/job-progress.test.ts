import { EventSource } from 'eventsource';
import { expect, test, vi } from 'vitest';
import { createExample } from '../../examples/job-progress/app.ts';
import type { Work } from '../../examples/job-progress/work.ts';
import { read } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import { post, serveExample } from './serve-example.ts';

/** A job that the test controls. */
function controlledWork() {
  const job = {} as {
    report: (percent: number) => Promise<unknown>;
    finish: (result: unknown) => void;
    fail: (error: Error) => void;
  };
  const work: Work = (report) =>
    new Promise((finish, fail) => {
      Object.assign(job, { report, finish, fail });
    });
  return { job, work };
}

async function startJob(url: string): Promise<string> {
  const response = await post(`${url}/jobs`);
  expect(response.status).toBe(202);
  return url + (await response.json()).events;
}

test('a stream of a job has the current step, each later step and the result', async () => {
  const { job, work } = controlledWork();
  await using server = await serveExample(createExample(work));
  const events = await startJob(server.url);
  await job.report(10);
  await job.report(20);
  using reader = await read(events);
  expect(await reader.next()).toMatchObject({ event: 'progress', data: '{"percent":20}' });
  await job.report(30);
  expect(await reader.next()).toMatchObject({ event: 'progress', data: '{"percent":30}' });
  using other = await read(events);
  expect(await other.next()).toMatchObject({ data: '{"percent":30}' });
  job.finish({ files: 20 });
  for (const each of [reader, other]) {
    expect(await each.next()).toMatchObject({ event: 'done', data: '{"files":20}' });
    await each.end();
    expect(each.events.at(-1)).toMatchObject({ event: 'sse:end' });
  }
});

test('a stream of a job resumes, and a replaced step causes no gap', async () => {
  const { job, work } = controlledWork();
  await using server = await serveExample(createExample(work));
  const events = await startJob(server.url);
  await job.report(10);
  const first = await read(events);
  const { id } = await first.next();
  first.close();
  await job.report(20);
  await job.report(30);
  using second = await read(events, { headers: { 'Last-Event-ID': id as string } });
  expect(await second.next()).toMatchObject({ event: 'progress', data: '{"percent":30}' });
  second.close();
  job.finish('ready');
  using third = await read(events, {
    headers: { 'Last-Event-ID': second.events[0]?.id as string },
  });
  await third.end();
  expect(third.events.map(({ event, data }) => [event, data])).toEqual([
    ['done', 'ready'],
    ['sse:end', '{}'],
  ]);
});

test('an EventSource gets the result after a reconnect and does not reconnect again', async () => {
  const { job, work } = controlledWork();
  await using server = await serveExample(createExample(work));
  const source = new EventSource(await startJob(server.url));
  const received: string[] = [];
  for (const name of ['progress', 'done', 'sse:gap']) {
    source.addEventListener(name, ({ data }) => void received.push(data));
  }
  try {
    await until('an open stream', () => server.example.events.streams.size === 1);
    await job.report(10);
    await until('the first step', () => received.length === 1);
    for (const socket of server.sockets) socket.destroy();
    await until('the end of the stream', () => server.example.events.streams.size === 0);
    job.finish('ready');
    await until('the EventSource to be closed', () => source.readyState === source.CLOSED);
  } finally {
    source.close();
  }
  expect(received).toEqual(['{"percent":10}', 'ready']);
  expect(server.example.events.stats()).toMatchObject({
    open: 0,
    opened: 2,
    closed: { server: 1, final: 1 },
  });
});

test('a failed job reports an error without the cause', async () => {
  const log = vi.spyOn(console, 'error').mockImplementation(() => {});
  const { job, work } = controlledWork();
  await using server = await serveExample(createExample(work));
  using reader = await read(await startJob(server.url));
  const cause = new Error('password: 12345');
  job.fail(cause);
  expect(await reader.next()).toMatchObject({
    event: 'failed',
    data: '{"message":"The job has failed."}',
  });
  await reader.end();
  expect(reader.text).not.toContain('12345');
  expect(log).toHaveBeenCalledWith(cause);
  log.mockRestore();
});

test('an unknown job is 404', async () => {
  await using server = await serveExample(createExample());
  const response = await fetch(`${server.url}/jobs/none/events`, {
    headers: { Accept: 'text/event-stream' },
  });
  expect([response.status, await response.text()]).toEqual([404, 'There is no such job.']);
});
