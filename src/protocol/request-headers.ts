/** The parts of a request that concern event streams: `Accept`, `Last-Event-ID` and the query. */
import type { IncomingMessage } from 'node:http';
import Negotiator from 'negotiator';

const EVENT_STREAM = 'text/event-stream';

// Negotiator omits media types with q = 0, so this expression finds a refusal in the header itself.
const REFUSED = /(?:^|,)\s*text\/event-stream\s*(?:;[^,]*)?;\s*q=0(?:\.0{0,3})?\s*(?:[;,]|$)/i;

// Number of characters of `Accept` and `Accept-Encoding` that are parsed. Parsing a header of the
// maximum size, 16 KB, would take several ms. No client needs such a long header.
const MAX_ACCEPT_LENGTH = 1_024;

// The ids of this library are ASCII. The test is cheaper than decoding, and each stream that
// resumes reads its id several times.
const NON_ASCII = /[\u0080-\uffff]/;

/**
 * Whether `Accept` contains `text/event-stream` with q > 0: in any case, at any position, with any
 * parameters. Wildcards (`text/*`, for example) do not count: a browser that loads a page sends
 * them, too, and does not expect a stream.
 */
export function asksForEventStream(req: IncomingMessage): boolean {
  const accept = readAccept(req);
  // Most requests of an application end here.
  if (accept === undefined || !/event-stream/i.test(accept)) return false;
  return new Negotiator({ headers: { accept } })
    .mediaTypes()
    .some((type) => type.toLowerCase() === EVENT_STREAM);
}

/** Whether the client accepts a body in gzip, and does not prefer a plain one. */
export function acceptsGzip({ headers }: IncomingMessage): boolean {
  const encoding = headers['accept-encoding'];
  if (encoding === undefined || encoding.length > MAX_ACCEPT_LENGTH) return false;
  return new Negotiator({ headers }).encoding(['gzip', 'identity']) === 'gzip';
}

/** Whether `Accept` contains `text/event-stream` with q = 0. */
export function refusesEventStream(req: IncomingMessage): boolean {
  return REFUSED.test(readAccept(req) ?? '') && !asksForEventStream(req);
}

/**
 * Chooses the media type of an answer.
 * @param types the media types that the server can send; not empty
 * @returns the type that the client prefers; the first type if the client accepts none of them
 */
export function preferredType(req: IncomingMessage, types: readonly string[]): string {
  const accept = readAccept(req);
  return (
    new Negotiator({ headers: accept === undefined ? {} : { accept } }).mediaType([...types]) ??
    (types[0] as string)
  );
}

/** @returns `Accept`, cut after the last media type that ends within {@link MAX_ACCEPT_LENGTH} */
function readAccept({ headers: { accept } }: IncomingMessage): string | undefined {
  if (accept === undefined || accept.length <= MAX_ACCEPT_LENGTH) return accept;
  return accept.slice(0, Math.max(0, accept.lastIndexOf(',', MAX_ACCEPT_LENGTH)));
}

/** @returns the `Last-Event-ID` header, else the `lastEventId` query parameter, else `''` */
export function readLastEventId(req: IncomingMessage): string {
  const header = req.headers['last-event-id'];
  // Browsers send the id as UTF-8 (WHATWG HTML, 9.2.4); Node decodes header bytes as latin1.
  if (typeof header === 'string') {
    return NON_ASCII.test(header) ? Buffer.from(header, 'latin1').toString() : header;
  }
  return readQuery(req, 'lastEventId') ?? '';
}

/** Whether the request asks for a response that ends after the next delivery: `ssePoll=1`. */
export function isPoll(req: IncomingMessage): boolean {
  return readQuery(req, 'ssePoll') === '1';
}

/** @returns a query parameter; `undefined` if the query does not have it */
function readQuery(req: IncomingMessage, name: string): string | undefined {
  // Middleware may have rewritten `url`. Express and Connect keep the original URL beside it.
  const { url, originalUrl } = req as IncomingMessage & { readonly originalUrl?: unknown };
  return readQueryOf(url, name) ?? readQueryOf(originalUrl, name);
}

function readQueryOf(url: unknown, name: string): string | undefined {
  const query = typeof url === 'string' ? url.indexOf('?') : -1;
  return query === -1
    ? undefined
    : (new URLSearchParams((url as string).slice(query + 1)).get(name) ?? undefined);
}
