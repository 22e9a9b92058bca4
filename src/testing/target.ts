/** The target of `readEvents()`: a URL, or an app that is served while it is read. */
import { once } from 'node:events';
import { Server, createServer, type RequestListener } from 'node:http';
import { Server as NetServer, type AddressInfo, type Socket } from 'node:net';
import { SseError, describeValue } from '../common/errors.ts';
import { clearTimer, setTimer } from './real-timers.ts';

/**
 * A URL, an Express or Connect app, another request listener, or a server of `node:http`. A server
 * that is not listening is started on a free port of 127.0.0.1, and stopped when its last reader is
 * closed.
 */
export type ReadTarget = string | URL | Server | RequestListener;

/** A target that can be requested. */
export interface ServedTarget {
  readonly url: URL;
  /** Stops the server, if it was started here and no other reader uses it. */
  release(): Promise<void>;
}

/** A server that was started here, and the number of readers that use the server. */
interface StartedServer {
  readerCount: number;
  readonly listening: Promise<unknown>;
}

// Time in ms that connections have to end by themselves before they are destroyed.
const CLOSE_GRACE_MS = 500;

// The servers that were started here. They do not keep the process alive. A reader does, for one
// timeout after each of its calls.
const startedServers = new WeakMap<Server, StartedServer>();

/**
 * Determines the URL of the target, and starts a server if none is listening.
 * @param target the first argument of `readEvents()`
 * @param path path and query, relative to the target
 * @throws {SseError} `ERR_SSE_OPTION` if the target cannot be read; nothing is started
 */
export async function serve(target: ReadTarget, path: string | undefined): Promise<ServedTarget> {
  if (typeof target === 'string' || target instanceof URL) {
    const base = toHttpUrl(target);
    const url = path === undefined ? base : resolvePath(path, base);
    return { url, release: () => Promise.resolve() };
  }
  const server = toServer(target);
  // The path is checked before the server is started.
  if (path !== undefined) resolvePath(path, new URL('http://localhost'));
  const release = await startServer(server);
  const { address, family, port } = server.address() as AddressInfo;
  const host =
    address === '::' || address === '0.0.0.0'
      ? 'localhost'
      : family === 'IPv6'
        ? `[${address}]`
        : address;
  return { url: new URL(path ?? '/', `http://${host}:${port}`), release };
}

/** @throws {SseError} `ERR_SSE_OPTION` if the target is no URL of `http:` or `https:` */
function toHttpUrl(target: string | URL): URL {
  const text = JSON.stringify(String(target));
  if (String(target).startsWith('/')) {
    throw targetError(`the path ${text}; pass the app, and { path: ${text} }`);
  }
  const url = URL.canParse(String(target)) ? new URL(String(target)) : undefined;
  if (url?.protocol === 'http:' || url?.protocol === 'https:') return url;
  // A host without a protocol. `localhost:4444` is a valid URL with the protocol `localhost:`.
  const suggestion = `http://${String(target)}`;
  const isHost = !String(target).includes('://') && URL.canParse(suggestion);
  throw targetError(isHost ? `${text}; write ${JSON.stringify(suggestion)}` : text);
}

function resolvePath(path: string, base: URL): URL {
  if (URL.canParse(path, base.href)) return new URL(path, base);
  throw new SseError(
    'ERR_SSE_OPTION',
    `expected \`path\` of readEvents() to be a path and query, got ${describeValue(path)}`,
  );
}

/** @throws {SseError} `ERR_SSE_OPTION`, with the fix, if the target is something else */
function toServer(target: Server | RequestListener): Server {
  if (target instanceof Server) return target;
  if (typeof target === 'function') return createServer(target);
  const value: unknown = target;
  if (typeof value !== 'object' || value === null) throw targetError(describeValue(value));
  if (value instanceof NetServer) {
    throw targetError('a server of another kind; call its listen(), and pass its URL');
  }
  const names = Object.keys(value);
  const properties =
    names.length === 0
      ? 'an object without properties'
      : `an object with the properties ${names.slice(0, 5).join(', ')}`;
  const suggestion = suggestProperty(value);
  // Checked after the suggestion, because a Fastify app has a `then()`, too.
  if (suggestion === '' && 'then' in value) throw targetError('a promise; await it');
  throw targetError(properties + suggestion);
}

/** @returns advice to pass a property of the object, or `''` if no property can be read */
function suggestProperty({ app, server, callback }: Partial<Record<string, unknown>>): string {
  if (typeof app === 'function') return '; pass its `app`';
  if (server instanceof Server) return '; pass its `server`';
  return typeof callback === 'function' ? '; pass the return value of its `callback()`' : '';
}

function targetError(got: string): SseError {
  return new SseError(
    'ERR_SSE_OPTION',
    'expected the target of readEvents() to be a URL, an app, a request listener or a server of ' +
      `node:http, got ${got}`,
  );
}

/**
 * Starts the server on a free port of 127.0.0.1, unless it is listening.
 * @returns a function that stops the server if no other reader uses it
 */
async function startServer(server: Server): Promise<() => Promise<void>> {
  if (server.listening && !startedServers.has(server)) return () => Promise.resolve();
  const started = startedServers.get(server) ?? {
    readerCount: 0,
    listening: once(server.listen(0, '127.0.0.1'), 'listening'),
  };
  startedServers.set(server, started);
  if (started.readerCount++ === 0) server.unref().on('connection', unref);
  await started.listening;
  return async () => {
    if (--started.readerCount > 0) return;
    startedServers.delete(server);
    server.ref().off('connection', unref);
    if (server.listening) await closeServer(server);
  };
}

/** Closes the server, and after a grace period the connections that have not ended. */
async function closeServer(server: Server): Promise<void> {
  const closed = once(server, 'close');
  server.close();
  // During the grace period the application can notice that its clients have left.
  const timer = setTimer(() => server.closeAllConnections(), CLOSE_GRACE_MS);
  await closed;
  clearTimer(timer);
}

/** Allows the process to exit while the socket is open. */
export function unref(socket: Socket): void {
  socket.unref();
}
