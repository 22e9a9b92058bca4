import { createServer } from 'node:http';
import { test } from 'vitest';
import { listening } from '../support/server.ts';
import { useClock } from './clock.ts';
import { schedules } from './draw.ts';
import { expectContractKept } from './runs.ts';
import { sockets } from './sockets.ts';

const clock = useClock();

// Factor for the size of events. A kernel buffers megabytes before a sender notices that the
// receiver does not read. The largest event is a little smaller than 1 MiB.
const SCALE = 14;

test('channels keep their contract over real sockets', { timeout: 300_000 }, async () => {
  await using server = await listening(createServer());
  await expectContractKept('over real sockets', schedules(25), 300, () => ({
    transport: sockets(server),
    isDistant: false,
    clock,
    scale: SCALE,
  }));
});
