import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { read, type Reader } from '../support/reader.ts';
import { until, within } from '../support/wait.ts';
import { startProgram, type Program } from './program.ts';
import { post } from './serve-example.ts';

async function follow(url: string, headers: Record<string, string> = {}): Promise<Reader> {
  const reader = await read(url, { headers });
  expect(reader.response.status).toBe(200);
  await until('the first checkpoint', () => reader.checkpoints.length > 0);
  return reader;
}

// Invalid channel names in a form that reaches the library. Koa does not decode a path, and Fastify
// accepts no long parameter.
const INVALID_NAMES = { fastify: '%01', koa: 'x'.repeat(300), nestjs: '%01' };

describe.each(['fastify', 'koa', 'nestjs'] as const)('in %s', (framework) => {
  let program: Program;

  beforeEach(async () => {
    program = await startProgram(`frameworks/${framework}.ts`, { NODE_DEBUG: 'res-sse' });
  });

  afterEach(async () => {
    await program?.[Symbol.asyncDispose]();
  });

  test('posted data are streamed, and a client resumes after a disconnect', async () => {
    const room = `${program.url}/rooms/blue`;
    const reader = await follow(room);
    expect(reader.response.headers.get('Content-Type')).toBe('text/event-stream');
    expect((await post(room, { text: 'one' })).status).toBe(202);
    const { data, id } = await reader.next();
    expect(data).toBe('{"text":"one"}');
    reader.close();
    await until('the log of the disconnect', () =>
      /close GET \/rooms\/blue: client/.test(program.child.output),
    );
    await post(room, { text: 'two' });
    using resumed = await follow(room, { 'Last-Event-ID': id as string });
    expect((await resumed.next()).data).toBe('{"text":"two"}');
  });

  test('the statuses are 406 without Accept, 403 if forbidden, 204 after a final end', async () => {
    const room = `${program.url}/rooms/blue`;
    const plain = await fetch(room);
    expect([plain.status, await plain.text()]).toEqual([
      406,
      expect.stringContaining('Accept: text/event-stream'),
    ]);
    const secret = await fetch(`${program.url}/rooms/secret`, {
      headers: { Accept: 'text/event-stream' },
    });
    expect([secret.status, await secret.text()]).toEqual([403, 'You may not follow this.\n']);
    const final = await fetch(room, {
      headers: { Accept: 'text/event-stream', 'Last-Event-ID': 'sse:end' },
    });
    expect([final.status, await final.text()]).toEqual([204, '']);
  });

  test('an error before the stream is a 500 without the cause; the server continues', async () => {
    const room = `${program.url}/rooms/${INVALID_NAMES[framework]}`;
    const failed = await fetch(room, { headers: { Accept: 'text/event-stream' } });
    const answer = await failed.text();
    expect(failed.status).toBe(500);
    expect(answer).not.toMatch(/channel name|node_modules|\bat /);
    using reader = await follow(`${program.url}/rooms/blue`);
    expect(reader.ended).toBe(false);
  });

  test('on SIGTERM a stream gets a reconnection time, and the program exits', async () => {
    using reader = await follow(`${program.url}/rooms/blue`);
    program.child.process.kill('SIGTERM');
    await reader.end();
    expect(reader.retries.length).toBe(1);
    await within('the exit of the program', program.child.ended);
    const { exitCode, signalCode } = program.child.process;
    // Nest sends the signal to itself again.
    expect([0, 'SIGTERM']).toContain(exitCode ?? signalCode);
  });
});
