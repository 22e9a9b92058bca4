/** Reads an endpoint's events in a test, where each wait has an end. */
import {
  request as httpRequest,
  type ClientRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
} from 'node:http';
import { request as httpsRequest } from 'node:https';
import { clearTimeout as stopTimer, setTimeout as startTimer } from 'node:timers';
import {
  booleanRule,
  assertOptions,
  millisecondsRule,
  type OptionRule,
} from '../common/options.ts';
import { EventStreamParser, type ReceivedEvent } from './parser.ts';
import { serve, unref, type ReadTarget, type Served } from './target.ts';

/** How an endpoint is asked. */
export interface ReadOptions {
  /** Path and query, of an app; relative to a URL. @defaultValue `/` */
  path?: string | undefined;
  /** Request headers; `Accept: text/event-stream` is sent unless another one is named here. */
  headers?: Readonly<Record<string, string>> | undefined;
  /** What a client that comes back sends as `Last-Event-ID`. @defaultValue none */
  lastEventId?: string | undefined;
  /** @defaultValue `GET`, or `POST` with a body */
  method?: string | undefined;
  /** A string or bytes go as they are, anything else as JSON. @defaultValue none */
  body?: unknown;
  /** Time in ms after which each wait fails. @defaultValue `2_000` */
  timeout?: number | undefined;
  /** Whether `next()` hands out the library's own `sse:checkpoint` events, too. @defaultValue `false` */
  checkpoints?: boolean | undefined;
}

const aString: OptionRule = { expected: 'a string', test: (value) => typeof value === 'string' };

const readRules: Readonly<Record<keyof ReadOptions, OptionRule>> = {
  path: aString,
  headers: {
    expected: 'an object of names and values',
    test: (value) => typeof value === 'object' && value !== null,
  },
  lastEventId: aString,
  method: aString,
  body: { expected: 'anything', test: () => true },
  timeout: millisecondsRule(1),
  checkpoints: booleanRule,
};

// Taken at once: a test may put false timers in their place, and its waits are to end nevertheless.
const [setTimer, clearTimer, inNextTurn] = [startTimer, stopTimer, setImmediate];

// Turns of the event loop that a server in this process is given to see that its client has left.
const TURNS_TO_LEAVE = 3;

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    inNextTurn(resolve);
  });
}

/**
 * Asks an endpoint for its events and reads them in the background from then on.
 *
 * An Express or Connect app, any other request listener, or a server that is not listening is served on a free port of
 * 127.0.0.1 until the reader is closed. An answer that is no event stream is an answer, too: see `status`, `headers` and `text`.
 * @param target a URL, an app, a request listener or a `node:http` server
 * @returns a promise of the reader, with the head of the answer; it rejects where none came in time, and with an `SseError` for a
 * target that cannot be read and an option that is unknown or out of range
 * @example
 * const reader = await readEvents(app, { path: '/listen' });
 * await channels.publish('haiku', { text }, { event: 'text' });
 * assert.deepEqual(await reader.next(), { event: 'text', data: JSON.stringify({ text }), id: reader.lastEventId });
 * await reader.close();
 */
export async function readEvents(
  target: ReadTarget,
  options: ReadOptions = {},
): Promise<EventReader> {
  assertOptions('readEvents()', options, readRules);
  const { timeout = 2_000 } = options;
  const served = await serve(target, options.path);
  const { request, name } = send(served.url, options);
  const answer = await waitFor<IncomingMessage | Error>(timeout, (resolve) => {
    request.on('response', resolve);
    request.on('error', resolve);
  });
  if (answer !== undefined && !(answer instanceof Error)) {
    return new EventReader({ name, served, request, response: answer, options, timeout });
  }
  request.destroy();
  await served.release();
  if (answer !== undefined) {
    throw new Error(`${name} got no answer: ${answer.message}`, { cause: answer });
  }
  throw new Error(
    `waited ${timeout} ms for the head of ${name} in vain; the handler sends it with the first send(), comment(), open() or subscribe()`,
  );
}

interface Reading {
  /** Method and path, for messages. */
  readonly name: string;
  readonly served: Served;
  readonly request: ClientRequest;
  readonly response: IncomingMessage;
  readonly options: ReadOptions;
  readonly timeout: number;
}

/** A client of one event stream. What comes is kept until it is asked for; each wait fails after `timeout` and says why. */
export class EventReader implements AsyncIterable<ReceivedEvent>, AsyncDisposable {
  readonly #reading: Reading;
  readonly #parser: EventStreamParser;
  // Received and not yet handed out; where somebody waits there are none.
  readonly #waiting: ReceivedEvent[] = [];
  readonly #wanting: ((event: ReceivedEvent | undefined) => void)[] = [];
  readonly #done: Promise<'complete' | 'cut'>;
  // The connection does not keep the process alive, or a reader that is not closed would keep `node --test` running. This timer does,
  // for as long after each call as a wait takes, so that a test may wait for what the server does meanwhile.
  readonly #keepAlive: NodeJS.Timeout;
  #count = 0;
  #last: ReceivedEvent | undefined;
  #handedOut = 0;
  #end: 'complete' | 'cut' | 'closed' | undefined;
  #closing: Promise<void> | undefined;
  #text = '';
  #retry: number | undefined;

  /** The status of the answer. */
  readonly status: number;
  /** The headers of the answer, with names in lower case. */
  readonly headers: IncomingHttpHeaders;
  /** The comments received so far, each line one of its own; an empty one is the heartbeat, or the opening of the stream. */
  readonly comments: readonly string[];

  /** @internal */
  constructor(reading: Reading) {
    const { response, options } = reading;
    const comments: string[] = [];
    this.#reading = reading;
    this.#keepAlive = setTimer(() => {}, reading.timeout);
    this.status = response.statusCode ?? 0;
    this.headers = response.headers;
    this.comments = comments;
    this.#parser = new EventStreamParser(
      {
        event: (event) => this.#receive(event),
        comment: (text) => void comments.push(text),
        retry: (ms) => {
          this.#retry = ms;
        },
      },
      options.lastEventId,
    );
    this.#done = new Promise((resolve) => {
      const end = (): void => {
        this.#end ??= response.complete ? 'complete' : 'cut';
        for (const want of this.#wanting.splice(0)) want(undefined);
        resolve(response.complete ? 'complete' : 'cut');
      };
      // After an end as after a cut.
      response.on('close', end);
    });
    // What is wrong with the connection is told by the wait that it ends.
    response.on('error', () => {});
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    const isStream = this.#isStream();
    response.on('data', (bytes: Buffer) => {
      const text = decoder.decode(bytes, { stream: true });
      this.#text += text;
      if (isStream) this.#parser.feed(text);
    });
  }

  /** What the client would send when it comes back: the id of the last event that had one, a checkpoint included. */
  get lastEventId(): string {
    return this.#parser.lastEventId;
  }

  /** The reconnection time in ms that it was told last. */
  get retry(): number | undefined {
    return this.#retry;
  }

  /** All that was received, as it was. */
  get text(): string {
    return this.#text;
  }

  /**
   * The next event that has not been handed out yet.
   * @returns a promise that rejects when none has come in time, or none can come any more
   */
  async next(): Promise<ReceivedEvent> {
    const event = await this.#take();
    if (event === undefined) throw this.#failure(`event ${this.#handedOut + 1}`);
    return event;
  }

  /**
   * So many events more.
   * @returns a promise that rejects when one of them has not come in time, or cannot come any more
   */
  async take(count: number): Promise<ReceivedEvent[]> {
    const events: ReceivedEvent[] = [];
    while (events.length < count) {
      const event = await this.#take();
      if (event === undefined) throw this.#failure(`event ${events.length + 1} of ${count}`);
      events.push(event);
    }
    return events;
  }

  /**
   * All events up to the end of the stream.
   * @returns a promise that rejects when neither an event nor the end has come in time, or the connection broke
   */
  async rest(): Promise<ReceivedEvent[]> {
    const events: ReceivedEvent[] = [];
    for await (const event of this) events.push(event);
    return events;
  }

  /**
   * Waits for the end of the stream; not while it is paused.
   * @returns a promise of how it ended, `'complete'` or `'cut'` off; rejects when it has not ended in time
   */
  async end(): Promise<'complete' | 'cut'> {
    this.#keepAlive.refresh();
    const end = await waitFor<'complete' | 'cut'>(
      this.#reading.timeout,
      (resolve) => void this.#done.then(resolve),
    );
    if (end === undefined) throw this.#failure('the end');
    return end;
  }

  /** Reads no more, as a slow client does: what the server writes stays with the kernel, which takes a few MB, and then with the server. */
  pause(): this {
    this.#keepAlive.refresh();
    this.#reading.response.pause();
    return this;
  }

  /** Reads again. */
  resume(): this {
    this.#keepAlive.refresh();
    this.#reading.response.resume();
    return this;
  }

  /** Leaves, and stops the app if it was started for this reader. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Ends with the stream; leaving the loop does not close the reader. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ReceivedEvent, void, undefined> {
    for (;;) {
      const event = await this.#take();
      if (event !== undefined) yield event;
      else if (this.#end === 'complete' && this.#isStream()) return;
      else throw this.#failure(`event ${this.#handedOut + 1} or the end`);
    }
  }

  /** The same as {@link close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#keepAlive.refresh();
    this.#end ??= 'closed';
    const { request } = this.#reading;
    // The end of the connection reaches the server before that is stopped: its stream ends as its client's doing.
    request.socket?.end();
    for (let turns = 0; turns < TURNS_TO_LEAVE && !request.destroyed; turns++) await nextTurn();
    request.destroy();
    await this.#done;
    await this.#reading.served.release();
    clearTimer(this.#keepAlive);
  }

  #receive(event: ReceivedEvent): void {
    if (event.event === 'sse:checkpoint' && this.#reading.options.checkpoints !== true) return;
    this.#count++;
    this.#last = event;
    const want = this.#wanting.shift();
    if (want === undefined) this.#waiting.push(event);
    else want(event);
  }

  /** The next event, or `undefined` when it has not come in time or cannot come. */
  async #take(): Promise<ReceivedEvent | undefined> {
    this.#keepAlive.refresh();
    let event = this.#waiting.shift();
    if (event === undefined && this.#end === undefined) {
      event = await waitFor(this.#reading.timeout, (resolve) => {
        this.#wanting.push(resolve);
        return () => void this.#wanting.splice(this.#wanting.indexOf(resolve), 1);
      });
    }
    if (event !== undefined) this.#handedOut++;
    return event;
  }

  #isStream(): boolean {
    return this.status === 200 && /^text\/event-stream\b/i.test(this.headers['content-type'] ?? '');
  }

  #failure(wanted: string): Error {
    const { name, timeout } = this.#reading;
    const waited =
      this.#end === undefined
        ? `waited ${timeout} ms for ${wanted} of ${name} in vain`
        : `no ${wanted} of ${name}`;
    if (!this.#isStream()) {
      const type = this.headers['content-type'] ?? 'no content type';
      return new Error(
        `${waited}: the answer is no event stream but ${this.status}, ${type}: ${shortened(this.#text)}`,
      );
    }
    const ends = { complete: 'has ended', cut: 'was cut off', closed: 'was closed by this reader' };
    const state =
      this.#end === undefined
        ? this.#reading.response.isPaused()
          ? 'is paused'
          : 'is open'
        : ends[this.#end];
    const last =
      this.#last === undefined ? '' : `, the last of them ${shortened(JSON.stringify(this.#last))}`;
    const comments = this.comments.length === 1 ? '1 comment' : `${this.comments.length} comments`;
    const events = this.#count === 1 ? '1 event' : `${this.#count} events`;
    return new Error(`${waited}: the stream ${state}; ${events} came${last}, and ${comments}`);
  }
}

function send(
  url: URL,
  { headers, lastEventId, method, body }: ReadOptions,
): { request: ClientRequest; name: string } {
  const verb = method ?? (body === undefined ? 'GET' : 'POST');
  const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, {
    method: verb,
    agent: false,
  });
  request.on('socket', unref);
  request.setHeader('Accept', 'text/event-stream');
  // As browsers send it: the UTF-8 bytes (WHATWG HTML, 9.2.4).
  if (lastEventId) request.setHeader('Last-Event-ID', Buffer.from(lastEventId).toString('latin1'));
  const isText = typeof body === 'string' || body instanceof Uint8Array;
  if (body !== undefined && !isText) request.setHeader('Content-Type', 'application/json');
  for (const [name, value] of Object.entries(headers ?? {})) request.setHeader(name, value);
  if (body === undefined) request.end();
  else request.end(isText ? body : JSON.stringify(body));
  return { request, name: `${verb} ${url.pathname}${url.search}` };
}

/**
 * What `begin` resolves with, or `undefined` when it has not in time.
 * @param begin may return what is to be done when time is up
 */
async function waitFor<T>(
  ms: number,
  begin: (resolve: (value: T | undefined) => void) => (() => void) | void,
): Promise<T | undefined> {
  return new Promise((resolve) => {
    const giveUp = begin((value) => {
      clearTimer(timer);
      resolve(value);
    });
    const timer = setTimer(() => {
      giveUp?.();
      resolve(undefined);
    }, ms);
  });
}

function shortened(text: string): string {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
