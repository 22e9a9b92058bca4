/** The diagnostics channels of the library, and its output for `NODE_DEBUG`. */
import { channel, subscribe, type Channel } from 'node:diagnostics_channel';
import { debuglog } from 'node:util';

/**
 * The `node:diagnostics_channel` channels of the library. Their names (`res-sse:` and the key) are
 * public API. A message is made only while the channel has subscribers.
 */
export const diagnostics: Readonly<
  Record<
    'open' | 'close' | 'publish' | 'end' | 'slow' | 'gap' | 'reject' | 'heal' | 'error',
    Channel
  >
> = {
  /** `{ stream }` */
  open: channel('res-sse:open'),
  /** `{ stream, reason }` */
  close: channel('res-sse:close'),
  /** `{ channel, id }` */
  publish: channel('res-sse:publish'),
  /**
   * `{ channel, id, reason }`: a channel has ended; the reason is `'ended'`, or `'abandoned'` if
   * the process that published to it by `pipe()` has died
   */
  end: channel('res-sse:end'),
  /**
   * `{ stream, bufferedAmount, action }`: more than `maxBuffered` bytes are queued for a client;
   * the action is `'close'` or `'drop'`
   */
  slow: channel('res-sse:slow'),
  /**
   * `{ stream, channels, lastEventId, cursor }`: events of these channels were lost for a stream
   */
  gap: channel('res-sse:gap'),
  /**
   * `{ req, reason }`: a request gets no stream; the reason is `'maxStreams'`, `'maxStreamsPer'` or
   * `'shutdown'`
   */
  reject: channel('res-sse:reject'),
  /**
   * `{ epoch, channels, entries, ms }`: after an interruption, a node has read the events that it
   * had missed, or knows that they are lost
   */
  heal: channel('res-sse:heal'),
  /**
   * `{ stream, error }`: an error of a handler, a filter or a wrapped `res.write()`, which affects
   * this stream only; `{ broker, error }`: an error of a broker in another process
   */
  error: channel('res-sse:error'),
};

/**
 * Prints a line if `NODE_DEBUG` contains `res-sse`, so that the life of each stream can be followed
 * without any code. Costs one check otherwise.
 */
export const debug: ReturnType<typeof debuglog> = debuglog('res-sse');

/** A message: `stream` and `req` are printed as method and URL, other properties unchanged. */
interface PrintedMessage {
  stream?: { req: { method: string; url: string } };
  req?: { method: string; url: string };
  [detail: string]: unknown;
}

// 'open', 'close', 'heal' and errors of streams are printed where they occur, all other messages
// here.
if (debug.enabled) {
  for (const name of ['publish', 'end', 'slow', 'gap', 'reject'] as const) {
    subscribe(`res-sse:${name}`, (message) => {
      const { stream, req = stream?.req, ...details } = message as PrintedMessage;
      debug('%s%s %o', name, req === undefined ? '' : ` ${req.method} ${req.url}`, details);
    });
  }
  subscribe('res-sse:error', (message) => {
    const { stream, error } = message as PrintedMessage;
    if (stream === undefined) debug('error of the broker: %o', error);
  });
}
