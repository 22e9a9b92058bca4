/** One connection as the test sees it: what was asked of it, what was written, and what its client got. */
import type { EventStream, Subscription } from '../../src/index.ts';
import { StrictParser } from '../support/strict-parser.ts';
import type { Direct, Hold, Mark } from './ledger.ts';
import type { Registry } from './registry.ts';

type MarkContent = Mark extends infer M ? (M extends Mark ? Omit<M, 'at'> : never) : never;

/** What carries the bytes: a fake response or a socket. */
export interface Wire {
  readonly isPaused: boolean;
  pause(): void;
  resume(): void;
  /** Reads a little although it is paused. */
  sip(writes: number): void;
  /** The client leaves. */
  drop(): void;
  /** Whether the client has got all that was written. */
  readonly isEmpty: boolean;
  /** Whether the newest event went to the socket directly, where that can be seen. */
  readonly isDirect?: boolean;
}

export interface Following {
  readonly hold: Hold;
  subscription: Subscription | undefined;
  left: boolean;
}

export class Link {
  /** Whether what comes is read: of a crowd nobody wants to know. */
  isRead = true;
  /** How many channels a member of a crowd follows. */
  followed = 0;
  readonly registry: Registry;
  readonly stream: EventStream;
  readonly parser = new StrictParser();
  readonly marks: Mark[] = [];
  readonly directs: Direct[] = [];
  readonly following: Following[] = [];
  /** Answers of `onGap` that a test holds back. */
  readonly asks: (() => void)[] = [];
  /** What the client brought. */
  readonly brought: string;
  wire!: Wire;
  /** Whether the client is still there. */
  isOpen = true;
  /** Whether somebody has put a `write` in front of the response's own. */
  isWrapped = false;
  /** Whether its reader was once slow. */
  wasSlow = false;
  /** Whether a filter or an `onGap` misbehaves, so that the stream may end for it. */
  mayFail = false;
  /** What must end the stream with an error, once it has happened. */
  mustFail: string | undefined;
  /** Whether the application has closed the stream for good, and it is given the rest. */
  isFinishing = false;
  /** More than 0 while user code runs in the middle of events that are just being filtered or written. */
  inside = 0;
  received = Infinity;
  #bytes = 0;
  // Marks whose place in the stream has not been reached, each with its place.
  #ahead: { place: number; mark: Mark }[] = [];

  constructor(registry: Registry, stream: EventStream, brought: string) {
    this.registry = registry;
    this.stream = stream;
    this.brought = brought;
  }

  /** Bytes that have come to the client. */
  get taken(): number {
    return this.#bytes;
  }

  /** Notes that something happened behind all that was written so far. */
  mark(content: MarkContent): Mark {
    const { stream } = this;
    const place =
      stream.bytesWritten +
      stream.bufferedAmount -
      (stream.readyState === 0 ? 0 : stream.res.writableLength);
    const mark = { ...content, at: undefined } as Mark;
    this.marks.push(mark);
    this.#ahead.push({ place, mark });
    this.#place();
    return mark;
  }

  /** Bytes come to the client. */
  take(bytes: Buffer): void {
    if (!this.isRead) return;
    let rest = bytes;
    while (rest.length > 0) {
      const next = this.#ahead[0]?.place ?? Infinity;
      const part = rest.subarray(0, Math.max(1, Math.min(rest.length, next - this.#bytes)));
      rest = rest.subarray(part.length);
      this.#bytes += part.length;
      this.parser.feed(part);
      this.#place();
    }
  }

  /** The client is gone. @param lost what was written and never came */
  close(lost: readonly Buffer[] = []): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.received = this.parser.events.length;
    for (const bytes of lost) this.take(bytes);
  }

  #place(): void {
    while (this.#ahead[0] !== undefined && this.#ahead[0].place <= this.#bytes) {
      this.#ahead.shift()!.mark.at = this.parser.events.length;
    }
  }
}
