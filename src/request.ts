/** What a request says about event streams. */
import type { IncomingMessage } from 'node:http';
import Negotiator from 'negotiator';

const EVENT_STREAM = 'text/event-stream';

// Negotiator leaves out what has q = 0, so a refusal is looked for in the header itself.
const REFUSED = /(?:^|,)\s*text\/event-stream\s*(?:;[^,]*)?;\s*q=0(?:\.0{0,3})?\s*(?:[;,]|$)/i;

// Our own ids have nothing of the kind, and each stream that resumes is asked for its id several times.
const BEYOND_ASCII = /[\u0080-\uffff]/;

/**
 * Whether `Accept` names `text/event-stream` with q > 0, in any case, at any place, with any parameters.
 * Ranges (any type, `text/*`) name nothing: a browser's navigation is not a request for a stream.
 */
export function asksForEventStream(req: IncomingMessage): boolean {
  const { accept } = req.headers;
  // Nearly every request of an application ends here.
  if (accept === undefined || !/event-stream/i.test(accept)) return false;
  return new Negotiator(req).mediaTypes().some((type) => type.toLowerCase() === EVENT_STREAM);
}

/** Whether `Accept` names `text/event-stream` with q = 0. */
export function refusesEventStream(req: IncomingMessage): boolean {
  return REFUSED.test(req.headers.accept ?? '') && !asksForEventStream(req);
}

/** The first of these media types that the client would rather have, or the first of all where it takes none. */
export function preferredType(req: IncomingMessage, types: readonly string[]): string {
  return new Negotiator(req).mediaType([...types]) ?? (types[0] as string);
}

/** The `Last-Event-ID` header, else the `lastEventId` query parameter, else `''`. */
export function lastEventIdOf(req: IncomingMessage): string {
  const header = req.headers['last-event-id'];
  // Browsers send the UTF-8 bytes of the id (WHATWG HTML, 9.2.4); Node reads header bytes as latin1.
  if (typeof header === 'string') return BEYOND_ASCII.test(header) ? Buffer.from(header, 'latin1').toString() : header;
  const url = req.url ?? '';
  const query = url.indexOf('?');
  return query === -1 ? '' : (new URLSearchParams(url.slice(query + 1)).get('lastEventId') ?? '');
}
