/** A server under attack, in a process of its own, and an ordinary reader that must not notice. */
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
  /** What it holds now, the witness included; of memory also what is garbage. */
  counts(): Promise<Holdings>;
  /** The same, when everything that can go has gone. */
  holdings(): Promise<Holdings>;
  /** So many events of so many bytes to each of the channels. */
  publish(names: string[], count: number, bytes: number): Promise<void>;
  cursor(): Promise<string>;
  /** Resolves with what is held when all streams but the witness's are gone; fails where something else is left. */
  emptied(): Promise<Holdings>;
  /** Expects the witness to have received everything in order, and more of it now; the longest it had to wait for one, in ms. */
  undisturbed(): Promise<number>;
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
  let listening: AddressInfo | undefined;
  child.process.on(
    'message',
    (message: { id: number; result: unknown; listening?: AddressInfo }) => {
      listening ??= message.listening;
      answers.get(message.id)?.(message.result);
      answers.delete(message.id);
    },
  );

  async function ask<T>(command: string, given: object = {}): Promise<T> {
    const id = ++calls;
    const answer = new Promise((resolve) => answers.set(id, resolve));
    child.process.send({ id, command, given });
    return within(`the answer to ${command}`, answer as Promise<T>, 60_000);
  }

  await until('the server', () => {
    if (!child.isRunning) throw new Error(`the server has ended: ${child.output}`);
    return listening !== undefined;
  });
  const { port } = listening as unknown as AddressInfo;
  const reader = await read(`http://127.0.0.1:${port}/rooms/witness`);
  let longest = 0;
  let seen = 0;
  const watch = setInterval(() => look(), 1);
  function look(): void {
    const now = Date.now();
    for (; seen < reader.events.length; seen++) {
      longest = Math.max(
        longest,
        now - (JSON.parse(reader.events[seen]?.data as string) as { at: number }).at,
      );
    }
  }

  return {
    port,
    counts: () => ask<Holdings>('counts'),
    holdings: () => ask<Holdings>('holdings'),
    publish: (names, count, bytes) => ask('publish', { names, count, bytes }),
    cursor: () => ask<string>('cursor'),
    async emptied() {
      await until(
        'everything to be gone',
        async () => {
          const { sockets, streams, timers } = await ask<Holdings>('counts');
          return sockets === 1 && streams === 1 && timers === 0;
        },
        30_000,
      );
      const held = await ask<Holdings>('holdings');
      expect(held).toMatchObject({
        sockets: 1,
        streams: 1,
        subscriptions: 1,
        channels: 1,
        behind: 0,
        buffered: 0,
      });
      return held;
    },
    async undisturbed() {
      const count = reader.events.length;
      await until('the witness to be served', () => reader.events.length > count + 10);
      const ticks = reader.events.map(({ data }) => (JSON.parse(data) as { tick: number }).tick);
      expect(ticks).toEqual(Array.from(ticks, (_, index) => (ticks[0] as number) + index));
      look();
      return longest;
    },
    async [Symbol.asyncDispose]() {
      clearInterval(watch);
      reader.close();
      await child[Symbol.asyncDispose]();
    },
  };
}

/** Many connections that each send a request, opened all at once; resolves when all of them are connected. */
export async function crowd(port: number, texts: readonly string[]): Promise<Socket[]> {
  const sockets = texts.map((text) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(text);
    return socket;
  });
  await within(
    'all to be connected',
    Promise.all(sockets.map((socket) => once(socket, 'connect'))),
    30_000,
  );
  return sockets;
}

/** So many requests for the same. */
export function requests(
  count: number,
  path: string,
  headers: Record<string, string> = {},
): string[] {
  return Array.from({ length: count }, () => requestText(path, headers));
}

/** Leaves as rudely as it goes. */
export function reset(sockets: readonly Socket[]): void {
  for (const socket of sockets) socket.resetAndDestroy();
}

/** For the figures that go into docs/security.md. */
export function megabytes(bytes: number): string {
  return `${(bytes / MB).toFixed(1)} MB`;
}
