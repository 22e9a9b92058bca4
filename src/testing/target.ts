/** What is read: a URL, or an app that is served for as long as it is read. */
import { once } from 'node:events';
import { Server, createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';

/**
 * A URL; an Express or Connect app or another request listener; or a server of `node:http`, which is started on a free port of
 * 127.0.0.1 if it is not listening, and stopped when its last reader is closed.
 */
export type ReadTarget = string | URL | Server | RequestListener;

/** Where a target is found. */
export interface Served {
  readonly url: URL;
  /** Stops what was started for this reader. */
  release(): Promise<void>;
}

// Servers that were started here: several readers may read the same one.
const started = new WeakMap<Server, { readers: number; readonly listening: Promise<unknown> }>();

/** Finds the target, and starts it if nobody has. */
export async function serve(target: ReadTarget, path: string | undefined): Promise<Served> {
  if (typeof target === 'string' || target instanceof URL) {
    return { url: path === undefined ? new URL(target) : new URL(path, target), release: () => Promise.resolve() };
  }
  const server = target instanceof Server ? target : createServer(target);
  const release = await start(server);
  const { address, family, port } = server.address() as AddressInfo;
  const host = address === '::' || address === '0.0.0.0' ? 'localhost' : family === 'IPv6' ? `[${address}]` : address;
  return { url: new URL(path ?? '/', `http://${host}:${port}`), release };
}

async function start(server: Server): Promise<() => Promise<void>> {
  if (server.listening && !started.has(server)) return () => Promise.resolve();
  const use = started.get(server) ?? { readers: 0, listening: once(server.listen(0, '127.0.0.1'), 'listening') };
  started.set(server, use);
  use.readers++;
  await use.listening;
  return async () => {
    if (--use.readers > 0) return;
    started.delete(server);
    if (!server.listening) return;
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  };
}
