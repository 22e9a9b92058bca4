import { channel, subscribe, type Channel } from 'node:diagnostics_channel';
import { debuglog } from 'node:util';

/**
 * The library's `node:diagnostics_channel` channels. Their names, `res-sse:` and the key, are public API;
 * a message is made only while somebody subscribes.
 */
export const diagnostics: Readonly<
  Record<'open' | 'close' | 'publish' | 'slow' | 'gap' | 'reject' | 'heal' | 'error', Channel>
> = {
  /** `{ stream }` */
  open: channel('res-sse:open'),
  /** `{ stream, reason }` */
  close: channel('res-sse:close'),
  /** `{ channel, id }` */
  publish: channel('res-sse:publish'),
  /** `{ stream, bufferedAmount, action }`: a reader at `maxBuffered`, and what was done, `'close'` or `'drop'` */
  slow: channel('res-sse:slow'),
  /** `{ stream, channels, lastEventId, cursor }`: what a stream has lost */
  gap: channel('res-sse:gap'),
  /** `{ req, reason }`: a request that gets no stream, and why, `'maxStreams'`, `'maxStreamsPer'` or `'shutdown'` */
  reject: channel('res-sse:reject'),
  /** `{ epoch, channels, entries, ms }`: a node has what it had missed of a broker elsewhere, or knows that it is lost */
  heal: channel('res-sse:heal'),
  /** `{ stream, error }`: an error that must not reach anybody else, in a handler, a filter or a wrapped `res.write`; `{ broker, error }` of a broker elsewhere */
  error: channel('res-sse:error'),
};

/** Prints a line when `NODE_DEBUG` names `res-sse`, a connection's life without any code; costs one check otherwise. */
export const debug: ReturnType<typeof debuglog> = debuglog('res-sse');

interface Printed {
  stream?: { req: { method: string; url: string } };
  req?: { method: string; url: string };
  [detail: string]: unknown;
}

// What has no line of its own where it happens is printed from its message.
if (debug.enabled) {
  for (const name of ['publish', 'slow', 'gap', 'reject'] as const) {
    subscribe(`res-sse:${name}`, (message) => {
      const { stream, req = stream?.req, ...details } = message as Printed;
      debug('%s%s %o', name, req === undefined ? '' : ` ${req.method} ${req.url}`, details);
    });
  }
  subscribe('res-sse:error', (message) => {
    const { stream, error } = message as Printed;
    if (stream === undefined) debug('error of the broker: %o', error);
  });
}
