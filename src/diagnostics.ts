import { channel, type Channel } from 'node:diagnostics_channel';
import { debuglog } from 'node:util';

/**
 * The library's `node:diagnostics_channel` channels. Their names, `res-sse:` and the key, are public API;
 * a message is made only while somebody subscribes.
 */
export const diagnostics: Readonly<Record<'open' | 'close' | 'publish' | 'slow' | 'gap' | 'error', Channel>> = {
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
  /** `{ stream, error }`: an error that must not reach anybody else, in a handler, a filter or a wrapped `res.write` */
  error: channel('res-sse:error'),
};

/** Prints a line when `NODE_DEBUG` names `res-sse`, a connection's life without any code; costs one check otherwise. */
export const debug: ReturnType<typeof debuglog> = debuglog('res-sse');
