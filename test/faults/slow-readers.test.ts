import { fork } from 'node:child_process';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { expect, test } from 'vitest';
import { dial, requestText } from '../support/server.ts';
import { until } from '../support/wait.ts';

const MB = 1_048_576;
const READING = 50;
const STUCK = 50;
const EVENT = 100_000;
const EVENTS = 2_100;

test('50 readers that never read cost the other 50 nothing: 200 MB later they have everything, and memory is what the bounds say', async () => {
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
  // What came to each reader: bytes, and the last of them.
  const bytes = Array.from({ length: READING }, () => 0);
  const tails = Array.from({ length: READING }, () => '');
  for (let reader = 0; reader < READING + STUCK; reader++) {
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
    'the streams',
    async () => (await ask<{ open: number }>('stats')).open === READING + STUCK,
  );

  // Until the kernel's buffers of those who never read are full, and the history is.
  await ask('publish', { from: 0, count: 100, bytes: EVENT, slow: STUCK });
  const before = await ask<{ live: number; rss: number }>('memory');
  const received = [...bytes];
  await ask('publish', { from: 100, count: EVENTS - 100, bytes: EVENT, slow: STUCK });
  const after = await ask<{ live: number; rss: number }>('memory');

  // Each event is its number, the filler, and what the wire adds; all readers have come equally far.
  const stats = await ask<{
    open: number;
    dropped: number;
    buffered: number;
    channels: { behind: number; gaps: number };
  }>('stats');
  await until('everything to arrive', () =>
    bytes.every(
      (count, reader) =>
        count - (received[reader] as number) >= (EVENTS - 100) * EVENT &&
        /x\nid: .+\n\n$/.test(tails[reader] as string),
    ),
  );
  expect(new Set(bytes).size).toBe(1);
  expect(stats).toMatchObject({
    open: READING + STUCK,
    dropped: 0,
    channels: { behind: STUCK, gaps: 0 },
  });
  // For each that never reads: the write mark, the event that went over it, and what the pieces in the socket weigh.
  expect(stats.buffered).toBeLessThan(STUCK * (65_536 + 2 * EVENT));
  expect(after.live - before.live).toBeLessThan(4 * MB);
  console.log(
    `slow readers: live memory ${(before.live / MB).toFixed(1)} → ${(after.live / MB).toFixed(1)} MB, ` +
      `rss ${(before.rss / MB).toFixed(0)} → ${(after.rss / MB).toFixed(0)} MB, queued ${(stats.buffered / STUCK / 1_024).toFixed(0)} KiB for each that never reads`,
  );
  for (const socket of sockets) socket.destroy();
  child.kill();
  await once(child, 'exit');
}, 120_000);
