/** The client of one event stream in a test. Every wait has a timeout. */
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { EventStreamParser, type ReceivedEvent } from '../client/parser.ts';
import { clearTimer, nextTurn, setTimer, waitFor } from './real-timers.ts';
import type { ServedTarget } from './target.ts';

// Turns of the event loop in which a server in this process can notice that its client has left.
const TURNS_BEFORE_DESTROY = 3;

// Maximum number of characters of a response or event that an error message quotes.
const MAX_QUOTE_LENGTH = 200;

/** A request whose response headers have arrived. */
interface Exchange {
  /** Method and path, for error messages. */
  readonly name: string;
  readonly server: ServedTarget;
  readonly request: ClientRequest;
  readonly response: IncomingMessage;
  /** Timeout of each wait, in ms. */
  readonly timeout: number;
  /** The `Last-Event-ID` of the request, `''` without one. */
  readonly lastEventId: string;
  /** Whether `sse:checkpoint` events are returned. */
  readonly checkpoints: boolean;
}

/** How a stream ended: after a complete response, by a broken connection, or by `close()`. */
type End = 'complete' | 'cut' | 'closed';

/**
 * The client of one event stream. Events that arrive are kept until a call asks for them:
 *
 * ```text
 *   response ──▶ parser ──▶ #received ──▶ next(), take(), rest(), for await
 *                           #waiters: calls that came before their event
 * ```
 *
 * Each wait rejects after `timeout` ms, with a description of what was received.
 */
export class EventReader implements AsyncIterable<ReceivedEvent>, AsyncDisposable {
  readonly #exchange: Exchange;
  readonly #parser: EventStreamParser;
  // Events that no call has asked for yet. Empty while there are waiters.
  readonly #received: ReceivedEvent[] = [];
  readonly #waiters: ((event: ReceivedEvent | undefined) => void)[] = [];
  readonly #ended: Promise<'complete' | 'cut'>;
  // The connection does not keep the process alive. If it did, a reader that is not closed would
  // keep `node --test` running. This timer keeps the process alive for one timeout after each call,
  // so that a test can wait for what the server does in the meantime.
  readonly #keepAliveTimer: NodeJS.Timeout;
  #receivedCount = 0;
  #lastReceived: ReceivedEvent | undefined;
  #returnedCount = 0;
  #end: End | undefined;
  #closing: Promise<void> | undefined;
  #text = '';
  #retry: number | undefined;

  /** The status of the response. */
  readonly status: number;
  /** The headers of the response, with names in lower case. */
  readonly headers: IncomingHttpHeaders;
  /**
   * The comments received so far, one string per line. An empty string is a heartbeat, or the
   * comment with which the library opens a stream.
   */
  readonly comments: readonly string[];

  /** @internal */
  constructor(exchange: Exchange) {
    const { response } = exchange;
    const comments: string[] = [];
    this.#exchange = exchange;
    this.#keepAliveTimer = setTimer(() => {}, exchange.timeout);
    this.status = response.statusCode ?? 0;
    this.headers = response.headers;
    this.comments = comments;
    this.#parser = new EventStreamParser(
      {
        onEvent: (event) => this.#onEvent(event),
        onComment: (text) => void comments.push(text),
        onRetry: (ms) => {
          this.#retry = ms;
        },
      },
      exchange.lastEventId,
    );
    this.#ended = new Promise((resolve) => {
      // Emitted both after the end of the response and after a broken connection.
      response.on('close', () => resolve(this.#onResponseClose()));
    });
    this.#readResponse(response);
  }

  /**
   * The id that the client would send as `Last-Event-ID` when it reconnects: the id of the last
   * event that had one, including checkpoints.
   */
  get lastEventId(): string {
    return this.#parser.lastEventId;
  }

  /** The reconnection time in ms that was received last. */
  get retry(): number | undefined {
    return this.#retry;
  }

  /** The received text, unchanged. */
  get text(): string {
    return this.#text;
  }

  /**
   * Returns the next event that has not been returned yet.
   * @returns a promise that rejects if no event arrives in time, or if none can arrive any more
   */
  async next(): Promise<ReceivedEvent> {
    const event = await this.#nextEvent();
    if (event === undefined) throw this.#createError(`event ${this.#returnedCount + 1}`);
    return event;
  }

  /**
   * Returns the next `count` events.
   * @returns a promise that rejects if one of the events does not arrive in time, or cannot arrive
   * any more
   */
  async take(count: number): Promise<ReceivedEvent[]> {
    const events: ReceivedEvent[] = [];
    while (events.length < count) {
      const event = await this.#nextEvent();
      if (event === undefined) throw this.#createError(`event ${events.length + 1} of ${count}`);
      events.push(event);
    }
    return events;
  }

  /**
   * Returns all events up to the end of the stream.
   * @returns a promise that rejects if neither an event nor the end arrives in time, or if the
   * connection breaks
   */
  async rest(): Promise<ReceivedEvent[]> {
    const events: ReceivedEvent[] = [];
    for await (const event of this) events.push(event);
    return events;
  }

  /**
   * Waits for the end of the stream. A paused reader does not notice the end.
   * @returns a promise of `'complete'`, or of `'cut'` if the connection broke; rejects if the
   * stream does not end in time
   */
  async end(): Promise<'complete' | 'cut'> {
    this.#keepAliveTimer.refresh();
    const end = await waitFor<'complete' | 'cut'>(
      this.#exchange.timeout,
      (resolve) => void this.#ended.then(resolve),
    );
    if (end === undefined) throw this.#createError('the end');
    return end;
  }

  /**
   * Stops reading, like a slow client. What the server writes fills the buffers of the kernel,
   * which hold a few MB, and then the queue of the server.
   */
  pause(): this {
    this.#keepAliveTimer.refresh();
    this.#exchange.response.pause();
    return this;
  }

  /** Continues reading after `pause()`. */
  resume(): this {
    this.#keepAliveTimer.refresh();
    this.#exchange.response.resume();
    return this;
  }

  /**
   * Closes the connection, and stops the server if it was started for this reader. A second call
   * returns the same promise.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Iterates over the events up to the end of the stream. `break` does not close the reader. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ReceivedEvent, void, undefined> {
    for (;;) {
      const event = await this.#nextEvent();
      if (event !== undefined) yield event;
      else if (this.#end === 'complete' && this.#isEventStream()) return;
      else throw this.#createError(`event ${this.#returnedCount + 1} or the end`);
    }
  }

  /** Same as {@link close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #readResponse(response: IncomingMessage): void {
    // The wait that a connection error ends reports the error.
    response.on('error', () => {});
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    const isEventStream = this.#isEventStream();
    response.on('data', (bytes: Buffer) => {
      const text = decoder.decode(bytes, { stream: true });
      this.#text += text;
      if (isEventStream) this.#parser.feed(text);
    });
  }

  #onResponseClose(): 'complete' | 'cut' {
    const end = this.#exchange.response.complete ? 'complete' : 'cut';
    this.#end ??= end;
    for (const resolve of this.#waiters.splice(0)) resolve(undefined);
    return end;
  }

  #onEvent(event: ReceivedEvent): void {
    if (event.event === 'sse:checkpoint' && !this.#exchange.checkpoints) return;
    this.#receivedCount++;
    this.#lastReceived = event;
    const resolve = this.#waiters.shift();
    if (resolve === undefined) this.#received.push(event);
    else resolve(event);
  }

  /** @returns a promise of the next event, or of `undefined` after a timeout or the end */
  async #nextEvent(): Promise<ReceivedEvent | undefined> {
    this.#keepAliveTimer.refresh();
    let event = this.#received.shift();
    if (event === undefined && this.#end === undefined) {
      event = await waitFor(this.#exchange.timeout, (resolve) => {
        this.#waiters.push(resolve);
        return () => void this.#waiters.splice(this.#waiters.indexOf(resolve), 1);
      });
    }
    if (event !== undefined) this.#returnedCount++;
    return event;
  }

  async #close(): Promise<void> {
    this.#keepAliveTimer.refresh();
    this.#end ??= 'closed';
    const { request } = this.#exchange;
    // The end of the connection has to reach the server before the server is stopped. Otherwise the
    // stream would end with the reason 'server' instead of 'client'.
    request.socket?.end();
    for (let turn = 0; turn < TURNS_BEFORE_DESTROY && !request.destroyed; turn++) await nextTurn();
    request.destroy();
    await this.#ended;
    await this.#exchange.server.release();
    clearTimer(this.#keepAliveTimer);
  }

  #isEventStream(): boolean {
    return this.status === 200 && /^text\/event-stream\b/i.test(this.headers['content-type'] ?? '');
  }

  /**
   * Creates the error of a wait that failed.
   * @param awaited the event or end that did not arrive
   */
  #createError(awaited: string): Error {
    const { name, timeout } = this.#exchange;
    const failure =
      this.#end === undefined
        ? `timed out after ${timeout} ms waiting for ${awaited} of ${name}`
        : `no ${awaited} of ${name}`;
    if (!this.#isEventStream()) {
      const type = this.headers['content-type'] ?? 'no content type';
      const response = `${this.status}, ${type}: ${abbreviate(this.#text)}`;
      return new Error(`${failure}: the response is not an event stream but ${response}`);
    }
    const last =
      this.#lastReceived === undefined
        ? ''
        : ` (last: ${abbreviate(JSON.stringify(this.#lastReceived))})`;
    const events = `${countNoun(this.#receivedCount, 'event')} received${last}`;
    const comments = countNoun(this.comments.length, 'comment');
    return new Error(`${failure}: stream ${this.#describeState()}, ${events}, ${comments}`);
  }

  #describeState(): string {
    if (this.#end === 'complete') return 'ended';
    if (this.#end === 'cut') return 'cut off';
    if (this.#end === 'closed') return 'closed by this reader';
    return this.#exchange.response.isPaused() ? 'paused' : 'open';
  }
}

function countNoun(count: number, noun: string): string {
  return count === 1 ? `1 ${noun}` : `${count} ${noun}s`;
}

function abbreviate(text: string): string {
  return text.length > MAX_QUOTE_LENGTH ? `${text.slice(0, MAX_QUOTE_LENGTH)}…` : text;
}
