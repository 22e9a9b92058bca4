import { fork } from 'node:child_process';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { expect, test } from 'vitest';
import { dial, requestText } from '../support/server.ts';
import { until } from '../support/wait.ts';

const MB = 1_048_576;
const READING = 50;
const STALLED = 50;
const EVENT_BYTES = 100_000;
const EVENT_COUNT = 2_100;

test('50 readers that never read neither delay 50 others nor exceed memory limits', async () => {
  const program = new URL('../support/broadcast-server.mjs', import.meta.url).pathname;
  const child = fork(program, { execArgv: ['--expose-gc'] });
  let calls = 0;
  async function ask<T>(command: string, options: object = {}): Promise<T> {
    const id = ++calls;
    child.send({ id, command, options });
    for (;;) {
      const [message] = (await once(child, 'message')) as [{ id: number; result: T }];
      if (message.id === id) return message.result;
    }
  }
  const [{ port }] = (await once(child, 'message')) as [{ port: number }];

  const sockets: Socket[] = [];
  // Received by each reader: the number of bytes, and the last bytes.
  const bytes = Array.from({ length: READING }, () => 0);
  const tails = Array.from({ length: READING }, () => '');
  for (let reader = 0; reader < READING + STALLED; reader++) {
    const socket = await dial(port, requestText('/').replace('HTTP/1.1', 'HTTP/1.0'));
    sockets.push(socket);
    if (reader >= READING) socket.pause();
    else {
      socket.on('data', (chunk: Buffer) => {
        bytes[reader] = (bytes[reader] as number) + chunk.length;
        tails[reader] = chunk.subarray(-64).toString('latin1');
      });
    }
  }
  await until(
    'all streams',
    async () => (await ask<{ open: number }>('stats')).open === READING + STALLED,
  );

  // Fill the history and the kernel buffers of the readers that never read.
  await ask('publish', { from: 0, count: 100, bytes: EVENT_BYTES, slow: STALLED });
  const before = await ask<{ live: number; rss: number }>('memory');
  const received = [...bytes];
  await ask('publish', { from: 100, count: EVENT_COUNT - 100, bytes: EVENT_BYTES, slow: STALLED });
  const after = await ask<{ live: number; rss: number }>('memory');

  // Each event consists of its number, filler, and the fields of the format. All readers must have
  // the same number of bytes.
  const stats = await ask<{
    open: number;
    dropped: number;
    buffered: number;
    channels: { behind: number; gaps: number };
  }>('stats');
  await until('all events at all readers', () =>
    bytes.every(
      (count, reader) =>
        count - (received[reader] as number) >= (EVENT_COUNT - 100) * EVENT_BYTES &&
        /x\nid: .+\n\n$/.test(tails[reader] as string),
    ),
  );
  expect(new Set(bytes).size).toBe(1);
  expect(stats).toMatchObject({
    open: READING + STALLED,
    dropped: 0,
    channels: { behind: STALLED, gaps: 0 },
  });
  // For each reader that never reads: the high-water mark, the event that exceeded it, and the
  // pieces in the socket.
  expect(stats.buffered).toBeLessThan(STALLED * (65_536 + 2 * EVENT_BYTES));
  expect(after.live - before.live).toBeLessThan(4 * MB);
  console.log(
    `slow readers: live memory ${(before.live / MB).toFixed(1)} → ` +
      `${(after.live / MB).toFixed(1)} MB, ` +
      `rss ${(before.rss / MB).toFixed(0)} → ${(after.rss / MB).toFixed(0)} MB, queued ` +
      `${(stats.buffered / STALLED / 1_024).toFixed(0)} KiB for each stalled reader`,
  );
  for (const socket of sockets) socket.destroy();
  child.kill();
  await once(child, 'exit');
}, 120_000);
