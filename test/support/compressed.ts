/** A server of compressed streams, and a client that decodes their bodies as they come. */
import { once } from 'node:events';
import { createServer, get, type IncomingMessage, type RequestListener } from 'node:http';
import { createGunzip } from 'node:zlib';
import { onTestFinished } from 'vitest';
import { sse, type EventStream, type SseOptions } from '../../src/index.ts';
import { listening, type TestServer } from './server.ts';

export type Handler = (stream: EventStream, req: IncomingMessage) => unknown;

export interface Body {
  /** The text that was decoded so far. */
  text: string;
  /** Number of bytes that came. */
  bytes: number;
  /** Whether the body has ended as its format requires; an error if it has not. */
  end: true | Error | undefined;
  readonly response: IncomingMessage;
  close(): void;
}

export async function serve(
  handler: Handler,
  options: SseOptions = {},
): Promise<TestServer & { events: ReturnType<typeof sse> }> {
  const events = sse({ compress: true, ...options });
  const listener: RequestListener = (req, res) =>
    events(req, res, () => void handler((res as { sse?: EventStream }).sse as EventStream, req));
  return Object.assign(await listening(createServer(listener)), { events });
}

/** Requests a stream, and decodes its body as it comes. */
export async function open(url: string, encoding: string = 'gzip'): Promise<Body> {
  const request = get(url, {
    agent: false,
    headers: { Accept: 'text/event-stream', 'Accept-Encoding': encoding },
  });
  onTestFinished(() => void request.destroy());
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  const body: Body = {
    text: '',
    bytes: 0,
    end: undefined,
    response,
    close: () => request.destroy(),
  };
  response.on('data', (chunk: Buffer) => (body.bytes += chunk.length));
  const isGzip = response.headers['content-encoding'] === 'gzip';
  const decoded = isGzip ? response.pipe(createGunzip()) : response;
  decoded.on('data', (chunk: Buffer) => (body.text += chunk.toString()));
  decoded.on('end', () => (body.end = true));
  decoded.on('error', (error: Error) => (body.end = error));
  response.on('error', () => {});
  return body;
}

/** @returns the data of the complete events in their order, without those of the library */
export function dataOf({ text }: Body): string[] {
  return text
    .split('\n\n')
    .slice(0, -1)
    .filter((block) => !block.includes('event: sse:'))
    .flatMap((block) => /^data: (.*)$/m.exec(block)?.[1] ?? []);
}

/** The text of an event of about 200 B, like the one before it. */
export function tick(seq: number): string {
  const price = (100 + ((seq * 7_919) % 1_000) / 100).toFixed(2);
  const time = new Date(1_764_000_000_000 + seq * 1_000).toISOString();
  return JSON.stringify({
    symbol: 'ACME',
    price,
    volume: (seq * 104_729) % 10_000,
    time,
    side: 'buy',
    exchange: 'XNAS',
    currency: 'USD',
    note: 'opening auction, all conditions apply',
    seq,
  });
}
