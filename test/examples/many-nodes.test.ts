import { expect, test } from 'vitest';
import { read } from '../support/reader.ts';
import { startRedis } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import { startProgram } from './program.ts';
import { post } from './serve-example.ts';

test(
  'a client of a killed node resumes on another node and misses no event',
  { timeout: 60_000 },
  async () => {
    await using redis = await startRedis();
    const env = { REDIS_URL: redis.url };
    await using one = await startProgram('many-nodes/node.ts', env);
    await using other = await startProgram('many-nodes/node.ts', env);
    using reader = await read(`${one.url}/listen`);
    await until('the first checkpoint', () => reader.checkpoints.length === 1);

    expect((await post(`${other.url}/speak`, { number: 1 })).status).toBe(202);
    const first = await reader.next();
    expect(first.data).toBe('{"number":1}');

    await one.child.stop('SIGKILL');
    await reader.end();
    for (const number of [2, 3]) await post(`${other.url}/speak`, { number });
    using resumed = await read(`${other.url}/listen`, {
      headers: { 'Last-Event-ID': first.id as string },
    });
    expect((await resumed.take(2)).map(({ data }) => data)).toEqual([
      '{"number":2}',
      '{"number":3}',
    ]);

    await using third = await startProgram('many-nodes/node.ts', env);
    const { id } = await (await post(`${third.url}/speak`, { number: 4 })).json();
    expect(await resumed.next()).toMatchObject({ data: '{"number":4}', id });
  },
);
