/**
 * A server in a process of its own, for tests with hostile clients. It publishes on command and
 * reports the resources that it holds.
 */
import { createServer, type ServerOptions } from 'node:http';
import type { Socket } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import express from 'express';
import { createChannels, sse, type ChannelsOptions, type SseOptions } from '../../src/index.ts';

/** Options of the server, passed as JSON in its first argument. */
export interface HostileServerOptions {
  sse?: SseOptions;
  channels?: ChannelsOptions;
  http?: ServerOptions;
  maxRequestsPerSocket?: number;
}

/** The resources that the server holds. */
export interface Holdings {
  /** Bytes of live JavaScript memory, including buffers. */
  live: number;
  rss: number;
  sockets: number;
  streams: number;
  subscriptions: number;
  channels: number;
  timers: number;
  /** Bytes that are queued for readers. */
  buffered: number;
  behind: number;
  opened: number;
  rejected: number;
  closed: Partial<Record<string, number>>;
  gaps: number;
  history: { events: number; bytes: number };
  /** The longest time in ms that the event loop was blocked, since the previous report. */
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
  /** Publishes `count` events of `bytes` bytes to each channel, one per turn of the event loop. */
  async publish({ names, count, bytes }: { names: string[]; count: number; bytes: number }) {
    const data = 'x'.repeat(bytes);
    for (let index = 0; index < count; index++) {
      for (const name of names) await channels.publish(name, data);
      await nextTurn();
    }
  },
  cursor: () => channels.cursor(),
  counts: holdings,
  /** The same after garbage collection. Too expensive for polling. */
  async holdings() {
    for (let round = 0; round < 3; round++) {
      await nextTurn();
      globalThis.gc?.();
    }
    return holdings();
  },
};

process.on('message', ({ id, command, args }: { id: number; command: string; args: never }) => {
  void Promise.resolve(commands[command]?.(args)).then((result) => process.send?.({ id, result }));
});

// The channel of the witness.
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
