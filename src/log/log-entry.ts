/**
 * One entry of the log: a published event, or the end of a channel. An event is encoded once, for
 * the log and all streams, and is parsed once for all filters.
 */
import { inspect } from 'node:util';
import { formatCursor } from '../protocol/cursor.ts';
import {
  countEventBytes,
  formatEvent,
  formatRetry,
  parseEventData,
} from '../protocol/event-stream-format.ts';

/** A published event, as filters, `follow()` and `read()` provide it. */
export interface ChannelEvent {
  /** The channel of the event. */
  readonly channel: string;
  /** The event's id, a cursor; `''` on a channel without history. */
  readonly id: string;
  /** The event type; `message` if the event was published without one. */
  readonly event: string;
  /** The data as a client receives it: every line break is LF. */
  readonly data: string;
  /** The data, parsed once for all filters; `undefined` if the data is not JSON. */
  json(): unknown;
  /** The `meta` of the publish, which clients do not receive; `undefined` without one. */
  readonly meta?: unknown;
}

/** The values from which a {@link LogEntry} is made. */
export interface LogEntryInit {
  channel: string;
  /** The name of the log; `undefined` on a channel without history, whose events have no id. */
  epoch: string | undefined;
  /**
   * The position in the log: 1 for the first event of the registry, then growing. Events of
   * channels without history have offsets of their own on each node.
   */
  offset: number;
  /** Event type. @defaultValue `'message'`, which is not written */
  event?: string | undefined;
  /** The text of the data. */
  data: string;
  /** Reconnection time in ms. */
  retry?: number | undefined;
  /** The text of the `meta` of the publish, as JSON. Never sent to clients. */
  meta?: string | undefined;
  /**
   * Whether the entry is the end of its channel. Nothing is written to clients for it, and its
   * other fields are ignored.
   * @defaultValue `false`
   */
  isEnd?: boolean | undefined;
}

// The frame of the end of a channel.
const NO_BYTES = Buffer.alloc(0);

// Memory of an entry in addition to its frame: its objects and strings, measured and rounded up.
const ENTRY_OVERHEAD_BYTES = 400;

/** A published event, or the end of a channel, with its position in the log. */
export class LogEntry implements ChannelEvent {
  readonly channel: string;
  readonly epoch: string | undefined;
  readonly offset: number;
  readonly event: string;
  /** Whether the entry is the end of its channel: no event, and the last entry of the channel. */
  readonly isEnd: boolean;
  /** The bytes of the event as they are sent; empty for the end of a channel. */
  readonly frame: Buffer;
  // Made from the frame while filters read the event. Views that are kept would double the memory
  // of the log.
  #view: EntryView | undefined;
  readonly #metaText: string | undefined;

  constructor({ channel, epoch, offset, event, data, retry, meta, isEnd = false }: LogEntryInit) {
    this.channel = channel;
    this.epoch = epoch;
    this.offset = offset;
    this.event = event ?? 'message';
    this.isEnd = isEnd;
    this.#metaText = meta;
    if (isEnd) {
      this.frame = NO_BYTES;
      return;
    }
    const text = formatEvent(
      data,
      event,
      epoch === undefined ? undefined : formatCursor(epoch, offset),
      retry,
    );
    // Not from Node's buffer pool: a small entry would keep a whole slab of the pool in memory.
    this.frame = Buffer.allocUnsafeSlow(Buffer.byteLength(text));
    this.frame.write(text);
  }

  /** The cursor of the event; `''` on a channel without history. */
  get id(): string {
    return this.epoch === undefined ? '' : formatCursor(this.epoch, this.offset);
  }

  /** Number of bytes for which the entry counts in a history. */
  get size(): number {
    return this.frame.length + metaBytes(this.#metaText) + ENTRY_OVERHEAD_BYTES;
  }

  /** The `meta` of the publish, parsed once for all filters; `undefined` without one. */
  get meta(): unknown {
    if (this.#metaText === undefined) return undefined;
    const view = this.#ensureView();
    view.meta ??= { value: parseJson(this.#metaText) };
    return view.meta.value;
  }

  /** The data as a client receives it: every line break is LF. */
  get data(): string {
    return this.#ensureView().data;
  }

  /** The data, parsed once for all filters; `undefined` if the data is not JSON. */
  json(): unknown {
    const view = this.#ensureView();
    view.parsed ??= { value: parseJson(view.data) };
    return view.parsed.value;
  }

  /**
   * The members of a {@link ChannelEvent}, for `JSON.stringify` and `console.log`, which do not
   * show getters.
   */
  toJSON(): { channel: string; id: string; event: string; data: string; meta?: unknown } {
    const { channel, id, event, data, meta } = this;
    return { channel, id, event, data, ...(meta === undefined ? {} : { meta }) };
  }

  /** @internal */
  [inspect.custom](): object {
    return this.toJSON();
  }

  /** Releases the text and the parsed data. A later read makes them again. */
  releaseView(): void {
    this.#view = undefined;
  }

  #ensureView(): EntryView {
    this.#view ??= {
      data: parseEventData(this.frame.toString()),
      parsed: undefined,
      meta: undefined,
    };
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
  meta,
  isEnd = false,
}: Omit<LogEntryInit, 'channel'>): number {
  if (isEnd) return ENTRY_OVERHEAD_BYTES;
  const idBytes = epoch === undefined ? 0 : `id: ${formatCursor(epoch, offset)}\n`.length;
  const retryBytes = retry === undefined ? 0 : formatRetry(retry).length;
  const fieldBytes = idBytes + retryBytes + metaBytes(meta);
  return countEventBytes(data, event) + fieldBytes + ENTRY_OVERHEAD_BYTES;
}

function metaBytes(meta: string | undefined): number {
  return meta === undefined ? 0 : Buffer.byteLength(meta);
}

/** The text and the parsed data of an entry. */
interface EntryView {
  readonly data: string;
  parsed: { readonly value: unknown } | undefined;
  meta: { readonly value: unknown } | undefined;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
