/** `res-sse/client`: the client of an event stream, for pages, workers and Node. */
import { LiveConnection } from './connection.ts';
import type { ConnectOptions, Connection } from './types.ts';

export type { ReceivedEvent } from './parser.ts';
export type {
  ConnectOptions,
  Connection,
  ConnectionError,
  ConnectionState,
  Gap,
  Listeners,
  RequestHeaders,
} from './types.ts';

/**
 * Receives the events of a stream. Reconnects and resumes by itself, and notices dead connections.
 * The functions of the options are called after `connect()` has returned.
 * @typeParam Events the events and their data: one channel of the schema of the registry
 * @param url the URL of the stream; in Node with protocol and host
 * @param options all optional; see {@link ConnectOptions}
 * @throws {TypeError} if the URL is not one
 * @example
 * import { connect } from 'res-sse/client';
 *
 * const live = connect<Schema['haiku']>('/listen', {
 *   on: { text: (haiku, { id }) => show(haiku) },
 *   share: true,
 *   onGap: () => location.reload(),
 *   onState: (state) => showState(state),
 * });
 */
export function connect<Events = Record<string, unknown>>(
  url: string | URL,
  options: ConnectOptions<Events> = {},
): Connection {
  const connection = new LiveConnection(url, options as ConnectOptions);
  // `Connection` promises only `close()`.
  return { close: () => connection.close() };
}
