/** A server in a process of its own, for clients that mean harm: it publishes when told, and tells what it holds. */
import { createServer, type ServerOptions } from 'node:http';
import type { Socket } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import express from 'express';
import { createChannels, sse, type ChannelsOptions, type SseOptions } from '../../src/index.ts';

export interface HostileServerOptions {
  sse?: SseOptions;
  channels?: ChannelsOptions;
  http?: ServerOptions;
  maxRequestsPerSocket?: number;
}

/** What the server holds. */
export interface Holdings {
  /** Bytes of live memory of JavaScript, buffers included. */
  live: number;
  rss: number;
  sockets: number;
  streams: number;
  subscriptions: number;
  channels: number;
  timers: number;
  /** Bytes queued for readers. */
  buffered: number;
  behind: number;
  opened: number;
  rejected: number;
  closed: Partial<Record<string, number>>;
  gaps: number;
  history: { events: number; bytes: number };
  /** The longest time in ms for which nothing else got its turn, since it was last asked. */
  blocked: number;
}

const options = JSON.parse(process.argv[2] ?? '{}') as HostileServerOptions;
const channels = createChannels(options.channels);
const events = sse({ channels, ...options.sse });
const sockets = new Set<Socket>();
const delay = monitorEventLoopDelay({ resolution: 5 });

const app = express();
app.use(events);
app.get(
  '/rooms/:room',
  channels.listen((req) => req.params['room'] as string),
);
app.get(
  '/rooms',
  channels.listen((req) => (req.query['names'] as string).split(',')),
);
app.get(
  '/history/:room',
  channels.listen((req) => req.params['room'] as string, { since: 'start' }),
);
app.use(
  (_error: unknown, _req: express.Request, res: express.Response, _next: express.NextFunction) =>
    void res.status(400).end(),
);

const server = createServer(options.http ?? {}, app);
server.maxRequestsPerSocket = options.maxRequestsPerSocket ?? 0;
server.on('connection', (socket) => {
  sockets.add(socket);
  socket.on('close', () => sockets.delete(socket));
});

const commands: Record<string, (options: never) => unknown> = {
  /** So many events of so many bytes to each of the channels, and time for others between them. */
  async publish({ names, count, bytes }: { names: string[]; count: number; bytes: number }) {
    const data = 'x'.repeat(bytes);
    for (let index = 0; index < count; index++) {
      for (const name of names) await channels.publish(name, data);
      await nextTurn();
    }
  },
  cursor: () => channels.cursor(),
  counts: holdings,
  /** The same, when everything that can go has gone; too costly to be asked again and again. */
  async holdings() {
    for (let round = 0; round < 3; round++) {
      await nextTurn();
      globalThis.gc?.();
    }
    return holdings();
  },
};

process.on('message', ({ id, command, given }: { id: number; command: string; given: never }) => {
  void Promise.resolve(commands[command]?.(given)).then((result) => process.send?.({ id, result }));
});

// What an ordinary reader follows all the while.
let tick = 0;
setInterval(() => void channels.publish('witness', { tick: tick++, at: Date.now() }), 20).unref();
delay.enable();
server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 }, () =>
  process.send?.({ listening: server.address() }),
);

function holdings(): Holdings {
  const { heapUsed, external, rss } = process.memoryUsage();
  const { open, buffered, opened, rejected, closed } = events.stats();
  const { subscriptions, behind, gaps, history } = channels.stats();
  const blocked = Math.round(delay.max / 1e6);
  delay.reset();
  return {
    live: heapUsed + external,
    rss,
    sockets: sockets.size,
    streams: open,
    subscriptions,
    channels: channels.names().length,
    timers: process
      .getActiveResourcesInfo()
      .filter((kind) => kind === 'Timeout' || kind === 'Immediate').length,
    buffered,
    behind,
    opened,
    rejected,
    closed,
    gaps,
    history,
    blocked,
  };
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
