/** What a page knows of its events, by the schema of the channels that it follows. Types only. */
import type { ChannelName, EventData, EventName, SchemaOf } from '../common/schema.ts';

declare const json: unique symbol;

/**
 * A string that is JSON of a `T`. It is a string like any other; only its type remembers what
 * `JSON.parse` makes of it.
 */
export type JsonText<T> = string & { readonly [json]?: T };

/**
 * What comes out of `JSON.parse` where `T` went into `JSON.stringify`: a `Date` has become a
 * string, functions are gone.
 */
export type Jsonified<T> = T extends { toJSON(): infer J }
  ? Jsonified<J>
  : T extends readonly unknown[]
    ? { [K in keyof T]: Jsonified<T[K]> }
    : T extends object
      ? { [K in keyof T as T[K] extends (...args: never) => unknown ? never : K]: Jsonified<T[K]> }
      : T;

/** What is in `event.data`: a string as it was sent, anything else as JSON. */
export type EventText<T> = T extends string ? T : JsonText<Jsonified<T>>;

/** The `MessageEvent` of one event type. */
export interface TypedMessageEvent<E extends string, T> {
  readonly type: E;
  readonly data: EventText<T>;
  readonly lastEventId: string;
  readonly origin: string;
}

/** The library's own events. */
export interface OwnEvents {
  /** The place to resume from. */
  'sse:checkpoint': { cursor: string };
  /** The stream has ended and is not to be opened again. */
  'sse:end': Record<string, never>;
  /**
   * Something was lost for good: of these channels, after this cursor (`''` where it is not known).
   */
  'sse:gap': { channels: string[]; after: string; cursor: string };
  /** A heartbeat that a page can see. */
  'sse:ping': Record<string, never>;
}

/** The names of the events of one channel or several. */
export type ReceivedName<S, N extends ChannelName<S>> =
  N extends ChannelName<S> ? EventName<S, N> : never;

/** The data of an event of one channel or several. */
export type ReceivedData<S, N extends ChannelName<S>, E> = E extends keyof OwnEvents
  ? OwnEvents[E]
  : N extends ChannelName<S>
    ? EventData<S, N, E>
    : never;

type Listener<Ev> = ((event: Ev) => void) | { handleEvent(event: Ev): void };

// Of `open` and `error`; no types of the browser's are needed for it.
interface PlainEvent {
  readonly type: string;
}

interface ListenerMethod<S, N extends ChannelName<S>> {
  <E extends ReceivedName<S, N> | keyof OwnEvents>(
    type: E,
    listener: Listener<TypedMessageEvent<E, ReceivedData<S, N, E>>>,
    options?:
      | boolean
      | { capture?: boolean; once?: boolean; passive?: boolean; signal?: AbortSignal },
  ): void;
  (
    type: 'open' | 'error',
    listener: Listener<PlainEvent>,
    options?: boolean | { capture?: boolean; once?: boolean },
  ): void;
}

/**
 * An `EventSource` of a page, or of the npm package of that name, that follows the channels `N` of
 * a registry with the schema `S`: `addEventListener` takes their events and the library's own, and
 * no others.
 * @example
 * import type { JsonText, TypedEventSource } from 'res-sse';
 * import type { Schema } from './server.ts';
 *
 * const parse = <T>(text: JsonText<T>): T => JSON.parse(text);
 * const source = new EventSource('/listen') as TypedEventSource<Schema, 'haiku'>;
 * source.addEventListener('text', ({ data }) => show(parse(data).author));
 */
export interface TypedEventSource<
  S extends SchemaOf<S>,
  N extends ChannelName<S> = ChannelName<S>,
> {
  readonly url: string;
  readonly withCredentials: boolean;
  readonly readyState: number;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSED: 2;
  readonly addEventListener: ListenerMethod<S, N>;
  readonly removeEventListener: ListenerMethod<S, N>;
  onopen: ((event: never) => unknown) | null;
  onerror: ((event: never) => unknown) | null;
  onmessage:
    | ((event: TypedMessageEvent<'message', ReceivedData<S, N, 'message'>>) => unknown)
    | null;
  close(): void;
}
