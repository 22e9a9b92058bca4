/** Publications as the script takes them, and its answer to an append. */
import type { HistoryLimits } from '../../log/log.ts';
import { entrySize } from '../../log/log-entry.ts';
import type { Publication } from '../broker.ts';
import { formatBody } from './message-format.ts';

/** A publication in the form that the script takes. */
export interface AppendItem {
  readonly keys: readonly string[];
  readonly args: readonly string[];
  /** Bytes of the event's body. */
  readonly bytes: number;
  /** Number of entries, each of which takes an offset. */
  readonly entries: number;
  readonly channel: string;
  /** Whether the publication does nothing but end the channel. */
  readonly isOnlyEnd: boolean;
}

// The place in the log that is assumed when the size of an event is computed. The offset is not
// known yet. An offset of ten digits is assumed, so that the size does not depend on the place.
const ASSUMED_PLACE = { epoch: 'epoch_of', offset: 1_000_000_000 };

/** The size of the end of a channel. */
export const END_SIZE: number = entrySize({ ...ASSUMED_PLACE, data: '', isEnd: true });

/**
 * Converts a publication to the form that the script takes.
 * @param owner names this node if it holds the channel; otherwise empty
 * @param base the beginning of all keys
 */
export function toAppendItem(publication: Publication, owner: string, base: string): AppendItem {
  const { channel, event, data, retry, meta, key = '', isEnd = false, history } = publication;
  const body = data === undefined ? '' : formatBody(event, data, retry, meta);
  const bytes = Buffer.byteLength(body);
  const keys = key === '' ? [] : [`${base}:k:${channel}\n${key}`];
  const entries = (data === undefined ? 0 : 1) + (isEnd ? 1 : 0);
  const item = { keys, bytes, entries, channel, isOnlyEnd: data === undefined };
  if (history === false) {
    return { ...item, args: [channel, key, body, '0', '', '', '', '', '', ''] };
  }
  keys.unshift(streamKey(base, channel));
  // The size of the entry in the memory of a node.
  const size = entrySize({ ...ASSUMED_PLACE, event, data: data ?? '', retry, meta });
  const endSize = isEnd ? `${END_SIZE}` : '';
  const args = [channel, key, body, `${size}`, ...formatLimits(history), endSize, owner];
  return { ...item, args };
}

/** @returns the key of the stream with the events of a channel */
export function streamKey(base: string, channel: string): string {
  return `${base}:s:${channel}`;
}

/** @returns the limits of a history as the script takes them: events, bytes, age and latest */
export function formatLimits({ events, bytes, age, latest }: HistoryLimits): string[] {
  return [...[events, bytes, age === Infinity ? 0 : age].map(String), latest ? '1' : '0'];
}

/**
 * Result of one publication: its event id; or, if the channel had ended before, the id of that end;
 * or the reason why the publication was not accepted.
 */
export type PublishResult =
  | { readonly id: string }
  | { readonly firstEnd: string }
  | { readonly problem: string; readonly isDeliveryUnknown: boolean };

/** Result of an append. */
export interface AppendResult {
  readonly epoch: string;
  readonly head: number;
  /** The reason why no header could be sent to the nodes; `''` if the header was sent. */
  readonly headerProblem: string;
  /** The reason why the limits of the history cannot be enforced; `''` if they were enforced. */
  readonly warning: string;
  /** In the order of the publications. */
  readonly results: readonly PublishResult[];
}

/** Parses the answer to an append; see log.lua. */
export function parseAppendAnswer(answer: unknown): AppendResult {
  const [epoch, head, headerProblem, warning, ...results] = answer as [
    ...[string, string, string, string],
    ...string[],
  ];
  return { epoch, head: Number(head), headerProblem, warning, results: results.map(parseResult) };
}

/** Parses the result of one publication; see log.lua. */
function parseResult(result: string): PublishResult {
  if (result.startsWith('=')) return { id: result.slice(1) };
  if (result.startsWith('~')) return { firstEnd: result.slice(1) };
  return { problem: result.slice(1), isDeliveryUnknown: result.startsWith('?') };
}
