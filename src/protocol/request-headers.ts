/** What a request says about event streams. */
import type { IncomingMessage } from 'node:http';
import Negotiator from 'negotiator';

const EVENT_STREAM = 'text/event-stream';

// Negotiator leaves out what has q = 0, so a refusal is looked for in the header itself.
const REFUSED = /(?:^|,)\s*text\/event-stream\s*(?:;[^,]*)?;\s*q=0(?:\.0{0,3})?\s*(?:[;,]|$)/i;

// Characters of `Accept` that are looked at. A header can have 16 KB, and parsing that takes several ms; no client needs as much.
const MAX_ACCEPT = 1_024;

// Our own ids have nothing of the kind, and each stream that resumes is asked for its id several times.
const BEYOND_ASCII = /[\u0080-\uffff]/;

/**
 * Whether `Accept` names `text/event-stream` with q > 0, in any case, at any place, with any parameters.
 * Ranges (any type, `text/*`) name nothing: a browser's navigation is not a request for a stream.
 */
export function asksForEventStream(req: IncomingMessage): boolean {
  const accept = readAccept(req);
  // Nearly every request of an application ends here.
  if (accept === undefined || !/event-stream/i.test(accept)) return false;
  return new Negotiator({ headers: { accept } })
    .mediaTypes()
    .some((type) => type.toLowerCase() === EVENT_STREAM);
}

/** Whether `Accept` names `text/event-stream` with q = 0. */
export function refusesEventStream(req: IncomingMessage): boolean {
  return REFUSED.test(readAccept(req) ?? '') && !asksForEventStream(req);
}

/** The first of these media types that the client would rather have, or the first of all where it takes none. */
export function preferredType(req: IncomingMessage, types: readonly string[]): string {
  const accept = readAccept(req);
  return (
    new Negotiator({ headers: accept === undefined ? {} : { accept } }).mediaType([...types]) ??
    (types[0] as string)
  );
}

/** `Accept`, without the media types that do not end within the bound. */
function readAccept({ headers: { accept } }: IncomingMessage): string | undefined {
  if (accept === undefined || accept.length <= MAX_ACCEPT) return accept;
  return accept.slice(0, Math.max(0, accept.lastIndexOf(',', MAX_ACCEPT)));
}

/** The `Last-Event-ID` header, else the `lastEventId` query parameter, else `''`. */
export function readLastEventId(req: IncomingMessage): string {
  const header = req.headers['last-event-id'];
  // Browsers send the UTF-8 bytes of the id (WHATWG HTML, 9.2.4); Node reads header bytes as latin1.
  if (typeof header === 'string') {
    return BEYOND_ASCII.test(header) ? Buffer.from(header, 'latin1').toString() : header;
  }
  // Middleware may have rewritten `url`; Express and Connect keep the original beside it.
  const { url, originalUrl } = req as IncomingMessage & { readonly originalUrl?: unknown };
  return readQueryId(url) ?? readQueryId(originalUrl) ?? '';
}

function readQueryId(url: unknown): string | undefined {
  const query = typeof url === 'string' ? url.indexOf('?') : -1;
  return query === -1
    ? undefined
    : (new URLSearchParams((url as string).slice(query + 1)).get('lastEventId') ?? undefined);
}
