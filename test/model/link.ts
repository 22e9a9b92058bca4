/**
 * One connection: the calls of the application, the written items, and the items that the client
 * received.
 */
import type { EventStream, Subscription } from '../../src/index.ts';
import { StrictParser } from '../support/strict-parser.ts';
import type { Closing, Direct, SubscriptionRecord, Mark } from './ledger.ts';
import type { Registry } from './registry.ts';
import type { ChannelName } from './schedule.ts';

type MarkContent = Mark extends infer M ? (M extends Mark ? Omit<M, 'at'> : never) : never;

/** The transport of one connection: a fake response or a socket. */
export interface Wire {
  readonly isPaused: boolean;
  pause(): void;
  resume(): void;
  /** Reads some writes although the client is paused. */
  sip(writes: number): void;
  /** Disconnects the client. */
  drop(): void;
  /** Whether the client has received all written bytes. */
  readonly isEmpty: boolean;
  /**
   * Whether the newest event was written directly to the socket. Absent if the transport cannot
   * tell.
   */
  readonly isDirect?: boolean;
}

/** A call of `subscribe`, and its subscription once the call has resolved. */
export interface Following {
  readonly record: SubscriptionRecord;
  subscription: Subscription | undefined;
  /** Whether the call was made from inside a delivery, and takes effect after the delivery. */
  readonly isDeferred: boolean;
  hasLeft: boolean;
  /** Whether `unsubscribe()` is running: it delivers the pending events first. */
  isLeaving: boolean;
}

/** One connection of a client. */
export class Link {
  /** Whether the received bytes are parsed. Not done for members of a crowd. */
  isRead = true;
  /** The channels that a member of a crowd follows. */
  crowdChannels: readonly ChannelName[] = [];
  readonly registry: Registry;
  readonly stream: EventStream;
  readonly parser = new StrictParser();
  readonly marks: Mark[] = [];
  readonly directs: Direct[] = [];
  readonly following: Following[] = [];
  /** Functions that resolve pending `onGap` callbacks. */
  readonly pendingAnswers: (() => void)[] = [];
  /** The `Last-Event-ID` of the request. */
  readonly lastEventId: string;
  wire!: Wire;
  /** Whether the client is connected. */
  isOpen = true;
  /** Whether `res.write` is wrapped. */
  isWrapped = false;
  /** Whether the reader was slow at some time. */
  wasSlow = false;
  /** Whether a filter or an `onGap` may throw, so that the stream may end with an error. */
  mayFail = false;
  /** Description of a mistake of user code that must end the stream with an error. */
  mustFail: string | undefined;
  /**
   * Whether the application has called `close({ final: true })`, and the last events are being
   * written.
   */
  isFinishing = false;
  /** Whether the client disconnected during the schedule. */
  wasDropped = false;
  /** The version of the log at the last call of `subscribe` or `unsubscribe`. */
  versionOfChange = 0;
  /** How the stream ended. */
  closing: Closing | undefined;
  /** Whether the application used the stream otherwise than by its first call of `subscribe`. */
  isTouched = false;
  /** Nesting depth of user code that runs inside a delivery; 0 outside. */
  insideDepth = 0;
  /** Marks of subscriptions that were ended inside a delivery. */
  pendingLeft: MarkContent[] = [];
  /** Whether an `onGap` has answered in this tick: the library gets the answer after the tick. */
  isAnswering = false;
  receivedCount = Infinity;
  #bytes = 0;
  // Marks whose position has not been received yet, each with its position in bytes.
  #pendingMarks: { place: number; mark: Mark }[] = [];

  constructor(registry: Registry, stream: EventStream, lastEventId: string) {
    this.registry = registry;
    this.stream = stream;
    this.lastEventId = lastEventId;
  }

  /** Number of bytes that the client has received. */
  get bytesReceived(): number {
    return this.#bytes;
  }

  /** The delivery is over: the subscriptions that were ended meanwhile have left. */
  markLeft(): void {
    for (const content of this.pendingLeft.splice(0)) this.mark(content);
  }

  /** Records a call or a callback, after everything that has been written so far. */
  mark(content: MarkContent): Mark {
    const { stream } = this;
    const place =
      stream.bytesWritten +
      stream.bufferedAmount -
      (stream.readyState === 0 ? 0 : stream.res.writableLength);
    const mark = { ...content, at: undefined } as Mark;
    this.marks.push(mark);
    this.#pendingMarks.push({ place, mark });
    this.#placeMarks();
    return mark;
  }

  /** Receives bytes at the client. */
  receive(bytes: Buffer): void {
    if (!this.isRead) return;
    let rest = bytes;
    while (rest.length > 0) {
      const next = this.#pendingMarks[0]?.place ?? Infinity;
      const part = rest.subarray(0, Math.max(1, Math.min(rest.length, next - this.#bytes)));
      rest = rest.subarray(part.length);
      this.#bytes += part.length;
      this.parser.feed(part);
      this.#placeMarks();
    }
  }

  /**
   * Notes the end of the connection.
   * @param lost bytes that were written and never arrived
   */
  close(lost: readonly Buffer[] = []): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.receivedCount = this.parser.events.length;
    for (const bytes of lost) this.receive(bytes);
  }

  #placeMarks(): void {
    while (this.#pendingMarks[0] !== undefined && this.#pendingMarks[0].place <= this.#bytes) {
      this.#pendingMarks.shift()!.mark.at = this.parser.events.length;
    }
  }
}
