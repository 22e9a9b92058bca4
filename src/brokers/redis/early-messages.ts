/** Messages that come while a node reads the log, and that belong behind what it reads. */
import type { EventMessage, SequenceHeader } from './message-format.ts';

/** A message, as it was understood. */
export type LogMessage =
  | { readonly header: SequenceHeader }
  | { readonly channel: string; readonly arrival: EventMessage }
  | { readonly problem: string };

// What is kept of them.
const MAX_MESSAGES = 40_000;
const MAX_CHARACTERS = 16_777_216;

/**
 * The messages since one place in the log. As long as they are few they are kept. When they are too many for that, only the
 * names of the channels are kept that they speak of, which have to be read once more then; so however much is published,
 * memory is bounded by the number of channels, and each round of reading is shorter than the one before.
 */
export class EarlyMessages {
  readonly #follows: (channel: string) => boolean;
  /** The log's name. */
  readonly epoch: string;
  #messages: LogMessage[] = [];
  // Those before it have been taken.
  #first = 0;
  #characters = 0;
  #head: number;
  #changed: Set<string> | undefined;
  #problem: string | undefined;

  /**
   * @param head the place in the log
   * @param follows whether events of the channel must be heard
   */
  constructor(epoch: string, head: number, follows: (channel: string) => boolean) {
    this.epoch = epoch;
    this.#head = head;
    this.#follows = follows;
  }

  /** Messages that are kept. */
  get size(): number {
    return this.#messages.length - this.#first;
  }

  /** The channels that have to be read once more, because what came of them was too much; `undefined` where all is kept. */
  get changed(): ReadonlySet<string> | undefined {
    return this.#changed;
  }

  /** Why it is not known what has changed. */
  get problem(): string | undefined {
    return this.#problem;
  }

  add(heard: LogMessage): void {
    if (this.#changed !== undefined) {
      this.#note(heard);
      return;
    }
    this.#messages.push(heard);
    this.#characters += charactersOf(heard);
    if (this.size <= MAX_MESSAGES && this.#characters <= MAX_CHARACTERS) return;
    this.#changed = new Set();
    for (let next = this.take(); next !== undefined; next = this.take()) this.#note(next);
  }

  /** The oldest message that is kept. */
  take(): LogMessage | undefined {
    const heard = this.#messages[this.#first];
    if (heard === undefined) {
      this.#messages = [];
      this.#first = 0;
      return undefined;
    }
    this.#messages[this.#first++] = undefined as unknown as LogMessage;
    this.#characters -= charactersOf(heard);
    if (this.#changed === undefined && 'header' in heard && heard.header.epoch === this.epoch) {
      this.#head = Math.max(this.#head, heard.header.head);
    }
    return heard;
  }

  #note(heard: LogMessage): void {
    if ('problem' in heard) {
      this.#problem ??= heard.problem;
      return;
    }
    // An event is named by its header.
    if ('arrival' in heard) return;
    const { epoch, previous, head, changes } = heard.header;
    // Another log is noticed when this one is read once more.
    if (epoch !== this.epoch) return;
    if (head > this.#head || previous >= this.#head) {
      if (previous !== this.#head) {
        this.#problem ??= `the log is at ${previous}, and what was heard of it at ${this.#head}`;
      }
      this.#head = head;
      for (const { channel } of changes) if (this.#follows(channel)) this.#changed?.add(channel);
    }
  }
}

function charactersOf(heard: LogMessage): number {
  // Numbers and names beside the text, roughly.
  if ('arrival' in heard) return heard.arrival.body.length + 200;
  return 'header' in heard ? 200 * (1 + heard.header.changes.length) : 200;
}
