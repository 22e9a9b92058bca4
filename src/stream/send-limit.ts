/**
 * The limits for a client that reads less than the application sends. The *queued bytes* of a
 * stream (`bufferedAmount`) are those that this process holds. There are four limits, with one word
 * each:
 *
 * ```text
 * word       what is measured               limit             what happens
 * ────────── ────────────────────────────── ───────────────── ──────────────────────────────────
 * must wait  queued bytes, for a sender     64 KiB, or        `send()` returns `false`;
 *            that can wait                  `maxBuffered`,    `drained()` and `pipe()` wait
 *                                           if that is less
 * slow       queued bytes, for an event     `maxBuffered`     `onSlow`: the stream is destroyed
 *            that no log keeps: `send()`,                     with the reason 'slow', or the
 *            channels without history                         event is dropped
 * behind     queued bytes, for an event     64 KiB            no event of the channels is queued:
 *            of a channel with history      (no option)       the stream reads the log later
 * stalled    time in which the client has   `stallTimeout`    the stream is destroyed with the
 *            read no queued byte                              reason 'stalled'
 * ```
 *
 * - A stream whose response is pipelined must wait and is behind, however little is queued.
 * - *must wait* and *slow* are tested here, *behind* in `ResponseWriter.isBehind`, *stalled* in
 *   `StreamMonitor`. `Audience.deliver()` and `writeShared()` ask whether the stream is behind only
 *   if they cannot write to the socket directly; for example if it holds more than 16 KiB.
 * - A consumer (`channels.follow()`) has no stream. It is behind, and reads the log, if its
 *   `ConsumerBuffer` holds more than 64 KiB.
 */
import { diagnostics } from '../common/diagnostics.ts';
import { GzipBody } from '../protocol/gzip-body.ts';
import { RareState } from './rare-state.ts';
import { ResponseLifecycle } from './response-lifecycle.ts';
import type { StreamSettings } from './stream-options.ts';
import { HIGH_WATER_MARK } from './write-queue.ts';

/**
 * The base class of `EventStream`: limits the queued bytes. Also has the fields that only few
 * streams need, among them the number of dropped events.
 */
export abstract class SendLimit extends ResponseLifecycle {
  // Made when it is first used. Most streams do not have one.
  #rare: RareState | undefined;

  /** The settings of the middleware that made the stream. @internal */
  protected abstract get settings(): StreamSettings;

  /**
   * Resolves when no more than 64 KiB (or `maxBuffered`, if that is less) are queued, or the stream
   * has ended. Never rejects.
   */
  drained(): Promise<void> {
    if (!this.mustWait) return Promise.resolve();
    const drained = this.rareState().whenDrained();
    this.awaitDrain();
    return drained;
  }

  /** Whether `drained()` has something to wait for. @internal */
  get mustWait(): boolean {
    return this.readyState === 1 && this.sendersMustWait;
  }

  /** Queued bytes beyond which `send()` returns `false`. @internal */
  get writeMark(): number {
    return Math.min(HIGH_WATER_MARK, this.settings.maxBuffered);
  }

  /**
   * Number of events that were dropped: more than `maxBuffered` bytes were queued, or events
   * without history could not be delivered in time, or came while a revocation may have been
   * missing.
   * @internal
   */
  get dropped(): number {
    return this.#rare?.droppedEvents ?? 0;
  }

  /**
   * Tests whether the client is slow, before events or a comment are written. If it is slow, the
   * events are dropped: {@link dropEvents}. The first event of a stream always fits.
   * @param events number of events; 0 for a comment
   * @returns whether the bytes may be written
   * @internal
   */
  admitEvents(events: number): boolean {
    // Bytes that wait only for this process do not show that the client is slow.
    const queued = this.bufferedAmount - this.bytesHeldBack;
    if (queued <= this.settings.maxBuffered || (events > 0 && this.eventsWritten === 0)) {
      return true;
    }
    this.dropEvents(events);
    return false;
  }

  /** Counts events as dropped, without applying `onSlow`. @internal */
  countDropped(events: number): void {
    this.rareState().droppedEvents += events;
  }

  /** Counts events as dropped for a slow client, and applies `onSlow`. @internal */
  dropEvents(events: number): void {
    const { onSlow } = this.settings;
    this.countDropped(events);
    this.publishSlow(onSlow);
    if (onSlow === 'close') this.destroyFor('slow');
  }

  /** The body of the stream, if this library compresses it. @internal */
  override get gzip(): GzipBody | undefined {
    return this.#rare?.gzip;
  }

  /** @internal */
  protected override setCompressed(isCompressed: boolean): void {
    if (isCompressed) this.rareState().gzip = new GzipBody();
    else if (this.#rare !== undefined) this.#rare.gzip = undefined;
  }

  /** @internal */
  protected override onDrain(): void {
    this.#rare?.onDrain();
  }

  /** The fields that only few streams need; `undefined` until one of them is used. @internal */
  protected get rare(): RareState | undefined {
    return this.#rare;
  }

  /** Makes the rare state when it is first used. @internal */
  protected rareState(): RareState {
    this.#rare ??= new RareState();
    return this.#rare;
  }

  /**
   * Publishes on `res-sse:slow` that the client is slow. No effect inside a subscriber of this
   * channel, which may send events itself.
   * @internal
   */
  private publishSlow(action: 'close' | 'drop'): void {
    const rare = this.rareState();
    if (!diagnostics.slow.hasSubscribers || rare.isPublishingSlow) return;
    const { bufferedAmount } = this;
    rare.isPublishingSlow = true;
    diagnostics.slow.publish({ stream: this, bufferedAmount, action });
    rare.isPublishingSlow = false;
  }
}
