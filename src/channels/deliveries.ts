/** The streams to which events are being written at this moment. */
import type { EventStream } from '../stream/event-stream.ts';

/**
 * A stack of the deliveries that are in progress.
 *
 * Code of the application runs in the middle of a delivery: filters, a wrapped `res.write`,
 * subscribers of diagnostics channels. If that code calls a method of the same stream, two things
 * must not happen: pending events must not be written, because they would come before the events
 * that are being written; and the channels of the stream must not change. Changes of the channels
 * are deferred until the delivery has ended.
 */
export class Deliveries {
  // Usually empty, or of length 1. If the application writes to another stream from inside a
  // delivery, the length is greater.
  readonly #streams: EventStream[] = [];

  /** A delivery to the stream starts. Every call needs an {@link exit}, also after an error. */
  enter(stream: EventStream): void {
    this.#streams.push(stream);
  }

  /** The delivery that started last has ended. */
  exit(): void {
    this.#streams.pop();
  }

  /** Whether a delivery to the stream is in progress. */
  has(stream: EventStream): boolean {
    return this.#streams.length > 0 && this.#streams.includes(stream);
  }
}
