/** Revoking, with the broker in this process and without channels. */
import express from 'express';
import { expect, test } from 'vitest';
import { sse, stream } from '../src/index.ts';
import { memoryNodes } from './promises/nodes.ts';
import { testRevoking } from './promises/revoking.ts';
import { read } from './support/reader.ts';
import { serve } from './support/server.ts';

testRevoking(memoryNodes);

test('without channels, revoke() ends the streams of this node', async () => {
  const events = sse({ identity: (req) => req.get('X-User') });
  const app = express();
  app.use(events);
  // A route with options of its own has the same identities.
  app.get(
    '/',
    sse({ retry: 500 }),
    stream((given) => given.send('hello')),
  );
  await using server = await serve(app);
  const reader = await read(server.url, { headers: { 'X-User': 'ann' } });
  using other = await read(server.url, { headers: { 'X-User': 'bob' } });
  await events.revoke('ann');
  await reader.end();
  expect(events.stats().closed).toEqual({ revoked: 1 });
  expect(other.ended).toBe(false);
});
