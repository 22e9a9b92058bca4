/**
 * Types of the events that a page receives, derived from the schema of its channels. Types only.
 */
import type { ChannelName, EventData, EventName, SchemaOf } from '../common/schema.ts';

declare const json: unique symbol;

/**
 * A string that is the JSON text of a `T`. At run time it is an ordinary string. The type lets a
 * `parse` function return a `T`, as in the example of {@link TypedEventSource}.
 */
export type JsonText<T> = string & { readonly [json]?: T };

/**
 * The result type of `JSON.parse(JSON.stringify(value))` for a value of the type `T`: a `Date`
 * becomes a string, and functions are omitted.
 */
export type Jsonified<T> = T extends { toJSON(): infer J }
  ? Jsonified<J>
  : T extends readonly unknown[]
    ? { [K in keyof T]: Jsonified<T[K]> }
    : T extends object
      ? { [K in keyof T as T[K] extends (...args: never) => unknown ? never : K]: Jsonified<T[K]> }
      : T;

/** The type of `event.data`: a string is sent unchanged, anything else as JSON. */
export type EventText<T> = T extends string ? T : JsonText<Jsonified<T>>;

/** The `MessageEvent` of one event type. */
export interface TypedMessageEvent<E extends string, T> {
  readonly type: E;
  readonly data: EventText<T>;
  readonly lastEventId: string;
  readonly origin: string;
}

/** The events that the library sends itself, and their data. */
export interface OwnEvents {
  /** The position from which the client resumes when it reconnects. */
  'sse:checkpoint': { cursor: string };
  /** The stream has ended, and the page must not open it again. */
  'sse:end': Record<string, never>;
  /**
   * Events of these channels after the id `after` were lost and cannot be sent any more; `''` if
   * that id is not known. `cursor` is the id of the newest event when the gap was found.
   */
  'sse:gap': { channels: string[]; after: string; cursor: string };
  /**
   * A heartbeat that is visible to the page, if `heartbeat` has `visible: true`. After `interval`
   * ms of silence the next one is sent.
   */
  'sse:ping': { interval: number };
}

/** The event types of one or several channels. */
export type ReceivedName<S, N extends ChannelName<S>> =
  N extends ChannelName<S> ? EventName<S, N> : never;

/** The data of an event type of one or several channels, or of the library. */
export type ReceivedData<S, N extends ChannelName<S>, E> = E extends keyof OwnEvents
  ? OwnEvents[E]
  : N extends ChannelName<S>
    ? EventData<S, N, E>
    : never;

type Listener<Ev> = ((event: Ev) => void) | { handleEvent(event: Ev): void };

// The event of `open` and `error`, declared here so that the types of the DOM are not needed.
interface PlainEvent {
  readonly type: string;
}

/** The type of `addEventListener` and `removeEventListener`. */
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
 * An `EventSource` of a page, or of the npm package `eventsource`, that follows channels of a
 * registry: `addEventListener` accepts only the event types of these channels and of the library.
 * @typeParam S the schema of the registry
 * @typeParam N the names of the channels. @defaultValue all channels of the schema
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
