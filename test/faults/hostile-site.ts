/**
 * A server for attacks, in a process of its own, and an ordinary reader (the witness) that no
 * attack may affect.
 */
import { once } from 'node:events';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { start } from '../support/child.ts';
import { read } from '../support/reader.ts';
import { requestText } from '../support/server.ts';
import { until, within } from '../support/wait.ts';
import type { Holdings, HostileServerOptions } from './hostile-server.ts';

export const MB = 1_048_576;

export interface HostileSite extends AsyncDisposable {
  readonly port: number;
  /**
   * The resources that the server holds now, including the witness. The memory includes garbage.
   */
  counts(): Promise<Holdings>;
  /** The same after garbage collection. */
  holdings(): Promise<Holdings>;
  /** Publishes `count` events of `bytes` bytes to each channel. */
  publish(names: string[], count: number, bytes: number): Promise<void>;
  cursor(): Promise<string>;
  /**
   * Waits until all streams except that of the witness have ended, and returns the remaining
   * resources. Fails if other resources remain.
   */
  waitUntilEmpty(): Promise<Holdings>;
  /**
   * Expects that the witness received all events in order, and that it still receives events.
   * @returns the longest delay of an event to the witness, in ms
   */
  expectWitnessServed(): Promise<number>;
}

const SERVER = fileURLToPath(new URL('hostile-server.ts', import.meta.url));

/**
 * Starts the server and connects the witness.
 * @example await using site = await startHostileSite({ sse: { stallTimeout: 1_000 } });
 */
export async function startHostileSite(options: HostileServerOptions = {}): Promise<HostileSite> {
  const child = start(process.execPath, [
    '--expose-gc',
    '--import',
    import.meta.resolve('tsx'),
    SERVER,
    JSON.stringify(options),
  ]);
  let calls = 0;
  const answers = new Map<number, (result: unknown) => void>();
  let address: AddressInfo | undefined;
  child.process.on(
    'message',
    (message: { id: number; result: unknown; listening?: AddressInfo }) => {
      address ??= message.listening;
      answers.get(message.id)?.(message.result);
      answers.delete(message.id);
    },
  );

  async function ask<T>(command: string, args: object = {}): Promise<T> {
    const id = ++calls;
    const answer = new Promise((resolve) => answers.set(id, resolve));
    child.process.send({ id, command, args });
    return within(`the answer to ${command}`, answer as Promise<T>, 60_000);
  }

  await until('the address of the server', () => {
    if (!child.isRunning) throw new Error(`the server exited: ${child.output}`);
    return address !== undefined;
  });
  const { port } = address as unknown as AddressInfo;
  const reader = await read(`http://127.0.0.1:${port}/rooms/witness`);
  let longest = 0;
  let measured = 0;
  const timer = setInterval(() => measureDelays(), 1);
  function measureDelays(): void {
    const now = Date.now();
    for (; measured < reader.events.length; measured++) {
      longest = Math.max(
        longest,
        now - (JSON.parse(reader.events[measured]?.data as string) as { at: number }).at,
      );
    }
  }

  return {
    port,
    counts: () => ask<Holdings>('counts'),
    holdings: () => ask<Holdings>('holdings'),
    publish: (names, count, bytes) => ask('publish', { names, count, bytes }),
    cursor: () => ask<string>('cursor'),
    async waitUntilEmpty() {
      await until(
        'all other streams to end',
        async () => {
          const { sockets, streams, timers } = await ask<Holdings>('counts');
          return sockets === 1 && streams === 1 && timers === 0;
        },
        30_000,
      );
      const holdings = await ask<Holdings>('holdings');
      expect(holdings).toMatchObject({
        sockets: 1,
        streams: 1,
        subscriptions: 1,
        channels: 1,
        behind: 0,
        buffered: 0,
      });
      return holdings;
    },
    async expectWitnessServed() {
      const count = reader.events.length;
      await until('ten more events of the witness', () => reader.events.length > count + 10);
      const ticks = reader.events.map(({ data }) => (JSON.parse(data) as { tick: number }).tick);
      expect(ticks).toEqual(Array.from(ticks, (_, index) => (ticks[0] as number) + index));
      measureDelays();
      return longest;
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      reader.close();
      await child[Symbol.asyncDispose]();
    },
  };
}

/** Opens one connection for each text and sends the text. Resolves when all are connected. */
export async function crowd(port: number, texts: readonly string[]): Promise<Socket[]> {
  const sockets = texts.map((text) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(text);
    return socket;
  });
  await within(
    'all connections',
    Promise.all(sockets.map((socket) => once(socket, 'connect'))),
    30_000,
  );
  return sockets;
}

/** Returns `count` equal requests. */
export function requests(
  count: number,
  path: string,
  headers: Record<string, string> = {},
): string[] {
  return Array.from({ length: count }, () => requestText(path, headers));
}

/** Closes connections with RST. */
export function reset(sockets: readonly Socket[]): void {
  for (const socket of sockets) socket.resetAndDestroy();
}

/** Formats a number of bytes, for the figures in docs/security.md. */
export function megabytes(bytes: number): string {
  return `${(bytes / MB).toFixed(1)} MB`;
}
