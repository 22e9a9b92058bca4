/** The public entry of the package: Server-Sent Events for Express and Connect. */
export { memoryBroker } from './brokers/memory.ts';
export { createChannels } from './channels/registry.ts';
export { SseError } from './common/errors.ts';
export { EventStream } from './stream/event-stream.ts';
export { LogEntry } from './log/log-entry.ts';
export { sse } from './http/middleware.ts';
export { stream } from './http/route.ts';

export type {
  Broker,
  BrokerState,
  ChannelState,
  Lease,
  LogBounds,
  Page,
  Publication,
  Receiver,
} from './brokers/broker.ts';
export type { AdmissionOptions, StreamLimit } from './http/admission.ts';
export type {
  Channel,
  Channels,
  ChannelsStats,
  EndOptions,
  FollowOptions,
  LastEvent,
  ListenNames,
  PipeToChannelOptions,
  PublishOptions,
} from './channels/channels.ts';
export type { HistoryPage, ReadOptions } from './channels/read.ts';
export type { ChannelsOptions } from './channels/registry-options.ts';
export type { CloseOptions } from './stream/close-options.ts';
export type { CloseReason } from './stream/close-reason.ts';
export type { Cursor } from './protocol/cursor.ts';
export type { SseErrorCode } from './common/errors.ts';
export type { SubscribeOptions } from './stream/event-stream.ts';
export type { Gap, SnapshotRequest, Subscription } from './stream/subscription-types.ts';
export type { HistoryOptions } from './log/history.ts';
export type { HistoryLimits, LogRead } from './log/log.ts';
export type { ChannelEvent, LogEntryInit } from './log/log-entry.ts';
export type { SseMiddleware } from './http/middleware.ts';
export type { ShutdownOptions, SseOptions } from './http/sse-options.ts';
export type { RetryRange } from './common/retry-range.ts';
export type { StreamOptions } from './stream/stream-options.ts';
export type { PipeSource } from './common/source.ts';
export type { PipeOptions } from './stream/pipe.ts';
export type { Shutdown } from './http/shutdown.ts';
export type { OpenStreams, SseStats } from './http/stream-tracker.ts';
export type {
  Next,
  RouteHandler,
  RouteOptions,
  RouteRequest,
  RouteResponse,
} from './http/route.ts';
export type { AnySchema, ChannelName, EventData, EventName, SchemaOf } from './common/schema.ts';
export type {
  EventText,
  Jsonified,
  JsonText,
  OwnEvents,
  TypedEventSource,
  TypedMessageEvent,
} from './channels/typed-event-source.ts';
export type { EventFields, EventId, Serialize } from './protocol/event-stream-format.ts';
