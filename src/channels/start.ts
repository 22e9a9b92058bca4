/** The offset at which a subscription or a consumer starts. */
import { parseCursor, type Cursor } from '../protocol/cursor.ts';
import { OLDEST_KEPT, type ChannelStarts } from './channel-starts.ts';
import type { SubscribeOptions } from '../stream/event-stream.ts';

/** The resolved start of a subscription. */
export interface SubscriptionStart {
  /** The subscription receives the events with greater offsets. */
  readonly offset: number;
  /**
   * The requested cursor belongs to another log, or is not a cursor. The subscription receives all
   * events that the log keeps, after a gap notification.
   */
  readonly isForeign: boolean;
  /** The application requested all events that the log keeps (`since: 'start'`). */
  readonly isFromOldest: boolean;
  /**
   * The application requested the newest events (`since: { last }`): for each channel of the
   * subscription, the offset after which they come.
   */
  readonly startsOfNewest?: readonly number[];
}

/**
 * @returns the number of newest events with which a subscription starts (`since: { last }`);
 * `undefined` if the subscription starts in another way
 */
export function requestedLast(lastEventId: string, options: SubscribeOptions): number | undefined {
  const { resume = true, since } = options;
  if (typeof since !== 'object' || (resume && lastEventId !== '')) return undefined;
  return since.last;
}

/** @returns the cursor that a subscription requests as its start; `undefined` without a cursor */
export function requestedCursor(
  lastEventId: string,
  options: SubscribeOptions,
): Cursor | undefined {
  return parseCursor(requestedStart(lastEventId, options).text);
}

/** Whether a subscription may start before the end of the log. */
export function mayStartEarlier(lastEventId: string, options: SubscribeOptions): boolean {
  const { text, isOfClient } = requestedStart(lastEventId, options);
  return isOfClient || text !== 'now';
}

/**
 * Decides where a subscription starts.
 *
 * | requested                                | offset              | isForeign | isFromOldest |
 * | ---------------------------------------- | ------------------- | --------- | ------------ |
 * | `'now'`                                  | the log's position  | no        | no           |
 * | `'start'`                                | 0                   | no        | yes          |
 * | `{ last }`                               | the lowest start    | no        | no           |
 * | a cursor of this log, not beyond its end | the cursor's offset | no        | no           |
 * | anything else                            | 0                   | yes       | no           |
 *
 * The words `'now'` and `'start'` are valid only as `since`, not as an id of the client.
 * @param lastEventId the client's last event id, untrusted; `''` if the client sent none
 * @param options `resume` (default `true`) and `since` (default `'now'`) are used
 * @param position the current end of the log
 * @param startsOfNewest for `{ last }`, see {@link SubscriptionStart}
 */
export function resolveStart(
  lastEventId: string,
  options: SubscribeOptions,
  position: Cursor,
  startsOfNewest?: readonly number[],
): SubscriptionStart {
  if (startsOfNewest !== undefined) {
    // Events that were published after the position are received in any case.
    const starts = startsOfNewest.map((start) => Math.min(start, position.offset));
    const offset = Math.min(position.offset, ...starts);
    return { offset, isForeign: false, isFromOldest: false, startsOfNewest: starts };
  }
  const { text, isOfClient } = requestedStart(lastEventId, options);
  if (!isOfClient && text === 'now') {
    return { offset: position.offset, isForeign: false, isFromOldest: false };
  }
  if (!isOfClient && text === 'start') return { offset: 0, isForeign: false, isFromOldest: true };
  const cursor = parseCursor(text);
  const isOfThisLog =
    cursor !== undefined && cursor.epoch === position.epoch && cursor.offset <= position.offset;
  return {
    offset: isOfThisLog ? cursor.offset : 0,
    isForeign: !isOfThisLog,
    isFromOldest: false,
  };
}

/** The client's own id takes precedence over the application's `since`, unless `resume: false`. */
function requestedStart(
  lastEventId: string,
  { resume = true, since = 'now' }: SubscribeOptions,
): { text: string; isOfClient: boolean } {
  const isOfClient = resume && lastEventId !== '';
  // `{ last }` counts as `'start'` here, because it may start before the end of the log. When
  // `startsOfNewest` is known, resolveStart() uses it instead.
  const sinceText = typeof since === 'object' ? 'start' : since;
  return { text: isOfClient ? lastEventId : sinceText, isOfClient };
}

/**
 * Sets the starts of channels that begin with events which the log keeps now: `since: 'start'` and
 * `{ last }`. The first page may be read much later. Events that are published until then, and
 * trimmed before that page, are a loss.
 * @param channels the channels for which `start` was resolved
 * @param end the end of the log when `start` was resolved
 * @param added the channels whose start is set
 */
export function setStartsOfKept(
  starts: ChannelStarts,
  channels: readonly string[],
  start: SubscriptionStart,
  end: number,
  added: readonly string[] = channels,
): void {
  for (const [index, channel] of channels.entries()) {
    const offset = start.isFromOldest ? OLDEST_KEPT : start.startsOfNewest?.[index];
    if (offset !== undefined && added.includes(channel)) {
      starts.setStartOfKept(channel, offset, end);
    }
  }
}
