/**
 * Polling by the cursor: a request with `ssePoll=1` gets what there is and ends, so that an
 * unchanged EventSource works through proxies that hold a response back to its end.
 *
 * ```text
 * request ──► events since the id ──20 ms──► checkpoint, retry: 50, end
 *        └──► nothing for 25 s ────────────► checkpoint, retry: 50, end
 * ```
 */
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';

// Time in ms after the first delivery in which further events join the response.
const AFTER_DELIVERY_MS = 20;

// Time in ms after which a response without a delivery ends: before proxies give up.
const MAX_WAIT_MS = 25_000;

// Reconnection time in ms that the client is told.
const RETRY_MS = 50;

/** The end of one polled stream. */
export class Poll {
  readonly #stream: EventStream;
  #timer: NodeJS.Timeout;
  #isEnding = false;

  /** @param stream a stream that has not opened */
  constructor(stream: EventStream) {
    this.#stream = stream;
    stream.host.onPolled?.(stream);
    this.#timer = setTimeout(() => this.#end(), MAX_WAIT_MS);
    void stream.closed.then(() => clearTimeout(this.#timer));
  }

  /** Returns the options with functions that notice what is delivered to the stream. */
  watch(options: SubscribeOptions): SubscribeOptions {
    const { filter, onGap, snapshot } = options;
    return {
      ...options,
      filter: (event) => {
        const isAccepted = filter === undefined || filter(event);
        if (isAccepted) this.#onDelivery();
        return isAccepted;
      },
      onGap: onGap && ((...args) => this.#afterCall(onGap(...args))),
      snapshot: snapshot && ((...args) => this.#afterCall(snapshot(...args))),
    };
  }

  /** The subscription has started. A gap was delivered, too. */
  onSubscribed({ gaps }: Subscription): void {
    if (gaps > 0) this.#onDelivery();
  }

  async #afterCall<T>(answer: T | Promise<T>): Promise<T> {
    const awaited = await answer;
    this.#onDelivery();
    return awaited;
  }

  #onDelivery(): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end(), AFTER_DELIVERY_MS);
  }

  #end(): void {
    const { follower } = this.#stream;
    follower?.flush();
    follower?.checkpoint();
    this.#stream.close({ retry: RETRY_MS });
  }
}
