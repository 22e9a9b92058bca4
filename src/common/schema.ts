/** Types for the schema of a registry: its channels, their events, and the data of each event. */

/** A schema: channel names, the event names of each channel, and the data of each event. */
export type AnySchema = Record<string, Record<string, unknown>>;

/**
 * The constraint of a schema. An interface satisfies this type, although an interface has no index
 * signature.
 */
export type SchemaOf<S> = { [N in keyof S]: object };

/**
 * The names of the channels. A template literal type, so that the compiler's errors list the names
 * instead of this alias.
 */
// oxlint-disable-next-line typescript/no-unnecessary-template-expression -- see above
export type ChannelName<S> = `${keyof S & string}`;

/** The event names of a channel. */
// oxlint-disable-next-line typescript/no-unnecessary-template-expression -- as above
export type EventName<S, N extends ChannelName<S>> = `${keyof S[N & keyof S] & string}`;

/** The data of an event of a channel. */
export type EventData<S, N extends ChannelName<S>, E> = E extends keyof S[N & keyof S]
  ? S[N & keyof S][E]
  : never;
