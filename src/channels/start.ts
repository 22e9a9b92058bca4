/** Where a subscription begins. */
import { parseCursor, type Cursor } from '../protocol/cursor.ts';
import type { SubscribeOptions } from '../stream/event-stream.ts';

export interface Start {
  readonly offset: number;
  /** The cursor is not of this log: all that the log holds follows, and the gap is told. */
  readonly isForeign: boolean;
  /** The application has asked for all that the log holds. */
  readonly isWhole: boolean;
}

/** @returns the cursor that it asks to begin at, if it is one */
export function wishedStart(lastEventId: string, options: SubscribeOptions): Cursor | undefined {
  return parseCursor(wishOf(lastEventId, options).text);
}

/** @param position where the log stands */
export function startOf(lastEventId: string, options: SubscribeOptions, position: Cursor): Start {
  const { text, isOfClient } = wishOf(lastEventId, options);
  if (!isOfClient && text === 'now') {
    return { offset: position.offset, isForeign: false, isWhole: false };
  }
  if (!isOfClient && text === 'start') return { offset: 0, isForeign: false, isWhole: true };
  const cursor = parseCursor(text);
  const isOurs =
    cursor !== undefined && cursor.epoch === position.epoch && cursor.offset <= position.offset;
  return { offset: isOurs ? cursor.offset : 0, isForeign: !isOurs, isWhole: false };
}

/** The client's own id, untrusted, goes before what the application says. */
function wishOf(
  lastEventId: string,
  { resume = true, since = 'now' }: SubscribeOptions,
): { text: string; isOfClient: boolean } {
  const isOfClient = resume && lastEventId !== '';
  return { text: isOfClient ? lastEventId : since, isOfClient };
}
