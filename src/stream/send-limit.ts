/** The limit for bytes that are queued: `maxBuffered`, `onSlow`, and the wait of a sender. */
import { diagnostics } from '../common/diagnostics.ts';
import { GzipBody } from '../protocol/gzip-body.ts';
import { RareState } from './rare-state.ts';
import { ResponseLifecycle } from './response-lifecycle.ts';
import type { StreamSettings } from './stream-options.ts';
import { HIGH_WATER_MARK } from './write-queue.ts';

/**
 * The base class of `EventStream`: limits the bytes that are queued for a slow client. Also has the
 * fields that only few streams need, among them the number of dropped events.
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
    return this.readyState === 1 && this.isAboveMark;
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
   * Applies `maxBuffered` before events or a comment are written. If too much is queued, the events
   * are dropped: {@link dropEvents}. The first event of a stream always fits.
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

  /** Counts events as dropped that are not dropped because of a slow client. @internal */
  countDropped(events: number): void {
    this.rareState().droppedEvents += events;
  }

  /** Counts events as dropped and applies `onSlow`. @internal */
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
