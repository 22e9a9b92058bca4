import { createParser, type EventSourceMessage, type EventSourceParser } from 'eventsource-parser';

/** Collects the events of a stream with a parser that the library does not use. */
export class EventCollector {
  /** The events without checkpoints. */
  readonly events: EventSourceMessage[] = [];
  /** The ids of the checkpoints. */
  readonly checkpoints: string[] = [];
  readonly comments: string[] = [];
  readonly retries: number[] = [];
  readonly #parser: EventSourceParser;

  constructor() {
    this.#parser = createParser({
      onEvent: (event) => {
        if (event.event === 'sse:checkpoint') this.checkpoints.push(event.id ?? '');
        else this.events.push(event);
      },
      onComment: (comment) => void this.comments.push(comment),
      onRetry: (retry) => void this.retries.push(retry),
    });
  }

  feed(text: string): void {
    this.#parser.feed(text);
  }
}
