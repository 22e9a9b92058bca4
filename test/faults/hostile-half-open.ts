/**
 * Two readers that lose their network: no FIN, no RST, no ACK. The program runs in a network
 * namespace of its own, where the loopback interface can be disabled, and reports how each stream
 * ends.
 */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { createChannels, sse, type CloseReason, type EventStream } from '../../src/index.ts';

execFileSync('ip', ['link', 'set', 'lo', 'up']);
// The kernel gives up after some seconds instead of 15 minutes.
writeFileSync('/proc/sys/net/ipv4/tcp_retries2', '2');

const channels = createChannels();
const events = sse({ channels, heartbeat: 200, stallTimeout: 1_000 });
const listen = channels.listen((req) => req.url.slice(1));
const ends: Record<string, { reason: CloseReason; ms: number }> = {};
let disconnectedAt = 0;

async function recordEnd(url: string, closed: Promise<CloseReason> | undefined): Promise<void> {
  ends[url] = {
    reason: (await closed) as CloseReason,
    ms: Math.round(performance.now() - disconnectedAt),
  };
  if (Object.keys(ends).length === 2) {
    process.send?.({ ends, stats: events.stats() }, () => process.exit());
  }
}

const server = createServer((req, res: Parameters<typeof listen>[1] & { sse?: EventStream }) => {
  events(req, res, () => {
    void recordEnd(req.url as string, res.sse?.closed);
    listen(req, res, () => res.end());
  });
});
server.listen(0, '127.0.0.1');
await once(server, 'listening');
for (const path of ['/busy', '/quiet']) {
  const reader = connect((server.address() as AddressInfo).port, '127.0.0.1');
  reader.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n`);
  reader.on('error', () => {});
  await once(reader, 'data');
  reader.resume();
}
execFileSync('ip', ['link', 'set', 'lo', 'down']);
disconnectedAt = performance.now();
// More bytes than the kernel buffers.
for (let count = 0; count < 100; count++) await channels.publish('busy', 'x'.repeat(100_000));
