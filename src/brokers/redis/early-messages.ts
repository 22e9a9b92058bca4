/**
 * Messages that arrive while a node reads the log. They belong to places after the end of this
 * read, so they are applied after the read:
 *
 *     log        … ───────────────┬──────────────────────────▶
 *                     read by     │   EarlyMessages
 *                     queries     │   (applied afterwards)
 *                                head when the probe was received
 */
import type { EventMessage, SequenceHeader } from './message-format.ts';
import { describeMissed } from './sequence-tracker.ts';

/** A message from Redis after parsing. */
export type LogMessage =
  | { readonly header: SequenceHeader }
  | { readonly channel: string; readonly event: EventMessage }
  | { readonly problem: string };

const MAX_EARLY_MESSAGES = 40_000;
const MAX_EARLY_CHARACTERS = 16_777_216;

/**
 * The messages since one place in the log.
 *
 * As long as there are few messages, the messages themselves are kept. If there are too many, they
 * are replaced by the names of the changed channels, and these channels have to be read again. So
 * the number of channels limits the memory, even if very many events are published. The next round
 * reads only the changed channels, so it is usually shorter than the previous round.
 */
export class EarlyMessages {
  /** Name of the log. */
  readonly epoch: string;
  readonly #isExpected: (channel: string) => boolean;
  #messages: LogMessage[] = [];
  // Index of the first message that has not been removed.
  #first = 0;
  #characters = 0;
  #head: number;
  #changedChannels: Set<string> | undefined;
  #problem: string | undefined;

  /**
   * @param head the place in the log
   * @param isExpected whether events of a channel must arrive
   */
  constructor(epoch: string, head: number, isExpected: (channel: string) => boolean) {
    this.epoch = epoch;
    this.#head = head;
    this.#isExpected = isExpected;
  }

  /** Number of messages that are kept. */
  get size(): number {
    return this.#messages.length - this.#first;
  }

  /** Channels that have to be read again; `undefined` as long as all messages are kept. */
  get changedChannels(): ReadonlySet<string> | undefined {
    return this.#changedChannels;
  }

  /** The reason why the changed channels are not known completely; `undefined` if they are. */
  get problem(): string | undefined {
    return this.#problem;
  }

  add(message: LogMessage): void {
    if (this.#changedChannels !== undefined) {
      this.#noteChannels(message);
      return;
    }
    this.#messages.push(message);
    this.#characters += estimateCharacters(message);
    if (this.size <= MAX_EARLY_MESSAGES && this.#characters <= MAX_EARLY_CHARACTERS) return;
    this.#changedChannels = new Set();
    for (let next = this.shift(); next !== undefined; next = this.shift()) this.#noteChannels(next);
  }

  /** Removes the oldest message that is kept. @returns the message */
  shift(): LogMessage | undefined {
    const message = this.#messages[this.#first];
    if (message === undefined) {
      this.#messages = [];
      this.#first = 0;
      return undefined;
    }
    this.#messages[this.#first++] = undefined as unknown as LogMessage;
    this.#characters -= estimateCharacters(message);
    const isKept = this.#changedChannels === undefined;
    if (isKept && 'header' in message && message.header.epoch === this.epoch) {
      this.#head = Math.max(this.#head, message.header.head);
    }
    return message;
  }

  /** Notes the channels that a message has changed. */
  #noteChannels(message: LogMessage): void {
    if ('problem' in message) {
      this.#problem ??= message.problem;
      return;
    }
    // The header of the event, which arrives later, names the channel.
    if ('event' in message) return;
    const { epoch, previous, head, changes } = message.header;
    // If another log has replaced the log, the next round of reading finds that out.
    if (epoch !== this.epoch) return;
    // Skips old headers, as `SequenceTracker.applyHeader()` does: their changes are in the log that
    // is being read. A probe at the end of the log, with `previous === head`, is not old.
    if (head > this.#head || previous >= this.#head) {
      if (previous !== this.#head) {
        this.#problem ??= describeMissed(this.#head, previous);
      }
      this.#head = head;
      for (const { channel } of changes) {
        if (this.#isExpected(channel)) this.#changedChannels?.add(channel);
      }
    }
  }
}

/** Estimates the length of a message with its numbers and names. */
function estimateCharacters(message: LogMessage): number {
  if ('event' in message) return message.event.body.length + 200;
  return 'header' in message ? 200 * (1 + message.header.changes.length) : 200;
}
