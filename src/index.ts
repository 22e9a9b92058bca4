/** Server-Sent Events for Express and Connect. */
export { memoryBroker } from './brokers/memory.ts';
export { createChannels } from './channels.ts';
export { SseError } from './errors.ts';
export { EventStream } from './event-stream.ts';
export { LogEntry } from './log-entry.ts';
export { sse } from './middleware.ts';
export { stream } from './route.ts';

export type { Broker, BrokerState, LogBounds, Page, Publication, Receiver } from './brokers/broker.ts';
export type { AdmissionOptions, StreamLimit } from './admission.ts';
export type { Channel, Channels, ChannelsOptions, ChannelsStats, ListenNames, PublishOptions } from './channels.ts';
export type { CloseReason } from './connection.ts';
export type { Cursor } from './cursor.ts';
export type { SseErrorCode } from './errors.ts';
export type { CloseOptions, Gap, SubscribeOptions, Subscription } from './event-stream.ts';
export type { HistoryOptions } from './history.ts';
export type { HistoryLimits, LogRead } from './log.ts';
export type { ChannelEvent, LogEntryInit } from './log-entry.ts';
export type { ShutdownOptions, SseMiddleware, SseOptions } from './middleware.ts';
export type { RetryRange, StreamOptions } from './options.ts';
export type { PipeOptions, PipeSource } from './pipe.ts';
export type { OpenStreams, Shutdown, SseStats } from './roster.ts';
export type { Next, RouteHandler, RouteOptions, RouteRequest, RouteResponse } from './route.ts';
export type { AnySchema, ChannelName, EventData, EventName, SchemaOf } from './schema.ts';
export type { EventText, Jsonified, JsonText, OwnEvents, TypedEventSource, TypedMessageEvent } from './typed-event-source.ts';
export type { EventFields, EventId, Serialize } from './wire.ts';
