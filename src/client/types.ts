/** The types of `res-sse/client`. */
import type { Jsonified } from '../channels/typed-event-source.ts';
import type { ReceivedEvent } from './parser.ts';

/**
 * The state of a connection:
 *
 * ```text
 *   connecting ──▶ open ◀──▶ reconnecting       after an end, a broken or a silent connection
 *        └───────▶ polling ◀──▶ reconnecting    through a proxy that holds the stream back
 *   any of them ──▶ ended | failed              no further request
 * ```
 */
export type ConnectionState =
  | 'connecting'
  | 'open'
  | 'reconnecting'
  | 'polling'
  | 'ended'
  | 'failed';

/** The reason of `'reconnecting'` and `'failed'`. */
export interface ConnectionError extends Error {
  /** The status of the response. Missing if there was none. */
  status?: number;
}

/** Events that were lost. */
export interface Gap {
  /** The channels that lost events. Empty if the server did not say. */
  readonly channels: readonly string[];
  /** The id after which events were lost; `''` if it is not known. */
  readonly after: string;
  /** The id of the newest event when the gap was found; `''` if it is not known. */
  readonly cursor: string;
}

/** The headers of a request. */
export type RequestHeaders = Readonly<Record<string, string>>;

/**
 * The listeners, by event name. An event without a name is `message`. Strings are parsed as JSON,
 * too, if they are JSON.
 * @typeParam Events the events of a channel and their data, as in the schema of the registry
 */
export type Listeners<Events> = {
  readonly [E in keyof Events]?:
    | ((data: Jsonified<Events[E]>, event: ReceivedEvent) => void)
    | undefined;
};

/** The options of `connect()`. */
export interface ConnectOptions<Events = Record<string, unknown>> {
  /** The listeners, by event name. Errors of a listener are reported as uncaught errors. */
  readonly on?: Listeners<Events> | undefined;
  /**
   * Returns additional headers. Called before every request; after a 401 or 403 one request is made
   * again with new headers. A function that throws or rejects is called again later.
   */
  readonly headers?: (() => RequestHeaders | Promise<RequestHeaders>) | undefined;
  /** Whether cookies are sent. @defaultValue `'same-origin'` */
  readonly credentials?: 'same-origin' | 'include' | 'omit' | undefined;
  /** The id after which events are received: `channels.cursor()`, read before the page's data. */
  readonly lastEventId?: string | undefined;
  /**
   * Uses one connection for all tabs and workers of this origin with the same URL and the same
   * name. Tabs of different users need different names. @defaultValue `false`
   */
  readonly share?: boolean | string | undefined;
  /**
   * Stores the last id in `sessionStorage`, and continues there after the page was reloaded. The
   * stored id then replaces `lastEventId`. @defaultValue `false`
   */
  readonly persist?: boolean | undefined;
  /** Parses the data. @defaultValue `JSON.parse`, and the text itself if it is not JSON */
  readonly parse?: ((text: string, event: ReceivedEvent) => unknown) | undefined;
  /** Events were lost, so the page has to load its state anew. */
  readonly onGap?: ((gap: Gap) => void) | undefined;
  /** Everything has been received, and no request follows. */
  readonly onEnd?: (() => void) | undefined;
  /**
   * The state has changed. `error` is given with `'reconnecting'`, if there was one, and
   * `'failed'`.
   */
  readonly onState?: ((state: ConnectionState, error?: ConnectionError) => void) | undefined;
}

/** A connection to an event stream. */
export interface Connection {
  /** Closes the connection. No function of the options is called any more. */
  close(): void;
}
