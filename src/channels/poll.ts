/**
 * Polling by the cursor: the response to a request with `ssePoll=1` ends after the next delivery.
 * So an unchanged EventSource works through proxies that buffer a response until it ends.
 *
 * ```text
 * request ──► events since the id ──20 ms──► checkpoint, retry: 50, end
 *        └──► nothing for 25 s ────────────► checkpoint, retry: 50, end
 * ```
 */
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';

// Time in ms between the first delivery and the end of the response. Further events of this time
// are delivered, too.
const AFTER_DELIVERY_MS = 20;

// Time in ms after which a response without a delivery ends: shorter than the usual timeouts of
// proxies.
const MAX_WAIT_MS = 25_000;

// Reconnection time in ms that is sent to the client.
const RETRY_MS = 50;

/** The end of one polled stream. */
export class Poll {
  readonly #stream: EventStream;
  // Ends the response soon after a delivery.
  #timer: NodeJS.Timeout | undefined;
  // Whether the end is scheduled.
  #isEndScheduled = false;

  /** @param stream a stream that has not opened */
  constructor(stream: EventStream) {
    this.#stream = stream;
    stream.host.onPolled?.(stream);
    const maxTimer = setTimeout(() => this.#end(), MAX_WAIT_MS);
    void stream.closed.then(() => clearTimeout(maxTimer));
    void stream.closed.then(() => clearTimeout(this.#timer));
  }

  /** Returns the options with wrapped functions, which notice deliveries to the stream. */
  watch(options: SubscribeOptions): SubscribeOptions {
    const { filter, onGap, snapshot } = options;
    return {
      ...options,
      // Without the checkpoint at the end, the next poll would miss events between the polls.
      checkpoints: true,
      filter: (event) => {
        const isAccepted = filter === undefined || filter(event);
        if (isAccepted) this.#onDelivery();
        return isAccepted;
      },
      onGap: onGap && ((...args) => this.#afterCall(onGap(...args))),
      snapshot: snapshot && ((...args) => this.#afterCall(snapshot(...args))),
    };
  }

  /** The subscription has started. A gap at its start counts as a delivery. */
  onSubscribed({ gaps }: Subscription): void {
    if (gaps > 0) this.#onDelivery();
  }

  async #afterCall<T>(answer: T | Promise<T>): Promise<T> {
    const awaited = await answer;
    void this.#onAnswered();
    return awaited;
  }

  /**
   * The log is read again after the answer. If the response ended before that, its checkpoint would
   * be the old one, and the next poll would find the same gap.
   */
  async #onAnswered(): Promise<void> {
    await this.#stream.follower?.settle();
    this.#onDelivery();
  }

  #onDelivery(): void {
    if (this.#isEndScheduled) return;
    this.#isEndScheduled = true;
    this.#timer = setTimeout(() => this.#endAfterDelivery(), AFTER_DELIVERY_MS);
  }

  /** Ends the response, unless another question is open: then the next end follows its answer. */
  #endAfterDelivery(): void {
    if (this.#stream.follower?.isAskingAboutGap === true) this.#isEndScheduled = false;
    else this.#end();
  }

  #end(): void {
    const { follower } = this.#stream;
    follower?.flush();
    follower?.checkpoint();
    this.#stream.close({ retry: RETRY_MS });
  }
}
