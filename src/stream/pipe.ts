/** Sends the items of a source to one stream, as fast as the client reads. */
import { readSource, type PipeSource } from '../common/source.ts';
import type { EventFields, EventId } from '../protocol/event-stream-format.ts';

/**
 * How items become events. Each option is one value for all items, or a function that is called
 * with the item and its index, starting at 0.
 */
export interface PipeOptions<T> {
  /** Event type. @defaultValue none: the event is a `message` */
  event?: string | ((item: T, index: number) => string | undefined) | undefined;
  /** Last event ID. @defaultValue none */
  id?: EventId | ((item: T, index: number) => EventId | undefined) | undefined;
  /** The data to send for an item. @defaultValue the item itself */
  map?: ((item: T, index: number) => unknown) | undefined;
}

/** The stream that a source is piped to. */
export interface PipeTarget {
  /** Aborted when the stream ends. */
  readonly signal: AbortSignal;
  /** Whether nothing should be sent now, because too much is queued. */
  readonly mustWait: boolean;
  send(data: unknown, fields: EventFields): boolean;
  /** Resolves when the client has read enough, or the stream has ended. */
  drained(): Promise<void>;
}

/**
 * Sends one event for each item. See `EventStream.pipe()` for the contract.
 * @throws {SseError} `ERR_SSE_SOURCE` if the source is none of {@link PipeSource}
 */
export async function pipe<T>(
  source: PipeSource<T>,
  target: PipeTarget,
  options: PipeOptions<T>,
): Promise<void> {
  const { signal } = target;
  await readSource(source, signal, async (item, index) => {
    // While the item was awaited, a heartbeat or another `pipe()` may have written.
    while (target.mustWait) await target.drained();
    if (signal.aborted) return undefined;
    sendItem(target, item, index, options);
    return target.drained();
  });
}

function sendItem<T>(
  target: PipeTarget,
  item: T,
  index: number,
  { event, id, map }: PipeOptions<T>,
): void {
  target.send(map === undefined ? item : map(item, index), {
    event: typeof event === 'function' ? event(item, index) : event,
    id: typeof id === 'function' ? id(item, index) : id,
  });
}
