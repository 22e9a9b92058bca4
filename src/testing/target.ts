/** What is read: a URL, or an app that is served for as long as it is read. */
import { once } from 'node:events';
import { Server, createServer, type RequestListener } from 'node:http';
import { Server as NetServer, type AddressInfo, type Socket } from 'node:net';
import { clearTimeout as stopTimer, setTimeout as startTimer } from 'node:timers';
import { SseError, describeValue } from '../common/errors.ts';

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

// Taken at once: a test may put false timers in their place.
const [setTimer, clearTimer] = [startTimer, stopTimer];

// Time in ms that connections have to end by themselves.
const CUT_OFF_AFTER = 500;

// Servers that were started here: several readers may read the same one. They do not keep the process alive; the reader does, for
// as long as it is in use.
const started = new WeakMap<Server, { readers: number; readonly listening: Promise<unknown> }>();

/**
 * Finds the target, and starts it if nobody has.
 * @throws {SseError} `ERR_SSE_OPTION` for what is neither a URL nor an app
 */
export async function serve(target: ReadTarget, path: string | undefined): Promise<Served> {
  if (typeof target === 'string' || target instanceof URL) {
    const url = urlOf(target);
    return { url: path === undefined ? url : resolve(path, url), release: () => Promise.resolve() };
  }
  const server = serverOf(target);
  // Before anything is started.
  if (path !== undefined) resolve(path, new URL('http://localhost'));
  const release = await start(server);
  const { address, family, port } = server.address() as AddressInfo;
  const host =
    address === '::' || address === '0.0.0.0'
      ? 'localhost'
      : family === 'IPv6'
        ? `[${address}]`
        : address;
  return { url: new URL(path ?? '/', `http://${host}:${port}`), release };
}

function urlOf(target: string | URL): URL {
  const text = JSON.stringify(String(target));
  if (String(target).startsWith('/')) {
    throw wrongTarget(`the path ${text}; pass the app, and { path: ${text} }`);
  }
  const url = URL.canParse(String(target)) ? new URL(String(target)) : undefined;
  if (url?.protocol === 'http:' || url?.protocol === 'https:') return url;
  // `localhost:4444` parses as a URL of the protocol `localhost:`.
  const guess = `http://${String(target)}`;
  const isHost = !String(target).includes('://') && URL.canParse(guess);
  throw wrongTarget(isHost ? `${text}; write ${JSON.stringify(guess)}` : text);
}

function resolve(path: string, base: URL): URL {
  if (URL.canParse(path, base.href)) return new URL(path, base);
  throw new SseError(
    'ERR_SSE_OPTION',
    `expected \`path\` of readEvents() to be a path and query, got ${describeValue(path)}`,
  );
}

function serverOf(target: Server | RequestListener): Server {
  if (target instanceof Server) return target;
  if (typeof target === 'function') return createServer(target);
  const given: unknown = target;
  if (typeof given !== 'object' || given === null) throw wrongTarget(describeValue(given));
  if (given instanceof NetServer) {
    throw wrongTarget('a server of another kind; let it listen, and pass its URL');
  }
  const names = Object.keys(given);
  const properties =
    names.length === 0
      ? 'an object without properties'
      : `an object with the properties ${names.slice(0, 5).join(', ')}`;
  const advice = adviceFor(given);
  // After the advice: a Fastify app is a thenable, too.
  if (advice === '' && 'then' in given) throw wrongTarget('a promise; await it');
  throw wrongTarget(properties + advice);
}

/** The part of an object that can be read, if there is one. */
function adviceFor({ app, server, callback }: Partial<Record<string, unknown>>): string {
  if (typeof app === 'function') return '; pass its `app`';
  if (server instanceof Server) return '; pass its `server`';
  return typeof callback === 'function' ? '; pass what its `callback()` returns' : '';
}

function wrongTarget(got: string): SseError {
  return new SseError(
    'ERR_SSE_OPTION',
    `expected the target of readEvents() to be a URL, an app, a request listener or a server of node:http, got ${got}`,
  );
}

async function start(server: Server): Promise<() => Promise<void>> {
  if (server.listening && !started.has(server)) return () => Promise.resolve();
  const use = started.get(server) ?? {
    readers: 0,
    listening: once(server.listen(0, '127.0.0.1'), 'listening'),
  };
  started.set(server, use);
  if (use.readers++ === 0) server.unref().on('connection', unref);
  await use.listening;
  return async () => {
    if (--use.readers > 0) return;
    started.delete(server);
    server.ref().off('connection', unref);
    if (!server.listening) return;
    const closed = once(server, 'close');
    server.close();
    // The application is to see that its readers have left. Connections that do not end by themselves are cut off.
    const timer = setTimer(() => server.closeAllConnections(), CUT_OFF_AFTER);
    await closed;
    clearTimer(timer);
  };
}

/** Lets the process end although the socket is open. */
export function unref(socket: Socket): void {
  socket.unref();
}
