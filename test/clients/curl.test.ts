import { spawn } from 'node:child_process';
import { expect, test } from 'vitest';
import type { EventStream } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { until, within } from '../support/wait.ts';

test('curl -N prints events as they come, and is noticed when it leaves', async () => {
  await using server = await serveStreams((stream) => stream.send('first\nline', { event: 'tick', id: 1 }));
  const curl = spawn('curl', ['-sN', '-H', 'Accept: text/event-stream', server.url]);
  let printed = '';
  curl.stdout.on('data', (chunk: Buffer) => (printed += chunk.toString()));
  await until('the first event', () => printed.endsWith('\n\n'));
  const stream = server.streams[0] as EventStream;
  stream.send('second');
  await until('the second', () => printed.includes('second'));
  expect(printed).toBe(':\nid: 1\nevent: tick\ndata: first\ndata: line\n\ndata: second\n\n');
  curl.kill();
  expect(await within('the reason', stream.closed, 2_000)).toBe('client');
});

test('curl without the header is told what to send', async () => {
  await using server = await serveStreams();
  const curl = spawn('curl', ['-s', '-w', '%{http_code}', server.url]);
  let printed = '';
  curl.stdout.on('data', (chunk: Buffer) => (printed += chunk.toString()));
  await until('it to end', () => curl.exitCode !== null);
  expect(printed).toBe('This is an event stream; send the header Accept: text/event-stream\n406');
});
