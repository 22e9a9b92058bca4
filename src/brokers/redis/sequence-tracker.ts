/**
 * The order of the log on one node. Of every publish of the registry a node hears one short header, and of the channels that it
 * listens to the event itself just before, all on one connection. So it knows whether it has missed something, of whatever
 * channel: a header that does not begin where the one before it ended, or that speaks of an event which has not come.
 */
import type { LogEntry } from '../../log/log-entry.ts';
import {
  entryOf,
  type EventMessage,
  type Change,
  type SequenceHeader,
  type EntryMetadata,
} from './message-format.ts';

/** Events that wait for their header: those of one call of the script, so many of an honest writer never. */
const MOST_WAITING = 4_096;

/** What the spine needs to know and tells. */
export interface SequenceTrackerHost {
  /** Whether events of the channel must have come here: it is listened to, and Redis has said so. */
  expects(channel: string): boolean;
  /** The next event of a channel, in the order of the log. */
  appended(entry: LogEntry, stamp: EntryMetadata): void;
  /** What the channel held up to the offset is to be forgotten. */
  cleared(channel: string, trimmed: number): void;
}

export class SequenceTracker {
  readonly #host: SequenceTrackerHost;
  /** The log's name; `''` before it is known. */
  epoch = '';
  /** The offset up to which nothing is missing. */
  head = 0;
  readonly #waiting = new Map<
    number,
    { readonly entry: LogEntry; readonly stamp: EntryMetadata }
  >();

  constructor(host: SequenceTrackerHost) {
    this.#host = host;
  }

  /** Whether events of the channel must come here. */
  expects(channel: string): boolean {
    return this.#host.expects(channel);
  }

  /** All up to this place has been read. */
  begin(epoch: string, head: number): void {
    this.epoch = epoch;
    this.head = head;
    this.#waiting.clear();
  }

  /**
   * An event has come; it counts when its header does.
   * @returns what is wrong with it
   */
  arrive(channel: string, { epoch, offset, body, stamp }: EventMessage): string | undefined {
    if (stamp === undefined || epoch !== this.epoch || offset <= this.head) return undefined;
    const entry = entryOf(body, channel, epoch, offset);
    if (entry === undefined) return `an event of ${channel} that cannot be read`;
    if (this.#waiting.size >= MOST_WAITING) this.#waiting.clear();
    this.#waiting.set(offset, { entry, stamp });
    return undefined;
  }

  /**
   * Takes the events of which the header speaks.
   * @returns what is missing, after which nothing that comes proves anything until {@link begin}
   */
  hear({ epoch, previous, head, changes }: SequenceHeader): string | undefined {
    if (epoch !== this.epoch) return `the log is another: ${epoch} instead of ${this.epoch}`;
    // What was read already.
    if (head <= this.head && previous < this.head) return undefined;
    if (previous !== this.head) {
      return `the log is at ${previous}, and what was heard of it at ${this.head}`;
    }
    for (const change of changes) {
      const missing = this.#take(change);
      if (missing !== undefined) return missing;
    }
    this.head = head;
    this.#waiting.clear();
    return undefined;
  }

  #take({ isClear, offset, channel }: Change): string | undefined {
    if (isClear) {
      this.#host.cleared(channel, offset);
      return undefined;
    }
    const arrived = this.#waiting.get(offset);
    if (arrived === undefined || arrived.entry.channel !== channel) {
      // Before Redis has said that the channel is listened to nothing was to come.
      return this.#host.expects(channel) ? `event ${offset} of ${channel} has not come` : undefined;
    }
    // Before it is received: it is found by a read.
    this.head = offset;
    this.#host.appended(arrived.entry, arrived.stamp);
    return undefined;
  }
}
