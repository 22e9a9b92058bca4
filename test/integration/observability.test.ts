import * as diagnosticsChannel from 'node:diagnostics_channel';
import * as otel from '@opentelemetry/api';
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics';
import type { Request } from 'express';
import * as prometheus from 'prom-client';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { diagnostics } from '../../src/common/diagnostics.ts';
import { createChannels, type EventStream, type SseOptions } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { start } from '../support/child.ts';
import { read } from '../support/reader.ts';
import { dial, requestText } from '../support/server.ts';
import { runSnippet, snippetsOf } from '../support/snippets.ts';
import { until, within } from '../support/wait.ts';

const page = await snippetsOf('docs/observability.md');

/** A server on which a bit of everything has happened: two streams are open, one was closed, one refused. */
async function busyServer(options: SseOptions = {}) {
  const channels = createChannels();
  const server = await serveStreams((given) => given.subscribe('news'), {
    channels,
    maxStreams: 3,
    ...options,
  });
  const readers = [await read(server.url), await read(server.url), await read(server.url)];
  using refused = await read(server.url);
  await refused.end();
  await channels.publish('news', 'x');
  await Promise.all(readers.map((reader) => reader.next()));
  (server.streams[0] as EventStream).close();
  await readers[0]?.end();
  await until('it to be gone', () => channels.stats().subscriptions === 2);
  return Object.assign(server, { channels });
}

describe('the recipe for', () => {
  afterEach(() => {
    prometheus.register.clear();
    otel.metrics.disable();
  });

  test('prom-client serves the values of the gauges at each scrape', async () => {
    await using server = await busyServer();
    const { app, events, channels } = server;
    await runSnippet(
      page.get('prometheus'),
      { 'prom-client': prometheus },
      { app, events, channels },
    );
    for (let scrape = 0; scrape < 2; scrape++) {
      const response = await fetch(`${server.url}/metrics`);
      const text = await response.text();
      expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=/);
      const values = Object.fromEntries(
        text
          .split('\n')
          .filter((line) => line !== '' && !line.startsWith('#'))
          .map((line) => line.split(' ')),
      );
      expect(values).toEqual({
        sse_streams_open: '2',
        sse_buffered_bytes: '0',
        sse_streams_behind: '0',
        sse_broker_up: '1',
        sse_streams_opened_total: '3',
        sse_requests_rejected_total: '1',
        'sse_streams_closed_total{reason="server"}': '1',
        sse_events_sent_total: '3',
        sse_events_dropped_total: '0',
        sse_sent_bytes_total: String(events.stats().bytes),
        sse_events_published_total: '1',
        sse_gaps_total: '0',
      });
    }
  });

  test('OpenTelemetry exports the values of the gauges', async () => {
    await using server = await busyServer();
    const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
    const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 600_000 });
    const provider = new MeterProvider({ readers: [reader] });
    otel.metrics.setGlobalMeterProvider(provider);
    const { events, channels } = server;
    await runSnippet(
      page.get('opentelemetry'),
      { '@opentelemetry/api': otel },
      { events, channels },
    );
    await reader.forceFlush();
    const [exported] = exporter.getMetrics();
    const values = (exported?.scopeMetrics ?? []).flatMap(({ metrics }) =>
      metrics.flatMap(({ descriptor, dataPoints }) =>
        dataPoints.map(({ value, attributes }) => [descriptor.name, value, attributes]),
      ),
    );
    expect(values).toEqual([
      ['sse.streams.open', 2, {}],
      ['sse.buffered', 0, {}],
      ['sse.streams.behind', 0, {}],
      ['sse.streams.opened', 3, {}],
      ['sse.requests.rejected', 1, {}],
      ['sse.streams.closed', 1, { reason: 'server' }],
      ['sse.events.sent', 3, {}],
      ['sse.events.published', 1, {}],
      ['sse.gaps', 0, {}],
    ]);
    await provider.shutdown();
  });

  test('the diagnostics channels logs errors, gaps and refusals', async () => {
    const lines: unknown[] = [];
    const logger = {
      error: (details: object, text: string) => void lines.push([text, Object.keys(details)]),
      warn: (details: object, text: string) => void lines.push([text, details]),
    };
    const names: [string, diagnosticsChannel.ChannelListener][] = [];
    const subscribe = (name: string, listener: diagnosticsChannel.ChannelListener): void => {
      names.push([name, listener]);
      diagnosticsChannel.subscribe(name, listener);
    };
    await runSnippet(
      page.get('diagnostics'),
      { 'node:diagnostics_channel': { subscribe } },
      { logger },
    );
    const channels = createChannels();
    await using server = await serveStreams(
      async (given, req: Request) => {
        await given.subscribe('news');
        if (req.query['bad'] !== undefined) throw new Error('for the test');
      },
      { channels, maxStreams: 1 },
    );
    using lost = await read(server.url, { headers: { 'Last-Event-ID': 'other.7' } });
    await lost.next();
    using refused = await read(server.url);
    await refused.end();
    lost.close();
    await until('room', () => server.events.streams.size === 0);
    using failing = await read(`${server.url}/?bad`);
    await failing.end();
    for (const [name, listener] of names) diagnosticsChannel.unsubscribe(name, listener);
    expect(lines).toEqual([
      ['a client has lost events', { url: '/', channels: ['news'] }],
      ['a stream was refused', { ip: '127.0.0.1', reason: 'maxStreams' }],
      ['a stream has failed', ['url', 'error']],
    ]);
    expect(server.errors.splice(0)).toEqual([expect.objectContaining({ message: 'for the test' })]);
  });
});

describe('the diagnostics channels', () => {
  test('that the page lists are exactly those that exist', async () => {
    const text = await import('node:fs/promises').then((fs) =>
      fs.readFile(new URL('../../docs/observability.md', import.meta.url), 'utf8'),
    );
    const named = [...text.matchAll(/^\| `(res-sse:\w+)` \|/gm)].map(([, name]) => name);
    expect(named.toSorted()).toEqual(
      Object.values(diagnostics)
        .map(({ name }) => String(name))
        .toSorted(),
    );
  });

  test('publish the start and end of a stream, a publish, a slow reader and a gap', async () => {
    const told: [string, string[]][] = [];
    const listeners = (['open', 'close', 'publish', 'slow', 'gap'] as const).map((key) => {
      const listener = (message: unknown): void =>
        void told.push([key, Object.keys(message as object)]);
      diagnosticsChannel.subscribe(`res-sse:${key}`, listener);
      return () => diagnosticsChannel.unsubscribe(`res-sse:${key}`, listener);
    });
    const channels = createChannels();
    await using server = await serveStreams((given) => given.subscribe('news'), {
      channels,
      maxBuffered: 100_000,
      stallTimeout: false,
    });
    const socket = await dial(server.port, requestText('/', { 'Last-Event-ID': 'other.7' }));
    socket.pause();
    await until('the stream', () => server.streams.length === 1);
    await channels.publish('news', 'x');
    const [given] = server.streams as [EventStream];
    while (given.readyState === 1) given.send('x'.repeat(100_000));
    for (const unsubscribe of listeners) unsubscribe();
    socket.destroy();
    expect(told).toEqual([
      ['open', ['stream']],
      ['gap', ['stream', 'channels', 'lastEventId', 'cursor']],
      ['publish', ['channel', 'id']],
      ['slow', ['stream', 'bufferedAmount', 'action']],
      ['close', ['stream', 'reason']],
    ]);
  });

  test('without subscribers make no message', async () => {
    const spies = Object.values(diagnostics).map((channel) => vi.spyOn(channel, 'publish'));
    // The test support subscribes to errors, too.
    await using server = await busyServer();
    (server.streams[1] as EventStream).close();
    for (const spy of spies) {
      expect(spy).not.toHaveBeenCalled();
      spy.mockRestore();
    }
  });
});

test("NODE_DEBUG=res-sse prints a stream's life", async () => {
  const program = `
    import { createServer, get } from 'node:http';
    import { createChannels, sse } from './src/index.ts';
    const channels = createChannels();
    const events = sse({ channels, maxStreams: 1 });
    const listen = channels.listen('haiku');
    const server = createServer((req, res) => events(req, res, () => listen(req, res, () => {})));
    server.listen(0, '127.0.0.1', () => {
      const options = { port: server.address().port, path: '/listen', headers: { accept: 'text/event-stream' }, agent: false };
      const req = get(options, (res) => {
        res.once('data', async () => {
          await channels.publish('haiku', 'x');
          get(options, (refused) => refused.resume().on('close', () => req.destroy()));
        });
        res.on('error', () => {});
        res.on('close', () => server.close());
      });
    });`;
  await using child = start(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '--eval', program],
    {
      NODE_DEBUG: 'res-sse',
    },
  );
  await within('the end', child.ended);
  const lines = child.output.split('\n').filter((line) => line.startsWith('RES-SSE'));
  expect(
    lines.map((line) => line.replace(/^RES-SSE \d+: /, '').replace(/id: '[^']+'/, "id: '…'")),
  ).toEqual([
    'open GET /listen',
    "publish { channel: 'haiku', id: '…' }",
    "reject GET /listen { reason: 'maxStreams' }",
    'close GET /listen: client',
  ]);
});
