/** A middleware's own account of its streams: which are open, what became of the others, and their end all together. */
import type { CloseReason } from './connection.ts';
import type { EventStream } from './event-stream.ts';
import { draw, type RetryRange } from './options.ts';

/** What a middleware has done and is doing. */
export interface SseStats {
  /** Streams that are open now. */
  open: number;
  /** Streams opened since the start. */
  opened: number;
  /** Requests turned away since the start. */
  rejected: number;
  /** Streams ended since the start, by reason. */
  closed: Partial<Record<CloseReason, number>>;
  /** Events handed over. */
  sent: number;
  /** Events dropped because their reader was at `maxBuffered`. */
  dropped: number;
  /** Bytes handed over, comments and heartbeats included. */
  bytes: number;
  /** Bytes queued in this process now. */
  buffered: number;
}

/** The streams of a middleware that are open. */
export interface OpenStreams extends Iterable<EventStream> {
  readonly size: number;
}

export class Roster implements OpenStreams {
  /** Requests turned away. */
  rejected = 0;
  /** Set when no more streams are taken: the reconnection time in ms that newcomers are told. */
  closing: RetryRange | undefined;
  readonly #open = new Set<EventStream>();
  // Ended, but the last bytes are still on their way.
  readonly #ending = new Set<EventStream>();
  readonly #closed: SseStats['closed'] = {};
  #opened = 0;
  // Of the streams that have ended.
  #sent = 0;
  #dropped = 0;
  #bytes = 0;
  #shutdown: Promise<{ closed: number; destroyed: number }> | undefined;
  #emptied: (() => void) | undefined;

  get size(): number {
    return this.#open.size;
  }

  [Symbol.iterator](): IterableIterator<EventStream> {
    return this.#open.values();
  }

  opened(stream: EventStream): void {
    this.#opened++;
    this.#open.add(stream);
    // Its request came before the shutdown began.
    if (this.closing !== undefined) stream.finish('shutdown', { retry: draw(this.closing) });
  }

  closed(stream: EventStream, reason: CloseReason): void {
    this.#open.delete(stream);
    this.#ending.add(stream);
    this.#closed[reason] = (this.#closed[reason] ?? 0) + 1;
    this.#sent += stream.sent;
    this.#dropped += stream.dropped;
    this.#bytes += stream.bytes;
  }

  gone(stream: EventStream): void {
    this.#ending.delete(stream);
    if (this.#open.size === 0 && this.#ending.size === 0) this.#emptied?.();
  }

  stats(): SseStats {
    const stats = {
      open: this.#open.size,
      opened: this.#opened,
      rejected: this.rejected,
      closed: { ...this.#closed },
      sent: this.#sent,
      dropped: this.#dropped,
      bytes: this.#bytes,
      buffered: 0,
    };
    for (const stream of this.#open) {
      stats.sent += stream.sent;
      stats.dropped += stream.dropped;
      stats.bytes += stream.bytes;
      stats.buffered += stream.bufferedAmount;
    }
    return stats;
  }

  /** Ends all streams; what has not ended `within` ms is destroyed. Idempotent. */
  shutDown(within: number, retry: RetryRange): Promise<{ closed: number; destroyed: number }> {
    this.closing ??= retry;
    this.#shutdown ??= this.#endAll(within, retry);
    return this.#shutdown;
  }

  async #endAll(within: number, retry: RetryRange): Promise<{ closed: number; destroyed: number }> {
    const all = this.#open.size + this.#ending.size;
    for (const stream of this.#open) stream.finish('shutdown', { retry: draw(retry) });
    let destroyed = 0;
    if (this.#ending.size > 0) {
      const { promise, resolve } = withResolver();
      this.#emptied = resolve;
      const timer = setTimeout(() => {
        destroyed = this.#ending.size;
        for (const stream of this.#ending) stream.res.destroy();
      }, within);
      await promise;
      clearTimeout(timer);
    }
    return { closed: all - destroyed, destroyed };
  }
}

function withResolver(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
