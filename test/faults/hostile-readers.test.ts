import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, test } from 'vitest';
import type { SseStats } from '../../src/index.ts';
import { start } from '../support/child.ts';
import { requestText } from '../support/server.ts';
import { until } from '../support/wait.ts';
import { MB, crowd, megabytes, requests, reset, startHostileSite } from './hostile-site.ts';

const READERS = 100;
const EVENT = 100_000;
const STALL = 1_500;

const leave: (() => void | PromiseLike<void>)[] = [];

afterEach(async () => {
  for (const one of leave.splice(0)) await one();
});

/** Connections that never read. */
async function neverRead(port: number): Promise<void> {
  const sockets = await crowd(port, requests(READERS, '/rooms/a'));
  leave.push(() => reset(sockets));
}

/** Connections that take one byte a second out of the kernel, and no more. */
async function readByteBySecond(port: number): Promise<void> {
  const sockets: Socket[] = [];
  for (let count = 0; count < READERS; count++) {
    // False stops the reading after the one byte that there is room for.
    const socket = connect({
      port,
      host: '127.0.0.1',
      onread: { buffer: Buffer.alloc(1), callback: () => false },
    });
    socket.on('error', () => {});
    socket.write(requestText('/rooms/a'));
    sockets.push(socket);
  }
  const timer = setInterval(() => {
    for (const socket of sockets) socket.resume();
  }, 1_000);
  leave.push(() => {
    clearInterval(timer);
    reset(sockets);
  });
}

/** A process that reads all of it and is then stopped: its sockets are open, and nobody is there. */
async function fallAsleep(port: number): Promise<void> {
  const program = `
    import { connect } from 'node:net';
    let opened = 0;
    for (let count = 0; count < ${READERS}; count++) {
      const socket = connect(${port}, '127.0.0.1');
      socket.write(${JSON.stringify(requestText('/rooms/a'))});
      socket.once('data', () => ++opened === ${READERS} && console.log('reading'));
      socket.on('data', () => {});
      socket.on('error', () => {});
    }
  `;
  const child = start(process.execPath, ['--input-type=module', '--eval', program]);
  leave.push(() => child[Symbol.asyncDispose]());
  await until('the readers', () => child.output.includes('reading'));
  child.process.kill('SIGSTOP');
}

/** Bytes that the kernel keeps for TCP, in all processes of this machine. */
function kernelBytes(): number {
  const [, pages] = /^TCP:.* mem (\d+)/m.exec(readFileSync('/proc/net/sockstat', 'utf8')) ?? [];
  return Number(pages) * 4_096;
}

test.each([
  ['never read', neverRead],
  ['read a byte a second', readByteBySecond],
  ['are open while their process is stopped', fallAsleep],
])(
  `${READERS} connections that %s cost a bounded queue each, are cut off, and leave nothing behind`,
  async (what, attack) => {
    await using site = await startHostileSite({
      sse: { stallTimeout: STALL },
      channels: { history: { bytes: 4 * MB } },
    });
    // History as full as it gets, and everything compiled.
    await site.publish(['a'], 60, EVENT);
    const before = await site.holdings();
    const kernel = kernelBytes();
    await attack(site.port);
    await until('the streams', async () => (await site.counts()).streams === READERS + 1);
    let during = await site.holdings();
    let published = 0;
    let queued = 0;
    let live = 0;
    await until(
      'all of them to be behind',
      async () => {
        await site.publish(['a'], 5, EVENT);
        published += 5 * EVENT;
        during = await site.holdings();
        queued = Math.max(queued, during.buffered);
        live = Math.max(live, during.live);
        return during.behind + (during.closed['stalled'] ?? 0) >= READERS;
      },
      20_000,
    );
    const inKernel = kernelBytes() - kernel;
    // The write mark, the event that went over it, and what the pieces in the socket weigh.
    expect(queued / READERS).toBeLessThan(65_536 + 2 * EVENT);
    // The same bytes are shared by all whose queue they are in.
    expect(live - before.live).toBeLessThan(READERS * (65_536 + 2 * EVENT));
    await until(
      'all of them to be cut off',
      async () => (await site.counts()).closed['stalled'] === READERS,
    );
    const after = await site.emptied();
    const longest = await site.undisturbed();
    expect(after.live - before.live).toBeLessThan(3 * MB);
    console.log(
      `${READERS} that ${what}: each had taken ${megabytes(published)} when all were behind, in the kernel ${megabytes(inKernel)}; ` +
        `queued ${megabytes(queued / READERS)} each; live ${megabytes(before.live)} → ${megabytes(live)} → ${megabytes(after.live)}; ` +
        `the witness waited ${longest} ms at most, the loop was held for ${Math.max(during.blocked, after.blocked)} ms`,
    );
  },
  60_000,
);

test('a reader whose network is pulled out is cut off: by stallTimeout where bytes wait, by the kernel where none do', async () => {
  const program = fileURLToPath(new URL('hostile-half-open.ts', import.meta.url));
  // Who is not root makes the namespace as a user of his own.
  const namespace = process.getuid?.() === 0 ? ['--net'] : ['--net', '--map-root-user'];
  await using child = start('unshare', [
    ...namespace,
    process.execPath,
    '--import',
    import.meta.resolve('tsx'),
    program,
  ]);
  let told: { ends: Record<string, { reason: string; ms: number }>; stats: SseStats } | undefined;
  child.process.on('message', (message: typeof told) => (told = message));
  await until('both ends', () => {
    if (told === undefined && !child.isRunning) throw new Error(`it has ended: ${child.output}`);
    return told !== undefined;
  });
  expect(told).toMatchObject({
    ends: { '/busy': { reason: 'stalled' }, '/quiet': { reason: 'client' } },
    stats: { open: 0, buffered: 0 },
  });
  console.log(`half-open: ${JSON.stringify(told?.ends)}`);
}, 30_000);
