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
const EVENT_BYTES = 100_000;
const STALL_TIMEOUT = 1_500;

const cleanups: (() => void | PromiseLike<void>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

/** Opens connections that never read. */
async function neverRead(port: number): Promise<void> {
  const sockets = await crowd(port, requests(READERS, '/rooms/a'));
  cleanups.push(() => reset(sockets));
}

/** Opens connections that read one byte per second. */
async function readByteBySecond(port: number): Promise<void> {
  const sockets: Socket[] = [];
  for (let count = 0; count < READERS; count++) {
    // `false` stops reading after one byte, the size of the buffer.
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
  cleanups.push(() => {
    clearInterval(timer);
    reset(sockets);
  });
}

/**
 * Opens connections in another process and stops that process. Its sockets stay open, but nothing
 * reads.
 */
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
  cleanups.push(() => child[Symbol.asyncDispose]());
  await until('all readers to read', () => child.output.includes('reading'));
  child.process.kill('SIGSTOP');
}

/** Bytes that the kernel holds for TCP, for all processes of this machine. */
function kernelBytes(): number {
  const [, pages] = /^TCP:.* mem (\d+)/m.exec(readFileSync('/proc/net/sockstat', 'utf8')) ?? [];
  return Number(pages) * 4_096;
}

test.each([
  ['never read', neverRead],
  ['read one byte per second', readByteBySecond],
  ['belong to a stopped process', fallAsleep],
])(
  `${READERS} connections that %s have bounded queues and are closed by stallTimeout`,
  async (description, attack) => {
    await using site = await startHostileSite({
      sse: { stallTimeout: STALL_TIMEOUT },
      channels: { history: { bytes: 4 * MB } },
    });
    // Fill the history and warm up the compiled code.
    await site.publish(['a'], 60, EVENT_BYTES);
    const before = await site.holdings();
    const kernel = kernelBytes();
    await attack(site.port);
    await until('all streams', async () => (await site.counts()).streams === READERS + 1);
    let during = await site.holdings();
    let published = 0;
    let queued = 0;
    let live = 0;
    await until(
      'all streams to be behind',
      async () => {
        await site.publish(['a'], 5, EVENT_BYTES);
        published += 5 * EVENT_BYTES;
        during = await site.holdings();
        queued = Math.max(queued, during.buffered);
        live = Math.max(live, during.live);
        return during.behind + (during.closed['stalled'] ?? 0) >= READERS;
      },
      20_000,
    );
    const inKernel = kernelBytes() - kernel;
    // The high-water mark, the event that exceeded it, and the pieces in the socket.
    expect(queued / READERS).toBeLessThan(65_536 + 2 * EVENT_BYTES);
    // Queues share the same bytes.
    expect(live - before.live).toBeLessThan(READERS * (65_536 + 2 * EVENT_BYTES));
    await until(
      'all streams to be closed',
      async () => (await site.counts()).closed['stalled'] === READERS,
    );
    const after = await site.waitUntilEmpty();
    const longest = await site.expectWitnessServed();
    expect(after.live - before.live).toBeLessThan(3 * MB);
    console.log(
      `${READERS} that ${description}: ${megabytes(published)} published until all were behind, ` +
        `in the kernel ${megabytes(inKernel)}; ` +
        `queued ${megabytes(queued / READERS)} each; live ${megabytes(before.live)} → ` +
        `${megabytes(live)} → ${megabytes(after.live)}; ` +
        `longest delay of the witness ${longest} ms, event loop blocked for ` +
        `${Math.max(during.blocked, after.blocked)} ms`,
    );
  },
  60_000,
);

test('a reader without network is closed by stallTimeout or by the kernel', async () => {
  const program = fileURLToPath(new URL('hostile-half-open.ts', import.meta.url));
  // A user that is not root needs a user namespace to create the network namespace.
  const namespace = process.getuid?.() === 0 ? ['--net'] : ['--net', '--map-root-user'];
  await using child = start('unshare', [
    ...namespace,
    process.execPath,
    '--import',
    import.meta.resolve('tsx'),
    program,
  ]);
  let report: { ends: Record<string, { reason: string; ms: number }>; stats: SseStats } | undefined;
  child.process.on('message', (message: typeof report) => (report = message));
  await until('the end of both streams', () => {
    if (report === undefined && !child.isRunning) throw new Error(`exited: ${child.output}`);
    return report !== undefined;
  });
  expect(report).toMatchObject({
    ends: { '/busy': { reason: 'stalled' }, '/quiet': { reason: 'client' } },
    stats: { open: 0, buffered: 0 },
  });
  console.log(`half-open: ${JSON.stringify(report?.ends)}`);
}, 30_000);
