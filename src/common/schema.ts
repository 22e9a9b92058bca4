/** Types of a registry's channels, events and data. Types only. */

/** Channel names, the event names of each, and the data of each event. */
export type AnySchema = Record<string, Record<string, unknown>>;

/** The constraint of a schema. An interface satisfies it, although an interface has no index signature. */
export type SchemaOf<S> = { [N in keyof S]: object };

/** The names that may be published to. A template literal type, so that errors list the names instead of this alias. */
// oxlint-disable-next-line typescript/no-unnecessary-template-expression -- it keeps the alias out of errors
export type ChannelName<S> = `${keyof S & string}`;

/** The names of a channel's events. */
// oxlint-disable-next-line typescript/no-unnecessary-template-expression -- as above
export type EventName<S, N extends ChannelName<S>> = `${keyof S[N & keyof S] & string}`;

/** The data of a channel's event. */
export type EventData<S, N extends ChannelName<S>, E> = E extends keyof S[N & keyof S]
  ? S[N & keyof S][E]
  : never;
