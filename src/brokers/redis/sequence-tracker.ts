/**
 * Detects missed messages by the continuity of headers.
 *
 * After every call that publishes (up to 128 events), each node receives one short header on a
 * topic that all nodes subscribe to. The events of a channel are sent before their header, on the
 * topic of the channel, and both topics are received on one connection. A header names the offset
 * of the log before and after the publish, so each header must begin where the previous one ended:
 *
 *     received   event 8   header 7→8   event 9   header 8→10      header 11→12
 *                (a)       +8 a         (a)       +9 a, +10 b
 *     head   7 ───────────────▶ 8 ───────────────────▶ 10 ─ ─ ✗    the header 10→11 was missed
 *
 * An event was missed if its header names it, the node is subscribed to its channel, and the event
 * has not arrived. In the drawing, event 10 is not missed if the node is not subscribed to `b`.
 */
import type { Cursor } from '../../protocol/cursor.ts';
import type { LogEntry } from '../../log/log-entry.ts';
import {
  parseEntry,
  type EventMessage,
  type Change,
  type SequenceHeader,
  type EntryMetadata,
} from './message-format.ts';

/**
 * Maximum number of events that wait for their header. Normally only the events of one call of the
 * script wait, which are far fewer. If more events wait, headers are missing, and all waiting
 * events are dropped.
 */
const MAX_PENDING_EVENTS = 4_096;

/** The interface that a {@link SequenceTracker} needs of its owner. */
export interface SequenceTrackerHost {
  /** Whether events of the channel must arrive: Redis has confirmed the subscription. */
  isExpected(channel: string): boolean;
  /** Called with each event in the order of the log. */
  onAppended(entry: LogEntry, metadata: EntryMetadata): void;
  /** Called when the events of the channel up to `trimmed` were deleted. */
  onCleared(channel: string, trimmed: number): void;
}

/** Describes that a header does not begin at the head that this node has reached. */
export function describeMissed(head: number, previous: number): string {
  return `messages between offset ${head} and ${previous} of the log were missed`;
}

/** Puts events in the order of the log, and detects missed ones. */
export class SequenceTracker {
  readonly #host: SequenceTrackerHost;
  /** Name of the log; `''` before it is known. */
  epoch = '';
  /** Offset up to which no message is missing. */
  head = 0;
  /**
   * Number of times that the node has begun to read the log, to heal. When the node is open, the
   * last read has succeeded.
   */
  reads = 0;
  // The highest offset of this log that was reached before the log went back.
  #highest = 0;
  // Events whose header has not arrived, by offset.
  readonly #pending = new Map<
    number,
    { readonly entry: LogEntry; readonly metadata: EntryMetadata }
  >();

  constructor(host: SequenceTrackerHost) {
    this.#host = host;
  }

  /** @returns the place in the log up to which this node has received everything */
  position(): Cursor {
    return { epoch: this.epoch, offset: this.head };
  }

  /**
   * The highest offset of this log that this node has ever reached. Redis may have gone back to an
   * earlier offset, and may not have been able to record the jump, while readers are still at this
   * offset.
   */
  get seen(): number {
    return Math.max(this.#highest, this.head);
  }

  /** Continues from an offset up to which the log has been read. */
  reset(epoch: string, head: number): void {
    this.#highest = epoch === this.epoch ? this.seen : 0;
    this.epoch = epoch;
    this.head = head;
    this.#pending.clear();
  }

  /**
   * Keeps an event until its header arrives.
   * @returns a description of the problem if the event cannot be read
   */
  addEvent(channel: string, { epoch, offset, body, metadata }: EventMessage): string | undefined {
    if (metadata === undefined || epoch !== this.epoch || offset <= this.head) return undefined;
    const entry = parseEntry(body, channel, epoch, offset);
    if (entry === undefined) return `an event of channel ${channel} cannot be read`;
    if (this.#pending.size >= MAX_PENDING_EVENTS) this.#pending.clear();
    this.#pending.set(offset, { entry, metadata });
    return undefined;
  }

  /**
   * Applies the changes that a header names.
   * @returns a description of what is missing; `undefined` if nothing is. If something is missing,
   * no further message may be applied until {@link reset} is called
   */
  applyHeader({ epoch, previous, head, changes }: SequenceHeader): string | undefined {
    if (epoch !== this.epoch) return `the log changed from ${this.epoch} to ${epoch}`;
    // The changes of this header have been read from the log already.
    if (head <= this.head && previous < this.head) return undefined;
    if (previous !== this.head) {
      return describeMissed(this.head, previous);
    }
    for (const change of changes) {
      const problem = this.#applyChange(change);
      if (problem !== undefined) return problem;
    }
    this.head = head;
    this.#pending.clear();
    return undefined;
  }

  #applyChange({ isClear, offset, channel }: Change): string | undefined {
    if (isClear) {
      this.#host.onCleared(channel, offset);
      return undefined;
    }
    const pending = this.#pending.get(offset);
    if (pending === undefined || pending.entry.channel !== channel) {
      // Before Redis has confirmed a subscription, events of the channel need not arrive.
      return this.#host.isExpected(channel)
        ? `event ${offset} of channel ${channel} was missed`
        : undefined;
    }
    // The head moves before the event is passed on, so that a read from inside the callback finds
    // the event.
    this.head = offset;
    this.#host.onAppended(pending.entry, pending.metadata);
    return undefined;
  }
}
