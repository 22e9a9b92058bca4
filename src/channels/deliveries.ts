/**
 * The streams that are being given events right now.
 *
 * The application's code runs in the middle of that: filters, a wrapped `res.write`, diagnostics subscribers. When it calls back,
 * what is pending for such a stream must not be written, because it would come before what is being written; and what the stream
 * follows must not change. Changes wait until the events are written.
 */
import type { EventStream } from '../stream/event-stream.ts';

export class Deliveries {
  // Nearly always empty or of one stream; more than one where the application writes to another stream meanwhile.
  readonly #streams: EventStream[] = [];

  begin(stream: EventStream): void {
    this.#streams.push(stream);
  }

  /** Ends the delivery that began last. */
  end(): void {
    this.#streams.pop();
  }

  has(stream: EventStream): boolean {
    return this.#streams.length > 0 && this.#streams.includes(stream);
  }
}
