import { createServer } from 'node:http';
import { test } from 'vitest';
import { listening } from '../support/server.ts';
import { useClock } from './clock.ts';
import { schedules } from './draw.ts';
import { expectKept } from './runs.ts';
import { sockets } from './sockets.ts';

const clock = useClock();

// A kernel takes megabytes from a sender before the sender notices that nobody reads. The largest event is just below 1 MiB.
const SCALE = 14;

test('over real sockets every promise is kept', { timeout: 300_000 }, async () => {
  await using server = await listening(createServer());
  await expectKept('over real sockets', schedules(25), 300, () => ({
    transport: sockets(server),
    isDistant: false,
    clock,
    scale: SCALE,
  }));
});
