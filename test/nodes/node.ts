/** The program of a node: an Express app in a process of its own, with a registry in Redis. */
import { subscribe } from 'node:diagnostics_channel';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import express from 'express';
import { createCluster, createSentinel } from 'redis';
import { redisBroker } from '../../src/brokers/redis.ts';
import { ownConnection } from '../../src/brokers/redis/redis-connection.ts';
import { RedisBroker } from '../../src/brokers/redis/redis-broker.ts';
import { createChannels, sse, SseError, type Broker } from '../../src/index.ts';
import type { NodeConfig, NodeStats, PublishResult, PublishRequest } from './nodes.ts';

const config: NodeConfig = JSON.parse(process.env['RES_SSE_NODE'] as string);
const {
  redis,
  prefix = 'res-sse',
  timeout = 5_000,
  heartbeat,
  probe: patience,
  history,
  maxHistory,
  maxChannels,
} = config;
const channels = createChannels({ broker: await brokerOf(), history, maxHistory, maxChannels });
const events = sse({ channels, heartbeat });
const errors: string[] = [];
const heals: unknown[] = [];
subscribe(
  'res-sse:error',
  (message) => void errors.push(String((message as { error: unknown }).error)),
);
subscribe('res-sse:heal', (message) => void heals.push(message));

const app = express();
app.use(events);
app.get(
  '/listen/:channels',
  channels.listen((req: express.Request) => namesOf(req)),
);
app.get(
  '/history/:channels',
  channels.listen((req: express.Request) => namesOf(req), { since: 'start' }),
);
app.get(
  '/last/:channels',
  channels.listen((req: express.Request) => namesOf(req), { since: { last: 5 } }),
);
app.get(
  '/snapshot/:channels',
  channels.listen((req: express.Request) => namesOf(req), {
    async snapshot(stream, request) {
      // Events are published meanwhile.
      await delay(20);
      stream.send(request, 'snapshot');
    },
  }),
);
app.get('/follow/:channels', follow);
app.post('/publish/:channel', express.json({ limit: '10mb' }), async (req, res) => {
  const items = req.body as PublishRequest[];
  // Publish all events in one turn. Their order is the order of the calls.
  const accepted = items.map(({ data, key }) =>
    channels.publish(req.params.channel, data, { key }),
  );
  res.json((await Promise.allSettled(accepted)).map(toPublishResult));
});
app.post('/clear/:channel', async (req, res) => {
  await channels.clear(req.params.channel);
  res.end();
});
app.get('/cursor', async (_req, res) => {
  res.json(await channels.cursor());
});
app.get('/stats', (_req, res) => {
  const stats: NodeStats = {
    channels: channels.stats(),
    streams: events.streams.size,
    errors,
    heals,
  };
  res.json(stats);
});

const server = app.listen(0, '127.0.0.1', () => {
  process.send?.({ port: (server.address() as AddressInfo).port });
});

process.once('SIGTERM', () => void shutDown());

async function shutDown(): Promise<void> {
  await events.close({ within: 200 });
  await channels.close();
  server.close();
  server.closeIdleConnections();
  process.disconnect();
}

/**
 * Creates the broker as an application does: from a URL, or from a client for a Cluster or for
 * Sentinel.
 */
async function brokerOf(): Promise<Broker> {
  if ('url' in redis && patience !== undefined) return brokerWithProbe(redis.url, patience);
  if ('url' in redis) return redisBroker({ url: redis.url, prefix, timeout });
  const client =
    'urls' in redis
      ? createCluster({
          rootNodes: redis.urls.map((url) => ({ url })),
          defaults: redis.user ?? {},
        })
      : createSentinel({ name: redis.name, sentinelRootNodes: redis.rootNodes });
  client.on('error', () => {});
  await client.connect();
  return redisBroker({ client, prefix, timeout });
}

/** Creates a broker with a shorter probe interval. */
function brokerWithProbe(url: string, probe: number): Broker {
  const connection = ownConnection(url, probe, () => {});
  return new RedisBroker(connection, prefix, {
    timeout,
    probe,
    linger: probe,
    wait: { min: 50, max: 1_000 },
  });
}

/** Writes the events of a consumer in the format of an event stream. */
async function follow(req: express.Request, res: express.Response): Promise<void> {
  const gone = new AbortController();
  res.on('close', () => gone.abort());
  const write = (event: string, data: unknown, id: string): void => {
    const name = event === 'message' ? '' : `event: ${event}\n`;
    res.write(`${name}data: ${JSON.stringify(data)}\n${id === '' ? '' : `id: ${id}\n`}\n`);
  };
  const lastId = req.get('Last-Event-ID');
  const since = lastId ?? (await channels.cursor());
  const consumer = channels.follow(namesOf(req), {
    since,
    signal: gone.signal,
    onGap: ({ lastEventId, ...gap }) => write('sse:gap', { ...gap, after: lastEventId }, ''),
  });
  res.writeHead(200, { 'Content-Type': 'text/event-stream' });
  if (lastId === undefined) write('sse:checkpoint', {}, since);
  for await (const event of consumer) write(event.event, event.json(), event.id);
}

function namesOf(req: express.Request): string[] {
  return (req.params['channels'] as string).split(',');
}

function toPublishResult(result: PromiseSettledResult<{ id: string }>): PublishResult {
  if (result.status === 'fulfilled') return result.value;
  const { reason } = result as { reason: unknown };
  if (!(reason instanceof SseError)) {
    return { code: 'no SseError', delivery: undefined, message: String(reason) };
  }
  const { code, message } = reason;
  // `ERR_SSE_CLOSED` is thrown before any effect.
  const delivery = code === 'ERR_SSE_CLOSED' ? 'none' : reason.delivery;
  return { code, delivery, message };
}
