/** One published event: encoded once, parsed once for all filters, and kept as the bytes that go over the wire. */
import { inspect } from 'node:util';
import { formatCursor } from '../protocol/cursor.ts';
import { dataOfEvent, eventBytes, eventText, retryText } from '../protocol/event-stream-format.ts';

/** One published event, as a filter sees it. */
export interface ChannelEvent {
  readonly channel: string;
  /** `''` on a channel without history. */
  readonly id: string;
  /** `message` where none was given. */
  readonly event: string;
  /** The data as a client receives it: every line end is LF. */
  readonly data: string;
  /** The data parsed, once for all filters; `undefined` for what is not JSON. */
  json(): unknown;
}

/** What an entry is made of. */
export interface LogEntryInit {
  channel: string;
  /** The log's name; `undefined` on a channel without history, whose events carry no id. */
  epoch: string | undefined;
  /** Grows across the whole registry, from 1; on a channel without history, among such events of this node. */
  offset: number;
  event?: string | undefined;
  data: string;
  /** Reconnection time in ms. */
  retry?: number | undefined;
}

// What an entry costs beside its frame: the objects and the strings that hold it, measured and rounded up.
const OVERHEAD = 400;

/** A published event with its place in the log. */
export class LogEntry implements ChannelEvent {
  readonly channel: string;
  readonly epoch: string | undefined;
  readonly offset: number;
  readonly event: string;
  /** The event as it goes over the wire. */
  readonly frame: Buffer;
  // Derived from the frame while somebody looks: kept, it would double what the log weighs.
  #view: View | undefined;

  constructor({ channel, epoch, offset, event, data, retry }: LogEntryInit) {
    this.channel = channel;
    this.epoch = epoch;
    this.offset = offset;
    this.event = event ?? 'message';
    const text = eventText(
      data,
      event,
      epoch === undefined ? undefined : formatCursor(epoch, offset),
      retry,
    );
    // Not from Node's pool: a small entry that stays would keep the whole slab.
    this.frame = Buffer.allocUnsafeSlow(Buffer.byteLength(text));
    this.frame.write(text);
  }

  get id(): string {
    return this.epoch === undefined ? '' : formatCursor(this.epoch, this.offset);
  }

  /** Bytes it counts for in a history. */
  get size(): number {
    return this.frame.length + OVERHEAD;
  }

  get data(): string {
    return this.#viewed().data;
  }

  json(): unknown {
    const view = this.#viewed();
    view.parsed ??= { value: parseJson(view.data) };
    return view.parsed.value;
  }

  /** The members of a {@link ChannelEvent}, for `JSON.stringify` and `console.log`: they are getters, which neither would show. */
  toJSON(): { channel: string; id: string; event: string; data: string } {
    const { channel, id, event, data } = this;
    return { channel, id, event, data };
  }

  /** @internal */
  [inspect.custom](): { channel: string; id: string; event: string; data: string } {
    return this.toJSON();
  }

  /** Forgets what filters have looked at. */
  rest(): void {
    this.#view = undefined;
  }

  #viewed(): View {
    this.#view ??= { data: dataOfEvent(this.frame.toString()), parsed: undefined };
    return this.#view;
  }
}

/**
 * The {@link LogEntry.size} that an entry would have, without making it.
 * @param init as for {@link LogEntry}
 */
export function entrySize({
  epoch,
  offset,
  event,
  data,
  retry,
}: Omit<LogEntryInit, 'channel'>): number {
  const idBytes = epoch === undefined ? 0 : `id: ${formatCursor(epoch, offset)}\n`.length;
  const retryBytes = retry === undefined ? 0 : retryText(retry).length;
  return eventBytes(data, event) + idBytes + retryBytes + OVERHEAD;
}

interface View {
  readonly data: string;
  parsed: { readonly value: unknown } | undefined;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
